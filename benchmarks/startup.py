"""From the shell's return key to the first step: `--help` of each script, and L2X's vectors cold and warm."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from aaai23.l2x.sample import write_sample
from benchmarks.measure import Row

ROOT = Path(__file__).parent.parent
SCRIPTS = ("l2x-cli.py", "torch-vae-cli.py", "torch-nri-cli.py")
WORDS = 300_000


def run(device: torch.device) -> list[Row]:
    """Measure against the seconds that the project allows: the column of the ratio is seconds / allowed seconds."""
    rows = [_row(f"{script} --help", _seconds([f"cli/{script}", "--help"], 3), 1.0) for script in SCRIPTS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sample(folder / "data")
        with open(folder / "data" / "review+wiki.filtered.200.txt", "a", encoding="utf-8") as file:
            file.writelines(_vectors())
        command = ["cli/l2x-cli.py", "--data-dir", f"{folder}/data", "-r", "1", "-e", "1", "--max-iterations", "1"]
        command += ["-c", f"{folder}/m.pt", "--results-dir", f"{folder}/results", "--device", device.type, "--again"]
        rows.append(_row("L2X to its end after one step, cold, 300k vectors", _seconds(command, 1), None))
        rows.append(_row("the same, warm", _seconds(command, 3), 10.0))
    return rows


def _vectors() -> Iterator[str]:
    numbers = torch.randn(1000, 200, generator=torch.Generator().manual_seed(0)).tolist()
    lines = [" ".join(f"{number:.6f}" for number in row) for row in numbers]
    for word in range(WORDS):
        yield f"filler{word} {lines[word % len(lines)]}\n"


def _seconds(command: list[str], times: int) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    found = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True)
        found.append(time.perf_counter() - start)
    return sorted(found)[len(found) // 2]


def _row(case: str, seconds: float, allowed: float | None) -> Row:
    if allowed is None:
        return Row(case, 1e3 * seconds, "", float("nan"), float("nan"))
    return Row(case, 1e3 * seconds, "allowed", 1e3 * allowed, seconds / allowed, 1.0)

"""GNU parallel runs a sweep of real runs on sample data, and reruns only what failed."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aaai23.l2x.sample import write_sample

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 10
SWEEP = f"--aspects 3 --methods imle --seeds 2 --epochs {EPOCHS}"
EXTRA = "-- -m 60 -H 20 --device cpu"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed"),
]


def generate(sample, results, *more):
    script = ROOT / "experiments/generate_l2x_aimle_cmd.py"
    places = ["--data-dir", sample, "--results-dir", results, "--python", sys.executable]
    command = [sys.executable, script, *SWEEP.split(), *places, *more, *EXTRA.split()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(folder):
    flags = ["--will-cite", "-j", "2", "--joblog", str(folder / "joblog"), "--resume-failed"]
    return subprocess.Popen(["parallel", *flags], cwd=ROOT, stdin=(folder / "lines").open())


def read(record):
    return json.loads(record.read_text()) if record.exists() else {"history": []}


def process_of(name, seed):
    """Return the id of the process of a run; the shell around it has another command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[0] == sys.executable and f"--name {name} --seed {seed} " in " ".join(words):
            return int(path.parent.name)
    return None


def exit_codes(folder):
    """Return sequence number -> (exit code, signal) of the last run of each line."""
    with (folder / "joblog").open() as file:
        return {row["Seq"]: (row["Exitval"], row["Signal"]) for row in csv.DictReader(file, delimiter="\t")}


def test_a_killed_run_is_the_only_one_that_runs_again_and_it_resumes(tmp_path):
    sample, results = tmp_path / "sample", tmp_path / "results"
    write_sample(sample, 0, 160, 60, 20)
    lines = generate(sample, results)
    (tmp_path / "lines").write_text(lines)
    runs = re.findall(r"--name (\S+) --seed (\d)", lines)
    records = [results / "l2x" / name / f"seed{seed}.json" for name, seed in runs]
    assert len(records) == 2

    first = start(tmp_path)
    deadline = time.monotonic() + 120
    while not 2 <= len(read(records[1])["history"]) < EPOCHS - 3:  # the first epoch is in the checkpoint
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process_of(*runs[1]), signal.SIGKILL)
    assert first.wait(120) == 1
    assert exit_codes(tmp_path) == {"1": ("0", "0"), "2": ("137", "0")}
    done, killed = records[0].read_bytes(), read(records[1])
    assert killed["status"] == "running"
    assert generate(sample, results, "--pending") == lines.splitlines(keepends=True)[1]

    assert start(tmp_path).wait(120) == 0
    assert set(exit_codes(tmp_path).values()) == {("0", "0")}
    assert records[0].read_bytes() == done
    resumed = read(records[1])
    assert resumed["status"] == "finished" and len(resumed["history"]) == EPOCHS
    assert resumed["timing"]["started"] == killed["timing"]["started"]
    assert records[1].with_suffix(".log").read_text().count(f"Epoch 1/{EPOCHS}\t") == 1
    assert generate(sample, results, "--pending") == ""

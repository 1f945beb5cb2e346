"""Print the megabytes of memory that a task's training step takes at most: python -m benchmarks.memory dvae cpu 2.

In a process of its own, because the most that a process has ever taken cannot be unset.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import torch


def peak_of_step(task: str, device: torch.device) -> str:
    """Return the peak of the task's `training_step_of_the_paper` as a note, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", task, device.type, str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"peak {float(done.stdout):,.0f} MB"


def main(task: str, device: str, threads: str) -> None:
    """Take a few steps; on a CPU, what the process held before the networks were there does not count."""
    torch.set_num_threads(int(threads))
    module = importlib.import_module(f"benchmarks.{task}")
    before = _peak()
    step = module.training_step_of_the_paper(torch.device(device))
    for _ in range(4):
        step()
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(_peak() - before)


def _peak() -> float:
    """Return the most megabytes that this process has had in memory; Linux's getrusage would count its parent's too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("this system does not tell how much memory a process has had")


if __name__ == "__main__":
    main(*sys.argv[1:])

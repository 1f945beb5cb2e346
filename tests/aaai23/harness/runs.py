"""A task and a model of one number for tests of the harness, and processes that run code."""

import os
import random
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aaai23.harness.config import Config, length, positive_float, positive_int, setting
from aaai23.harness.identity import identify
from aaai23.harness.run import Run

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, kw_only=True)
class Task(Config):
    """Flags of the smallest task there is."""

    method: str = setting("aimle", "--method", choices=("aimle", "ste"), help="how")
    lr: float = setting(1e-3, "--lr", type=positive_float, help="how fast")
    max_range: float = setting(1.0, "--max-range", type=float, methods=("ste",), help="how far")
    epochs: int = length(20, "--epochs", "-e", type=positive_int, help="passes over the data")


def data(folder, content="data"):
    """Return the data file of the task in a folder."""
    path = Path(folder) / "data.txt"
    if not path.exists():
        path.write_text(content)
    return path


def run_of(folder, task="l2x", *, files=None, project="p", step_name="epoch", **flags):
    """Return a run of the task, not yet entered, whose records go to `folder`."""
    config = Task(**{"name": "x", "results_dir": Path(folder), **flags})
    identity = identify(task, config, [data(folder)] if files is None else files)
    return Run(identity, config, project=project, step_name=step_name)


def take(run, losses, **parts):
    """Take steps that log these losses; returns the steps that were taken."""
    taken = []
    for step in run.steps(range(1, len(losses) + 1), **parts):
        run.log(loss=losses[step - 1])
        taken.append(step)
    return taken


def start(code, cwd, *arguments, **variables):
    """Start a Python process that runs `code` in the folder `cwd`; `variables` change its environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    environment = {key: value for key, value in environment.items() if value is not None}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


def outcome(process):
    """Return exit code, output and errors of a process once it has ended."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


class Walk(torch.nn.Module):
    """A number that walks at random, and remembers in a module."""

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))

    def step(self):
        self.place.data += torch.randn(()) + random.random() + np.random.rand()
        return self.place.item()

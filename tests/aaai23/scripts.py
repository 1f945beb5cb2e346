"""The three scripts as their users start them, and what they leave behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aaai23.harness.shell import run_cli

ROOT = Path(__file__).resolve().parents[2]


def exit_code(cli, words):
    """Run the script of a task's module `cli` in this process."""
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda _: cli.main([*map(str, words)]), cli.SCRIPT)
    return stop.value.code


def start(cli, words):
    """Start the script in a process of its own; its errors go nowhere."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "cli" / cli.SCRIPT), *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def send_at(process, text, number):
    """Send a signal to a process once a line of its output has `text`, and wait for its end."""
    for line in process.stdout:
        if text in line:
            process.send_signal(number)
            break
    process.stdout.close()
    return process.wait(60)


def path_of(folder, task, name="seed0.json"):
    """Return where the file of this name lies: the only one under the task's results in `folder`."""
    (path,) = Path(folder, "results", task).glob(f"*/{name}")
    return path


def record(folder, task, seed=0):
    """Return the record of the only run of a seed under `folder`."""
    return json.loads(path_of(folder, task, f"seed{seed}.json").read_text())


class Told:
    """What W&B is told, in the place of `aaai23.harness.tracking.Tracker`."""

    def __init__(self):
        self.options, self.logged = {}, []

    def start(self, project, **options):
        self.options = {"project": project, **options}

    def log(self, step, metrics):
        self.logged.append((step, metrics))

    def summarise(self, final):
        self.final = dict(final)

    def close(self, exit_code):
        self.exit_code = exit_code


def tell(patch):
    """Put `Told` in the place of the tracker; returns the list of those that runs make, in order."""
    told = []
    patch.setattr("aaai23.harness.run.Tracker", lambda: told.append(Told()) or told[-1])
    return told

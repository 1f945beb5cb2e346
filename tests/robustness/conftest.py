"""A folder with small data of all tasks."""

import os
import shutil
import sys

import pytest

from tests.aaai23.scripts import exit_code
from tests.robustness.corpus import CLIS, LINES, write_data


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Return a folder of data. All tasks have run once: what they load as they go is there in every child."""
    folder = write_data(tmp_path_factory.mktemp("robustness"))
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("once"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aaai23.dvae.train.draw", lambda *_: None)
        patch.setattr("aaai23.nri.train.draw_pictures", lambda *_: None)
        for task, cli in CLIS.items():
            assert exit_code(cli, [*LINES[task].split(), "--data-dir", folder / task]) == 0
    os.chdir(before)
    shutil.rmtree(folder / "l2x" / ".cache")
    return folder


@pytest.fixture
def place(originals, tmp_path, monkeypatch, no_pictures):
    """Return an empty working folder with the data in `data`."""
    monkeypatch.setattr("aaai23.nri.train.draw_pictures", lambda *_: None)
    folder = tmp_path / "a" / "b"  # what leaves it by ../.. stays in the test's
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    shutil.copytree(originals, "data")
    os.mkfifo("pipe")
    return folder


@pytest.fixture
def run(capsys):
    """Run a script in this process: exit code, output, errors."""

    def run_here(cli, words):
        for stream in (sys.stdout, sys.stderr):  # as a script's own are
            stream.reconfigure(errors="backslashreplace")
        return exit_code(cli, words), *capsys.readouterr()

    return run_here

"""What a run says it ran on."""

import subprocess

import pytest
import torch

from aaai23.harness import environment


@pytest.mark.parametrize("around", ["nothing", "a repository of somebody else"])
def test_outside_the_repository_the_environment_names_no_commit(tmp_path, monkeypatch, around):
    package = tmp_path / "lib" / "aaai23"
    package.mkdir(parents=True)
    if around != "nothing":
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(environment, "__file__", str(package / "harness" / "environment.py"))
    found = environment.environment()
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["torch"] == torch.__version__ and found["cpus"]

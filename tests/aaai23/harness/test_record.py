"""Records: what they hold, and what is refused."""

import json
import math
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from aaai23.errors import UsageError
from aaai23.harness.files import fingerprint
from aaai23.harness.identity import finished
from aaai23.harness.record import plain, read_record
from tests.aaai23.harness.runs import data, run_of, take


def test_a_record_tells_what_ran_where_and_what_came_out(tmp_path):
    with run_of(tmp_path, name="aimle-1", seed=3) as run:
        running = read_record(run.identity.file(".json"))
        take(run, [0.5, 0.25])
        run.finish(best=0.125)
    found = json.loads((tmp_path / "l2x" / "aimle-1" / "seed3.json").read_text())
    assert (running.status, running.final, running.history) == ("running", None, [])
    assert found["format"] == 2
    assert (found["task"], found["name"], found["seed"], found["method"]) == ("l2x", "aimle-1", 3, "aimle")
    assert (found["status"], found["error"], found["sample_data"]) == ("finished", None, False)
    assert found["settings"] == {"precision": "float32", "method": "aimle", "lr": 0.001, "epochs": 20}
    assert found["data"] == fingerprint([data(tmp_path)])
    assert found["history"] == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    assert found["final"] == {"best": 0.125}
    assert found["launch"]["command"].split() and found["launch"]["results_dir"] == str(tmp_path)
    environment = found["launch"]["environment"]
    assert environment["torch"] == torch.__version__
    assert set(environment) >= {"commit", "dirty", "python", "numpy", "device", "host", "cpus"}
    assert set(found["timing"]) == {"started", "updated", "seconds"}


def test_two_runs_of_one_command_differ_only_in_launch_and_timing(tmp_path, monkeypatch):
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with run_of(tmp_path / folder) as run:
            take(run, [1 / 3])
            run.finish(loss=1 / 3)
        found.append(read_record(run.identity.file(".json")))
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert found[0].compared() == found[1].compared()
    assert found[0].launch != found[1].launch
    assert set(found[0].model_dump()) - set(found[0].compared()) == {"launch", "timing"}


def test_a_record_is_strict_json_whatever_is_logged(tmp_path):
    def refuse(word):
        raise AssertionError(f"bare {word}")

    with run_of(tmp_path, step_name="iteration") as run:
        for _ in run.steps([500]):
            run.log(loss=math.nan, up=torch.tensor(math.inf), words="as_is")
        run.finish(text="± β", flag=np.bool_(True), worst=math.inf)
    found = json.loads(run.identity.file(".json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["history"] == [{"iteration": 500, "loss": None, "up": None, "words": "as_is"}]
    assert found["final"] == {"text": "± β", "flag": True, "worst": None}
    settings = {"folder": Path("data"), "sizes": (1, 2), "betas": {0.9}, "none": None}
    assert plain(settings) == {"folder": "data", "sizes": [1, 2], "betas": [0.9], "none": None}
    with pytest.raises(TypeError, match="cannot hold"):
        plain({"bad": object()})


@pytest.mark.parametrize(
    "content", ["", '{"format": 2, "task"', "[]", '{"format": 7}', '{"format": 2}', "\x00", "[" * 100_000]
)
def test_a_file_that_is_no_record_is_named_and_kept(tmp_path, content):
    run = run_of(tmp_path)
    path = run.identity.file(".json")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UsageError, match=r"seed0\.json is no run record"):
        read_record(path)
    assert finished(run.identity) is None
    with pytest.raises(UsageError, match="no run record"), run:
        pass
    assert path.read_text() == content


def test_a_record_of_an_earlier_version_says_so(tmp_path):
    (tmp_path / "seed0.json").write_text('{"format": 1, "config": {}}')
    with pytest.raises(UsageError, match="is a record of an earlier version of this project"):
        read_record(tmp_path / "seed0.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [("history", 7), ("history", [1]), ("final", [1]), ("seed", -1), ("seed", "0"), ("status", "done"), ("task", None)]
    + [("history", [{"epoch": step}]) for step in (None, 1.0, -1, 10**30)]
    + [("final", {"loss": value}) for value in (10**400, 1e308, [1.0])]
    + [("task", "../.."), ("method", ""), ("timing", {"seconds": "abc"}), ("timing", {"seconds": -1.0})],
    ids=str,
)
def test_a_record_with_a_strange_field_is_refused_by_the_name_of_the_field(tmp_path, field, value):
    with run_of(tmp_path) as run:
        pass
    path = run.identity.file(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(UsageError, match=f"is no run record: {field}"):
        read_record(path)


def test_text_that_cannot_be_written_is_no_record(tmp_path):
    with run_of(tmp_path) as run:
        pass
    path = run.identity.file(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "\ud800"}))
    with pytest.raises(UsageError, match="is no run record: not whole JSON"):
        read_record(path)


def test_a_metric_that_is_too_large_counts_as_infinite_and_its_record_can_be_read(tmp_path):
    with run_of(tmp_path) as run:
        for _ in run.steps([1]):
            run.log(loss=1e200, mse=-1e149, nll=-(10**400))
        run.finish(best=1e308)
    found = read_record(run.identity.file(".json"))
    assert found.history == [{"epoch": 1, "loss": None, "mse": -1e149, "nll": None}] and found.final == {"best": None}

"""Records: what they hold, who a run is, and what is refused."""

import errno
import functools
import gzip
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from aaai23.errors import UsageError
from aaai23.harness import record
from aaai23.harness.record import fingerprint, identify, read_record
from tests.aaai23.harness.runs import Task, data, run_of, take


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
        monkeypatch.setattr(record.socket, "gethostname", lambda: "elsewhere")
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
    assert record.plain(settings) == {"folder": "data", "sizes": [1, 2], "betas": [0.9], "none": None}
    with pytest.raises(TypeError, match="cannot hold"):
        record.plain({"bad": object()})


def test_an_infinite_setting_is_one_in_its_record_too(tmp_path):
    with run_of(tmp_path, method="ste", max_range=math.inf) as run:
        pass
    found = read_record(run.identity.file(".json"))
    assert found.settings["max_range"] == "inf"
    assert record.difference(found, run.identity) is None
    assert "max_range 'inf' (now 2.0)" in record.difference(
        found, run_of(tmp_path, method="ste", max_range=2.0).identity
    )
    names = {run_of(tmp_path, name=None, method="ste", max_range=value).identity.name for value in (math.inf, 1.0)}
    assert len(names) == 2


@pytest.mark.parametrize("around", ["nothing", "a repository of somebody else"])
def test_outside_the_repository_the_environment_names_no_commit(tmp_path, monkeypatch, around):
    package = tmp_path / "lib" / "aaai23"
    package.mkdir(parents=True)
    if around != "nothing":
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(record, "__file__", str(package / "harness" / "record.py"))
    found = record.environment()
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["torch"] == torch.__version__ and found["cpus"]


def test_a_failed_run_keeps_its_history_and_names_its_error(tmp_path):
    with pytest.raises(ValueError, match="went"), run_of(tmp_path) as run:
        for step in run.steps([1, 2]):
            if step == 2:
                raise ValueError("went wrong\nin many lines")
            run.log(loss=2.0)
    found = read_record(run.identity.file(".json"))
    assert (found.status, found.error, found.final) == ("failed", "ValueError: went wrong", None)
    assert found.history == [{"epoch": 1, "loss": 2.0}]
    assert record.finished(run.identity) is None


def test_a_run_without_final_metrics_is_not_finished(tmp_path):
    with run_of(tmp_path) as run:
        take(run, [2.0])
    assert read_record(run.identity.file(".json")).status == "failed"


def test_a_full_disk_does_not_hide_the_first_error(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ZeroDivisionError), run_of(tmp_path) as run:
        monkeypatch.setattr(os, "fsync", full)
        raise ZeroDivisionError
    assert read_record(run.identity.file(".json")).status == "running"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"lr": 0.1}, r"it has other settings: lr 0\.001 \(now 0\.1\); choose another --name"),
        ({"files": []}, r"it read other data: fingerprint \w{16}, now \w{16}; choose another --name"),
    ],
    ids=["settings", "data"],
)
def test_a_name_in_use_by_another_run_is_refused_and_nothing_is_overwritten(tmp_path, other, message):
    with run_of(tmp_path) as run:
        take(run, [1.0])
        run.finish(mse=1.0)
    before = run.identity.file(".json").read_bytes()
    for flags in ({}, {"resume": True}):
        with pytest.raises(UsageError, match=message), run_of(tmp_path, **other, **flags):
            pass
    with pytest.raises(UsageError, match=message):
        record.finished(run_of(tmp_path, **other).identity)
    assert run.identity.file(".json").read_bytes() == before
    assert record.finished(run_of(tmp_path, device="cpu").identity) == read_record(run.identity.file(".json"))
    with run_of(tmp_path, **other, again=True) as replaced:
        assert read_record(replaced.identity.file(".json")).status == "running"


def test_a_setting_that_a_record_lacks_counts_as_its_default(tmp_path):
    with run_of(tmp_path) as run:
        pass
    found = read_record(run.identity.file(".json"))
    del found.settings["lr"]
    assert record.difference(found, run.identity) is None
    assert "lr 0.001 (now 0.5)" in record.difference(found, run_of(tmp_path, lr=0.5).identity)


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
    assert record.finished(run.identity) is None
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


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "line\nbreak", "x" * 256])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    if name == "":
        assert run_of(tmp_path, name=name).identity.name.startswith("aimle-")  # as if it were not given
        return
    with pytest.raises(UsageError, match="--name"):
        run_of(tmp_path, name=name)


def test_a_resumed_run_knows_what_its_earlier_starts_ran_on(tmp_path, monkeypatch):
    for epochs, machine in ((2, "a"), (3, "b"), (3, "c"), (4, "b"), (5, "d")):  # "c" takes no step
        monkeypatch.setattr("aaai23.harness.run.environment", lambda machine=machine: {"host": machine})
        with run_of(tmp_path, epochs=epochs, resume=True) as run:
            take(run, [0.5] * epochs)
    record = read_record(tmp_path / "l2x" / "x" / "seed0.json")
    assert [(it["until"], it["environment"]["host"]) for it in record.starts(5)] == [(2, "a"), (4, "b"), (5, "d")]
    with run_of(tmp_path, epochs=1, again=True) as run:
        take(run, [0.5])
    assert len(read_record(tmp_path / "l2x" / "x" / "seed0.json").starts(1)) == 1


def test_a_record_made_by_hand_is_resumed_whatever_it_says_of_its_starts(tmp_path):
    with run_of(tmp_path) as run:
        take(run, [0.5])
    nested = functools.reduce(lambda inner, _: [inner], range(900), [])
    for earlier in (nested, [nested, {"until": nested, "environment": nested}], {"until": 1}, 7, None):
        first = read_record(run.identity.file(".json"))
        first.launch.update(earlier=earlier, environment={"host": "a", "torch": nested})
        record.write_record(run.identity.file(".json"), first)
        with run_of(tmp_path, resume=True) as run:
            pass
        assert read_record(run.identity.file(".json")).launch["earlier"][-1]["environment"] == {"host": "a"}


def test_a_resumed_run_continues_its_clock(tmp_path):
    with pytest.raises(KeyboardInterrupt), run_of(tmp_path) as run:
        take(run, [1.0])
        raise KeyboardInterrupt
    first = read_record(run.identity.file(".json"))
    assert (first.status, first.error) == ("failed", "interrupted")
    first.timing.update(started="2020-01-01T00:00:00+00:00", seconds=1000.0)
    record.write_record(run.identity.file(".json"), first)
    with run_of(tmp_path, resume=True) as run:
        take(run, [1.0, 0.5])
        run.finish()
    second = read_record(run.identity.file(".json"))
    assert (second.status, second.error) == ("finished", None)
    assert second.timing["started"] == "2020-01-01T00:00:00+00:00"
    assert second.timing["seconds"] >= 1000.0


def test_a_default_name_depends_on_settings_and_data_alone(tmp_path):
    def name(**flags):
        return run_of(tmp_path, name=None, **flags).identity.name

    assert name() == "aimle-" + name()[6:] and len(name()) == 12
    assert name(seed=9, device="cpu", resume=True, epochs=3) == name()
    assert name(max_range=5.0) == name()  # which this method does not read
    assert len({name(lr=lr) for lr in (0.001, 0.002, 0.003)}) == 3
    assert name(files=[]) != name()


def test_sample_data_are_called_so_by_a_file_in_their_folder(tmp_path):
    assert not run_of(tmp_path).identity.sample_data
    record.claim_folder(tmp_path, [])
    assert run_of(tmp_path).identity.sample_data
    assert identify("l2x", Task(), [tmp_path / "data.txt"]).sample_data


# Data


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "images", tmp_path / "labels"]
    for path in paths:
        path.write_text(f"the content of {path.name}")
    return paths


def test_names_places_times_and_packing_do_not_count(files, tmp_path):
    before = fingerprint(files)
    (tmp_path / "moved").mkdir()
    moved = [tmp_path / "moved" / f"other-{path.name}.gz" for path in files]
    for path, target in zip(files, moved, strict=True):
        target.write_bytes(gzip.compress(path.read_bytes(), mtime=1))
        os.utime(target, (1, 1))
    assert fingerprint(moved) == before and len(before) == 16


def test_one_changed_byte_counts_though_size_and_time_stay(files):
    before, stat = fingerprint(files), files[1].stat()
    files[1].write_text(files[1].read_text().replace("labels", "labelz"))
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files[1].stat().st_size == stat.st_size
    assert fingerprint(files) != before


def test_files_that_change_places_are_other_data(files):
    assert fingerprint(files) != fingerprint(reversed(files))


def test_a_broken_archive_counts_as_it_is_and_an_unreadable_file_is_named(files, tmp_path):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    other = tmp_path / "other.gz"
    other.write_bytes(cut.read_bytes()[:-1])
    assert fingerprint([cut]) != fingerprint([other])
    with pytest.raises(UsageError, match="cannot be read"):
        fingerprint([tmp_path])

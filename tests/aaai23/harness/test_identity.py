"""Who a run is, and what is refused in its place."""

import math

import pytest

from aaai23.errors import UsageError
from aaai23.harness.files import claim_folder
from aaai23.harness.identity import difference, finished, identify
from aaai23.harness.record import read_record
from tests.aaai23.harness.runs import Task, run_of, take


def test_an_infinite_setting_is_one_in_its_record_too(tmp_path):
    with run_of(tmp_path, method="ste", max_range=math.inf) as run:
        pass
    found = read_record(run.identity.file(".json"))
    assert found.settings["max_range"] == "inf"
    assert difference(found, run.identity) is None
    assert "max_range 'inf' (now 2.0)" in difference(found, run_of(tmp_path, method="ste", max_range=2.0).identity)
    names = {run_of(tmp_path, name=None, method="ste", max_range=value).identity.name for value in (math.inf, 1.0)}
    assert len(names) == 2


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
        finished(run_of(tmp_path, **other).identity)
    assert run.identity.file(".json").read_bytes() == before
    assert finished(run_of(tmp_path, device="cpu").identity) == read_record(run.identity.file(".json"))
    with run_of(tmp_path, **other, again=True) as replaced:
        assert read_record(replaced.identity.file(".json")).status == "running"


def test_a_setting_that_a_record_lacks_counts_as_its_default(tmp_path):
    with run_of(tmp_path) as run:
        pass
    found = read_record(run.identity.file(".json"))
    del found.settings["lr"]
    assert difference(found, run.identity) is None
    assert "lr 0.001 (now 0.5)" in difference(found, run_of(tmp_path, lr=0.5).identity)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "line\nbreak", "x" * 256])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    if name == "":
        assert run_of(tmp_path, name=name).identity.name.startswith("aimle-")  # as if it were not given
        return
    with pytest.raises(UsageError, match="--name"):
        run_of(tmp_path, name=name)


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
    claim_folder(tmp_path, [])
    assert run_of(tmp_path).identity.sample_data
    assert identify("l2x", Task(), [tmp_path / "data.txt"]).sample_data

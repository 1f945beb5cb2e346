"""A run's machinery: records, checkpoints, randomness, W&B, exit codes, flags."""

import argparse
import errno
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from aaai23 import arguments, record, shell, tracking
from aaai23.errors import UsageError
from aaai23.run import (
    Run,
    check_same_config,
    comparable,
    configure_logging,
    epoch_order,
    is_finished,
    load_checkpoint,
    progress,
    random_state,
    read_record,
    record_path,
    save_checkpoint,
    seed_everything,
    select_device,
    set_random_state,
)

ROOT = Path(__file__).resolve().parent.parent
LONG_NAME = "beeradv_" + "H=250_" * 33 + ".pt"  # as long as the published command's checkpoint name
CONFIG = {"lr": 1e-3, "method": "aimle", "seed": 0, "device": "auto"}


def start(code, cwd, *arguments, **variables):
    """Start a Python process that runs `code` in the folder `cwd`; `variables` change its environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    environment = {key: value for key, value in environment.items() if value is not None}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


def outcome(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def fake_wandb(monkeypatch):
    """A stand-in for W&B that notes what it is told; WANDB_MODE says offline."""
    told = types.SimpleNamespace(init=[], log=[], summary={}, finish=[])
    run = types.SimpleNamespace(
        log=lambda metrics, step: told.log.append((step, metrics)),
        summary=told.summary,
        finish=lambda exit_code: told.finish.append(exit_code),
    )

    def init(**options):
        told.init.append(options)
        return run

    module = types.ModuleType("wandb")
    module.Settings = lambda **options: options
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    told.run, told.module = run, module
    return told


# Randomness and devices


def test_seeding_repeats_python_torch_and_numpy():
    def draws():
        return random.random(), torch.rand(3).tolist(), np.random.rand(3).tolist()

    seed_everything(7)
    first = draws()
    assert draws() != first
    seed_everything(7)
    assert draws() == first


def test_the_order_of_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    before = torch.get_rng_state()
    order = epoch_order(1000, seed=3, epoch=5)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(1000))
    torch.rand(1)
    assert torch.equal(order, epoch_order(1000, seed=3, epoch=5))
    others = {tuple(epoch_order(1000, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(others) == 25
    torch.set_rng_state(before)
    epoch_order(10, 0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_random_states_survive_a_checkpoint(tmp_path):
    def draws():
        return random.gauss(0, 1), torch.randn(5).tolist(), np.random.randn(3).tolist()

    draws()  # an odd number of Gaussian draws leaves one kept back
    save_checkpoint(tmp_path / "state.pt", {"random": random_state()})
    expected = [draws(), draws()]
    seed_everything(99)
    set_random_state(load_checkpoint(tmp_path / "state.pt")["random"])
    assert [draws(), draws()] == expected


@pytest.mark.gpu
def test_random_states_of_the_gpu_survive_a_checkpoint(tmp_path):
    torch.randn(3, device="cuda")
    save_checkpoint(tmp_path / "state.pt", {"random": random_state()})
    expected = torch.randn(5, device="cuda").tolist()
    set_random_state(load_checkpoint(tmp_path / "state.pt")["random"])
    assert torch.randn(5, device="cuda").tolist() == expected
    assert select_device("auto").type == "cuda"
    assert record.device_name() == torch.cuda.get_device_name()


def test_a_checkpoint_of_a_gpu_run_resumes_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = random_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)]}
    expected = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), expected)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == select_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="no usable GPU"):
        select_device("cuda")
    with pytest.raises(UsageError, match="choose auto, cpu or cuda"):
        select_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto") == select_device("cuda") == torch.device("cuda")


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was_and_replaces_the_old_one(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    path = tmp_path / "models" / "deep" / LONG_NAME
    assert len(path.name) > 200
    save_checkpoint(path, {"epoch": 1})
    save_checkpoint(path, {"epoch": 2, "model": model.state_dict(), "optimiser": optimiser.state_dict()})
    state = load_checkpoint(path)
    assert state["epoch"] == 2
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state["model"].items())
    assert torch.equal(state["optimiser"]["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_name_of_the_greatest_length_can_be_written(tmp_path):
    save_checkpoint(tmp_path / ("x" * 255), {"epoch": 1})
    with pytest.raises(UsageError, match="name too long"):
        save_checkpoint(tmp_path / ("x" * 256), {"epoch": 1})


def test_a_process_killed_while_it_saves_leaves_the_last_whole_checkpoint(tmp_path):
    code = """
        import os, signal, torch
        from aaai23.run import save_checkpoint
        for step in range(10):
            if step == 5:  # the bytes are in the temporary file, not yet under the name
                os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
            save_checkpoint("model.pt", {"step": step, "weights": torch.full((1000, 100), float(step))})
    """
    code, _, err = outcome(start(code, tmp_path))
    assert code == -signal.SIGKILL, err
    state = load_checkpoint(tmp_path / "model.pt")
    assert state["step"] == 4
    assert torch.equal(state["weights"], torch.full((1000, 100), 4.0))
    save_checkpoint(tmp_path / "model.pt", {"step": 5})
    assert load_checkpoint(tmp_path / "model.pt") == {"step": 5}


def test_an_unwritable_path_is_named_and_a_failed_save_leaves_no_trace(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write .*model\.pt"):
        save_checkpoint(tmp_path / "file" / "model.pt", {})
    save_checkpoint(tmp_path / "model.pt", {"step": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*model\.pt"):
        save_checkpoint(tmp_path / "model.pt", {"step": 2})
    assert load_checkpoint(tmp_path / "model.pt") == {"step": 1}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "model.pt"]


def test_all_bytes_have_left_the_process_when_the_disk_is_told_to_keep_them(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    record.write_atomically(tmp_path / "file", b"five!")
    assert sizes == [5]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_be_told_to_keep_its_files_is_used_without(tmp_path, monkeypatch, number):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    save_checkpoint(tmp_path / "model.pt", {"step": 1})
    assert load_checkpoint(tmp_path / "model.pt") == {"step": 1}


def test_a_disk_error_on_the_last_step_of_writing_is_not_passed_over(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UsageError, match="Input/output error"):
        save_checkpoint(tmp_path / "model.pt", {"step": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut", "truncated", "a list", "code"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "model.pt"
    save_checkpoint(path, {"weights": torch.zeros(1000)})
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif content == "a list":
        torch.save([1, 2], path)
    elif content == "code":
        torch.save({"run": os.getcwd}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.pt"):
        load_checkpoint(path)


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint .*nowhere\.pt; start without --resume"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_a_checkpoint_of_other_settings_is_refused_by_their_names():
    saved = {"lr": 0.1, "K": 10, "seed": 0, "sizes": (1, 2), "data": Path("data")}
    check_same_config(saved, {**saved, "seed": 4, "sizes": [1, 2], "data": "data"}, ignore=["seed"])
    with pytest.raises(UsageError) as caught:
        check_same_config(saved, {**saved, "lr": 0.2, "extra": True}, ignore=["seed"])
    assert "lr 0.1 (now 0.2)" in str(caught.value)
    assert "extra 'absent' (now True)" in str(caught.value)
    assert "K" not in str(caught.value)
    with pytest.raises(UsageError, match="seed"):
        check_same_config(saved, {**saved, "seed": 4}, ignore=[])


# Records


def test_a_record_tells_what_ran_where_and_what_came_out(tmp_path):
    with Run("l2x", "aimle-1", 3, CONFIG, results_dir=tmp_path, sample_data=True) as run:
        running = read_record(run.path)
        run.log(1, {"loss": torch.tensor(0.5), "mse": np.float32(0.25)})
        run.log(2, {"loss": 0.25, "mse": 0.125})
        assert read_record(run.path)["history"] == run.history
        run.finish({"best": 0.125})
    found = read_record(record_path(tmp_path, "l2x", "aimle-1", 3))
    assert (running["status"], running["final"], running["history"]) == ("running", None, [])
    assert found["format"] == 1
    assert (found["task"], found["name"], found["seed"]) == ("l2x", "aimle-1", 3)
    assert (found["status"], found["error"], found["sample_data"]) == ("finished", None, True)
    assert found["config"] == CONFIG
    assert found["history"] == [{"epoch": 1, "loss": 0.5, "mse": 0.25}, {"epoch": 2, "loss": 0.25, "mse": 0.125}]
    assert found["final"] == {"best": 0.125}
    assert found["command"].split()
    assert found["environment"]["torch"] == torch.__version__
    assert set(found["environment"]) >= {"commit", "dirty", "python", "numpy", "device", "host", "cpus"}
    assert set(found["timing"]) == {"started", "updated", "seconds"}
    assert [entry.name for entry in run.path.parent.iterdir()] == ["seed3.json"]
    assert is_finished(run.path)


def test_two_runs_of_one_command_differ_only_in_environment_and_timing(tmp_path, monkeypatch):
    records = []
    for folder in ("a", "b"):
        with Run("l2x", "same", 0, CONFIG, results_dir=tmp_path / folder) as run:
            run.log(1, {"loss": 1 / 3})
            run.finish({"loss": 1 / 3})
        records.append(read_record(run.path))
        monkeypatch.setattr(record.socket, "gethostname", lambda: "elsewhere")
    first, second = (json.dumps(comparable(found)) for found in records)
    assert first == second
    assert records[0]["environment"] != records[1]["environment"]
    assert set(records[0]) - set(comparable(records[0])) == {"environment", "timing"}


def test_a_record_is_strict_json_whatever_is_logged(tmp_path):
    def refuse(word):
        raise AssertionError(f"bare {word}")

    config = {"folder": Path("data"), "sizes": (1, 2), "betas": {0.9}, "device": torch.device("cpu"), "none": None}
    with Run("vae", "nan", 0, config, results_dir=tmp_path, step_name="iteration") as run:
        run.log(500, {"loss": math.nan, "up": torch.tensor(math.inf), "list": np.array([1.0, -math.inf])})
        run.finish({"text": "± β", "flag": np.bool_(True)})
    found = json.loads(run.path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["history"] == [{"iteration": 500, "loss": None, "up": None, "list": [1.0, None]}]
    assert found["final"] == {"text": "± β", "flag": True}
    assert found["config"] == {"folder": "data", "sizes": [1, 2], "betas": [0.9], "device": "cpu", "none": None}
    with pytest.raises(TypeError, match="cannot hold"):
        record.plain({"bad": object()})


def test_settings_that_are_infinite_come_back_from_a_record_and_figures_do_not(tmp_path):
    config = {"max_range": math.inf, "low": -math.inf, "betas": [math.inf, 0.5], "word": "information"}
    with Run("nri", "inf", 0, config, results_dir=tmp_path) as run:
        run.log(1, {"loss": math.inf})
        run.finish({"loss": math.inf})
    found = read_record(run.path)
    assert found["config"] == config
    assert found["history"] == [{"epoch": 1, "loss": None}] and found["final"] == {"loss": None}
    check_same_config(found["config"], config)
    with pytest.raises(UsageError, match=r"max_range 'inf' \(now None\)"):
        check_same_config(found["config"], {**config, "max_range": None})
    assert arguments.default_name(config, "x") != arguments.default_name({**config, "max_range": None}, "x")


@pytest.mark.parametrize("around", ["nothing", "a repository of somebody else"])
def test_outside_the_repository_the_environment_names_no_commit(tmp_path, monkeypatch, around):
    package = tmp_path / "lib" / "aaai23"
    package.mkdir(parents=True)
    if around != "nothing":
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(record, "__file__", str(package / "record.py"))
    found = record.environment()
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["torch"] == torch.__version__ and found["cpus"]


def test_a_failed_run_keeps_its_history_and_names_its_error(tmp_path):
    with pytest.raises(ValueError, match="went"), Run("nri", "x", 0, CONFIG, results_dir=tmp_path) as run:
        run.log(1, {"loss": 2.0})
        raise ValueError("went wrong\nin many lines")
    found = read_record(run.path)
    assert (found["status"], found["error"]) == ("failed", "ValueError: went wrong")
    assert found["history"] == [{"epoch": 1, "loss": 2.0}]
    assert found["final"] is None
    assert not is_finished(run.path)


def test_a_run_without_final_figures_is_not_finished(tmp_path):
    with Run("nri", "x", 0, CONFIG, results_dir=tmp_path) as run:
        run.log(1, {"loss": 2.0})
    assert read_record(run.path)["status"] == "failed"


def test_a_full_disk_does_not_hide_the_first_error(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ZeroDivisionError), Run("nri", "x", 0, CONFIG, results_dir=tmp_path) as run:
        monkeypatch.setattr(os, "fsync", full)
        raise ZeroDivisionError
    assert read_record(run.path)["status"] == "running"


def test_a_name_in_use_by_other_settings_is_refused_and_nothing_is_overwritten(tmp_path):
    with Run("l2x", "mine", 0, CONFIG, results_dir=tmp_path) as run:
        run.finish({"mse": 1.0})
    before = run.path.read_bytes()
    with (
        pytest.raises(UsageError, match=r"lr 0\.001 \(now 0\.1\); choose another --name"),
        Run("l2x", "mine", 0, {**CONFIG, "lr": 0.1}, results_dir=tmp_path),
    ):
        pass
    with (
        pytest.raises(UsageError, match=r"sample_data False \(now True\)"),
        Run("l2x", "mine", 0, CONFIG, results_dir=tmp_path, sample_data=True),
    ):
        pass
    with pytest.raises(UsageError, match="choose another --name"):
        record.finished_record(run.path, {**CONFIG, "lr": 0.1})
    assert run.path.read_bytes() == before
    assert record.finished_record(run.path, {**CONFIG, "device": "cpu"}) == read_record(run.path)
    with Run("l2x", "mine", 0, {**CONFIG, "device": "cpu"}, results_dir=tmp_path):
        assert read_record(run.path)["status"] == "running"


@pytest.mark.parametrize("content", ["", '{"format": 1, "task"', "[]", '{"format": 7}', '{"format": 1}', "\x00"])
def test_a_file_that_is_no_record_is_named_and_kept(tmp_path, content):
    path = record_path(tmp_path, "l2x", "mine", 0)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UsageError, match=r"seed0\.json is no run record"):
        read_record(path)
    assert not is_finished(path)
    with pytest.raises(UsageError, match="no run record"), Run("l2x", "mine", 0, CONFIG, results_dir=tmp_path):
        pass
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "line\nbreak", "x" * 256])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="--name"):
        Run("l2x", name, 0, CONFIG, results_dir=tmp_path)


def test_a_resumed_run_continues_history_and_clock(tmp_path):
    with pytest.raises(KeyboardInterrupt), Run("l2x", "r", 0, CONFIG, results_dir=tmp_path) as run:
        run.log(1, {"loss": 1.0})
        run.log(2, {"loss": 0.5})
        raise KeyboardInterrupt
    first = read_record(run.path)
    assert (first["status"], first["error"]) == ("failed", "interrupted")
    first["timing"].update(started="2020-01-01T00:00:00+00:00", seconds=1000.0)
    record.write_record(run.path, first)
    with Run("l2x", "r", 0, CONFIG, results_dir=tmp_path, history=first["history"][:1]) as run:
        run.log(2, {"loss": 0.5})
        run.finish({})
    second = read_record(run.path)
    assert second["history"] == first["history"]
    assert (second["status"], second["error"]) == ("finished", None)
    assert second["timing"]["started"] == "2020-01-01T00:00:00+00:00"
    assert second["timing"]["seconds"] >= 1000.0


# W&B


def test_wandb_mirrors_the_record_under_a_stable_id(tmp_path, fake_wandb):
    options = {"wandb_project": "beeradv-aaai23", "wandb_name": "aimle-0", "wandb_tags": ["l2x", "aimle", "t" * 80]}
    with Run("l2x", "sweep", 0, CONFIG, results_dir=tmp_path, **options) as run:
        run.log(1, {"loss": 1.0, "bad": math.nan})
        run.log(3, {"loss": torch.tensor(0.5)})
        run.finish({"best": 0.5})
    assert fake_wandb.log == [(1, {"loss": 1.0}), (3, {"loss": 0.5})]
    assert fake_wandb.summary == {"best": 0.5}
    assert fake_wandb.finish == [0]
    begun = fake_wandb.init[0]
    assert (begun["project"], begun["name"], begun["group"]) == ("beeradv-aaai23", "aimle-0", "sweep")
    assert begun["tags"] == ["l2x", "aimle", "t" * 64]
    assert begun["config"]["lr"] == 1e-3
    with Run("l2x", "sweep", 0, CONFIG, results_dir=tmp_path, history=run.history, **options) as resumed:
        resumed.log(4, {"loss": 0.25})
        resumed.finish({})
    assert fake_wandb.log[2:] == [(1, {"loss": 1.0}), (3, {"loss": 0.5}), (4, {"loss": 0.25})]
    with Run("l2x", "sweep", 1, CONFIG, results_dir=tmp_path, **options):
        pass
    ids = [begun["id"] for begun in fake_wandb.init]
    assert ids[0] == ids[1] != ids[2]
    assert fake_wandb.finish == [0, 0, 1]


def test_the_group_of_the_environment_goes_first(tmp_path, fake_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "table-1")
    with Run("l2x", "sweep", 0, CONFIG, results_dir=tmp_path, wandb_project="p") as run:
        run.finish({})
    assert fake_wandb.init[0]["group"] == "table-1"


@pytest.mark.parametrize("broken", ["init", "log", "summary", "finish", "import"])
def test_wandb_never_fails_a_run(tmp_path, fake_wandb, monkeypatch, caplog, broken):
    def fail(*args, **kwargs):
        raise RuntimeError("server on fire\nmore")

    if broken == "import":
        monkeypatch.setitem(sys.modules, "wandb", None)
    elif broken == "init":
        fake_wandb.module.init = fail
    elif broken == "summary":
        fake_wandb.run.summary = types.SimpleNamespace(update=fail)
    else:
        setattr(fake_wandb.run, broken, fail)
    with Run("l2x", "x", 0, CONFIG, results_dir=tmp_path, wandb_project="p") as run:
        run.log(1, {"loss": 1.0})
        run.log(2, {"loss": 1.0})
        run.finish({"best": 1.0})
    assert is_finished(run.path)
    assert len(read_record(run.path)["history"]) == 2
    assert [entry.message.split(":")[0] for entry in caplog.records] == ["W&B is off for the rest of this run"]
    assert "\n" not in caplog.records[0].getMessage()


def test_a_server_out_of_reach_means_offline(tmp_path, fake_wandb, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    working = fake_wandb.module.init

    def init(mode, **options):
        if mode == "online":
            raise TimeoutError("no route")
        return working(mode=mode, **options)

    fake_wandb.module.init = init
    fake_wandb.module.teardown = lambda: None
    for seed in range(2):
        with Run("l2x", "x", seed, CONFIG, results_dir=tmp_path, wandb_project="p") as run:
            run.log(1, {"loss": 1.0})
            run.finish({})
    assert [options["mode"] for options in fake_wandb.init] == ["offline", "offline"]
    assert fake_wandb.log == [(1, {"loss": 1.0})] * 2
    assert len(caplog.records) == 1


def test_a_server_out_of_reach_leaves_the_runs_alone_that_are_open_already(tmp_path, fake_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    working = fake_wandb.module.init

    def init(mode, **options):
        if mode == "online" and fake_wandb.init:
            raise TimeoutError("no route")
        return working(mode=mode, **options)

    fake_wandb.module.init = init
    fake_wandb.module.teardown = lambda: pytest.fail("teardown ends the first run")
    runs = [Run("l2x", "x", seed, CONFIG, results_dir=tmp_path, wandb_project="p") for seed in range(2)]
    with runs[0], runs[1]:
        for run in runs:
            run.log(1, {"loss": 1.0})
    first, second = fake_wandb.init
    assert (first["mode"], second["mode"]) == ("online", "offline") and second["id"].endswith("-offline")
    assert fake_wandb.log == [(1, {"loss": 1.0})] * 2


@pytest.mark.parametrize(
    ("given", "spin"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_a_process_is_tuned_where_the_user_has_not_done_it(given, spin):
    code = "from aaai23.shell import tune_process; tune_process(); import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in names} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(spin)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the GNU C library alone has this")
@pytest.mark.parametrize(("given", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_stays_with_the_process_unless_the_user_says_otherwise(given, kept):
    code = """
import resource, torch
from aaai23.shell import tune_process
tune_process()
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 1000) == kept  # 64 MB are 15,625 pages of 4 KB


@pytest.mark.slow
def test_with_an_account_but_no_network_wandb_logs_offline(tmp_path):
    code = """
        from aaai23 import tracking
        from aaai23.run import Run
        tracking._INIT_SECONDS = 1
        for seed in range(2):
            with Run("vae", "x", seed, {}, wandb_project="p") as run:
                run.log(1, {"loss": 1.0})
                run.finish({})
    """
    account = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": None}
    code, _, err = outcome(start(code, tmp_path, HOME=str(tmp_path), **account))
    assert code == 0, err
    assert err.count("W&B cannot start online") == 1
    assert err.count("Run history:") == 2
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_an_interruption_while_wandb_starts_is_recorded(tmp_path, fake_wandb):
    def interrupt(**options):
        raise KeyboardInterrupt

    fake_wandb.module.init = interrupt
    with pytest.raises(KeyboardInterrupt), Run("l2x", "x", 0, CONFIG, results_dir=tmp_path, wandb_project="p"):
        pass
    assert read_record(record_path(tmp_path, "l2x", "x", 0))["error"] == "interrupted"


def test_the_mode_of_wandb_follows_what_the_user_set_up(tmp_path, monkeypatch, caplog):
    tracking._say_offline.cache_clear()
    for key in (
        "WANDB_MODE",
        "WANDB_API_KEY",
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_BASE_URL",
        "WANDB_CONFIG_DIR",
        "NETRC",
    ):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert tracking.wandb_mode() == tracking.wandb_mode() == "offline"
    assert len(caplog.records) == 1
    (tmp_path / ".netrc").write_text("machine example.org login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert tracking.wandb_mode() == "offline"
    with (tmp_path / ".netrc").open("a") as file:
        file.write("machine api.wandb.ai login user password secret\n")
    assert tracking.wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.net")
    assert tracking.wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert tracking.wandb_mode() == "online"
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = disabled\n")
    assert tracking.wandb_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking.wandb_mode() == "offline"


@pytest.mark.parametrize("given", [None, "/elsewhere/logs"])
def test_the_line_about_wandb_names_the_folder_that_it_writes_to(tmp_path, monkeypatch, caplog, given):
    import wandb

    tracking._say_offline.cache_clear()
    for key in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if given:
        monkeypatch.setenv("WANDB_DIR", given)
    assert tracking.wandb_mode() == "offline"
    named = caplog.messages[0].split("into ")[1].split(" ")[0]
    used = wandb.Settings(root_dir=given or str(tmp_path)).wandb_dir
    assert os.path.abspath(named) == used


def test_without_an_account_wandb_logs_offline_and_shows_its_summary(tmp_path):
    code = """
        from aaai23.run import Run, configure_logging
        logger = configure_logging("torch-vae-cli.py")
        for seed in range(2):
            with Run("vae", "x", seed, {"lr": 0.1}, wandb_project="aimle-dvae", wandb_name=f"aimle-{seed}") as run:
                for epoch in range(1, 4):
                    run.log(epoch, {"loss": 1 / epoch, "tau": 0.5, "test_loss": 2 / epoch})
                run.finish({"best_test_loss": 0.66})
                logger.info("Experiment completed.")
    """
    unset = dict.fromkeys(("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR", "NETRC"))
    code, out, err = outcome(start(code, tmp_path, HOME=str(tmp_path), **unset))
    assert code == 0, err
    offline, *rest = out.splitlines()
    assert offline.startswith("WARNING:torch-vae-cli.py:no W&B account at hand: logging offline into wandb ")
    assert rest == ["INFO:torch-vae-cli.py:Experiment completed."] * 2
    assert err.count("Run history:") == err.count("Run summary:") == 2
    assert "test_loss █" in err and "best_test_loss 0.66" in err
    folders = list((tmp_path / "wandb").glob("offline-run-*-vae-*"))
    assert len(folders) == 2
    assert all(list(folder.glob("run-vae-*.wandb")) for folder in folders)


def test_disabled_wandb_is_not_imported(tmp_path):
    code = """
        import sys
        from aaai23.tracking import Tracker
        tracker = Tracker()
        tracker.start("p", run_id="x", name="x", group="g", tags=[], config={})
        tracker.log(1, {"loss": 1.0})
        tracker.summarise({"loss": 1.0})
        tracker.close(0)
        print([name for name in sys.modules if name.split(".")[0] == "wandb"])
    """
    assert outcome(start(code, tmp_path, WANDB_MODE="disabled")) == (0, "[]\n", "")


# The shell


def test_a_signal_ends_a_run_in_order(tmp_path):
    code = """
        import sys, time
        from aaai23.run import Run, run_cli
        def main(argv):
            with Run("l2x", "x", int(sys.argv[-1]), {}) as run:
                run.log(1, {"loss": 1.0})
                print("ready", flush=True)
                time.sleep(60)
        run_cli(main, "l2x-cli.py")
    """
    endings = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}
    processes = {number: start(code, tmp_path, int(number)) for number in endings}
    for number, (exit_code, error) in endings.items():
        assert processes[number].stdout.readline() == "ready\n"
        processes[number].send_signal(number)
        code, _, err = outcome(processes[number])
        assert (code, err) == (exit_code, f"l2x-cli.py: {error}\n")
        found = read_record(tmp_path / "results" / "l2x" / "x" / f"seed{int(number)}.json")
        assert (found["status"], found["error"]) == ("failed", error)
        assert found["history"] == [{"epoch": 1, "loss": 1.0}]


def test_a_second_sigterm_does_not_cut_the_end_short(tmp_path):
    code = """
        import os, signal
        from aaai23.shell import run_cli
        def main(argv):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                print("cleaned up")
        run_cli(main, "x.py")
    """
    assert outcome(start(code, tmp_path)) == (143, "cleaned up\n", "x.py: terminated\n")


@pytest.mark.parametrize(
    ("raised", "exit_code", "line"),
    [
        (UsageError("no file\nhere"), 2, "x.py: error: no file here\n"),
        (FloatingPointError("loss is nan at iteration 3"), 1, "x.py: error: loss is nan at iteration 3\n"),
        (OSError(errno.ENOSPC, "No space left"), 1, "x.py: error: No space left; free some space\n"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "x.py: error: the package torch is missing; `make test` once, then `. .venv/bin/activate`\n",
        ),
    ],
)
def test_errors_that_the_user_can_mend_are_one_line(capsys, raised, exit_code, line):
    def main(argv):
        assert argv is None
        raise raised

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        shell.run_cli(main, "x.py")
    assert (caught.value.code, capsys.readouterr().err) == (exit_code, line)
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_errors_show_their_traceback_and_success_is_zero(capsys):
    with pytest.raises(SystemExit) as caught:
        shell.run_cli(lambda argv: 1 // 0, "x.py")
    assert caught.value.code == 1
    assert "Traceback" in (err := capsys.readouterr().err) and "ZeroDivisionError" in err
    for returned, exit_code in ((None, 0), (0, 0), (3, 3)):
        with pytest.raises(SystemExit) as caught:
            shell.run_cli(lambda argv: returned, "x.py")  # noqa: B023
        assert caught.value.code == exit_code


def test_a_reader_that_goes_away_ends_the_program_quietly(tmp_path):
    code = """
        from aaai23.shell import configure_logging, run_cli
        def main(argv):
            logger = configure_logging("x.py")
            while True:
                logger.info("line")
        run_cli(main, "x.py")
    """
    process = start(code, tmp_path)
    assert process.stdout.readline() == "INFO:x.py:line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1


def test_help_does_not_wait_for_torch(tmp_path):
    code = """
        import sys
        import aaai23.arguments, aaai23.shell, aaai23.record, aaai23.tracking
        print([name for name in ("torch", "numpy", "wandb", "tqdm") if name in sys.modules])
    """
    assert outcome(start(code, tmp_path)) == (0, "[]\n", "")


def test_log_lines_have_the_published_form(capsys):
    for _ in range(2):
        logger = configure_logging("l2x-cli.py")
    logger.info("Epoch 1/20\tLoss %.4f ± %.4f", 0.05, 0.02)
    logger.debug("not shown")
    assert capsys.readouterr() == ("INFO:l2x-cli.py:Epoch 1/20\tLoss 0.0500 ± 0.0200\n", "")
    assert logger is logging.getLogger("l2x-cli.py")
    logging.getLogger("aaai23.l2x.data").info("Reading")
    assert capsys.readouterr() == ("INFO:l2x-cli.py:Reading\n", "")


def test_progress_is_silent_when_piped_and_passes_everything_on(capsys):
    assert list(progress(range(5), "Epoch 1/20")) == list(range(5))
    assert list(progress(iter("ab"), "x", total=2)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


# Flags


def run_parser():
    parser = arguments.ArgumentParser(prog="l2x-cli.py")
    parser.add_argument("--epochs", "-e", type=arguments.positive_int, default=20, help="passes over the data")
    arguments.add_run_arguments(parser, data_dir="data/sample", seed=4)
    return parser


def test_the_shared_flags_have_their_defaults_and_are_read():
    args = run_parser().parse_args([])
    assert vars(args) == {
        "epochs": 20,
        "data_dir": Path("data/sample"),
        "seed": 4,
        "name": None,
        "resume": False,
        "again": False,
        "device": "auto",
        "precision": "float32",
        "results_dir": Path("results"),
    }
    text = "-e 2 --data-dir d --seed 7 --name n --resume --device cpu --results-dir r"
    args = run_parser().parse_args(text.split())
    assert (args.epochs, args.data_dir, args.seed, args.name) == (2, Path("d"), 7, "n")
    assert (args.resume, args.device, args.results_dir) == (True, "cpu", Path("r"))


@pytest.mark.parametrize(
    "line", ["-e 0", "-e x", "--epoch 3", "--device tpu", "--seed -1", "--nonsense", "-e", "--resume --again"]
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(capsys, line):
    with pytest.raises(SystemExit) as caught:
        run_parser().parse_args(line.split())
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert err.startswith("l2x-cli.py: error: ") and err.endswith("(see --help)\n")
    assert err.count("\n") == 1 and out == ""


def test_help_names_defaults_but_not_empty_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        run_parser().parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "passes over the data (default: 20)" in text
    assert "(default: data/sample)" in text
    assert "None" not in text and "False" not in text


def test_true_and_false_are_read_in_every_spelling_and_nothing_else():
    for text in ("True", "true", "YES", "1"):
        assert arguments.true_or_false(text) is True
    for text in ("False", "false", "No", "0"):
        assert arguments.true_or_false(text) is False
    for text in ("", "2", "maybe", "__import__('os')", "None"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected True or False"):
            arguments.true_or_false(text)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (arguments.positive_int, {"1": 1, "40": 40}, ["0", "-1", "1.5", "x", ""]),
        (arguments.non_negative_int, {"0": 0}, ["-1", "0.0"]),
        (arguments.seed_number, {"0": 0, "4294967295": 2**32 - 1}, ["-1", "4294967296"]),
        (arguments.finite_float, {"-1e3": -1000.0}, ["nan", "inf", "-inf", "x"]),
        (arguments.positive_float, {"1e-9": 1e-9}, ["0", "-0.1", "nan", "inf"]),
        (arguments.non_negative_float, {"0": 0.0, "0.5": 0.5}, ["-0.1", "nan", "inf"]),
        (arguments.probability, {"0": 0.0, "1": 1.0}, ["1.01", "-0.01", "nan"]),
    ],
)
def test_numbers_keep_to_their_range(kind, good, bad):
    for text, value in good.items():
        assert kind(text) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"expected .*, got '{text}'"):
            kind(text)


def test_a_default_name_depends_on_the_settings_alone():
    config = {"method": "aimle", "lr": 0.001, "data_dir": Path("data"), "seed": 0, "resume": False, "device": "auto"}
    name = arguments.default_name(config, "aimle")
    assert name == "aimle-e7493a"  # fixed for ever: records on disk carry it
    moved = {"resume": True, "device": "cpu", "seed": 9, "lr": 0.001, "data_dir": "data", "method": "aimle"}
    assert arguments.default_name(moved, "aimle") == name
    names = {arguments.default_name({**config, "lr": lr}, "aimle") for lr in (0.001, 0.002, 0.003)}
    assert len(names) == 3
    assert arguments.default_name({**config, "lr": 0.5}, "aimle", ignore=[*config]) == arguments.default_name(
        {}, "aimle"
    )

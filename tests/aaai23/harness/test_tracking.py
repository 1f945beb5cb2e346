"""The W&B mirror: what it is told, and that it never fails a run."""

import math
import os
import sys
import types

import pytest
import torch

from aaai23.harness import tracking
from aaai23.harness.identity import finished
from aaai23.harness.record import read_record
from tests.aaai23.harness.runs import outcome, run_of, start, take


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


def test_wandb_mirrors_the_record_under_a_stable_id(tmp_path, fake_wandb):
    options = {"project": "beeradv-aaai23", "name": "sweep"}
    with run_of(tmp_path, **options) as run:
        for step in run.steps([1, 3]):
            run.log(loss=torch.tensor(1.0 if step == 1 else 0.5), bad=math.nan)
        run.finish(best=0.5)
    assert fake_wandb.log == [(1, {"loss": 1.0}), (3, {"loss": 0.5})]
    assert fake_wandb.summary == {"best": 0.5}
    assert fake_wandb.finish == [0]
    begun = fake_wandb.init[0]
    assert (begun["project"], begun["name"], begun["group"]) == ("beeradv-aaai23", "aimle-0", "sweep")
    assert begun["tags"] == ["l2x", "aimle"]
    assert begun["config"]["lr"] == 1e-3 and begun["config"]["seed"] == 0
    with run_of(tmp_path, epochs=30, resume=True, **options) as resumed:
        for _ in resumed.steps([1, 3, 4]):
            resumed.log(loss=0.25)
        resumed.finish()
    assert fake_wandb.log[2:] == [(1, {"loss": 1.0}), (3, {"loss": 0.5}), (4, {"loss": 0.25})]
    with run_of(tmp_path, seed=1, **options):
        pass
    ids = [begun["id"] for begun in fake_wandb.init]
    assert ids[0] == ids[1] != ids[2] and all(name.startswith("l2x-") for name in ids)
    assert fake_wandb.finish == [0, 0, 1]


def test_the_group_of_the_environment_goes_first(tmp_path, fake_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "table-1")
    with run_of(tmp_path) as run:
        run.finish()
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
    with run_of(tmp_path) as run:
        take(run, [1.0, 1.0])
        run.finish(best=1.0)
    assert len(finished(run.identity).history) == 2
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
        with run_of(tmp_path, seed=seed) as run:
            take(run, [1.0])
            run.finish()
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
    runs = [run_of(tmp_path, seed=seed) for seed in range(2)]
    with runs[0], runs[1]:
        for run in runs:
            take(run, [1.0])
    first, second = fake_wandb.init
    assert (first["mode"], second["mode"]) == ("online", "offline") and second["id"].endswith("-offline")
    assert fake_wandb.log == [(1, {"loss": 1.0})] * 2


@pytest.mark.slow
def test_with_an_account_but_no_network_wandb_logs_offline(tmp_path):
    code = """
        from aaai23.harness import tracking
        from tests.aaai23.harness.runs import run_of, take
        tracking._INIT_SECONDS = 1
        for seed in range(2):
            with run_of(".", "vae", seed=seed) as run:
                take(run, [1.0])
                run.finish()
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
    run = run_of(tmp_path)
    with pytest.raises(KeyboardInterrupt), run:
        pass
    assert read_record(run.identity.file(".json")).error == "interrupted"


@pytest.fixture
def set_up(monkeypatch):
    """Say what W&B has saved of a user: a mode, and whether there is an account."""
    import wandb

    def say(mode="online", account=False):
        monkeypatch.setattr(wandb, "setup", lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=mode)))
        monkeypatch.setattr(wandb, "login", lambda prompt, verify: account or prompt or verify)

    tracking._say_offline.cache_clear()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return say


def test_the_mode_of_wandb_follows_what_the_user_set_up(set_up, monkeypatch, caplog):
    set_up()
    assert tracking.wandb_mode() == tracking.wandb_mode() == "offline"
    assert len(caplog.records) == 1
    set_up(account=True)
    assert tracking.wandb_mode() == "online"
    for mode in ("offline", "disabled"):
        set_up(mode, account=True)
        assert tracking.wandb_mode() == mode
    monkeypatch.setenv("WANDB_MODE", "online")
    assert tracking.wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "")  # which W&B refuses
    assert tracking.wandb_mode() == "disabled" and "WANDB_MODE" not in os.environ
    assert len(caplog.records) == 1


@pytest.mark.parametrize("account", [False, True])
def test_an_account_is_what_wandb_finds(tmp_path, account):
    code = "from aaai23.harness.tracking import wandb_mode; print(wandb_mode())"
    if account:
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1:9 login user password {'a' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    unset = dict.fromkeys(("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR", "NETRC"))
    code, out, err = outcome(start(code, tmp_path, HOME=str(tmp_path), WANDB_BASE_URL="http://127.0.0.1:9", **unset))
    assert (code, out) == (0, "online\n" if account else "offline\n"), err


@pytest.mark.parametrize("given", [None, "/elsewhere/logs"])
def test_the_line_about_wandb_names_the_folder_that_it_writes_to(tmp_path, set_up, monkeypatch, caplog, given):
    import wandb

    set_up()
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    if given:
        monkeypatch.setenv("WANDB_DIR", given)
    assert tracking.wandb_mode() == "offline"
    named = caplog.messages[0].split("into ")[1].split(" ")[0]
    used = wandb.Settings(root_dir=given or str(tmp_path)).wandb_dir
    assert os.path.abspath(named) == used


def test_without_an_account_wandb_logs_offline_and_shows_its_summary(tmp_path):
    code = """
        from aaai23.harness.shell import configure_logging
        from tests.aaai23.harness.runs import run_of
        logger = configure_logging("torch-vae-cli.py")
        for seed in range(2):
            with run_of(".", "vae", project="aimle-dvae", seed=seed) as run:
                for epoch in run.steps(range(1, 4)):
                    run.log(loss=1 / epoch, tau=0.5, test_loss=2 / epoch)
                run.finish(best_test_loss=0.66)
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
        from aaai23.harness.tracking import Tracker
        tracker = Tracker()
        tracker.start("p", run_id="x", name="x", group="g", tags=[], config={})
        tracker.log(1, {"loss": 1.0})
        tracker.summarise({"loss": 1.0})
        tracker.close(0)
        print([name for name in sys.modules if name.split(".")[0] == "wandb"])
    """
    assert outcome(start(code, tmp_path, WANDB_MODE="disabled")) == (0, "[]\n", "")


def test_a_mode_that_does_not_exist_is_said_and_fails_no_run(tmp_path, fake_wandb, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with run_of(tmp_path) as run:
        take(run, [1.0])
        run.finish()
    (line,) = caplog.messages
    assert "WANDB_MODE is 'nonsense': choose online, offline or disabled" in line and fake_wandb.init == []


def test_a_full_disk_is_said_once(tmp_path, fake_wandb, monkeypatch, caplog):
    monkeypatch.setattr(tracking.os, "statvfs", lambda path: types.SimpleNamespace(f_bavail=3, f_frsize=4096))
    with run_of(tmp_path) as run:
        take(run, [1.0, 1.0])
        run.finish()
    assert [line.split(":")[0] for line in caplog.messages] == ["no space left in wandb"] and len(fake_wandb.log) == 2


def test_a_service_that_is_gone_is_torn_down_before_the_process_ends(tmp_path, fake_wandb, monkeypatch):
    def gone(*args, **kwargs):
        raise ConnectionResetError("Connection lost")

    torn = []
    fake_wandb.module.teardown = lambda: torn.append(True)
    monkeypatch.setattr(fake_wandb.run, "log", gone)
    with run_of(tmp_path) as run:
        take(run, [1.0])
        run.finish()
    assert torn == [True] and finished(run.identity)

"""Runs: steps that are kept, and how they go on after a stop."""

import errno
import functools
import os
import signal

import numpy as np
import pytest
import torch

from aaai23.errors import UsageError
from aaai23.harness.identity import finished
from aaai23.harness.loop import Best, seed_everything
from aaai23.harness.record import read_record, write_record
from tests.aaai23.harness.runs import Walk, outcome, run_of, start, take


def walk(run, steps, stop_after=None):
    """Walk some steps, from a start that depends on the seed; `stop_after` raises in the middle of the next step."""
    seed_everything(3)
    model = Walk()
    best = Best(model)
    for step in run.steps(range(1, steps + 1), model=model, best=best):
        place = model.step()
        if stop_after is not None and step > stop_after:
            raise KeyboardInterrupt
        run.log(place=place)
        best.update(abs(place))
    best.restore()
    return model.place.item()


def test_a_failed_run_keeps_its_history_and_names_its_error(tmp_path):
    with pytest.raises(ValueError, match="went"), run_of(tmp_path) as run:
        for step in run.steps([1, 2]):
            if step == 2:
                raise ValueError("went wrong\nin many lines")
            run.log(loss=2.0)
    found = read_record(run.identity.file(".json"))
    assert (found.status, found.error, found.final) == ("failed", "ValueError: went wrong", None)
    assert found.history == [{"epoch": 1, "loss": 2.0}]
    assert finished(run.identity) is None


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
        write_record(run.identity.file(".json"), first)
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
    write_record(run.identity.file(".json"), first)
    with run_of(tmp_path, resume=True) as run:
        take(run, [1.0, 0.5])
        run.finish()
    second = read_record(run.identity.file(".json"))
    assert (second.status, second.error) == ("finished", None)
    assert second.timing["started"] == "2020-01-01T00:00:00+00:00"
    assert second.timing["seconds"] >= 1000.0


def test_what_a_killed_process_left_of_its_writing_is_removed_by_its_own_run_alone(tmp_path):
    code = """
        import os, signal, sys
        from tests.aaai23.harness.runs import run_of, take
        with run_of(".", seed=int(sys.argv[1])) as run:
            for step in run.steps([1, 2]):
                run.log(loss=0.5)
                if step == 2:
                    os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    """
    for seed in (0, 1):
        assert outcome(start(code, tmp_path, seed))[0] == -signal.SIGKILL
    (folder,) = tmp_path.glob("**/x")
    assert len(list(folder.glob(".*.tmp"))) == 2
    with run_of(tmp_path, resume=True) as run:
        assert len(list(folder.glob(".*.tmp"))) == 1  # the other run may be at work
        assert take(run, [0.5, 0.5]) == [2]


def test_what_each_step_logs_is_on_disk_before_the_next(tmp_path):
    with run_of(tmp_path) as run:
        for step in run.steps(range(1, 4)):
            assert len(read_record(run.identity.file(".json")).history) == step - 1
            run.log(loss=torch.tensor(1 / step))
            run.log(mse=np.float32(0.25))
            assert run.entry == {"loss": pytest.approx(1 / step), "mse": 0.25}
        run.finish(best=0.25)
    found = read_record(run.identity.file(".json"))
    assert found.history == [{"epoch": s, "loss": pytest.approx(1 / s), "mse": 0.25} for s in (1, 2, 3)]
    assert (found.status, found.final, run.final) == ("finished", {"best": 0.25}, {"best": 0.25})
    assert sorted(path.name for path in run.identity.folder.iterdir()) == ["seed0.json", "seed0.pt"]


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_that_was_stopped_goes_on_to_the_metrics_of_one_that_was_not(tmp_path, stop_after):
    with run_of(tmp_path / "whole", files=[]) as whole:
        expected = walk(whole, 6)
        whole.finish(best=expected)
    with pytest.raises(KeyboardInterrupt), run_of(tmp_path, files=[]) as run:
        walk(run, 6, stop_after)
    with run_of(tmp_path, files=[], resume=True) as run:
        assert run.behind == stop_after
        assert walk(run, 6) == expected
        run.finish(best=expected)
    assert run.history == whole.history
    assert run.record.compared() == whole.record.compared()


def test_a_finished_run_may_grow(tmp_path):
    with run_of(tmp_path, epochs=2) as run:
        take(run, [1.0, 0.5])
        run.finish()
    assert finished(run.identity) is not None
    longer = run_of(tmp_path, epochs=3)
    assert finished(longer.identity) is None
    with pytest.raises(UsageError, match="holds 2 entries of an earlier start: --resume goes on"), longer:
        pass
    with run_of(tmp_path, epochs=3, resume=True) as run:
        assert take(run, [9.0, 9.0, 0.25]) == [3]
        run.finish()
    assert [entry["loss"] for entry in run.history] == [1.0, 0.5, 0.25]
    assert finished(run_of(tmp_path, epochs=2).identity) is not None


def test_a_run_that_is_further_than_its_new_end_is_not_given_out_as_shorter(tmp_path):
    with pytest.raises(KeyboardInterrupt), run_of(tmp_path, epochs=4) as run:
        take(run, [1.0, 0.5])
        raise KeyboardInterrupt
    with pytest.raises(UsageError, match="is at epoch 2, beyond the last, 1"), run_of(tmp_path, resume=True) as run:
        take(run, [1.0])
    with run_of(tmp_path, epochs=4, resume=True) as run:
        assert take(run, [1.0, 0.5, 0.25]) == [3]


def test_two_processes_are_not_at_work_on_one_run(tmp_path):
    with run_of(tmp_path), pytest.raises(UsageError, match="another process is at work on"), run_of(tmp_path):
        pass
    with run_of(tmp_path, again=True, seed=1), run_of(tmp_path, again=True, seed=2):
        pass


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path):
    code = """
        import os, signal
        from tests.aaai23.harness.runs import run_of
        with run_of("."):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert outcome(start(code, tmp_path))[0] == -signal.SIGKILL
    with run_of(tmp_path, again=True):
        pass


def test_a_state_of_other_parts_is_refused(tmp_path):
    with run_of(tmp_path, epochs=1) as run:
        take(run, [1.0], model=torch.nn.Linear(2, 2))
    for parts in ({"model": torch.nn.Linear(3, 2)}, {"other": torch.nn.Linear(2, 2)}):
        refused = pytest.raises(UsageError, match=r"seed0\.pt does not hold the state of this run")
        with refused, run_of(tmp_path, epochs=2, resume=True) as run:
            take(run, [1.0, 2.0], **parts)

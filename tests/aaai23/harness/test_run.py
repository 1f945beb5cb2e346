"""Steps that are kept, checkpoints, randomness."""

import errno
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from aaai23.errors import UsageError
from aaai23.harness import record
from aaai23.harness.run import (
    Best,
    epoch_order,
    epochs_of,
    load,
    random_state,
    save,
    seed_everything,
    select_device,
    set_random_state,
)
from tests.aaai23.harness.runs import outcome, run_of, start, take

LONG_NAME = "beeradv_" + "H=250_" * 33 + ".pt"  # as long as the published command's checkpoint name


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
    save(tmp_path / "state.pt", {"random": random_state()})
    expected = [draws(), draws()]
    seed_everything(99)
    set_random_state(load(tmp_path / "state.pt")["random"])
    assert [draws(), draws()] == expected


@pytest.mark.gpu
def test_random_states_of_the_gpu_survive_a_checkpoint(tmp_path):
    torch.randn(3, device="cuda")
    save(tmp_path / "state.pt", {"random": random_state()})
    expected = torch.randn(5, device="cuda").tolist()
    set_random_state(load(tmp_path / "state.pt")["random"])
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
    save(path, {"epoch": 1})
    save(path, {"epoch": 2, "model": model.state_dict(), "optimiser": optimiser.state_dict()})
    state = load(path)
    assert state["epoch"] == 2
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state["model"].items())
    assert torch.equal(state["optimiser"]["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_name_of_the_greatest_length_can_be_written(tmp_path):
    save(tmp_path / ("x" * 255), {"epoch": 1})
    with pytest.raises(UsageError, match="name too long"):
        save(tmp_path / ("x" * 256), {"epoch": 1})


def test_a_process_killed_while_it_saves_leaves_the_last_whole_checkpoint(tmp_path):
    code = """
        import os, signal, torch
        from aaai23.harness.run import save
        for step in range(10):
            if step == 5:  # the bytes are in the temporary file, not yet under the name
                os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
            save("model.pt", {"step": step, "weights": torch.full((1000, 100), float(step))})
    """
    code, _, err = outcome(start(code, tmp_path))
    assert code == -signal.SIGKILL, err
    state = load(tmp_path / "model.pt")
    assert state["step"] == 4
    assert torch.equal(state["weights"], torch.full((1000, 100), 4.0))
    save(tmp_path / "model.pt", {"step": 5})
    assert load(tmp_path / "model.pt") == {"step": 5}


def test_an_unwritable_path_is_named_and_a_failed_save_leaves_no_trace(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write .*model\.pt"):
        save(tmp_path / "file" / "model.pt", {})
    save(tmp_path / "model.pt", {"step": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*model\.pt"):
        save(tmp_path / "model.pt", {"step": 2})
    assert load(tmp_path / "model.pt") == {"step": 1}
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
    save(tmp_path / "model.pt", {"step": 1})
    assert load(tmp_path / "model.pt") == {"step": 1}


def test_a_disk_error_on_the_last_step_of_writing_is_not_passed_over(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UsageError, match="Input/output error"):
        save(tmp_path / "model.pt", {"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "model.pt"
    link.symlink_to(tmp_path / "elsewhere" / "real.pt")
    for step in (1, 2):  # the target is missing, then there
        save(link, {"step": step})
        assert link.is_symlink() and load(tmp_path / "elsewhere" / "real.pt") == {"step": step}
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["real.pt"]


def test_what_is_no_regular_file_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(os.devnull)
    for path in (Path(os.devnull), tmp_path / "pipe", tmp_path / "folder", tmp_path / "link"):
        before = path.stat()
        for use in (lambda path: save(path, {"step": 1}), load):
            with pytest.raises(UsageError, match=f"{path} stays: it is a device, a pipe or a folder"):
                use(path)
        assert path.stat().st_mode == before.st_mode


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


def test_a_changed_bit_is_never_read_as_a_checkpoint(tmp_path):
    path, state = tmp_path / "model.pt", {"weights": torch.arange(100.0), "name": "a"}
    save(path, state)
    content = path.read_bytes()
    generator, refused = random.Random(0), 0
    for _ in range(200):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        try:
            found = load(path)
        except UsageError:
            refused += 1
        else:  # it was in the words before the hash
            assert torch.equal(found["weights"], state["weights"]) and found["name"] == "a"
    assert refused > 190
    path.write_bytes(content)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], state["weights"])  # as other programs do
    torch.save(state, path)
    assert load(path)["name"] == "a"  # and theirs


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut", "truncated", "a list", "code"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "model.pt"
    save(path, {"weights": torch.zeros(1000)})
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif content == "a list":
        torch.save([1, 2], path)
    elif content == "code":
        torch.save({"run": os.getcwd}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.pt"):
        load(path)


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint .*nowhere\.pt; start without --resume"):
        load(tmp_path / "nowhere.pt")


# Runs


def test_what_each_step_logs_is_on_disk_before_the_next(tmp_path):
    with run_of(tmp_path) as run:
        for step in run.steps(range(1, 4)):
            assert len(record.read_record(run.identity.file(".json")).history) == step - 1
            run.log(loss=torch.tensor(1 / step))
            run.log(mse=np.float32(0.25))
            assert run.entry == {"loss": pytest.approx(1 / step), "mse": 0.25}
        run.finish(best=0.25)
    found = record.read_record(run.identity.file(".json"))
    assert found.history == [{"epoch": s, "loss": pytest.approx(1 / s), "mse": 0.25} for s in (1, 2, 3)]
    assert (found.status, found.final, run.final) == ("finished", {"best": 0.25}, {"best": 0.25})
    assert sorted(path.name for path in run.identity.folder.iterdir()) == ["seed0.json", "seed0.pt"]


class Walk(torch.nn.Module):
    """A number that walks at random, and remembers in a module."""

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))

    def step(self):
        self.place.data += torch.randn(()) + random.random() + np.random.rand()
        return self.place.item()


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
    assert record.finished(run.identity) is not None
    longer = run_of(tmp_path, epochs=3)
    assert record.finished(longer.identity) is None
    with pytest.raises(UsageError, match="holds 2 entries of an earlier start: --resume goes on"), longer:
        pass
    with run_of(tmp_path, epochs=3, resume=True) as run:
        assert take(run, [9.0, 9.0, 0.25]) == [3]
        run.finish()
    assert [entry["loss"] for entry in run.history] == [1.0, 0.5, 0.25]
    assert record.finished(run_of(tmp_path, epochs=2).identity) is not None


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


def test_the_best_weights_are_those_of_the_least_value():
    model = Walk()
    best = Best(model)
    nan = float("nan")
    for value, place in ((nan, 0.0), (3.0, 1.0), (nan, 5.0), (1.0, 2.0), (2.0, 3.0), (nan, 4.0)):
        model.place.data.fill_(place)
        best.update(value)
    other = Best(Walk())
    other.load_state_dict(best.state_dict())
    for each in (best, other):
        each.restore()
        assert each.model.place.item() == 2.0 and each.value == 1.0


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, [3, 3, 3]), (2, [2]), (3, [3]), (7, [3, 3, 1]), (9, [3, 3, 3]), (99, [3, 3, 3])]
)
def test_epochs_have_all_batches_but_where_a_limit_cuts_the_last(limit, expected):
    found = epochs_of(n=25, batch_size=10, epochs=3, max_iterations=limit)
    assert {epoch: found.batches(epoch) for epoch in found} == dict(enumerate(expected, start=1))
    assert [found.before(epoch) for epoch in found] == [sum(expected[:done]) for done in range(len(expected))]

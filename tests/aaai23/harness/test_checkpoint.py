"""Checkpoints that are whole or refused, and random states in them."""

import os
import random
import signal

import numpy as np
import pytest
import torch

from aaai23.errors import UsageError
from aaai23.harness.checkpoint import load, random_state, save, set_random_state
from aaai23.harness.environment import device_name
from aaai23.harness.loop import seed_everything, select_device
from tests.aaai23.harness.runs import outcome, start

LONG_NAME = "beeradv_" + "H=250_" * 33 + ".pt"  # as long as the published command's checkpoint name


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
    assert device_name() == torch.cuda.get_device_name()


def test_a_checkpoint_of_a_gpu_run_resumes_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = random_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)]}
    expected = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), expected)


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


def test_a_process_killed_while_it_saves_leaves_the_last_whole_checkpoint(tmp_path):
    code = """
        import os, signal, torch
        from aaai23.harness.checkpoint import save
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

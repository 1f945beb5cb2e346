"""Settings that every test shares: one thread per worker and a fixed seed."""

import os
import signal

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("fast", derandomize=True, max_examples=25, deadline=None)
hypothesis.settings.load_profile("fast")

# A shell that runs the tests in its background, or nohup, has these ignored; what tests start is to hear them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def no_waiting(monkeypatch):
    """Return a function that makes the library treat the CPU as an accelerator, whose numbers the host may not see."""

    def switch_on():
        for module in ("_numerics", "perturb_and_map", "finite_difference", "solver", "target", "lpgd", "k_subsets"):
            monkeypatch.setattr(f"imle.{module}.host_may_wait", lambda x: False)

    return switch_on


@pytest.fixture
def no_pictures(monkeypatch):
    """Spare the time that the VAE takes to draw, where a test looks at other things."""
    monkeypatch.setattr("aaai23.dvae.train.draw", lambda *_: None)

"""Steps that are recorded and replayed; on a GPU, see `tests/test_gpu.py`."""

import gc

import pytest
import torch

from aaai23.speed.replay import TrainingStep
from tests.test_gpu import CPU, EPOCHS, METHODS


class Recorder(TrainingStep):
    """A step recorded without a GPU: what Python holds stays, in a replay, what it was when it was recorded."""

    scale, recordings = 1.0, 0

    def __init__(self, optimiser, model):
        super().__init__(optimiser, lambda x: self.scale * model(x).square().mean())
        self._replay = self._pretends

    _pretends = True

    def _aside(self, *batch):
        return self._step(*batch)

    def _record(self, *batch):
        self.recordings += 1
        self._batch = [x.clone() for x in batch]
        self._recorded = torch.empty(())
        scale, rates = self.scale, [group["lr"] for group in self._optimiser.param_groups]

        def replay():
            now = self.scale, [group["lr"] for group in self._optimiser.param_groups]
            self._set(scale, rates)
            self._recorded.copy_(self._step(*self._batch))  # every replay writes here
            self._set(*now)

        self._graph = type("Graph", (), {"replay": staticmethod(replay)})

    def _set(self, scale, rates):
        self.scale = scale
        for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = rate


class Plain(Recorder):
    """The same, left to Python."""

    _pretends = False


def train(kind, changes):
    """Return the losses of thirty steps, of which some find something changed, and how often one was recorded."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    step = kind(optimiser, model)
    losses = []
    for index, x in enumerate(torch.randn(30, 8, 3)):
        if index in (10, 20):
            if "rate" in changes:
                optimiser.param_groups[0]["lr"] *= 0.5
            if "number" in changes:
                step.scale *= 3.0
        losses.append(step(x[:5] if "shape" in changes and index > 15 else x, fixed=step.scale))
    return torch.stack(losses), step.recordings


@pytest.mark.parametrize(("changes", "recordings"), [([], 1), (["rate"], 3), (["number"], 3), (["shape"], 2)])
def test_a_step_is_recorded_anew_when_what_python_holds_has_changed(changes, recordings):
    losses, found = train(Recorder, changes)
    assert found == recordings
    assert torch.equal(losses, train(Plain, changes)[0])


def test_the_loss_of_a_replayed_step_stays_what_it_was():
    losses, _ = train(Recorder, [])
    assert len(losses.unique()) == len(losses)


def test_on_a_cpu_every_step_is_pythons():
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    optimiser.param_groups[0]["capturable"] = True  # as in the checkpoint of a run on a GPU
    step = TrainingStep(optimiser, lambda x: model(x).square().mean())
    for _ in range(10):
        assert step(torch.ones(4, 3)).requires_grad is False
    assert not optimiser.param_groups[0]["capturable"]


@pytest.mark.parametrize("task", EPOCHS)
def test_an_epoch_keeps_no_tensor_for_each_of_its_steps(task, monkeypatch):
    module, alive = f"aaai23.{'dvae' if task == 'vae' else task}.train", []

    def progress(steps, label):
        for step in steps:
            alive.append(sum(issubclass(type(it), torch.Tensor) for it in gc.get_objects()))
            yield step

    _, epoch = EPOCHS[task](CPU, METHODS["aimle"])
    monkeypatch.setattr(f"{module}.progress", progress)
    epoch()
    assert len(alive) > 4 and alive[2] == alive[-1], alive

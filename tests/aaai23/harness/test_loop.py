"""Seeds, devices, epochs, the best weights."""

import random

import numpy as np
import pytest
import torch

from aaai23.errors import UsageError
from aaai23.harness.loop import Best, epoch_order, epochs_of, seed_everything, select_device
from tests.aaai23.harness.runs import Walk


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


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == select_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="no usable GPU"):
        select_device("cuda")
    with pytest.raises(UsageError, match="choose auto, cpu or cuda"):
        select_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto") == select_device("cuda") == torch.device("cuda")


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

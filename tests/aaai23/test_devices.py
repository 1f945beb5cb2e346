"""What a training step of each task would do on a GPU, without one; see `tests.fake_device`."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from aaai23.dvae import train as vae_train
from aaai23.l2x import train as l2x_train
from aaai23.nri import train as nri_train
from imle.noise import SumOfGammaNoiseDistribution
from tests.fake_device import DEVICE, EXISTS, faults
from tests.test_gpu import EPOCHS, LINES, MORE_LINES

pytestmark = pytest.mark.skipif(not EXISTS, reason="this torch cannot register a device in Python")

SMALL = {"l2x": "", "vae": "", "nri": "--num_vertices 4 --timesteps 4 --prediction_steps 2"}


def prepare():
    """Make tables of numbers while numbers are to be had; let an epoch be a step; and leave its losses where they are.

    The scripts look at the losses once an epoch, at its end.
    """
    for k in (3, 4, 5):
        SumOfGammaNoiseDistribution(k=k).sample((1,))
    for train in (l2x_train, vae_train, nri_train):
        train.build = unset_fake_temporarily()(train.build)  # fake weights cannot move to another device
        train.progress = lambda steps, label: itertools.islice(steps, 1)
        train.loss_values = lambda losses, *_: losses


def training(task, line):
    """Return a case: a step of training."""

    def case():
        _, epoch = EPOCHS[task](torch.device(DEVICE), f"{line} {SMALL[task]}")
        return epoch

    return case


def cases(lines):
    """Return cases by name."""
    return {f"{task} {line}": training(task, line) for task in lines for line in lines[task]}


CASES, MORE_CASES = cases(LINES), cases(MORE_LINES)


@pytest.mark.parametrize("collection", ["CASES", pytest.param("MORE_CASES", marks=pytest.mark.slow)])
def test_no_training_step_waits_for_a_device(collection):
    found = {  # tables of fake tensors are made anew at each step; others are kept
        name: [line for line in lines if "imle/sum_of_gamma.py" not in line]
        for name, lines in faults(__name__, collection).items()
    }
    assert {name: lines for name, lines in found.items() if lines} == {}

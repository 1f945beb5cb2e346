"""What a training step of each task would do on a GPU, without one; see `tests.fake_device`."""

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from aaai23.dvae import train as vae_train
from aaai23.l2x import train as l2x_train
from aaai23.nri import train as nri_train
from imle.noise import SumOfGammaNoiseDistribution
from tests.fake_device import DEVICE, EXISTS, faults
from tests.test_gpu import EPOCHS, METHODS

pytestmark = pytest.mark.skipif(not EXISTS, reason="this torch cannot register a device in Python")

LINES = {
    "l2x": [
        *METHODS.values(),
        "--method sst",
        "--method softsub",
        "--method l2x",
        "--method imletopk",
        "--method imle --mask-padding",
    ],
    "vae": [*METHODS.values(), "--method gumbel-softmax", "--method gumbel-softmax --hard"],
    "nri": [
        *METHODS.values(),
        "--method sst",
        "--method sst --hard --st",
        "--use_nvil",
        "--use_reinforce",
        "--use_reinforce --reinforce_baseline batch",
        "--use_reinforce --num_samples 2 --reinforce_baseline multi_sample",
        "--method imle --undirected-theta",
        "--method imle --sst topk",
        "--method sst --sst topk",
        "--method sst --sst indep",
    ],
}


def prepare():
    """Make tables of numbers while numbers are to be had, and leave losses on the device, as test_gpu does."""
    for k in (3, 5, 10):
        SumOfGammaNoiseDistribution(k=k).sample((1,))
    for train in (l2x_train, vae_train, nri_train):
        train.build = unset_fake_temporarily()(train.build)  # fake weights cannot move
        train.loss_values = lambda losses, *_: torch.stack(list(losses))


def training(task, line):
    def case():
        _, epoch = EPOCHS[task](torch.device(DEVICE), line)
        return epoch

    return case


CASES = {f"{task} {line}": training(task, line) for task, lines in LINES.items() for line in lines}


def test_no_training_step_waits_for_a_device():
    assert {name: lines for name, lines in faults(__name__).items() if lines} == {}

"""Does `tests.fake_device` see what a GPU would not like, and nothing else?"""

import re

import pytest
import torch

from tests.fake_device import DEVICE, EXISTS, faults

pytestmark = pytest.mark.skipif(not EXISTS, reason="this torch cannot register a device in Python")


class Backward(torch.autograd.Function):
    """Calls a function with the gradient that passes."""

    @staticmethod
    def forward(ctx, x, function):
        ctx.function = function
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        ctx.function(dy)
        return dy, None


def in_the_backward_pass(function):
    """Return a step whose backward pass calls a function."""
    return lambda x: Backward.apply(x.clone().requires_grad_(), function).sum().backward()


PLANTED = {
    "an operand on the host": lambda x: x + torch.ones(4),
    "an index on the host": lambda x: x[torch.tensor([0])],
    "a place to write on the host": lambda x: x.index_put_((torch.tensor([0]),), torch.tensor(1.0)),
    "a scatter by indices on the host": lambda x: x.scatter(1, torch.zeros(3, 1, dtype=torch.long), 1.0),
    "a number": lambda x: x.sum().item(),
    "a float": lambda x: float(x.sum()),
    "an if": lambda x: 0 if x.sum() > 0 else 1,
    "a comparison": lambda x: torch.equal(x, x),
    "a number that is known": lambda x: torch.full((), 2.0, device=x.device).item(),
    "a list": lambda x: x.tolist(),
    "an array": lambda x: x.numpy(),
    "places of ones": lambda x: x.nonzero(),
    "a mask as an index": lambda x: x[x > 0],
    "repeats of another number each": lambda x: x.repeat_interleave((x[:, 0] > 0).long(), dim=0),
    "a copy to the host": lambda x: x.cpu(),
    "a copy into memory of the host": lambda x: torch.empty(3, 4).copy_(x),
    "a copy from memory of the host": lambda x: x.copy_(torch.ones(3, 4)),
    "numbers of the host": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "one number of the host": lambda x: x.new_tensor(1.0),
    "a number in the backward pass": in_the_backward_pass(lambda dy: dy.sum().item()),
    "a copy in the backward pass": in_the_backward_pass(lambda dy: dy.cpu()),
}
LEGAL = {
    "a number for all": lambda x: torch.where(x > 0, x * 2.0, 0.0).masked_fill(x < 0, torch.inf),
    "one number on the host as an operand": lambda x: x * torch.tensor(2.0),
    "indices on the device": lambda x: torch.zeros_like(x).scatter_(-1, x.topk(2).indices, 1.0)[
        torch.arange(2, device=x.device)
    ],
    "a slice": lambda x: x[:, 1:].fill_(torch.inf),
    "new tensors": lambda x: (torch.full((), 2.0, device=x.device), x.new_zeros(2), torch.randn(3, device=x.device)),
    "work on the host": lambda x: torch.ones(3) + torch.arange(3),
    "a backward pass": in_the_backward_pass(lambda dy: dy.sum()),
}
FLOAT64 = {
    "a cast": lambda x: x.double(),
    "a new number": lambda x: torch.zeros((), dtype=torch.float64, device=x.device),
    "a norm": lambda x: torch.linalg.vector_norm(x, dtype=torch.float64),
}
KINDS = (
    r"copies |FakeTensorDeviceMismatch|DataDependentOutput|DynamicOutputShape|RuntimeError: .numpy|\w+ makes float64"
)
LEGAL_WITHOUT_FLOAT64 = {"float64 on the host": lambda x: x * torch.tensor(2.0, dtype=torch.float64)}


def case(step):
    """Return a case that gives the step a tensor of the device."""

    def made():
        x = torch.randn(3, 4, device=DEVICE)
        return lambda: step(x)

    return made


CASES = {name: case(step) for name, step in (PLANTED | LEGAL | FLOAT64).items()}
WITHOUT_FLOAT64 = {name: case(step) for name, step in (FLOAT64 | LEGAL_WITHOUT_FLOAT64 | LEGAL).items()}


def test_every_planted_fault_is_seen_and_no_legal_use_is_called_one():
    wrong = {name: lines for name, lines in faults(__name__, "CASES", "WITHOUT_FLOAT64").items() if lines}
    assert {*wrong} == {*PLANTED, *(f"{name}, without float64" for name in FLOAT64)}
    assert [line for lines in wrong.values() for line in lines if not re.match(KINDS, line)] == []

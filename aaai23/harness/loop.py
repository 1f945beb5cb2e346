"""What training loops share: seeds, the device, the order of examples, the best weights."""

from __future__ import annotations

import hashlib
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aaai23.errors import UsageError


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, torch (CPU and GPUs) and, if it is in use, numpy."""
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def select_device(name: str) -> torch.device:
    """Return the device called "cpu" or "cuda"; for "auto" the GPU if there is one.

    Raises:
        UsageError: "cuda" on a machine without a usable GPU, or another name.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: choose auto, cpu or cuda")
    available = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch finds no usable GPU here; use --device cpu or auto")
    return torch.device("cuda" if available else "cpu")


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of 0..n-1, int64 [n], that depends on `seed` and `epoch` alone.

    No global generator is read or moved, so a resumed run sees the order that it would have seen.
    """
    mixed = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:7]))
    return torch.randperm(n, generator=generator)


@dataclass(frozen=True)
class Epochs:
    """Epochs of `whole` batches each, but for the last: together they have `total`."""

    whole: int
    total: int

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the epochs, from 1."""
        return iter(range(1, -(-self.total // self.whole) + 1))

    def before(self, epoch: int) -> int:
        """Return the number of batches in earlier epochs."""
        return (epoch - 1) * self.whole

    def batches(self, epoch: int) -> int:
        """Return the number of batches in an epoch."""
        return min(self.whole, self.total - self.before(epoch))


def epochs_of(n: int, batch_size: int, epochs: int, max_iterations: int | None) -> Epochs:
    """Return the epochs of a run over n examples, the last one cut where `max_iterations` ends it."""
    whole = -(-n // batch_size)
    return Epochs(whole, min(epochs * whole, max_iterations or epochs * whole))


def loss_values(losses: Tensor, where: str, remedy: str) -> list[float]:
    """Return the losses of some steps as numbers, waiting for the device once.

    Args:
        losses: `[steps]`. A tensor for each step, kept until the end of an epoch, would split freed memory into pieces
            too small for the next step, and the process would grow by megabytes a step.
        where: in training they were found, for the message.
        remedy: what the user can do, for the message.

    Raises:
        FloatingPointError: one is NaN or infinite.
    """
    values = losses.tolist()
    if not all(map(math.isfinite, values)):
        raise FloatingPointError(f"{where}: the loss is not finite; {remedy}")
    return values


class Best:
    """The weights of the best step so far, by a metric of which less is better."""

    def __init__(self, model: nn.Module):
        self.model, self.value = model, math.inf
        self.weights: dict[str, Any] = {}

    def update(self, value: float) -> bool:
        """Keep the model's weights of now if the value is the least so far; returns whether it is.

        A value that is not a number is never the least.
        """
        better = value < self.value
        if better:
            self.value = value
        if better or not self.weights:
            self.weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return better

    def restore(self) -> None:
        """Load the best weights into the model."""
        self.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"value": self.value, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        self.value, self.weights = state_dict["value"], state_dict["weights"]

"""NVIL and REINFORCE: baselines of the losses, and the loss whose gradient is the score function's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from imle.sfe import score_function_loss


def surrogate(nll: Tensor, log_prob: Tensor, baseline: nn.Module, inputs: Tensor) -> Tensor:
    """Return `nll`, unchanged in value, with the score-function gradient and, for a learned baseline, that of its fit.

    Args:
        nll: the losses `[B*S]`.
        log_prob: log-densities of the samples `[B*S]`, from `sfe`.
        baseline: losses `[B, S]` and inputs -> what is subtracted from the losses `[B, S]`, and its misfit.
        inputs: `[B, ...]`.
    """
    subtracted, misfit = baseline(nll.detach().unflatten(0, (len(inputs), -1)), inputs)
    subtracted = subtracted.flatten()
    return score_function_loss(nll - subtracted, log_prob) + subtracted + (misfit - misfit.detach())


class EmaBaseline(nn.Module):
    """The running mean of the losses of earlier batches, corrected for its start at 0."""

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def reset_parameters(self) -> None:
        """Forget all losses."""
        self.total.zero_()
        self.weight.zero_()

    def forward(self, losses: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return a baseline for losses `[B, S]`, and 0: nothing is to be learned by gradient."""
        mean = self.total / self.weight.clamp(min=torch.finfo(self.weight.dtype).tiny)
        self.total.lerp_(losses.mean(), 1 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)
        return mean.expand_as(losses), losses.new_zeros(())


class BatchBaseline(nn.Module):
    """The mean of all other losses of the batch."""

    def forward(self, losses: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return baselines `[B, S]` for losses `[B, S]`, and 0."""
        return _mean_of_others(losses.flatten()).view_as(losses), losses.new_zeros(())


class MultiSampleBaseline(nn.Module):
    """The mean loss of the other samples of the same instance (Kool et al. 2019)."""

    def forward(self, losses: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return baselines `[B, S]` for losses `[B, S]`, and 0."""
        return _mean_of_others(losses), losses.new_zeros(())


def _mean_of_others(losses: Tensor) -> Tensor:
    return (losses.sum(-1, keepdim=True) - losses) / max(1, losses.shape[-1] - 1)


class NVILBaseline(nn.Module):
    """A small network that predicts the loss from the input, on top of the running mean.

    Reference: Mnih, Gregor, "Neural Variational Inference and Learning in Belief Networks", 2014.

    Args:
        n_in: numbers of one input.
        decay: of the running mean.
        hidden: width of the network.
    """

    def __init__(self, n_in: int, decay: float, hidden: int = 128):
        super().__init__()
        self.mean = EmaBaseline(decay)
        self.network = nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, losses: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return baselines `[B, S]` for losses `[B, S]` of inputs `[B, ...]`, and the mean squared misfit."""
        mean, _ = self.mean(losses, inputs)
        predicted = self.network(inputs.flatten(1))
        misfit = (losses - mean - predicted).square().mean()
        return mean + predicted.detach(), misfit


BASELINES: dict[str, Callable[[float], nn.Module]] = {
    "ema": EmaBaseline,
    "batch": lambda decay: BatchBaseline(),
    "multi_sample": lambda decay: MultiSampleBaseline(),
}
"""Of REINFORCE, by the decay of the running mean."""

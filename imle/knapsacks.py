"""The exponential family over knapsacks, exactly: p(z) is proportional to exp(<z, theta>), z fits into the capacity.

The dynamic programme of `imle.solvers.knapsack`, with log(e^x + e^y) in place of the larger of two:

    f_n(c)    = log(exp f_{n-1}(c) + exp(theta_n + f_{n-1}(c - w_n))),  f_0 = 0     log Z = f_N(capacity)
    p_n(c)    = sigmoid(theta_n + f_{n-1}(c - w_n) - f_{n-1}(c))       how likely item n is, with c left for items to n
    a sample  = item N is taken by p_N(capacity), item N-1 by p_{N-1}(what is left), ...
    marginals = the same walk, with how likely it is that c is left

O(N capacity) for each instance, and differentiable but for samples. Weights are shared by all rows. Numbers are exact
to the rounding of log Z, in float32 for half precision. A mask, -1e9 or -inf, is an item that is never taken; a NaN
makes its row NaN.

Source: Vivier-Ardisson, Sander, Parmentier, Blondel, "Differentiable Knapsack and Top-k Operators via Dynamic
Programming", 2026.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imle import _numerics
from imle._compile import eager
from imle.noise import not_repeated
from imle.solvers._checks import check_floating, sum_dtype, whole_numbers


def log_partition(theta: Tensor, weights: Any, capacity: int) -> Tensor:
    """Return log Z, the log of the sum of exp(<z, theta>) over all selections z that weigh at most the capacity.

    Args:
        theta: scores `[..., N]`.
        weights: whole numbers of at least 0, `[N]`.
        capacity: a whole number of at least 0.

    Returns:
        log Z `[...]`, differentiable; its gradient is the marginals.

    Raises:
        ValueError: there are not N weights, or a weight or the capacity is negative.
        TypeError: theta is not floating point, or weights or capacity no whole numbers.

    Example:
        >>> log_partition(torch.zeros(1, 3), weights=[1, 2, 3], capacity=3).exp().round()  # none, each, the first two
        tensor([5.])
    """
    return _fill(theta, weights, capacity)[0][..., -1].to(theta.dtype)


def marginals(theta: Tensor, weights: Any, capacity: int) -> Tensor:
    """Return how likely each item is to be taken `[..., N]`, differentiable; see `log_partition`.

    Example:
        >>> marginals(torch.zeros(1, 3), weights=[1, 2, 3], capacity=3)
        tensor([[0.4000, 0.4000, 0.2000]])
    """
    total, chances = _fill(theta, weights, capacity)
    left = F.pad(torch.ones_like(total[..., :1]), (total.shape[-1] - 1, 0))  # how likely c is left
    found = []
    for chance, weight in reversed(chances):
        taken = left * chance
        found.append(taken.sum(-1, keepdim=True))
        left = left - taken + F.pad(taken[..., weight:], (0, min(weight, taken.shape[-1])))
    return torch.cat([theta[..., :0], *found[::-1]], dim=-1).to(theta.dtype)


@eager
@torch.no_grad()
def sample(
    theta: Tensor,
    weights: Any,
    capacity: int,
    nb_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw selections, exactly and independently.

    Args:
        theta: scores `[B, ..., N]`.
        weights: `[N]`.
        capacity: as in `log_partition`.
        nb_samples: S, draws for each instance.
        generator: source of random numbers; torch's own when None.

    Returns:
        z `[B*S, ..., N]` of theta's dtype, the S draws of one instance side by side.

    Raises:
        ValueError, TypeError: as in `log_partition`; or theta has no batch dimension.
        FloatingPointError: theta is NaN; on an accelerator, where nothing may wait for the host, its row is NaN.

    Example:
        >>> z = sample(torch.zeros(3, 3), weights=[1, 2, 3], capacity=3, nb_samples=4)
        >>> z.shape, bool((z @ torch.tensor([1.0, 2.0, 3.0]) <= 3).all())
        (torch.Size([12, 3]), True)
    """
    total, chances = _fill(theta, weights, capacity)
    if theta.dim() < 2:
        raise ValueError(f"theta must be [B, ..., N] with a batch dimension first, not {tuple(theta.shape)}")
    broken = theta.isnan().any(-1, keepdim=True).repeat_interleave(nb_samples, dim=0)
    if _numerics.host_may_wait(theta) and broken.any():
        raise FloatingPointError(f"theta is NaN in {_numerics.name_rows(theta.isnan())}")
    z = theta.repeat_interleave(nb_samples, dim=0)
    uniform = torch.rand(z.shape, dtype=torch.float32, device=z.device, generator=not_repeated(generator))
    left = torch.full_like(z[..., :1], total.shape[-1] - 1, dtype=torch.long)
    for item, (chance, weight) in reversed(list(enumerate(chances))):
        taken = uniform[..., item, None] < chance.repeat_interleave(nb_samples, dim=0).gather(-1, left)
        z[..., item, None] = taken.to(z)
        left = left - weight * taken
    return z.masked_fill(broken, torch.nan)


def _fill(theta: Tensor, weights: Any, capacity: int) -> tuple[Tensor, list[tuple[Tensor, int]]]:
    """Return log Z of each capacity `[..., size]`; of each item how likely it is with c left, and what it weighs."""
    check_floating("theta", theta)
    scores = theta.to(sum_dtype(theta))
    weights = whole_numbers("weights", weights, (theta.shape[-1:],)).tolist()
    size = 1 + min(int(whole_numbers("capacity", capacity, ((),))), sum(weights))
    limit = torch.finfo(scores.dtype).max / (2 * len(weights) + 2)  # no sum is infinite
    scores = scores.clamp(-limit, limit)
    total = 0.0 * scores.sum(-1, keepdim=True).expand(*scores.shape[:-1], size)  # a NaN stays, whatever it weighs
    chances = []
    for score, weight in zip(scores.unsqueeze(-1).unbind(-2), weights):
        low, high = total[..., :weight], total[..., weight:]
        gain = score + total[..., : high.shape[-1]] - high
        total = torch.cat([low, high - F.logsigmoid(-gain)], dim=-1)
        chances.append((torch.cat([torch.zeros_like(low), torch.sigmoid(gain)], dim=-1), weight))
    return total, chances

"""The exponential family over k-subsets, exactly: p(z) is proportional to exp(<z, theta>), z has k ones among N.

Equivalently, z are N independent coins, of probability sigmoid(theta_i - t), given that k of them show heads; t is
free, and chosen here so that k heads are expected. How many heads there are among neighbours is then a polynomial with
positive coefficients that add up to 1: nothing overflows, nothing cancels, and what underflows is too small to count.

    P(k heads)  = coefficient of x^k in prod_i (1 - p_i + p_i x)            multiplied out two and two, O(N k)
    log Z       = log P(k heads) + sum_i log(1 + exp(theta_i - t)) + k t
    marginals   = grad log Z
    a sample    = k heads are dealt out to the two halves, to the quarters, ... to the entries

Source: Chen, Dempster, Liu, "Weighted finite population sampling to maximize entropy", Biometrika 1994 (the family as
conditioned coins); Ahmed, Zeng, Niepert, Van den Broeck, "SIMPLE: A Gradient Estimator for k-Subset Sampling", ICLR
2023 (log Z, its gradient and a sample, all exact, in O(N k)).

Scores may be of any size. A score far below the others (-1e6, -1e9, -inf: a mask) stands for its limit at -inf: it is
chosen only where too few others are left, and then like all others of its size. A NaN makes its row NaN. Half precision
is computed in float32. Entries that are masked get no gradient.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imle._compile import eager
from imle._numerics import host_may_wait, name_rows
from imle.noise import GumbelNoiseDistribution, draw
from imle.perturb_and_map import check_reduction
from imle.solvers import select_k

_LARGEST = 1e30  # as good as infinite
_HALVINGS = 16  # of an interval for t that is fifty wide, or a hundred in float64


def log_partition(theta: Tensor, k: int) -> Tensor:
    """Return log Z, the log of the sum of exp(<z, theta>) over all k-subsets z.

    Args:
        theta: scores `[..., N]`.
        k: size of the subset, 1 to N.

    Returns:
        log Z `[...]`, differentiable.

    Raises:
        ValueError: k is outside 1..N.
        TypeError: theta is not of floating-point numbers.

    Example:
        >>> log_partition(torch.zeros(1, 5), k=2).exp().round()  # so many 2-subsets of 5 there are
        tensor([10.])
    """
    scores, common, above = _near(theta, k)
    return (_log_sum(scores, k) + k * common.squeeze(-1) + above.sum(-1)).to(theta.dtype)


def marginals(theta: Tensor, k: int) -> Tensor:
    """Return how likely each entry is to be in the subset.

    Args:
        theta: scores `[..., N]`.
        k: size of the subset, 1 to N.

    Returns:
        Probabilities `[..., N]` that add up to k, differentiable: their Jacobian is the covariance of z.

    Raises:
        ValueError: k is outside 1..N.
        TypeError: theta is not of floating-point numbers.

    Example:
        >>> marginals(torch.tensor([[0.0, 0.0, 0.0, -1e9]]), k=2)
        tensor([[0.6667, 0.6667, 0.6667, 0.0000]])
    """
    if torch.is_inference_mode_enabled():  # where torch.func.grad of older versions is zero
        with torch.inference_mode(False):
            return marginals(theta.detach().clone(), k)
    scores, _, _ = _near(theta, k)
    return torch.func.grad(lambda scores: _log_sum(scores, k).sum())(scores).to(theta.dtype)


@eager
def log_prob(theta: Tensor, z: Tensor, k: int) -> Tensor:
    """Return log p(z).

    Args:
        theta: scores `[..., N]`.
        z: subsets, `[..., N]`, or of another shape that goes with that of theta.
        k: size of the subset, 1 to N.

    Returns:
        log p(z) `[...]`, always finite, differentiable in theta: the gradient is z less the marginals.

    Raises:
        ValueError: k is outside 1..N, or z has not k ones in each row.
        TypeError: theta is not of floating-point numbers.

    Example:
        >>> log_prob(torch.zeros(1, 5), torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0]]), k=2).exp()
        tensor([0.1000])
    """
    if host_may_wait(z) and not ((z.sum(-1) == k) & ((z == 0) | (z == 1)).all(-1)).all():
        raise ValueError(f"z must be subsets, each row of zeros and k = {k} ones")
    scores, _, above = _near(theta, k)
    z = z.to(scores)
    return ((scores * z).sum(-1) - _log_sum(scores, k) - (above * (1 - z)).sum(-1)).to(theta.dtype)


def entropy(theta: Tensor, k: int) -> Tensor:
    """Return the entropy of z, in nats.

    Args:
        theta: scores `[..., N]`.
        k: size of the subset, 1 to N.

    Returns:
        Entropies `[...]`, differentiable.

    Raises:
        ValueError: k is outside 1..N.
        TypeError: theta is not of floating-point numbers.

    Example:
        >>> entropy(torch.zeros(1, 5), k=2).exp().round()
        tensor([10.])
    """
    scores, _, _ = _near(theta, k)
    # log Z - <mu, theta>
    return (_log_sum(scores, k) - (marginals(scores, k) * scores).sum(-1)).to(theta.dtype)


@eager
@torch.no_grad()
def sample(theta: Tensor, k: int, nb_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Draw k-subsets, exactly and independently.

    Args:
        theta: scores `[B, ..., N]`.
        k: size of the subset, 1 to N.
        nb_samples: S, draws for each instance.
        generator: source of random numbers; torch's own when None.

    Returns:
        z `[B*S, ..., N]` of theta's dtype, the S draws of one instance side by side.

    Raises:
        ValueError: k is outside 1..N, or theta has no batch dimension.
        TypeError: theta is not of floating-point numbers.
        FloatingPointError: theta is NaN; on an accelerator, where nothing may wait for the host, its row is NaN.

    Example:
        >>> z = sample(torch.randn(3, 5), k=2, nb_samples=4)
        >>> z.shape, z.sum(dim=1).unique()
        (torch.Size([12, 5]), tensor([2.]))
    """
    scores, _, _ = _near(theta, k)
    if theta.dim() < 2:
        raise ValueError(f"theta must be [B, ..., N] with a batch dimension first, not {tuple(theta.shape)}")
    if host_may_wait(theta) and theta.isnan().any():
        raise FloatingPointError(f"theta is NaN in {name_rows(theta.isnan())}")
    # how many of the k fall to each block of entries, [blocks, rows, S]
    count = torch.full((1, theta[..., 0].numel(), nb_samples), k, device=theta.device)
    for block in reversed(_polynomials(scores.flatten(0, -2), k)):
        left, right = block[:, 0::2, :, None], block[:, 1::2, :, None].expand(-1, -1, -1, nb_samples)
        size = torch.arange(len(left), device=theta.device).view(-1, 1, 1, 1)
        weight = left * _padded(right).gather(0, _partner(count - size, len(left)))
        # the largest of log-weights with Gumbel noise is a draw from them
        noise = draw(GumbelNoiseDistribution(), weight.shape, like=weight, generator=generator)
        chosen = weight.log_().add_(noise).argmax(dim=0)
        count = torch.stack([chosen, count - chosen], dim=1).flatten(0, 1)
    z = count[: theta.shape[-1]].unflatten(1, theta.shape[:-1]).to(theta.dtype)  # [N, B, ..., S]
    z = z.movedim((-1, 0), (1, -1)).flatten(0, 1).contiguous()
    return z.masked_fill(theta.isnan().any(-1, keepdim=True).repeat_interleave(nb_samples, dim=0), torch.nan)


class KSubsetLayer(nn.Module):
    """Base of the layers that draw k-subsets with probability proportional to exp(<z, theta>).

    Called as it is, a layer samples in training and solves in evaluation, as a `MAPLayer` does.

    Args:
        k: size of the subset.
        nb_samples: S, draws for each instance; more is less noisy.
        generator: the random state; None uses torch's own.
        sample_reduction: "mean" for a loss that sums over samples, "sum" for one that is a mean over all rows.
    """

    def __init__(
        self,
        k: int,
        nb_samples: int = 1,
        generator: torch.Generator | None = None,
        sample_reduction: Literal["mean", "sum"] = "mean",
    ):
        super().__init__()
        check_reduction(sample_reduction)
        for name, value in (("k", k), ("nb_samples", nb_samples)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be a whole number from 1 up, not {value!r}")
        self.k, self.nb_samples, self.sample_reduction, self.generator = k, nb_samples, sample_reduction, generator

    def draw(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return exact draws z `[B*S, ..., N]`, without a gradient."""
        source = self.generator if generator is None else generator
        return sample(theta, self.k, self.nb_samples, source)

    def sample(self, theta: Tensor, generator: torch.Generator | None = None) -> Any:
        """Return draws that carry a gradient, in either mode."""
        raise NotImplementedError(f"{type(self).__name__} has no way to sample")

    def solve(self, theta: Tensor) -> Any:
        """Return the likeliest subsets `[B, ..., N]`, without a gradient, in either mode."""
        if host_may_wait(theta) and theta.isnan().any():
            raise FloatingPointError(f"theta is NaN in {name_rows(theta.isnan())}")
        return select_k(theta, self.k)

    def forward(self, theta: Tensor) -> Any:
        """Sample (training) or solve (evaluation)."""
        return (self.sample if self.training else self.solve)(theta)

    def extra_repr(self) -> str:
        """The options, for print()."""
        return f"k={self.k}, nb_samples={self.nb_samples}"


def _near(theta: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-odds of the coins, and what was taken off: a constant, and from entries above all doubt.

        <z, theta> = <z, scores> + k common + <z, above>,    shapes [..., N], [..., 1], [..., N]

    Only what is near the k-th largest is in doubt; how far above it an entry is does not matter beyond that.
    """
    if not isinstance(theta, Tensor) or not theta.is_floating_point():
        found = theta.dtype if isinstance(theta, Tensor) else type(theta).__name__
        raise TypeError(f"theta must be a tensor of floating-point numbers, not {found}")
    if theta.dim() == 0 or not 1 <= k <= theta.shape[-1]:
        raise ValueError(f"k must be between 1 and {theta.shape[-1] if theta.dim() else 0}, the entries; it is {k}")
    theta = theta.float() if theta.itemsize < 4 else theta
    limits = torch.finfo(theta.dtype)
    theta = theta.clamp(limits.min, limits.max)
    far = -2.5 * math.log(limits.eps)  # a log-weight so far below another changes nothing, even a million times
    last = theta.detach().topk(k, dim=-1).values[..., -1:]
    above = (theta - last - far).clamp(0.0, _LARGEST)
    scores = (theta - last).clamp(-_LARGEST, far)
    t = _tilt(scores.detach(), k, -far, math.log(scores.shape[-1]))
    return scores - t, last + t, above


def _tilt(scores: Tensor, k: int, lowest: float, highest: float) -> Tensor:
    """Return t `[..., 1]` between two numbers such that about k heads are expected."""
    low, high = torch.full_like(scores[..., :1], lowest), torch.full_like(scores[..., :1], highest)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_many = torch.sigmoid(scores - middle).sum(-1, keepdim=True) > k
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return (low + high) / 2


def _log_sum(scores: Tensor, k: int) -> Tensor:
    """Return log Z `[...]` of scores `[..., N]` from `_near`."""
    halves = _polynomials(scores, k)[-1]
    heads = _product(halves[:, 0], halves[:, 1], k, k).squeeze(0)
    # log P(k heads) + sum_i log(1 + exp(score)); all gradient is in the first, see `_polynomials`
    return heads.log() - F.logsigmoid(-scores.detach()).sum(-1)


def _polynomials(scores: Tensor, k: int) -> list[Tensor]:
    """Return how likely 0, 1, ... k heads are in blocks of 1, 2, 4, ... entries, `[k + 1 at most, blocks, ...]` each.

    The last one holds two blocks: the halves.
    """
    size = scores.shape[-1]
    scores = F.pad(scores, (0, 2 ** max(1, (size - 1).bit_length()) - size), value=-_LARGEST).movedim(-1, 0)
    start = scores.detach()
    # c (1 + exp(score) x) is a polynomial of the entry for any constant c: with 1 - p for it, which does not follow the
    # score, the gradient of log Z is a sum of positive terms
    blocks = [torch.stack([torch.sigmoid(-start), torch.sigmoid(start) * torch.exp(scores - start)])]
    while blocks[-1].shape[1] > 2:
        left, right = blocks[-1][:, 0::2], blocks[-1][:, 1::2]
        blocks.append(_product(left, right, 0, min(2 * len(left) - 2, k)))
    return blocks


def _product(left: Tensor, right: Tensor, lowest: int, highest: int) -> Tensor:
    """Return the coefficients of degree lowest to highest of a product of polynomials `[D, ...]`."""
    degree = torch.arange(lowest, highest + 1, device=left.device).unsqueeze(1)
    partner = _partner(degree - torch.arange(len(left), device=left.device), len(left))
    return (left * _padded(right)[partner]).sum(1)


def _padded(right: Tensor) -> Tensor:
    """Return coefficients [D, ...] with a zero behind, which stands for all degrees that there are not."""
    return torch.cat([right, torch.zeros_like(right[:1])])


def _partner(degree: Tensor, size: int) -> Tensor:
    """Return where `_padded` holds the coefficients of these degrees."""
    return torch.where((degree < 0) | (degree >= size), size, degree)

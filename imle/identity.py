"""The identity in place of the solver, behind a projection of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imle.decorator import decorator
from imle.finite_difference import without_walls
from imle.one_temperature import OneTemperature


@dataclass(frozen=True, kw_only=True, eq=False)
class IdentityWithProjection(OneTemperature):
    """Make a solver differentiable as the identity, for a minimiser as its negative, behind a projection P of theta.

        z = MAP(P(theta) + tau eps),    g = P'(theta)^T dy

        "mean"    P(theta) = theta - mean(theta)              P'^T dy = dy - mean(dy)
        "norm"    P(theta) = u = theta / ||theta||            P'^T dy = (dy - <u, dy> u) / ||theta||
        "std"     first the one, then the other, and times sqrt(n)

    Solvers do not see the scale of theta, and many not what is added to all entries (k-subsets, trees, matchings;
    not paths, whose solutions have different numbers of ones). The gradient of the identity moves theta that way all
    the same, which does nothing, or lets theta shrink to nothing or grow without bound. The projection takes that
    part out, and gives the noise, a margin around the decision, a scale to go with. Mean, norm and n are of all
    entries of an instance but for masked ones. Without a projection this is `ste`.

    Source: Sahoo, Paulus, Vlastelica, Musil, Kuleshov, Martius, "Backpropagation through Combinatorial Algorithms:
    Identity with Projection Works", ICLR 2023.

    Args:
        projection: "mean", "norm", "std" (both) or None. With "mean" and "std" all solutions must have the same number
            of ones, or noise-free answers change too.

    Raises:
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        TypeError: an option or theta is of the wrong kind.
        FloatingPointError: theta, an answer of the solver or, in the backward pass, dy is not finite.

    Example:
        >>> import torch
        >>> from imle.solvers import select_k
        >>> @identity(projection="mean")
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> theta = torch.tensor([[0.3, 0.1, 0.2]], requires_grad=True)
        >>> select_two(theta).backward(torch.tensor([[3.0, 0.0, 0.0]]))
        >>> theta.grad
        tensor([[ 2., -1., -1.]])
    """

    projection: Literal["mean", "norm", "std"] | None = "std"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection not in ("mean", "norm", "std", None):
            raise ValueError(f"projection must be 'mean', 'norm', 'std' or None, not {self.projection!r}")

    def perturb(self, theta: Tensor, noise: Tensor | None) -> Tensor:
        """Return P(theta) + tau eps `[B, R, ...]`."""
        if self.projection is None:
            return super().perturb(theta, noise)
        seen, centred, length = self._parts(theta)
        return super().perturb(torch.where(seen, centred / length, theta).to(theta.dtype), noise)

    def gradient(
        self,
        solve: Callable[[Tensor], Tensor],
        theta: Tensor,
        noise: Tensor | None,
        z: Tensor,
        dy: Tensor,
        take_note: bool,
    ) -> Tensor:
        """Return g = P'(theta)^T dy `[B, S, ...]`; see `PerturbAndMAP.gradient`."""
        g = self.average(dy) * self.sign
        if self.projection is None:
            return g
        seen, centred, length = (part.unsqueeze(1) for part in self._parts(theta))
        v = torch.where(seen, g.to(centred.dtype), 0.0)
        if self.projection != "mean":
            u = centred / _norm(centred, 2)
            v = (v - u * (u * v).flatten(2).sum(2).view(length.shape[0], -1, *length.shape[2:])) / length
        if self.projection != "norm":
            v = v - _mean(v, seen, 2)
        return torch.where(seen, v, 0.0).to(theta.dtype)

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which entries are no masks and theta, centred where asked for, both `[B, ...]`, and its length."""
        seen = theta.isfinite() & ((without_walls(theta, self.sign) != 0) | (theta == 0))
        centred = torch.where(seen, theta, 0.0).to(torch.promote_types(theta.dtype, torch.float32))
        if self.projection != "norm":
            centred = torch.where(seen, centred - _mean(centred, seen, 1), 0.0)
        if self.projection == "mean":
            return seen, centred, torch.ones_like(centred[:, :1].flatten(1)[:, :1].view(-1, *[1] * (theta.dim() - 1)))
        length = _norm(centred, 1)
        if self.projection == "std":
            length = length / seen.flatten(1).sum(1).clamp(min=1).sqrt().view(length.shape)
        return seen, centred, length


def _mean(x: Tensor, seen: Tensor, first: int) -> Tensor:
    """Return the means over the entries that are seen, along all dimensions from `first` on, which become 1."""
    count = seen.flatten(first).sum(first).clamp(min=1)
    return (x.flatten(first).sum(first) / count).view(*x.shape[:first], *[1] * (x.dim() - first))


def _norm(x: Tensor, first: int) -> Tensor:
    """Return the norms along all dimensions from `first` on, which become 1; 1 in place of 0."""
    flat = x.flatten(first)
    largest = flat.abs().amax(first, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    norm = largest.squeeze(first) * torch.linalg.vector_norm(flat / largest, dim=first)
    return torch.where(norm > 0, norm, 1.0).view(*x.shape[:first], *[1] * (x.dim() - first))


identity = decorator("identity", IdentityWithProjection)

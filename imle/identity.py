"""The identity in place of the solver, behind a projection of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imle.decorator import decorator
from imle.finite_difference import walls
from imle.one_temperature import OneTemperature
from imle.solver import BoundSolver


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
        projection: "mean", "norm", "std" (both) or None; to be named. With "mean" and "std" all solutions must have the
            same number of ones (knapsacks and paths have not), or noise-free answers change too.

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

    projection: Literal["mean", "norm", "std"] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection not in ("mean", "norm", "std", None):
            raise ValueError(f"projection must be 'mean', 'norm', 'std' or None, not {self.projection!r}")

    def perturb(self, theta: Tensor, noise: Tensor | None, sign: int) -> Tensor:
        """Return P(theta) + tau eps `[B, R, ...]`."""
        if self.projection is None:
            return super().perturb(theta, noise, sign)
        seen, centred, length = self._parts(theta, sign)
        return super().perturb(torch.where(seen, centred / length, theta).to(theta.dtype), noise, sign)

    def gradient(
        self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g = P'(theta)^T dy `[B, S, ...]`; see `PerturbAndMAP.gradient`."""
        g = self.average(dy) * solve.sign
        if self.projection is None:
            return g
        seen, centred, length = (part.unsqueeze(1) for part in self._parts(theta, solve.sign))
        v = torch.where(seen, g.to(centred.dtype), 0.0)
        if self.projection != "mean":
            u = centred / _norm(centred, 2)
            # the component along u is what the length takes out
            v = (v - u * (u * v).sum(_dims(v, 2), keepdim=True)) / length
        if self.projection != "norm":
            v = v - _mean(v, seen, 2)
        return torch.where(seen, v, 0.0).to(theta.dtype)

    def _parts(self, theta: Tensor, sign: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return which entries are no masks and theta, centred where asked for, both `[B, ...]`, and its length."""
        theta = theta.contiguous()  # sums come out the same for all strides
        seen, walled = theta.isfinite(), walls(theta, sign)
        if walled is not None:
            seen &= ~walled
        centred = torch.where(seen, theta, 0.0).to(torch.promote_types(theta.dtype, torch.float32))
        if self.projection != "norm":
            centred = torch.where(seen, centred - _mean(centred, seen, 1), 0.0)
        length = torch.ones_like(_norm(centred, 1)) if self.projection == "mean" else _norm(centred, 1)
        if self.projection == "std":
            length = length / _count(seen, 1).sqrt()
        return seen, centred, length


def _dims(x: Tensor, first: int) -> tuple[int, ...]:
    """Return the dimensions of an instance, which `first` others come before."""
    return tuple(range(first, x.dim()))


def _count(seen: Tensor, first: int) -> Tensor:
    return seen.sum(_dims(seen, first), keepdim=True).clamp(min=1)


def _mean(x: Tensor, seen: Tensor, first: int) -> Tensor:
    """Return the mean of each instance over the entries that are seen; the others are 0."""
    return x.sum(_dims(x, first), keepdim=True) / _count(seen, first)


def _norm(x: Tensor, first: int) -> Tensor:
    """Return the norm of each instance, of numbers of any size; 1 in place of 0."""
    largest = x.abs().amax(_dims(x, first), keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    norm = largest * torch.linalg.vector_norm(x / largest, dim=_dims(x, first), keepdim=True)
    return torch.where(norm > 0, norm, 1.0)


identity = decorator("identity", IdentityWithProjection)

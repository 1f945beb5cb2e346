"""Implicit maximum likelihood estimation (I-MLE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imle._numerics import rows_with
from imle.decorator import decorator
from imle.finite_difference import FiniteDifference
from imle.solver import BoundSolver
from imle.target import TargetDistribution


@dataclass(frozen=True, kw_only=True, eq=False)
class IMLE(FiniteDifference):
    """Make a solver differentiable with I-MLE: its solutions less those of a target distribution.

        g = z - MAP(alpha theta - lambda dy + tau' eps)

    and divided by lambda where the target does so, as that of a call without options does.

    Source: Niepert, Minervini, Franceschi, "Implicit MLE: Backpropagating Through Discrete Exponential Family
    Distributions", NeurIPS 2021. The published target distribution is `TargetDistribution()`, a fixed lambda of 1.

    Raises:
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        TypeError: an option or theta is of the wrong kind.
        FloatingPointError: theta, an answer of the solver or, in the backward pass, dy is not finite.

    Example:
        >>> import torch
        >>> from imle.noise import GumbelNoiseDistribution
        >>> from imle.solvers import select_k
        >>> @imle(target_distribution=TargetDistribution(beta=10.0), noise_distribution=GumbelNoiseDistribution())
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> theta = torch.randn(3, 5, requires_grad=True)
        >>> select_two(theta).square().sum().backward()
        >>> theta.grad.shape
        torch.Size([3, 5])
    """

    @staticmethod
    def published_target() -> TargetDistribution:
        """Return a fixed lambda of 1."""
        return TargetDistribution()

    def difference(self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, step: Tensor) -> Tensor:
        """Return z - MAP(theta' + tau' eps) `[B, R, ...]`; see `FiniteDifference.difference`."""
        difference = z - solve(self.base(theta, noise) - step)
        if self.base_is_forward_pass():
            return difference
        # z and the target differ without any step: a row whose dy is zero has no gradient all the same
        moved = rows_with(step.flatten(0, 1) != 0).unflatten(0, step.shape[:2])
        return torch.where(moved, difference, 0.0)


imle = decorator("imle", IMLE)

"""Adaptive implicit maximum likelihood estimation (AIMLE), with forward or central differences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from imle.decorator import decorator
from imle.finite_difference import FiniteDifference
from imle.solver import BoundSolver
from imle.target import AdaptiveTargetDistribution


@dataclass(frozen=True, kw_only=True, eq=False)
class AIMLE(FiniteDifference):
    """Make a solver differentiable with AIMLE: a finite difference of its solutions, in the direction of dy.

        forward:  g = [MAP(alpha theta + tau' eps) - MAP(alpha theta - lambda dy + tau' eps)] / lambda
        central:  g = [MAP(alpha theta + lambda dy + tau' eps) - MAP(alpha theta - lambda dy + tau' eps)] / (2 lambda)

    Source: Minervini, Franceschi, Niepert, "Adaptive Perturbation-Based Gradient Estimation for Discrete Latent
    Variable Models", AAAI 2023. The published target distribution is `AdaptiveTargetDistribution()`, which tunes
    lambda by itself.

    Args:
        symmetric_perturbation: True for central differences, less biased, two more solutions a sample; False for
            forward ones, one more. None is the target's own: central for `AutoTargetDistribution`, forward for others.

    Raises:
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        TypeError: an option or theta is of the wrong kind.
        FloatingPointError: theta, an answer of the solver or, in the backward pass, dy is not finite.

    Example:
        >>> import torch
        >>> from imle.noise import SumOfGammaNoiseDistribution
        >>> from imle.solvers import select_k
        >>> target = AdaptiveTargetDistribution(initial_beta=0.0)
        >>> noise = SumOfGammaNoiseDistribution(k=2)
        >>> @aimle(target_distribution=target, noise_distribution=noise, symmetric_perturbation=True)
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> theta = torch.randn(3, 5, requires_grad=True)
        >>> select_two(theta).square().sum().backward()
        >>> target.beta
        0.0001
    """

    symmetric_perturbation: bool | None = None

    @staticmethod
    def published_target() -> AdaptiveTargetDistribution:
        """Return a lambda that tunes itself."""
        return AdaptiveTargetDistribution()

    def difference(self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, step: Tensor) -> Tensor:
        """Return the numerator of g `[B, R, ...]`, half of it for a central one; see `FiniteDifference.difference`."""
        base = self.base(theta, noise)
        central = self.symmetric_perturbation
        if self.target.symmetric_perturbation if central is None else central:
            half = solve(base + step) * 0.5
            return half.sub_(solve(base - step), alpha=0.5)
        if not self.base_is_forward_pass():
            z = solve(base.expand_as(step).clone()).clone()
        return z - solve(base - step)


aimle = decorator("aimle", AIMLE)

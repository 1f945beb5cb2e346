"""Lagrangian proximal gradient descent (LPGD), for linear objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from imle._numerics import host_may_wait
from imle.decorator import decorator
from imle.finite_difference import FiniteDifference
from imle.solver import BoundSolver
from imle.target import BaseTargetDistribution, TargetDistribution


@dataclass(frozen=True, kw_only=True, eq=False)
class LPGD(FiniteDifference):
    """Make a solver differentiable with LPGD: a difference of solutions, of which the moved ones are kept near z.

        MAP+-(theta) = argmax over z' in C of <theta +- lambda dy, z'> - rho / 2 ||z' - z||^2,    z = MAP(theta)

        lower:    g = [z - MAP-(theta)] / lambda
        upper:    g = [MAP+(theta) - z] / lambda
        average:  g = [MAP+(theta) - MAP-(theta)] / (2 lambda)

    lambda is the paper's tau. For solutions of zeros and ones the quadratic term is linear, so that the solver itself
    finds the moved ones, at theta + rho (z - 1/2) +- lambda dy. With rho = 0 lower is black-box differentiation, and
    average the central difference of AIMLE with a fixed lambda; for linear objectives over a discrete set, what is new
    is rho and the upper envelope. Without a target lambda is fixed at 1 and also divides, and without a noise there is
    none: the rule without numbers of `aimle` is taken where it is named.

    Source: Paulus, Martius, Musil, "LPGD: A General Framework for Backpropagation through Embedded Optimization
    Layers", ICML 2024.

    Args:
        rho: how strongly the moved solution is drawn to z; larger is less biased and sparser, 0 leaves it free. An
            entry changes only for a step against it of more than rho / 2.
        envelope: "lower", "upper" or "average", which takes one more solution a sample.

    Raises:
        ValueError: an option is out of its range, the solver returned another shape than it was given, or, with rho
            above 0, other numbers than 0 and 1.
        TypeError: an option or theta is of the wrong kind.
        FloatingPointError: theta, an answer of the solver or, in the backward pass, dy is not finite.

    Example:
        >>> import torch
        >>> from imle.solvers import select_k
        >>> target = TargetDistribution(beta=10.0, do_gradient_scaling=True)
        >>> @lpgd(target_distribution=target, rho=0.1, envelope="average")
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> theta = torch.randn(3, 5, requires_grad=True)
        >>> (select_two(theta) - torch.rand(3, 5)).square().sum().backward()
        >>> theta.grad.shape
        torch.Size([3, 5])
    """

    target_distribution: BaseTargetDistribution | None = None
    noise_distribution: Any = None
    rho: float = 0.0
    envelope: Literal["lower", "upper", "average"] = "lower"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rho < float("inf"):
            raise ValueError(f"rho must be a finite number of at least 0, not {self.rho!r}")
        if self.envelope not in ("lower", "upper", "average"):
            raise ValueError(f"envelope must be 'lower', 'upper' or 'average', not {self.envelope!r}")

    @staticmethod
    def published_target() -> TargetDistribution:
        """Return a fixed lambda of 1, by which the difference is divided."""
        return TargetDistribution(do_gradient_scaling=True)

    def difference(self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, step: Tensor) -> Tensor:
        """Return the numerator of g `[B, R, ...]`, half of it for "average"; see `FiniteDifference.difference`."""
        base = self.base(theta, noise)
        if not self.base_is_forward_pass():
            z = solve(base.expand_as(step).clone()).clone()
        if self.rho:
            if host_may_wait(z) and not ((z == 0) | (z == 1)).all():
                raise ValueError("with rho above 0 the solver must return zeros and ones: ||z' - z||^2 is linear there")
            # -rho / 2 ||z' - z||^2 = rho <z - 1/2, z'> - rho / 2 <1, z>
            base = base + solve.sign * self.rho * (z - 0.5)
        if self.envelope == "lower":
            return z - solve(base - step)
        if self.envelope == "upper":
            return solve(base + step) - z
        half = solve(base + step) * 0.5
        return half.sub_(solve(base - step), alpha=0.5)


lpgd = decorator("lpgd", LPGD)

"""The straight-through estimator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from imle.decorator import decorator
from imle.one_temperature import OneTemperature
from imle.solver import BoundSolver


@dataclass(frozen=True, kw_only=True, eq=False)
class STE(OneTemperature):
    """Make a solver differentiable straight through: it counts as the identity, for a minimiser as its negative.

        g = dy

    Source: Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for
    Conditional Computation", 2013.

    Raises:
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        TypeError: an option or theta is of the wrong kind.
        FloatingPointError: theta, an answer of the solver or, in the backward pass, dy is not finite.

    Example:
        >>> import torch
        >>> from imle.solvers import select_k
        >>> @ste
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> theta = torch.randn(3, 5, requires_grad=True)
        >>> select_two(theta).sum().backward()
        >>> bool((theta.grad == 1).all())
        True
    """

    def gradient(
        self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g = dy `[B, S, ...]`; see `PerturbAndMAP.gradient`."""
        g = self.average(dy)
        return g if solve.sign > 0 else -g


ste = decorator("ste", STE)

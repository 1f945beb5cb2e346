"""Black-box differentiation of combinatorial solvers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imle._numerics import times
from imle.decorator import decorator
from imle.one_temperature import OneTemperature
from imle.solver import BoundSolver


@dataclass(frozen=True, kw_only=True, eq=False)
class BlackboxDifferentiation(OneTemperature):
    """Make a solver differentiable by the gradient of a piecewise linear interpolation of the loss.

        g = [MAP(theta) - MAP(theta - lambda dy)] / lambda

    and for a solver that minimises g = [MIN(theta + lambda dy) - MIN(theta)] / lambda, as the paper has it. With noise,
    which the paper has not, both passes are perturbed by the same draw. It is I-MLE with tau = tau', alpha = 1 and a
    fixed lambda that also divides.

    Source: Vlastelica, Paulus, Musil, Martius, Rolínek, "Differentiation of Blackbox Combinatorial Solvers", ICLR 2020.

    Args:
        interpolation: lambda; larger is less sparse, and less faithful to the loss. The step is lambda dy, so lambda
            goes with the scale of the loss.

    Raises:
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        TypeError: an option or theta is of the wrong kind.
        FloatingPointError: theta, an answer of the solver or, in the backward pass, dy is not finite.

    Example:
        >>> import torch
        >>> from imle.solvers import shortest_path
        >>> layer = blackbox(shortest_path, interpolation=20.0)
        >>> costs = torch.rand(3, 5, 5, requires_grad=True)
        >>> (layer(costs) - torch.eye(5)).abs().sum().backward()
        >>> costs.grad.shape
        torch.Size([3, 5, 5])
    """

    interpolation: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.interpolation < float("inf"):
            raise ValueError(f"interpolation must be a finite number above 0, not {self.interpolation!r}")

    def gradient(
        self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g `[B, S, ...]`; see `PerturbAndMAP.gradient`."""
        size = torch.full((), solve.sign * self.interpolation, dtype=torch.float32, device=dy.device)
        # theta' = theta - lambda dy
        target = self.perturb(theta, noise, solve.sign) - times(dy.masked_fill(dy.isnan(), 0.0), size)
        return self.average(z - solve(target)) / (solve.sign * self.interpolation)


blackbox = decorator("blackbox", BlackboxDifferentiation)

"""The straight-through estimator.

Source: Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for
Conditional Computation", 2013.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from imle.perturb_and_map import PerturbAndMAP, Solver, decorate


@dataclass(frozen=True, kw_only=True, eq=False)
class STE(PerturbAndMAP):
    """g = dy: the solver counts as the identity."""

    def gradient(
        self, solve: Callable[[Tensor], Tensor], theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor
    ) -> Tensor:
        """Return g = dy `[B, S, ...]`."""
        return dy


def ste(
    function: Solver | None = None,
    noise_distribution: Any = None,
    noise_temperature: float = 1.0,
    nb_samples: int = 1,
    **options: Any,
) -> Any:
    """Make a solver differentiable straight through: as a decorator, bare or with options, or for `MAPLayer`.

    The decorated solver maps theta `[B, ...]` to solutions `[B*S, ...]`, the S samples of one instance side by
    side; its gradient is dy, averaged over S.

    Args:
        function: the solver, theta `[B, ...]` -> z of the same shape; None returns the estimator.
        noise_distribution: where eps comes from: any object with `sample(shape)`; None adds no noise.
        noise_temperature: tau, perturbation of the forward pass.
        nb_samples: S; more is less noisy, and S times the work.
        options: `nb_marginal_samples`, `generator`, `nonfinite`, `groups`: see `PerturbAndMAP`.

    Raises:
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        TypeError: an option or theta is of the wrong kind.
        FloatingPointError: in the backward pass, dy is not finite.

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
    estimator = STE(
        noise_distribution=noise_distribution,
        theta_noise_temperature=noise_temperature,
        nb_samples=nb_samples,
        **options,
    )
    return decorate(estimator, function)

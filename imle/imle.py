"""Implicit maximum likelihood estimation (I-MLE).

Source: Niepert, Minervini, Franceschi, "Implicit MLE: Backpropagating Through Discrete Exponential Family
Distributions", NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imle.perturb_and_map import PerturbAndMAP, Solver, decorate
from imle.target import BaseTargetDistribution, TargetDistribution, times


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetEstimator(PerturbAndMAP):
    """Base of the estimators that compare solutions at theta with solutions at the target theta'.

    Args, beside those of `PerturbAndMAP`:
        target_distribution: where alpha and lambda come from.
        target_noise_temperature: tau', how strongly the target pass is perturbed, by the same draw of eps.
        _is_minimization: the solver minimises <z, theta>: the signs of dy and of g flip.
    """

    target_distribution: BaseTargetDistribution = field(default_factory=TargetDistribution)
    target_noise_temperature: float = 1.0
    _is_minimization: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.target_distribution, BaseTargetDistribution):
            raise TypeError(f"target_distribution must be a BaseTargetDistribution, not {self.target_distribution!r}")
        if not self.target_noise_temperature >= 0:
            raise ValueError(f"target_noise_temperature must be at least 0, not {self.target_noise_temperature!r}")
        if getattr(self.target_distribution, "groups", self.groups) != self.groups:
            raise ValueError(f"a target of {self.target_distribution.groups} groups in an estimator of {self.groups}")

    def needs_noise(self) -> bool:
        """Whether the forward or the target pass is perturbed."""
        return self.noise_distribution is not None and self.theta_noise_temperature + self.target_noise_temperature > 0

    def target_base(self, theta: Tensor, noise: Tensor | None) -> Tensor:
        """Return alpha theta + tau' eps, `[B, 1 or S*M, ...]`: what the target parameters step away from."""
        alpha, tau = self.target_distribution.alpha, self.target_noise_temperature
        base = theta.unsqueeze(1)
        if alpha != 1:
            base = alpha * base
        # alpha theta + tau' eps
        return base if noise is None or tau == 0 else torch.add(base, noise, alpha=tau)

    def target_step(self, theta: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Return lambda and -lambda dy `[B, S*M, ...]`, or +lambda dy for a solver that minimises."""
        size = self.target_distribution.perturbation_size(theta, dy)
        # -lambda dy
        step = times(dy, size if self._is_minimization else -size)
        if self.nb_marginal_samples > 1:
            step = step.repeat_interleave(self.nb_marginal_samples, dim=1)
        return size, step

    def scale(self, difference: Tensor, theta: Tensor, dy: Tensor, size: Tensor) -> Tensor:
        """Return the difference of solutions as the target distribution scales it, with the sign of the solver."""
        g = self.target_distribution.process(difference, theta, dy, size)
        return -g if self._is_minimization else g


@dataclass(frozen=True, kw_only=True, eq=False)
class IMLE(TargetEstimator):
    """g = z - MAP(alpha theta - lambda dy + tau' eps)."""

    def gradient(
        self, solve: Callable[[Tensor], Tensor], theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor
    ) -> Tensor:
        """Return g `[B, S, ...]`; see `PerturbAndMAP.gradient`."""
        size, step = self.target_step(theta, dy)
        # g = z - MAP(theta' + tau' eps)
        (z_target,) = solve((self.target_base(theta, noise) + step)[None])
        return self.scale(z - z_target, theta, dy, size)


def imle(
    function: Solver | None = None,
    target_distribution: BaseTargetDistribution | None = None,
    noise_distribution: Any = None,
    nb_samples: int = 1,
    nb_marginal_samples: int = 1,
    theta_noise_temperature: float = 1.0,
    target_noise_temperature: float = 1.0,
    _is_minimization: bool = False,
    **options: Any,
) -> Any:
    """Make a solver differentiable with I-MLE: as a decorator, bare or with options, or as `MAPLayer`'s estimator.

    The decorated solver maps theta `[B, ...]` to solutions `[B*S, ...]`, the S samples of one instance side by
    side. It keeps the solver's extra arguments: tensors and arrays among them whose first dimension is B are
    repeated to match the rows of a call. Its gradient is averaged over S.

    Args:
        function: the solver, theta `[B, ...]` -> z of the same shape; None returns the estimator.
        target_distribution: where alpha and lambda come from; `TargetDistribution()` by default.
        noise_distribution: where eps comes from: any object with `sample(shape)`; None adds no noise.
        nb_samples: S; more is less noisy, and S times the work.
        nb_marginal_samples: M, perturbed solutions averaged into each output.
        theta_noise_temperature: tau, perturbation of the forward pass.
        target_noise_temperature: tau', perturbation of the target pass.
        _is_minimization: the solver minimises <z, theta> instead of maximising it.
        options: `generator`, `nonfinite`, `groups`: see `PerturbAndMAP`.

    Raises:
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        TypeError: an option or theta is of the wrong kind.
        FloatingPointError: in the backward pass, dy is not finite.

    Example:
        >>> import torch
        >>> from imle.noise import GumbelNoiseDistribution
        >>> from imle.solvers import select_k
        >>> from imle.target import TargetDistribution
        >>> @imle(target_distribution=TargetDistribution(beta=10.0), noise_distribution=GumbelNoiseDistribution())
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> theta = torch.randn(3, 5, requires_grad=True)
        >>> select_two(theta).square().sum().backward()
        >>> theta.grad.shape
        torch.Size([3, 5])
    """
    estimator = IMLE(
        target_distribution=TargetDistribution() if target_distribution is None else target_distribution,
        noise_distribution=noise_distribution,
        nb_samples=nb_samples,
        nb_marginal_samples=nb_marginal_samples,
        theta_noise_temperature=theta_noise_temperature,
        target_noise_temperature=target_noise_temperature,
        _is_minimization=_is_minimization,
        **options,
    )
    return decorate(estimator, function)

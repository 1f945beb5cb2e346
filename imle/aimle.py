"""Adaptive implicit maximum likelihood estimation (AIMLE), with forward or central differences.

Source: Minervini, Franceschi, Niepert, "Adaptive Perturbation-Based Gradient Estimation for Discrete Latent
Variable Models", AAAI 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imle.imle import TargetEstimator
from imle.perturb_and_map import Solver, decorate
from imle.target import AdaptiveTargetDistribution, BaseTargetDistribution


@dataclass(frozen=True, kw_only=True, eq=False)
class AIMLE(TargetEstimator):
    """A finite difference of perturbed solutions in the direction of dy.

    Args, beside those of `TargetEstimator`:
        symmetric_perturbation: take the central difference, less biased and twice the solver's work in the
            backward pass, instead of the forward one.
    """

    symmetric_perturbation: bool = False

    def gradient(
        self, solve: Callable[[Tensor], Tensor], theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor
    ) -> Tensor:
        """Return g `[B, S, ...]`; see `PerturbAndMAP.gradient`."""
        size, step = self.target_step(theta, dy)
        base = self.target_base(theta, noise)
        if self.symmetric_perturbation:
            # g = [MAP(alpha theta + lambda dy + tau' eps) - MAP(alpha theta - lambda dy + tau' eps)] / (2 lambda)
            sides = step.new_empty((2, *step.shape))
            torch.sub(base, step, out=sides[0])
            torch.add(base, step, out=sides[1])
            z_plus, z_minus = solve(sides)
            return self.scale(torch.sub(z_plus, z_minus).mul_(0.5), theta, dy, size)
        if self._base_is_forward_pass():
            z_base, (z_target,) = z, solve((base + step)[None])
        else:
            z_base, z_target = solve(torch.stack([base.expand_as(step), base + step]))
        # g = [MAP(alpha theta + tau' eps) - MAP(alpha theta - lambda dy + tau' eps)] / lambda
        return self.scale(z_base - z_target, theta, dy, size)

    def _base_is_forward_pass(self) -> bool:
        same_noise = self.theta_noise_temperature == self.target_noise_temperature
        return self.target_distribution.alpha == 1 and (same_noise or self.noise_distribution is None)


def aimle(
    function: Solver | None = None,
    target_distribution: BaseTargetDistribution | None = None,
    noise_distribution: Any = None,
    nb_samples: int = 1,
    nb_marginal_samples: int = 1,
    theta_noise_temperature: float = 1.0,
    target_noise_temperature: float = 1.0,
    symmetric_perturbation: bool = False,
    _is_minimization: bool = False,
    **options: Any,
) -> Any:
    """Make a solver differentiable with AIMLE: as a decorator, bare or with options, or as `MAPLayer`'s estimator.

    The decorated solver maps theta `[B, ...]` to solutions `[B*S, ...]`, the S samples of one instance side by
    side. It keeps the solver's extra arguments: tensors and arrays among them whose first dimension is B are
    repeated to match the rows of a call. Its gradient is averaged over S. Both sides of a difference go to the
    solver in one call.

    Args:
        function: the solver, theta `[B, ...]` -> z of the same shape; None returns the estimator.
        target_distribution: where alpha and lambda come from; `AdaptiveTargetDistribution()` by default.
        noise_distribution: where eps comes from: any object with `sample(shape)`; None adds no noise.
        nb_samples: S; more is less noisy, and S times the work.
        nb_marginal_samples: M, perturbed solutions averaged into each output.
        theta_noise_temperature: tau, perturbation of the forward pass.
        target_noise_temperature: tau', perturbation of the target pass.
        symmetric_perturbation: central instead of forward differences: less biased, one more solution a sample.
        _is_minimization: the solver minimises <z, theta> instead of maximising it.
        options: `generator`, `nonfinite`, `groups`: see `PerturbAndMAP`.

    Raises:
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        TypeError: an option or theta is of the wrong kind.
        FloatingPointError: in the backward pass, dy is not finite.

    Example:
        >>> import torch
        >>> from imle.noise import SumOfGammaNoiseDistribution
        >>> from imle.solvers import select_k
        >>> from imle.target import AdaptiveTargetDistribution
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
    estimator = AIMLE(
        target_distribution=AdaptiveTargetDistribution() if target_distribution is None else target_distribution,
        noise_distribution=noise_distribution,
        nb_samples=nb_samples,
        nb_marginal_samples=nb_marginal_samples,
        theta_noise_temperature=theta_noise_temperature,
        target_noise_temperature=target_noise_temperature,
        symmetric_perturbation=symmetric_perturbation,
        _is_minimization=_is_minimization,
        **options,
    )
    return decorate(estimator, function)

"""Names, signatures and defaults of torch-imle and of the code released with the AIMLE paper, for programs written so.

    from imle.wrapper import aimle, imle, AdaptiveTargetDistribution, BaseTargetDistribution, TargetDistribution

What is here differs from `imle.imle` and `imle.aimle` in what it takes, not in what it computes: options by position,
`input_noise_temperature`, solvers that return `(z, extra)`, target distributions of one's own with the methods
`params` and `process`. New code has no need of it.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imle import target
from imle._numerics import finite_number, host_may_wait, rows_with, times
from imle.aimle import AIMLE
from imle.imle import IMLE
from imle.perturb_and_map import PerturbAndMAP
from imle.solver import BoundSolver

Solver = Callable[..., Any]


def imle(
    function: Solver | None = None,
    target_distribution: Any = None,
    noise_distribution: Any = None,
    nb_samples: int = 1,
    input_noise_temperature: float = 1.0,
    target_noise_temperature: float = 1.0,
    *,
    nb_marginal_samples: int = 1,
    theta_noise_temperature: float | None = None,
    _is_minimization: bool | None = None,
) -> Any:
    """Make a solver differentiable with I-MLE, called as torch-imle's `imle` was; see `imle.imle.imle`.

    Args:
        function: the solver, parameters `[B*S, ...]` -> solutions, alone or first in a tuple; without it a decorator
            is returned.
        target_distribution: one of `imle.target`, or any object with the methods of `BaseTargetDistribution` below; by
            default `TargetDistribution(alpha=1.0, beta=1.0)`.
        noise_distribution: any object with `sample(shape)`; None adds no noise.
        nb_samples: S.
        input_noise_temperature: tau, how strongly the forward pass is perturbed.
        target_noise_temperature: tau', how strongly the target pass is perturbed.
        nb_marginal_samples: M.
        theta_noise_temperature: the other name of `input_noise_temperature`, which it replaces.
        _is_minimization: the solver minimises <z, theta>; as released, its noise is added all the same.

    Raises:
        TypeError: the target distribution has no method `params`, or an option is of the wrong kind.
        ValueError: an option is out of its range.

    Example:
        >>> from imle.solvers import select_k
        >>> from imle.noise import SumOfGammaNoiseDistribution
        >>> noise = SumOfGammaNoiseDistribution(k=2, nb_iterations=10)
        >>> @imle(target_distribution=TargetDistribution(alpha=0.0, beta=10.0), noise_distribution=noise, nb_samples=4,
        ...       input_noise_temperature=1.0, target_noise_temperature=5.0)
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> select_two(torch.randn(3, 5)).shape
        torch.Size([12, 5])
    """
    options = _options(locals())
    if function is None:
        return functools.partial(imle, **options)
    tau = options.pop("input_noise_temperature")
    options["theta_noise_temperature"] = tau if theta_noise_temperature is None else theta_noise_temperature
    return _estimator(_IMLE, **options)(_first_of_answer(function))


def aimle(
    function: Solver | None = None,
    target_distribution: Any = None,
    noise_distribution: Any = None,
    nb_samples: int = 1,
    nb_marginal_samples: int = 1,
    theta_noise_temperature: float = 1.0,
    target_noise_temperature: float = 1.0,
    symmetric_perturbation: bool = False,
    _is_minimization: bool | None = None,
) -> Any:
    """Make a solver differentiable with AIMLE, called as the released code's `aimle` was; see `imle.aimle.aimle`.

    Arguments and errors as those of `imle` above; the target distribution is `TargetDistribution(alpha=1.0, beta=1.0)`
    by default, a fixed lambda. `symmetric_perturbation` takes central instead of forward differences.

    Example:
        >>> ranks = aimle(lambda scores: (scores.argsort(1).argsort(1) + 1, scores), AdaptiveTargetDistribution())
        >>> ranks(torch.tensor([[0.3, 0.1, 0.2]]))
        tensor([[3., 1., 2.]])
    """
    options = _options(locals())
    if function is None:
        return functools.partial(aimle, **options)
    return _estimator(_AIMLE, **options)(_first_of_answer(function))


def _options(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "function"}


def _first_of_answer(function: Solver) -> Solver:
    """Return a solver without what a solver of answers `(z, extra)` returns beside its solutions."""
    if not callable(function) or hasattr(function, "params") or isinstance(function, target.BaseTargetDistribution):
        raise TypeError(f"{function!r} stands in the place of the solver: give options by name, or after it")

    @functools.wraps(function)
    def solve(*args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        return answer[0] if isinstance(answer, tuple) else answer

    return solve


class _Released:
    """What the two estimators of this module do otherwise: a minimiser's noise is added, too."""

    def draw_noise(self, theta: Tensor, sign: int, generator: torch.Generator | None = None) -> Tensor | None:
        return super().draw_noise(theta, 1, generator)  # type: ignore[misc]


class _IMLE(_Released, IMLE):
    pass


class _AIMLE(_Released, AIMLE):
    pass


def _estimator(kind: type[IMLE] | type[AIMLE], target_distribution: Any, **options: Any) -> PerturbAndMAP:
    if target_distribution is None:
        target_distribution = TargetDistribution(alpha=1.0, beta=1.0)
    told = [getattr(type(target_distribution), name, None) for name in ("params", "process")]
    if isinstance(target_distribution, target.BaseTargetDistribution) and set(told) <= {None, *_OURS}:
        return kind(target_distribution=target_distribution, **options)
    if not callable(getattr(target_distribution, "params", None)):
        raise TypeError(f"target_distribution needs a method params(theta, dy), {target_distribution!r} has none")
    return _AsTold(target_distribution=target_distribution, from_z=kind is _IMLE, **options)


# ---- target distributions


class BaseTargetDistribution(ABC):
    """The released protocol of target distributions, for classes of one's own: theta' itself, in place of a lambda.

    Rows are `[B*S*M, ...]`, for which theta is repeated.
    """

    @abstractmethod
    def params(self, theta: Tensor, dy: Tensor | None, _is_minimization: bool = False) -> Tensor:
        """Return theta' `[B*S*M, ...]`.

        Args:
            theta: `[B*S*M, ...]`.
            dy: `[B*S*M, ...]`; None asks for the parameters without a step. Central differences ask for -dy too.
            _is_minimization: given, as True, where the solver minimises.
        """

    def process(self, theta: Tensor, dy: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient `[B, S, ...]` of a difference of solutions, from theta `[B, ...]`, dy `[B*S*M, ...]`."""
        return gradient


class _ByHand(target.BaseTargetDistribution):
    """The released protocol over a target distribution of this library."""

    def params(self, theta: Tensor, dy: Tensor | None, _is_minimization: bool = False) -> Tensor:
        """Return theta' = alpha theta - lambda dy; plus where the solver minimises."""
        if dy is None:
            return self.alpha * theta
        rows = dy.unsqueeze(1)
        step = times(rows, self.perturbation_size(theta, rows)).squeeze(1)
        return self.alpha * theta + step if _is_minimization else self.alpha * theta - step

    def process(self, theta: Tensor, dy: Tensor, gradient: Tensor) -> Tensor:
        """Return a difference `[B, S, ...]`, divided by lambda if this target does, and take note of it."""
        rows = dy.unflatten(0, (theta.shape[0], -1))
        g = self.scale(gradient, theta, rows, self.perturbation_size(theta, rows))
        if torch._C._are_functorch_transforms_active():
            self.pass_over()
        elif self.training:
            self.update(gradient, rows)
        return g


_OURS = (_ByHand.params, _ByHand.process)


class TargetDistribution(_ByHand, target.TargetDistribution):
    """A fixed perturbation size; see `imle.target.TargetDistribution`.

    Args:
        alpha: how much of theta stays in theta'.
        beta: the perturbation size lambda.
        do_gradient_scaling: divide the gradient by lambda.
        eps: the least number to divide by.

    Raises:
        ValueError: an option is not a finite number.

    Example:
        >>> TargetDistribution(alpha=1.0, beta=10.0).params(theta=torch.tensor([[1.0]]), dy=torch.tensor([[0.5]]))
        tensor([[-4.]])
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 1.0, do_gradient_scaling: bool = False, eps: float = 1e-7
    ) -> None:
        super().__init__(alpha, beta, do_gradient_scaling)
        self.eps = finite_number("eps", eps)

    def scale(self, difference: Tensor, theta: Tensor, dy: Tensor, perturbation_size: Tensor) -> Tensor:
        """Return the difference, divided by lambda on demand, or by eps where that is larger."""
        return difference / max(self.beta, self.eps) if self.do_gradient_scaling else difference


class AdaptiveTargetDistribution(_ByHand, target.AdaptiveTargetDistribution):
    """A perturbation size that tunes itself, whose state may be set; see `imle.target.AdaptiveTargetDistribution`.

    Example:
        >>> adaptive = AdaptiveTargetDistribution(initial_beta=0.0)
        >>> adaptive.beta = 0.5
        >>> f"{adaptive.beta:.4f}", adaptive.grad_norm, adaptive.previous_beta_update
        ('0.5000', 1.0, 0.0)
    """


# ---- the estimators over a target distribution that gives theta' itself


@dataclass(frozen=True, kw_only=True, eq=False)
class _AsTold(_Released, PerturbAndMAP):
    """I-MLE and AIMLE whose target parameters a `BaseTargetDistribution` of the released protocol gives.

    `from_z` (I-MLE) takes the difference from z, else (AIMLE) from the solution of the parameters without a step.
    """

    target_distribution: Any
    from_z: bool
    theta_noise_temperature: float = 1.0
    target_noise_temperature: float = 1.0
    symmetric_perturbation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_temperatures("theta_noise_temperature", "target_noise_temperature")

    @property
    def tau(self) -> float:
        return self.theta_noise_temperature

    @property
    def needs_noise(self) -> bool:
        return self.noise_distribution is not None and self.tau + self.target_noise_temperature > 0

    def gradient(
        self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        dy = dy if host_may_wait(dy) else dy.masked_fill(dy.isnan(), 0.0)
        repeated = theta.repeat_interleave(self.rows, dim=0)
        minimises = {"_is_minimization": True} if solve.sign < 0 else {}

        def solve_at(step: Tensor | None) -> Tensor:
            parameters = self.target_distribution.params(repeated, step, **minimises).reshape(dy.shape)
            if noise is not None:
                parameters = torch.add(parameters, noise, alpha=self.target_noise_temperature)
            return solve(parameters.to(theta)).clone()

        flat = dy.flatten(0, 1)
        if self.symmetric_perturbation:
            difference = (solve_at(-flat) - solve_at(flat)) / 2
        else:
            difference = (z if self.from_z else solve_at(None)) - solve_at(flat)
        # a row whose dy is zero has no gradient, whatever its target is
        difference = torch.where(rows_with(flat != 0).unflatten(0, dy.shape[:2]), difference, 0.0)
        process = getattr(self.target_distribution, "process", None)  # torch-imle's targets have none
        g = self.average(difference)
        g = g if process is None else process(theta, flat, g)
        return -g if solve.sign < 0 else g

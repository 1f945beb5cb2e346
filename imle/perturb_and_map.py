"""The skeleton that every estimator shares: perturb theta, solve, pull the gradient back through a rule.

    z = MAP(theta + tau eps),    MAP(theta) = argmax over z in C of <z, theta>

An estimator is its options, bound: a value that takes a solver and returns a differentiable solver. What one
estimator adds to this skeleton is its rule, `gradient(solve, theta, noise, z, dy)`.

Shapes: B instances, S samples, M marginal samples, `...` the shape of one instance.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imle._compile import eager
from imle.noise import Generators, draw
from imle.target import BaseTargetDistribution, by_group, host_may_wait, is_finite, per_instance

Solver = Callable[..., Any]


class BoundSolver:
    """A solver with its extra arguments bound, over the rows of one batch of B instances.

    Tensors and numpy arrays among the arguments whose first dimension is B are repeated to match the rows of each
    call; none of them gets a gradient.
    """

    def __init__(self, solver: Solver, batch_size: int, args: tuple, kwargs: dict):
        self.solver, self.batch_size, self.args, self.kwargs = solver, batch_size, args, kwargs

    def __call__(self, theta: Tensor) -> Tensor:
        """Solve `[P, B, R, ...]`, R rows for each instance in each of P passes, in one call of the solver.

        The solver owns the memory that it is given, and may use that of its answer again in the next call. The answer
        has the shape, dtype and device of `theta`.

        Raises:
            TypeError: the solver's answer is no tensor or array of numbers.
            ValueError: the solver's answer has another shape than its parameters.
        """
        passes, _, rows = theta.shape[:3]
        parameters = theta.flatten(0, 2).contiguous()
        if not parameters.shape[0]:
            return torch.zeros_like(theta)
        shape = tuple(parameters.shape)
        args = [self._match(value, passes, rows) for value in self.args]
        kwargs = {name: self._match(value, passes, rows) for name, value in self.kwargs.items()}
        z = _as_tensor(self.solver(parameters, *args, **kwargs))
        if tuple(z.shape) != shape:
            raise ValueError(f"solver returned {tuple(z.shape)} for parameters {shape}")
        return z.detach().to(theta).reshape(theta.shape)

    def _match(self, value: Any, passes: int, rows: int) -> Any:
        if isinstance(value, Tensor):
            value = value.detach()
        elif not _is_array(value):
            return value
        if value.ndim == 0 or value.shape[0] != self.batch_size or passes * rows == 1:
            return value
        if not isinstance(value, Tensor):
            return value[torch.arange(self.batch_size).repeat_interleave(rows).repeat(passes).numpy()]
        value = value.repeat_interleave(rows, dim=0)
        return value.repeat(passes, *[1] * (value.dim() - 1))


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _as_tensor(answer: Any) -> Tensor:
    try:
        return torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"a solver must return a tensor or an array of numbers, not {type(answer).__name__}: {error}"
        raise TypeError(message) from error


class _PerturbAndMAP(torch.autograd.Function):
    """theta [B, ...] -> z [B*S, ...]; its gradient is the estimator's rule."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, noise: Tensor | None, estimator: PerturbAndMAP, solver: BoundSolver):
        perturbed = estimator.perturb(theta, noise)
        # .clone(): z outlives the call, and the solver may write its next answer into the same memory.
        z = estimator.average(solver(perturbed[None]))[0].flatten(0, 1).clone()
        ctx.estimator, ctx.solver = estimator, solver
        ctx.save_for_backward(theta, noise, z)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor):
        theta, noise, z = ctx.saved_tensors
        samples = (theta.shape[0], ctx.estimator.nb_samples)
        dy, finite = ctx.estimator.check_gradient(dy)
        dy = dy.unflatten(0, samples)

        def solve(parameters: Tensor) -> Tensor:
            return ctx.estimator.average(ctx.solver(parameters))

        g = ctx.estimator.gradient(solve, theta, noise, z.unflatten(0, samples), dy)
        g = g.mean(dim=1) if samples[1] > 1 else g[:, 0]
        return (g if finite is None else torch.where(per_instance(finite, g), g, torch.nan)), None, None, None


@dataclass(frozen=True, kw_only=True, eq=False)
class PerturbAndMAP:
    """Base of the estimators: options that all of them share, and how a solver is run under them.

    Args:
        noise_distribution: where eps comes from: any object with `sample(shape)`; None adds no noise.
        nb_samples: S, solutions for each instance; more is less noisy, and S times the work.
        nb_marginal_samples: M, perturbed solutions averaged into each of the S outputs, which for M > 1 estimate
            marginals and are no longer discrete.
        theta_noise_temperature: tau, how strongly the forward pass is perturbed; 0 returns MAP(theta).
        generator: the random state for noises that take one; None uses torch's own. With several groups it may be a
            sequence of as many.
        nonfinite: what a NaN or infinite dy does: "raise" a FloatingPointError, or "skip" the step (zero gradient)
            with a warning. The adaptive state is left alone either way. On an accelerator nothing may wait for
            the host: "raise" gives a gradient of NaN there, "skip" a silent zero.
        groups: the number of equal parts of a batch, side by side, that have nothing to do with one another, such as
            those of several networks that train as one batched network: each with noise from a generator of its
            own, and a state of its own in an adaptive target of as many groups. A dy that is not finite concerns its
            own group alone, which is then treated as on an accelerator.
    """

    noise_distribution: Any = None
    nb_samples: int = 1
    nb_marginal_samples: int = 1
    theta_noise_temperature: float = 1.0
    generator: Generators = None
    nonfinite: Literal["raise", "skip"] = "raise"
    groups: int = 1

    def __post_init__(self):
        for name in ("nb_samples", "nb_marginal_samples", "groups"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name} must be a whole number from 1 up, not {getattr(self, name)!r}")
        if not self.theta_noise_temperature >= 0:
            raise ValueError(f"theta_noise_temperature must be at least 0, not {self.theta_noise_temperature!r}")
        if self.noise_distribution is not None and not hasattr(self.noise_distribution, "sample"):
            raise TypeError(f"noise_distribution needs a sample(shape) method, {self.noise_distribution!r} has none")
        if self.nonfinite not in ("raise", "skip"):
            raise ValueError(f"nonfinite must be 'raise' or 'skip', not {self.nonfinite!r}")
        if isinstance(self.generator, Sequence) and len(self.generator) != self.groups:
            raise ValueError(f"{len(self.generator)} generators do not go with {self.groups} groups")

    def __call__(self, solver: Solver) -> Solver:
        """Return the solver as a differentiable function of its first argument."""
        if not callable(solver):
            raise TypeError(f"a solver must be callable, {solver!r} is not")

        @functools.wraps(solver)
        def differentiable_solver(theta: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self.apply(solver, theta, *args, **kwargs)

        return differentiable_solver

    @eager
    def apply(self, solver: Solver, theta: Tensor, /, *args: Any, **kwargs: Any) -> Any:
        """Solve a perturbed theta `[B, ...]`; returns z `[B*S, ...]`, the samples of one instance side by side."""
        bound = BoundSolver(solver, check_theta(theta).shape[0], args, kwargs)
        return _PerturbAndMAP.apply(theta, self.draw_noise(theta), self, bound)

    def gradient(
        self, solve: Callable[[Tensor], Tensor], theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor
    ) -> Tensor:
        """The rule: return g `[B, S, ...]`, before it is averaged over S.

        Args:
            solve: perturbed parameters `[P, B, S*M, ...]` -> solutions averaged over M `[P, B, S, ...]`.
            theta: `[B, ...]`.
            noise: `[B, S*M, ...]`, the draw of the forward pass, or None.
            z: `[B, S, ...]`, what the forward pass returned.
            dy: `[B, S, ...]`, the gradient of the loss with respect to z.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradient rule for theta")

    def needs_noise(self) -> bool:
        """Whether any pass is perturbed."""
        return self.noise_distribution is not None and self.theta_noise_temperature > 0

    def draw_noise(self, theta: Tensor) -> Tensor | None:
        """Return eps `[B, S*M, ...]`, one draw for the forward and the target pass."""
        if not self.needs_noise():
            return None
        shape = (theta.shape[0], self.nb_samples * self.nb_marginal_samples, *theta.shape[1:])
        return draw(self.noise_distribution, shape, like=theta, generator=self.generator)

    def perturb(self, theta: Tensor, noise: Tensor | None) -> Tensor:
        """Return theta + tau eps `[B, S*M, ...]` in fresh memory, which a solver may overwrite."""
        rows = self.nb_samples * self.nb_marginal_samples
        if noise is None or self.theta_noise_temperature == 0:
            return theta.unsqueeze(1).repeat_interleave(rows, dim=1).contiguous()
        # theta + tau eps
        return torch.add(theta.unsqueeze(1), noise, alpha=self.theta_noise_temperature)

    def average(self, z: Tensor) -> Tensor:
        """Return `[P, B, S*M, ...]` averaged over the M marginal samples, `[P, B, S, ...]`."""
        if self.nb_marginal_samples == 1:
            return z
        return z.unflatten(2, (self.nb_samples, self.nb_marginal_samples)).mean(dim=3)

    def check_gradient(self, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return dy, zero where it is not finite, and, where the host may not wait for it, whether it was finite.

        Whether it was finite is one answer for all, 0-dimensional, or one for each group, `[groups]`.

        Raises:
            FloatingPointError: dy holds NaN or infinite numbers, and `nonfinite` is "raise".
        """
        finite = by_group(is_finite, dy, self.groups)
        if self.groups > 1 or not host_may_wait(dy):
            dy = torch.where(per_instance(finite, dy), dy, 0.0)
            return dy, finite if self.nonfinite == "raise" else None
        if finite:
            return dy, None
        if self.nonfinite == "raise":
            raise FloatingPointError(
                "the gradient dy that reached the solver is not finite: look for NaN or overflow in the loss, "
                'or pass nonfinite="skip" to leave such steps out'
            )
        warnings.warn("a step was skipped: the gradient dy that reached the solver is not finite", stacklevel=2)
        return torch.zeros_like(dy), None


def check_theta(theta: Any) -> Tensor:
    """Return theta.

    Raises:
        TypeError: theta is not a tensor of floating-point numbers.
        ValueError: theta has no batch dimension.
    """
    if not isinstance(theta, Tensor) or not theta.is_floating_point():
        found = theta.dtype if isinstance(theta, Tensor) else type(theta).__name__
        raise TypeError(f"theta must be a tensor of floating-point numbers, not {found}")
    if theta.dim() < 2:
        raise ValueError(f"theta must be [B, ...] with a batch dimension first, not {tuple(theta.shape)}")
    return theta


def decorate(estimator: PerturbAndMAP, function: Solver | None) -> Any:
    """Serve both spellings: `@estimator` over a solver, and `@estimator(options)`.

    Raises:
        TypeError: an option was given by position, where the solver belongs.
    """
    if isinstance(function, BaseTargetDistribution) or hasattr(function, "sample"):
        raise TypeError(f"give options by name, such as noise_distribution=...; {function!r} stands for the solver")
    return estimator if function is None else estimator(function)

"""What `imle` and `aimle` share: solutions at theta are compared with those at a target, a step of lambda dy away."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imle._numerics import host_may_wait, times
from imle.auto import AutoTargetDistribution
from imle.perturb_and_map import PerturbAndMAP
from imle.solver import BoundSolver
from imle.target import BaseTargetDistribution

_LEAST_WALL = 1e8


class _OfTarget:
    """The default of an option for which None is an answer."""

    def __repr__(self) -> str:
        return "<the target's own: Gumbel(0, 1) for AutoTargetDistribution, none for the others>"


OF_TARGET: Any = _OfTarget()


@dataclass(frozen=True, kw_only=True, eq=False)
class FiniteDifference(PerturbAndMAP):
    """Base of the estimators with a target distribution: theta' = alpha theta - lambda dy.

    The default target is `AutoTargetDistribution()`, which needs no number. The default noise is the target's own:
    Gumbel(0, 1) for `AutoTargetDistribution`, none for the published targets. None as noise adds none.

    Args:
        target_distribution: where alpha and lambda come from; None is the published one.
        theta_noise_temperature: tau, how strongly the forward pass is perturbed; 0 returns MAP(theta).
        target_noise_temperature: tau', how strongly the target pass is perturbed, by the same draw of eps.
    """

    target_distribution: BaseTargetDistribution | None = field(default_factory=AutoTargetDistribution)
    noise_distribution: Any = OF_TARGET
    theta_noise_temperature: float = 1.0
    target_noise_temperature: float = 1.0
    target: BaseTargetDistribution = field(init=False, repr=False)

    def __post_init__(self) -> None:
        target = self.published_target() if self.target_distribution is None else self.target_distribution
        if not isinstance(target, BaseTargetDistribution):
            raise TypeError(f"target_distribution must be a BaseTargetDistribution, not {target!r}")
        object.__setattr__(self, "target_distribution", target)
        object.__setattr__(self, "target", target)  # the same, and never None
        if self.noise_distribution is OF_TARGET:
            object.__setattr__(self, "noise_distribution", target.default_noise())
        super().__post_init__()
        self._check_temperatures("theta_noise_temperature", "target_noise_temperature")

    @staticmethod
    def published_target() -> BaseTargetDistribution:
        """Return the target distribution of the publications."""
        raise NotImplementedError

    @property
    def tau(self) -> float:
        """How strongly the forward pass is perturbed."""
        return self.theta_noise_temperature

    @property
    def needs_noise(self) -> bool:
        """Whether the forward or the target pass is perturbed."""
        return self.noise_distribution is not None and self.tau + self.target_noise_temperature > 0

    def gradient(
        self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g `[B, S, ...]`; see `PerturbAndMAP.gradient`."""
        counted = dy if host_may_wait(dy) else dy.masked_fill(dy.isnan(), 0.0)
        size = self.size(theta, noise, counted, solve.sign)
        # lambda dy; theta' is a step against it, or with it for a solver that minimises
        step = times(counted, solve.sign * size)
        difference = self.average(self.difference(solve, theta, noise, z, step))
        if solve.sign < 0:
            difference = -difference
        g = self.target.scale(difference, theta, dy, size)
        if not take_note:
            self.target.pass_over()
        elif self.target.training:
            if solve.skipped is not None:
                difference, dy = difference[~solve.skipped], dy[~solve.skipped]
            self.target.update(difference, dy)
        return g

    def state(self) -> dict[str, Tensor | None]:
        """Return the buffers of the target that may be lent."""
        return {name: self.target._buffers[name] for name in self.target.lent}

    def pull_back(self, *args: Any) -> Tensor:
        """Return the gradient of theta, with the target's state of the forward pass; see `PerturbAndMAP.pull_back`."""
        buffers = self.target._buffers
        lent = {name: tensor for name, tensor in args[-1].items() if buffers[name] is not tensor}
        own = {name: buffers[name] for name in lent}
        buffers.update(lent)
        try:
            return super().pull_back(*args)
        finally:
            buffers.update(own)

    def check_gradient(self, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return dy, zero in every process of the target's group where any of them has one that is not finite.

        See `PerturbAndMAP.check_gradient`.
        """
        finite = self.target.finite_everywhere(dy)
        if finite is None:
            return super().check_gradient(dy)
        _, finite_or_skipped = super().check_gradient(torch.where(finite, 0.0, torch.nan))
        return torch.where(finite, dy, 0.0), finite_or_skipped

    def size(self, theta: Tensor, noise: Tensor | None, dy: Tensor, sign: int) -> Tensor:
        """Return lambda from theta `[B, ...]`, eps and dy `[B, R, ...]`."""
        return self.target.step_size(theta, dy, noise, self.target_noise_temperature, walls(theta, sign))

    def difference(self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, step: Tensor) -> Tensor:
        """Return the difference of solutions `[B, R, ...]` that one estimator takes.

        Args:
            solve: perturbed parameters `[B, R, ...]` -> solutions `[B, R, ...]`, which the next call may overwrite.
            theta: `[B, ...]`.
            noise: `[B, R, ...]`, the draw of the forward pass, or None.
            z: `[B, R, ...]`, what the forward pass returned.
            step: `[B, R, ...]`, lambda dy; for a solver that minimises -lambda dy.
        """
        raise NotImplementedError(f"{type(self).__name__} takes no difference")

    def base(self, theta: Tensor, noise: Tensor | None) -> Tensor:
        """Return alpha theta + tau' eps, `[B, 1 or R, ...]`: what target parameters are a step away from."""
        base = theta.unsqueeze(1)
        if self.target.alpha != 1:
            base = self.target.alpha * base
        if noise is None or self.target_noise_temperature == 0:
            return base
        # alpha theta + tau' eps
        return torch.add(base, noise, alpha=self.target_noise_temperature)

    def base_is_forward_pass(self) -> bool:
        """Whether the forward pass has solved at the base already."""
        same_noise = self.noise_distribution is None or self.tau == self.target_noise_temperature
        return self.target.alpha == 1 and same_noise


def walls(theta: Tensor, sign: int) -> Tensor | None:
    """Return which entries of theta `[B, ...]` are masks, None where a glance finds none.

    A mask is -inf for a solver that maximises (`sign` 1), +inf for one that minimises, or a finite number on that side
    of 1e8 and more; where the dtype ends below, as float16 does, half of its largest number and more.
    """
    least = min(_LEAST_WALL, torch.finfo(theta.dtype).max / 2)
    if not theta.numel() or (host_may_wait(theta) and (-theta.min() if sign > 0 else theta.max()) < least):
        return None
    return theta <= -least if sign > 0 else theta >= least

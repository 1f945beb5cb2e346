"""What `imle` and `aimle` share: solutions at theta are compared with those at a target, a step of lambda dy away."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imle._numerics import host_may_wait, times
from imle.auto import AutoTargetDistribution
from imle.noise import GumbelNoiseDistribution
from imle.perturb_and_map import PerturbAndMAP, Solve
from imle.target import BaseTargetDistribution

# Powers of ten of the magnitudes between which walls are looked for: float64 ends at 308.
_DECADES = 320
_LEAST_WALL = 3  # below a thousand nothing is a wall


class _Unnamed:
    """The default of an option for which None is an answer."""

    def __repr__(self) -> str:
        return "..."


UNNAMED: Any = _Unnamed()


@dataclass(frozen=True, kw_only=True, eq=False)
class FiniteDifference(PerturbAndMAP):
    """Base of the estimators with a target distribution: theta' = alpha theta - lambda dy.

    Where neither a target nor a noise is named, they are `AutoTargetDistribution()`, which needs no number, and
    `GumbelNoiseDistribution()`. Where one is, the other is that of the publications: no noise, the published target.

    Args:
        target_distribution: where alpha and lambda come from; None is the published one.
        theta_noise_temperature: tau, how strongly the forward pass is perturbed; 0 returns MAP(theta).
        target_noise_temperature: tau', how strongly the target pass is perturbed, by the same draw of eps.
    """

    target_distribution: BaseTargetDistribution | None = UNNAMED
    noise_distribution: Any = UNNAMED
    theta_noise_temperature: float = 1.0
    target_noise_temperature: float = 1.0
    target: BaseTargetDistribution = field(init=False, repr=False)

    def __post_init__(self) -> None:
        target, noise = self.target_distribution, self.noise_distribution
        if target is UNNAMED and noise is UNNAMED:
            target, noise = AutoTargetDistribution(), GumbelNoiseDistribution()
        object.__setattr__(self, "noise_distribution", None if noise is UNNAMED else noise)
        object.__setattr__(
            self, "target_distribution", self.published_target() if target is UNNAMED or target is None else target
        )
        super().__post_init__()
        if not isinstance(self.target_distribution, BaseTargetDistribution):
            raise TypeError(f"target_distribution must be a BaseTargetDistribution, not {self.target_distribution!r}")
        object.__setattr__(self, "target", self.target_distribution)  # the same, and never None
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
        self, solve: Solve, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g `[B, S, ...]`; see `PerturbAndMAP.gradient`."""
        counted = dy if host_may_wait(dy) else dy.masked_fill(dy.isnan(), 0.0)
        size = self.size(theta, noise, counted)
        # lambda dy; theta' is a step against it, or with it for a solver that minimises
        step = times(counted, self.sign * size)
        difference = self.average(self.difference(solve, theta, noise, z, step))
        if self._is_minimization:
            difference = -difference
        g = self.target.scale(difference, theta, dy, size)
        if take_note:
            skipped = getattr(solve, "skipped", None)
            if skipped is not None:
                difference, dy = difference[~skipped], dy[~skipped]
            self.target.update(difference, dy)
        return g

    def check_gradient(self, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return dy, zero in every process of the target's group where any of them has one that is not finite.

        See `PerturbAndMAP.check_gradient`.
        """
        finite = self.target.finite_everywhere(dy)
        if finite is None:
            return super().check_gradient(dy)
        _, finite_or_skipped = super().check_gradient(torch.where(finite, 0.0, torch.nan))
        return torch.where(finite, dy, 0.0), finite_or_skipped

    def size(self, theta: Tensor, noise: Tensor | None, dy: Tensor) -> Tensor:
        """Return lambda from theta `[B, ...]`, eps and dy `[B, R, ...]`."""
        return self.target.step_size(theta, dy, noise, self.target_noise_temperature, walls(theta, self.sign))

    def difference(self, solve: Solve, theta: Tensor, noise: Tensor | None, z: Tensor, step: Tensor) -> Tensor:
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
    """Return which entries of theta `[B, ...]` no solution can take, None where a glance finds none.

    They are masks: -inf, -1e9 or the least number of the dtype for a solver that maximises (`sign` 1), the same
    with the other sign for one that minimises. An entry counts as one if it is a thousand or more on the side that
    the solver avoids, and a factor of ten is empty between it and the scale of the best entries of the instances.
    """
    least = 10.0**_LEAST_WALL
    if not theta.numel() or (host_may_wait(theta) and (-theta.min() if sign > 0 else theta.max()) < least):
        return None
    disliked = -sign * theta
    magnitude = theta.abs().to(torch.promote_types(theta.dtype, torch.float32))
    decade = magnitude.log10().nan_to_num(posinf=_DECADES, neginf=0.0).floor().clamp(0, _DECADES).long()
    most = disliked.flatten(1).argmin(dim=1, keepdim=True)
    best, walled = decade.flatten(1).gather(1, most), disliked.flatten(1).amin(dim=1, keepdim=True) >= least
    # an instance of which every entry is the same wall, as padding is, has no best entry
    walled &= theta.flatten(1).amax(dim=1, keepdim=True) == theta.flatten(1).amin(dim=1, keepdim=True)
    best = torch.where(walled.all(), best, best.float().masked_fill(walled, torch.nan).nanmedian().long()).median()
    occupied = torch.zeros(_DECADES + 1, dtype=torch.bool, device=theta.device).index_fill(0, decade.flatten(), True)
    powers = torch.arange(_DECADES + 1, device=theta.device)
    free = ~occupied & (powers >= best.clamp(min=_LEAST_WALL - 1))
    first_free = torch.where(free, powers, _DECADES).amin()
    return (disliked >= least) & (decade > first_free)

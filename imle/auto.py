"""A target distribution that needs no number: its step is measured in units of what already moves the solver."""

from __future__ import annotations

import torch
from torch import Tensor

from imle._numerics import beside, largest_factor
from imle.noise import GumbelNoiseDistribution
from imle.target import BaseTargetDistribution

_STEP = 4.0  # in standard deviations of the noise, for one sample; docs/gradients.md


class AutoTargetDistribution(BaseTargetDistribution):
    """A perturbation size for each instance, such that the step is four standard deviations of the noise.

        lambda = a ||dy||_1 / ||dy||_2^2,   a = 4 R^(-1/2) sigma

    The mean of the step's entries, weighted by `|dy|`, is a: one that is large enough to change most solutions that
    noise can change. More solutions R of an instance make less noise, so the step is smaller, and less biased. sigma is
    the root mean square of tau' eps; without noise it is the standard deviation of the instance's theta. There is no
    state and nothing to tune: the gradient goes with the scale of the loss, and that of an instance depends on neither
    theta nor dy of the others of the batch.

    It is the default of `aimle` and `imle`, and brings Gumbel(0, 1) noise and, for `aimle`, central differences where
    none are named. Where theta's entries lie far further apart than the noise, few solutions change and gradients are
    sparse: `imle.diagnostics.gradient_report` says how far. Where the loss is curved (a large step away, dy is
    another), a smaller step may be better: `AdaptiveTargetDistribution` is the paper's rule, `TargetDistribution` a
    step of your own.

    An instance whose dy is zero has lambda 0 and no gradient; so has one without noise of which all entries are equal.
    Masks (-inf, or -1e8 and less; for a minimiser +inf, or 1e8 and more) count for nothing in theta's deviation.

    Args:
        exact_scaling: divide the difference by lambda. False makes the gradient sqrt(R) larger, as that of
            `AdaptiveTargetDistribution` is by default, for settings that were found with it.

    Example:
        >>> target = AutoTargetDistribution()
        >>> theta, dy = torch.tensor([[-1.0, 1.0]]), torch.tensor([[[2.0, 0.0]]])
        >>> target.perturbation_size(theta, dy)  # 4 * 1 * 2 / 2^2
        tensor([[[2.]]])
    """

    alpha = 1.0

    def __init__(self, exact_scaling: bool = True):
        super().__init__()
        self.exact_scaling = exact_scaling

    def perturbation_size(
        self, theta: Tensor, dy: Tensor, sigma: Tensor | float | None = None, walled: Tensor | None = None
    ) -> Tensor:
        """Return lambda `[B, 1, ...]`.

        Args:
            theta: `[B, ...]`.
            dy: `[B, R, ...]`.
            sigma: of the noise, a number; None takes the deviation of each instance's theta.
            walled: `[B, ...]`, which entries of theta are masks; None where none is.
        """
        if not dy.numel():
            return beside(dy.new_zeros(dy.shape[0]), dy)
        dtype = torch.promote_types(dy.dtype, torch.float32)
        if sigma is None:
            sigma = _variance(theta.flatten(1).to(dtype), None if walled is None else ~walled.flatten(1)).sqrt()
        step = _STEP * dy.shape[1] ** -0.5 * sigma
        # in units of the largest entry, so that squares of tiny or huge numbers are no trouble
        magnitude = dy.flatten(1).abs().to(dtype)
        largest = magnitude.amax(dim=1)
        magnitude = magnitude / largest.clamp(min=torch.finfo(dtype).tiny).unsqueeze(1)
        # lambda = a ||dy||_1 / ||dy||_2^2
        size = step * magnitude.sum(dim=1) / magnitude.square().sum(dim=1) / largest
        size = torch.where(largest > 0, size.clamp(max=largest_factor(dy)), 0.0)
        return beside(size, dy)

    def step_size(
        self, theta: Tensor, dy: Tensor, noise: Tensor | None, noise_temperature: float, walled: Tensor | None
    ) -> Tensor:
        """Return lambda `[B, 1, ...]` in units of theta and tau' eps; see `BaseTargetDistribution.step_size`."""
        sigma = None
        if noise is not None and noise_temperature > 0:
            norm = torch.linalg.vector_norm(noise, dtype=torch.promote_types(noise.dtype, torch.float32))
            sigma = norm * (noise_temperature / max(noise.numel(), 1) ** 0.5)
        return self.perturbation_size(theta, dy, sigma, walled)

    @property
    def symmetric_perturbation(self) -> bool:
        """Central differences: a step of this size is biased in one direction."""
        return True

    def default_noise(self) -> GumbelNoiseDistribution:
        """Return Gumbel noise: a step in units of it needs some."""
        return GumbelNoiseDistribution()

    def extra_repr(self) -> str:
        """The option, for print()."""
        return "" if self.exact_scaling else "exact_scaling=False"


def _variance(values: Tensor, seen: Tensor | None) -> Tensor:
    """Return the variance of each instance `[B]`, of the entries that are seen."""
    if seen is None and values.shape[1] > 1:
        return values.var(dim=1, correction=0)
    seen = torch.ones_like(values, dtype=torch.bool) if seen is None else seen
    values, count = values.masked_fill(~seen, 0.0), seen.sum(dim=1, keepdim=True)
    # a single entry has no spread, and its own size is all there is to go by
    mean = torch.where(count > 1, values.sum(dim=1, keepdim=True) / count, 0.0)
    return ((values - mean).masked_fill(~seen, 0.0).square().sum(dim=1, keepdim=True) / count.clamp(min=1)).squeeze(1)

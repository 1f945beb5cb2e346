"""Perturbed optimisers: solvers made smooth by averaging over noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imle.decorator import decorator
from imle.noise import NormalNoiseDistribution
from imle.one_temperature import OneTemperature
from imle.solver import BoundSolver, Solver


@dataclass(frozen=True, kw_only=True, eq=False)
class PerturbedOptimiser(OneTemperature):
    """Make a solver differentiable by averaging it over noise of density rho.

        z = mean over M of MAP(theta + tau eps),    g = E[<MAP(theta + tau eps), dy> s(eps)] / tau,    s = -grad log rho

    and with multiplicative noise

        z = mean over M of MAP(theta exp(tau eps - tau^2 / 2)),    g as above, divided by theta

    The mean is differentiable, and g is an unbiased estimate of its gradient, in the loss of the mean for large M.
    Unlike with other estimators, the decorated solver returns means of solutions, `[B*S, ...]`, each over
    M = `nb_marginal_samples` of them: the usual call has S = 1 and a large M. The noise needs a `log_prob(value)`
    beside its `sample(shape)`; by default it is normal.

    Multiplicative noise keeps the signs of theta, for solvers that need them, such as shortest paths. An entry of 0
    stays 0 under it, and gets no gradient.

    Source: Berthet, Blondel, Teboul, Cuturi, Vert, Bach, "Learning with Differentiable Perturbed Optimizers", NeurIPS
    2020; multiplicative: Dalle, Baty, Bouvier, Parmentier, "Learning with Combinatorial Optimization Layers: a
    Probabilistic Approach", 2022.

    Args:
        multiplicative: multiply theta by the noise instead of adding it.
        baseline: what is taken off each solution in g, which lowers the variance and costs no bias: "leave_one_out" the
            mean of the other M - 1, "solution" MAP(theta), for which the solver is called once more.

    Raises:
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        TypeError: the noise has no `log_prob` (Sum-of-Gamma has none), or theta is of the wrong kind.
        FloatingPointError: theta, an answer of the solver or, in the backward pass, dy is not finite.

    Example:
        >>> import torch
        >>> from imle.solvers import select_k
        >>> @perturbed(nb_marginal_samples=100, noise_temperature=0.5, baseline="leave_one_out")
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> theta = torch.randn(3, 5, requires_grad=True)
        >>> z = select_two(theta)
        >>> (z - 0.5).square().sum().backward()
        >>> z.shape, theta.grad.shape
        (torch.Size([3, 5]), torch.Size([3, 5]))
    """

    multiplicative: bool = False
    baseline: Literal["leave_one_out", "solution"] | None = None

    def __post_init__(self) -> None:
        if self.noise_distribution is None:
            object.__setattr__(self, "noise_distribution", NormalNoiseDistribution())
        super().__post_init__()
        if not hasattr(self.noise_distribution, "log_prob"):
            raise TypeError(
                f"perturbed needs a noise with a known density, that is a log_prob(value) method; "
                f"{self.noise_distribution!r} has none: use NormalNoiseDistribution()"
            )
        if self.noise_temperature == 0:
            raise ValueError("perturbed needs a noise_temperature above 0: without noise nothing is smooth")
        if self.baseline not in ("leave_one_out", "solution", None):
            raise ValueError(f"baseline must be 'leave_one_out', 'solution' or None, not {self.baseline!r}")
        if self.baseline == "leave_one_out" and self.nb_marginal_samples < 2:
            raise ValueError("a leave-one-out baseline needs nb_marginal_samples of 2 or more")

    def sample(
        self, solver: Solver, theta: Tensor, args: tuple, kwargs: dict, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return means of perturbed solutions `[B*S, ...]`."""
        z = super().sample(solver, theta, args, kwargs, generator)
        return z.unflatten(0, (theta.shape[0] * self.nb_samples, self.nb_marginal_samples)).mean(dim=1)

    def perturb(self, theta: Tensor, noise: Tensor | None, sign: int) -> Tensor:
        """Return theta + tau eps, or theta exp(tau eps - tau^2 / 2), `[B, R, ...]`."""
        if noise is None or not self.multiplicative:
            return super().perturb(theta, noise, sign)
        return theta.unsqueeze(1) * torch.exp(self.tau * noise - self.tau**2 / 2)

    def gradient(
        self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g `[B, S, ...]`; see `PerturbAndMAP.gradient`."""
        assert noise is not None
        if self.baseline == "solution":
            z = z - solve(self.perturb(theta, None, solve.sign))
        elif self.baseline == "leave_one_out":
            per_mean = z.unflatten(1, (self.nb_samples, self.nb_marginal_samples))
            # z less the mean of the others is M / (M - 1) (z less the mean of all)
            others = per_mean - per_mean.mean(dim=2, keepdim=True)
            z = others.flatten(1, 2) * (self.nb_marginal_samples / (self.nb_marginal_samples - 1))
        # <z, dy> s(eps) / tau; dy is that of the mean, divided by M
        weight = (z * dy).flatten(2).sum(dim=2).view(*z.shape[:2], *[1] * (z.dim() - 2))
        g = self.average(weight * self.score(noise, solve.sign)) * (self.nb_marginal_samples / self.tau)
        unmoved = theta.isinf()  # what was decided beforehand says nothing about the noise
        if self.multiplicative:
            unmoved = unmoved | (theta == 0)
            g = g / torch.where(unmoved, 1.0, theta).unsqueeze(1)
        return g.masked_fill(unmoved.unsqueeze(1), 0.0)

    def score(self, noise: Tensor, sign: int) -> Tensor:
        """Return s(eps) = -grad log rho(eps) of noise as it is added, which is -eps to a minimiser (`sign` -1)."""
        log_prob = self.noise_distribution.log_prob
        return -torch.func.grad(lambda added: log_prob(sign * added).sum())(noise)

    @property
    def outputs(self) -> int:
        """S: what the decorated solver returns are means over M."""
        return self.nb_samples


perturbed = decorator("perturbed", PerturbedOptimiser)

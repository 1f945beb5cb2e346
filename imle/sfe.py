"""The score-function estimator (REINFORCE) for perturb-and-MAP distributions.

z = MAP(theta + tau eps) is a function of u = theta + tau eps, whose density is that of the noise, moved to theta.
Hence, for any loss L, differentiable or not, and without bias,

    grad E[L(z)] = E[L(z) grad_theta log p(u; theta)],    log p(u; theta) = log rho((u - theta) / tau) - N log tau

The noise must have a density on the whole line whose logarithm is known: a `log_prob(value)` method, as
`GumbelNoiseDistribution` or any distribution of `torch.distributions` has.

Source: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
Machine Learning 1992; Abernethy, Lee, Tewari, "Perturbation techniques in online learning and optimization", 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imle._compile import eager
from imle.decorator import decorator
from imle.noise import GumbelNoiseDistribution
from imle.perturb_and_map import Estimator, over_samples
from imle.solver import Solver


@dataclass(frozen=True, kw_only=True, eq=False)
class SFE(Estimator[tuple[Tensor, Tensor]]):
    """Make a solver a stochastic one with a known score.

    A score-function estimator needs values of the loss, not its gradient with respect to z. The decorated solver
    therefore returns two tensors for theta `[B, ...]`: the solutions z `[B*S, ...]`, without a gradient, and `log_prob`
    `[B*S]`. `score_function_loss` joins the losses of the solutions with `log_prob`; so does any surrogate of your
    own. Whether the solver maximises or minimises only says how noise is added: losses alone say which way is better.
    The noise needs a `log_prob(value)` beside its `sample(shape)`; by default it is Gumbel(0, 1).

    Args:
        noise_temperature: tau; larger has less variance, and blurs the distribution of z more.

    Raises:
        TypeError: the noise has no `log_prob` (Sum-of-Gamma has none), or theta is of the wrong kind.
        ValueError: an option is out of its range, or the solver returned another shape than it was given.
        FloatingPointError: theta is NaN, or an answer of the solver is not finite.

    Example:
        >>> import torch
        >>> from imle.solvers import select_k
        >>> @sfe(nb_samples=8)
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> theta = torch.randn(3, 5, requires_grad=True)
        >>> z, log_prob = select_two(theta)
        >>> losses = (z - 0.5).square().sum(dim=1)
        >>> score_function_loss(losses, log_prob, nb_samples=8, baseline="leave_one_out").mean().backward()
        >>> theta.grad.shape
        torch.Size([3, 5])
    """

    noise_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.noise_distribution is None:
            object.__setattr__(self, "noise_distribution", GumbelNoiseDistribution())
        super().__post_init__()
        if not hasattr(self.noise_distribution, "log_prob"):
            raise TypeError(
                f"sfe needs a noise with a known density, that is a log_prob(value) method; "
                f"{self.noise_distribution!r} has none: use GumbelNoiseDistribution()"
            )
        self._check_temperatures("noise_temperature")
        if self.noise_temperature == 0:
            raise ValueError("sfe needs a noise_temperature above 0: without noise the solution has no density")

    @property
    def tau(self) -> float:
        """How strongly theta is perturbed."""
        return self.noise_temperature

    @eager
    def sample(
        self, solver: Solver, theta: Tensor, args: tuple, kwargs: dict, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return z `[B*S, ...]`, detached, and log p(u; theta) `[B*S]`, differentiable in theta."""
        bound = self.bind(solver, theta, self.nb_samples, args, kwargs)
        noise = self.draw_noise(theta, bound.sign, generator)
        assert noise is not None
        with torch.no_grad():
            z = bound(self.perturb(theta, noise, bound.sign)).flatten(0, 1).clone()
        # (u - theta) / tau, which is the noise, as a function of theta: where theta is huge the subtraction loses it.
        # An infinite entry is decided beforehand, and its noise says nothing about theta.
        moved = torch.where(theta.isinf(), 0.0, theta.detach() - theta).unsqueeze(1)
        # log p(u; theta) = log rho((u - theta) / tau) - N log tau
        log_density = self.noise_distribution.log_prob(bound.sign * (noise + moved / self.tau)) - math.log(self.tau)
        log_prob = log_density.flatten(2).sum(dim=2)
        if bound.skipped is not None:  # what was not solved says nothing about theta
            log_prob = log_prob.masked_fill(bound.skipped.unsqueeze(1), 0.0)
        return z, over_samples(log_prob.flatten(), self.nb_samples, self.sample_reduction)

    def solved(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return solutions `[B, ...]` that were not drawn, and the logarithm of their probability, zeros `[B]`."""
        return z, z.new_zeros(z.shape[0])


sfe = decorator("sfe", SFE)


def score_function_loss(
    losses: Tensor, log_prob: Tensor, nb_samples: int = 1, baseline: Literal["leave_one_out"] | None = None
) -> Tensor:
    """Return the losses `[B*S]`, unchanged in value, with the score-function gradient added to their own.

    The gradient with respect to theta is (losses - baseline) * grad log_prob; gradients of the losses with respect to
    anything else, such as a decoder's weights, pass as usual.

    Args:
        losses: `[B*S]`, the loss of each solution; averaged or summed as you like after this call.
        log_prob: `[B*S]`, from a solver decorated with `sfe`.
        nb_samples: S.
        baseline: "leave_one_out" subtracts from each loss the mean of the other S - 1 of its instance: no bias, less
            variance.

    Raises:
        ValueError: shapes that do not match, an unknown baseline, or a leave-one-out baseline with S = 1.

    Source of the baseline: Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
    """
    if losses.dim() != 1 or losses.shape != log_prob.shape or losses.shape[0] % nb_samples:
        raise ValueError(
            f"losses {tuple(losses.shape)} and log_prob {tuple(log_prob.shape)} must both be [B*S], S = {nb_samples}"
        )
    advantage = losses.detach()
    if baseline == "leave_one_out":
        if nb_samples < 2:
            raise ValueError("a leave-one-out baseline needs nb_samples of 2 or more")
        per_instance = advantage.unflatten(0, (-1, nb_samples))
        others = (per_instance.sum(dim=1, keepdim=True) - per_instance) / (nb_samples - 1)
        advantage = (per_instance - others).flatten()
    elif baseline is not None:
        raise ValueError(f"baseline must be 'leave_one_out' or None, not {baseline!r}")
    return losses + advantage * (log_prob - log_prob.detach())

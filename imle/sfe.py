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
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from imle._compile import eager
from imle.noise import GumbelNoiseDistribution
from imle.perturb_and_map import BoundSolver, PerturbAndMAP, Solver, check_theta, decorate


@dataclass(frozen=True, kw_only=True, eq=False)
class SFE(PerturbAndMAP):
    """Solutions together with the log-density of the perturbed theta they came from."""

    noise_distribution: Any = field(default_factory=GumbelNoiseDistribution)

    def __post_init__(self):
        super().__post_init__()
        if not hasattr(self.noise_distribution, "log_prob"):
            raise TypeError(
                f"sfe needs a noise with a known density, that is a log_prob(value) method; "
                f"{self.noise_distribution!r} has none: use GumbelNoiseDistribution()"
            )
        if not self.theta_noise_temperature > 0:
            raise ValueError("sfe needs a noise_temperature above 0: without noise the solution has no density")
        if self.nb_marginal_samples != 1:
            raise ValueError("sfe takes no nb_marginal_samples: use nb_samples")
        if self.nonfinite != "raise":
            raise ValueError("sfe takes no nonfinite: it sees losses, not dy")

    @eager
    def apply(self, solver: Solver, theta: Tensor, /, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return z `[B*S, ...]`, detached, and log p(u; theta) `[B*S]`, differentiable in theta."""
        bound = BoundSolver(solver, check_theta(theta).shape[0], args, kwargs)
        tau, noise = self.theta_noise_temperature, self.draw_noise(theta)
        assert noise is not None
        with torch.no_grad():
            u = self.perturb(theta, noise)
            z = bound(u.clone()[None])[0].flatten(0, 1).clone()
        # An entry at -inf is never chosen: its noise says nothing about theta.
        eps = torch.where(theta.isinf().unsqueeze(1), noise, (u - theta.unsqueeze(1)) / tau)
        # log p(u; theta) = log rho((u - theta) / tau) - N log tau
        log_density = self.noise_distribution.log_prob(eps) - math.log(tau)
        return z, log_density.flatten(2).sum(dim=2).flatten()


def sfe(
    function: Solver | None = None,
    noise_distribution: Any = None,
    noise_temperature: float = 1.0,
    nb_samples: int = 1,
    **options: Any,
) -> Any:
    """Make a solver a stochastic one with a known score: as a decorator, or as `MAPLayer`'s estimator.

    A score-function estimator needs values of the loss, not its gradient with respect to z. The decorated solver
    therefore returns two tensors for theta `[B, ...]`: the solutions z `[B*S, ...]`, the S samples of one instance
    side by side and without a gradient, and `log_prob` `[B*S]`. `score_function_loss` joins the losses of the
    solutions with `log_prob`; so does any surrogate of your own.

    Args:
        function: the solver, theta `[B, ...]` -> z of the same shape; None returns the estimator.
        noise_distribution: a noise with `sample(shape)` and `log_prob(value)`; Gumbel(0, 1) by default.
        noise_temperature: tau; larger has less variance, and blurs the distribution of z more.
        nb_samples: S; more is less noisy, and S times the work.
        options: `generator`, `groups`: see `PerturbAndMAP`.

    Raises:
        TypeError: the noise has no `log_prob` (Sum-of-Gamma has none), or theta is of the wrong kind.
        ValueError: an option is out of its range, or the solver returned another shape than it was given.

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
    estimator = SFE(
        noise_distribution=GumbelNoiseDistribution() if noise_distribution is None else noise_distribution,
        theta_noise_temperature=noise_temperature,
        nb_samples=nb_samples,
        **options,
    )
    return decorate(estimator, function)


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

"""A name on the command line -> an object: noises, target distributions, and the methods that tasks share.

A method is built around a solver. It is a module: theta `[B, ...]` -> z `[B*S, ...]` in training, MAP(theta)
`[B, ...]` in evaluation; further arguments go to the solver.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Generator, Tensor, nn

from aaai23.relaxations import concrete_max, softsub, sst_k_subset
from imle.aimle import aimle
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, BaseTargetDistribution, TargetDistribution

Solver = Callable[..., Any]


@dataclass(frozen=True)
class Options:
    """What the estimators can be told on a command line; the paper's symbols in brackets.

    Args:
        noise: a name in NOISES.
        noise_k: k of Sum-of-Gamma noise: the subset size, or the number of vertices.
        samples: solutions for each instance [S].
        theta_temperature, target_temperature: perturbation of the forward and of the target pass [tau, tau'].
        target: a name in TARGETS.
        perturbation_size: lambda of the standard target, beta at the start of the adaptive one.
        symmetric: central instead of forward differences.
        gradient_scaling: divide by lambda (standard target; the adaptive one always does).
        beta_update_step, beta_update_momentum, target_norm: the adaptive rule [eta, mu, c].
        exact_scaling: of the adaptive rule: its gradient does not grow with S; see `AdaptiveTargetDistribution`.
        subset_size: K of the relaxations of subsets.
        relaxation_temperature: of the relaxations; lower is closer to discrete and has gradients of larger variance.
        generators: sources of the noise of as many groups of the batch, each with its own beta; None: torch's, and
            one group.
    """

    noise: str = "sog"
    noise_k: int = 1
    samples: int = 1
    theta_temperature: float = 1.0
    target_temperature: float = 1.0
    target: str = "standard"
    perturbation_size: float = 0.0
    symmetric: bool = False
    gradient_scaling: bool = False
    beta_update_step: float = 1e-4
    beta_update_momentum: float = 0.0
    target_norm: float = 1.0
    exact_scaling: bool = False
    subset_size: int = 1
    relaxation_temperature: float = 0.1
    generators: Sequence[Generator] | None = None

    @property
    def groups(self) -> int:
        """The number of groups of a batch."""
        return 1 if self.generators is None else len(self.generators)


NOISES: dict[str, Callable[[int], Any]] = {
    "none": lambda k: None,
    "sog": lambda k: SumOfGammaNoiseDistribution(k=k, nb_iterations=10),
    "gumbel": lambda k: GumbelNoiseDistribution(),
}

TARGETS: dict[str, Callable[[Options], BaseTargetDistribution]] = {
    "standard": lambda options: TargetDistribution(
        alpha=1.0, beta=options.perturbation_size, do_gradient_scaling=options.gradient_scaling
    ),
    "adaptive": lambda options: AdaptiveTargetDistribution(
        initial_alpha=1.0,
        initial_beta=options.perturbation_size,
        beta_update_step=options.beta_update_step,
        beta_update_momentum=options.beta_update_momentum,
        target_norm=options.target_norm,
        exact_scaling=options.exact_scaling,
        groups=options.groups,
    ),
}


def _perturbation(options: Options) -> dict[str, Any]:
    return {
        "target_distribution": TARGETS[options.target](options),
        "noise_distribution": NOISES[options.noise](options.noise_k),
        "nb_samples": options.samples,
        "theta_noise_temperature": options.theta_temperature,
        "target_noise_temperature": options.target_temperature,
        "generator": options.generators,
        "groups": options.groups,
    }


def aimle_layer(solver: Solver, options: Options) -> nn.Module:
    """AIMLE: forward or central differences, with the standard or the adaptive target."""
    return MAPLayer(solver, aimle(symmetric_perturbation=options.symmetric, **_perturbation(options)))


def imle_layer(solver: Solver, options: Options) -> nn.Module:
    """I-MLE."""
    return MAPLayer(solver, imle(**_perturbation(options)))


def imle_topk_layer(solver: Solver, options: Options) -> nn.Module:
    """I-MLE with the settings published for learning to explain: Sum-of-Gamma, temperatures 10, lambda 1000."""
    published = Options(noise="sog", theta_temperature=10.0, target_temperature=10.0, perturbation_size=1000.0)
    return imle_layer(
        solver, replace(published, noise_k=options.noise_k, samples=options.samples, generators=options.generators)
    )


def ste_layer(solver: Solver, options: Options) -> nn.Module:
    """Straight-through; perturbed by `noise` at `theta_temperature`."""
    noise = NOISES[options.noise](options.noise_k)
    return MAPLayer(
        solver,
        ste(
            noise_distribution=noise,
            noise_temperature=options.theta_temperature,
            nb_samples=options.samples,
            generator=options.generators,
            groups=options.groups,
        ),
    )


class Relaxation(nn.Module):
    """A baseline that is continuous in training and discrete in evaluation.

    Args:
        solver: theta `[B, N]` -> z `[B, N]`.
        relax: theta `[B, N]` -> a random relaxed solution `[B, N]`, differentiable.
    """

    # below any score that a network gives, and finite: rows with too few allowed positions still have k entries
    FORBIDDEN = -1e4

    def __init__(self, solver: Solver, relax: Callable[[Tensor], Tensor]):
        super().__init__()
        self.solver, self.relax = solver, relax

    def forward(self, theta: Tensor, mask: Tensor | None = None) -> Tensor:
        """Relax (training) or solve (evaluation); positions where `mask` `[B, N]` is False are left out."""
        if self.training:
            return self.relax(theta if mask is None else theta.masked_fill(~mask, self.FORBIDDEN))
        return self.solver(theta) if mask is None else self.solver(theta, mask=mask)


def relaxed_subset(relaxation: Callable[..., Tensor]) -> Callable[[Solver, Options], nn.Module]:
    """Return the method that a relaxation of K-subsets, `relaxation(logits, k=, temperature=)`, makes."""

    def build(solver: Solver, options: Options) -> nn.Module:
        relax = functools.partial(relaxation, k=options.subset_size, temperature=options.relaxation_temperature)
        return Relaxation(solver, relax)

    return build


METHODS: dict[str, Callable[[Solver, Options], nn.Module]] = {
    "aimle": aimle_layer,
    "imle": imle_layer,
    "imletopk": imle_topk_layer,
    "ste": ste_layer,
}

SUBSET_METHODS: dict[str, Callable[[Solver, Options], nn.Module]] = {
    **METHODS,
    "sst": relaxed_subset(sst_k_subset),
    "softsub": relaxed_subset(softsub),
    "l2x": relaxed_subset(concrete_max),
}


def undo_mean_over_samples(z: Tensor, samples: int) -> Tensor:
    """Return z `[B*S, ...]` as it is; the gradient that comes back to it is multiplied by S.

    Call it between a layer and a loss that is a mean over S samples. Such a loss gives each sample an S-th of its
    gradient, and the layer takes the mean over S once more: the gradient of theta would be S times too small.
    """
    # nothing is added, but with a gradient of its own
    return z if samples == 1 else z + (samples - 1) * (z - z.detach())


def beta_of(layer: nn.Module) -> float | None:
    """Return the perturbation size that the layer (of one group) works with now, None if its method has none."""
    return getattr(getattr(layer, "target_distribution", None), "beta", None)

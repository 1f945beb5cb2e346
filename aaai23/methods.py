"""A name on the command line -> an object: noises, target distributions, and the methods of all tasks.

A method is built on a structure, and makes a layer:

    layer.sample(theta, *side, generator=None)    S random solutions of each instance, side by side: `[B*S, ...]`
    layer.solve(theta, *side)                     the best solution of each, MAP(theta): `[B, ...]`
    layer(theta, *side)                           samples in training, solves in evaluation

Samples carry a gradient. Those of `nvil` and `reinforce` do not, but come with their log-densities `[B*S]`, in a pair;
see `imle.sfe`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from imle.aimle import aimle
from imle.auto import AutoTargetDistribution
from imle.imle import imle
from imle.layers import MAPLayer, RelaxedLayer
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.relaxations import concrete_max, gumbel_softmax, softsub
from imle.sfe import sfe
from imle.ste import ste
from imle.structures import Structure, stochastic_softmax
from imle.target import AdaptiveTargetDistribution, BaseTargetDistribution, TargetDistribution


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What a method can be told. A task's configuration has attributes of these names, and is given in its place.

    Args:
        noise: of aimle and imle, a name in NOISES.
        nb_samples: solutions for each instance [S].
        theta_noise_temperature, target_noise_temperature: of the noise in the forward and the target pass [tau, tau'].
        symmetric_perturbation: aimle takes central instead of forward differences.
        target: a name in TARGETS.
        perturbation_size: lambda of the standard target, beta at the start of the adaptive one.
        gradient_scaling: divide by lambda (standard target; the adaptive one always does).
        beta_update_step, beta_update_momentum, target_norm: the adaptive rule [eta, mu, c].
        exact_scaling: of the adaptive and the auto target: the gradient does not grow with S; see there.
        sample_reduction: "mean" for a loss that sums over S, "sum" for one that is a mean over all rows.
        ste_noise, ste_noise_temperature: of ste.
        relaxation_temperature: lower is closer to discrete and has gradients of larger variance.
        hard: sst and gumbel-softmax sample discrete solutions, with the gradient of the relaxed ones.
    """

    noise: str = "sog"
    nb_samples: int = 1
    theta_noise_temperature: float = 1.0
    target_noise_temperature: float = 1.0
    symmetric_perturbation: bool = False
    target: str = "standard"
    perturbation_size: float = 0.0
    gradient_scaling: bool = False
    beta_update_step: float = 1e-4
    beta_update_momentum: float = 0.0
    target_norm: float = 1.0
    exact_scaling: bool = False
    sample_reduction: Literal["mean", "sum"] = "sum"
    ste_noise: str = "sog"
    ste_noise_temperature: float = 1.0
    relaxation_temperature: float = 0.1
    hard: bool = False


Settings = Any
"""`MethodSettings`, or what has its attributes."""

NOISES: dict[str, Callable[[int], Any]] = {
    "none": lambda k: None,
    "sog": lambda k: SumOfGammaNoiseDistribution(k=k, nb_iterations=10),
    "gumbel": lambda k: GumbelNoiseDistribution(),
}

TARGETS: dict[str, Callable[[Settings], BaseTargetDistribution]] = {
    "standard": lambda settings: TargetDistribution(
        alpha=1.0, beta=settings.perturbation_size, do_gradient_scaling=settings.gradient_scaling
    ),
    "adaptive": lambda settings: AdaptiveTargetDistribution(
        initial_alpha=1.0,
        initial_beta=settings.perturbation_size,
        beta_update_step=settings.beta_update_step,
        beta_update_momentum=settings.beta_update_momentum,
        target_norm=settings.target_norm,
        exact_scaling=settings.exact_scaling,
    ),
    "auto": lambda settings: AutoTargetDistribution(exact_scaling=settings.exact_scaling),
}


Layer = MAPLayer | RelaxedLayer


def aimle_layer(structure: Structure, settings: Settings) -> Layer:
    """AIMLE: forward or central differences, with any target."""
    central = settings.symmetric_perturbation
    return MAPLayer(structure.solve, aimle(symmetric_perturbation=central, **_perturbation(structure, settings)))


def imle_layer(structure: Structure, settings: Settings) -> Layer:
    """I-MLE."""
    return MAPLayer(structure.solve, imle(**_perturbation(structure, settings)))


def _perturbation(structure: Structure, settings: Settings) -> dict[str, Any]:
    return {
        "target_distribution": TARGETS[settings.target](settings),
        "noise_distribution": NOISES[settings.noise](structure.k),
        "nb_samples": settings.nb_samples,
        "sample_reduction": settings.sample_reduction,
        "theta_noise_temperature": settings.theta_noise_temperature,
        "target_noise_temperature": settings.target_noise_temperature,
    }


def ste_layer(structure: Structure, settings: Settings) -> Layer:
    """Straight-through."""
    estimator = ste(
        noise_distribution=NOISES[settings.ste_noise](structure.k),
        noise_temperature=settings.ste_noise_temperature,
        nb_samples=settings.nb_samples,
        sample_reduction=settings.sample_reduction,
    )
    return MAPLayer(structure.solve, estimator)


def score_function_layer(structure: Structure, settings: Settings) -> Layer:
    """Solutions and their log-densities; what tells NVIL and REINFORCE apart is the baseline of their losses."""
    estimator = sfe(noise_distribution=structure.noise, nb_samples=settings.nb_samples, sample_reduction="sum")
    return MAPLayer(structure.solve, estimator)


def sst_layer(structure: Structure, settings: Settings) -> Layer:
    """Stochastic softmax tricks, on any structure."""
    return _relaxed(structure, settings, functools.partial(stochastic_softmax, structure=structure, hard=settings.hard))


def softsub_layer(structure: Structure, settings: Settings) -> Layer:
    """SoftSub, on `k_subsets` alone."""
    return _relaxed(structure, settings, functools.partial(softsub, k=structure.k))


def l2x_layer(structure: Structure, settings: Settings) -> Layer:
    """The maximum of k Concrete samples, as in learning to explain; on `k_subsets` alone."""
    return _relaxed(structure, settings, functools.partial(concrete_max, k=structure.k))


def gumbel_softmax_layer(structure: Structure, settings: Settings) -> Layer:
    """Gumbel-softmax, on `k_subsets(1)` alone."""
    return _relaxed(structure, settings, functools.partial(gumbel_softmax, hard=settings.hard))


def _relaxed(structure: Structure, settings: Settings, relax: Callable[..., Tensor]) -> Layer:
    # "sum" for the VAE, too, as published: relaxed samples pass on their whole gradients
    return RelaxedLayer(structure.solve, relax, settings.relaxation_temperature, settings.nb_samples, "sum")


METHODS: dict[str, Callable[[Structure, Settings], Layer]] = {
    "aimle": aimle_layer,
    "imle": imle_layer,
    "imletopk": imle_layer,  # its defaults are others
    "ste": ste_layer,
    "sst": sst_layer,
    "softsub": softsub_layer,
    "l2x": l2x_layer,
    "gumbel-softmax": gumbel_softmax_layer,
    "nvil": score_function_layer,
    "reinforce": score_function_layer,
}


def beta_of(layer: nn.Module) -> float | None:
    """Return the perturbation size that the layer works with now, None if its method has none."""
    return getattr(getattr(layer, "target_distribution", None), "beta", None)

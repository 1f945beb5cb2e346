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
from typing import Any

from torch import Tensor, nn

from aaai23.flags import MethodFlags
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

NOISES: dict[str, Callable[[int], Any]] = {
    "none": lambda k: None,
    "sog": lambda k: SumOfGammaNoiseDistribution(k=k, nb_iterations=10),
    "gumbel": lambda k: GumbelNoiseDistribution(),
}

TARGETS: dict[str, Callable[[MethodFlags], BaseTargetDistribution]] = {
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


def aimle_layer(structure: Structure, settings: MethodFlags) -> Layer:
    """AIMLE: forward or central differences, with any target."""
    central = settings.symmetric_perturbation
    return MAPLayer(structure.solve, aimle(symmetric_perturbation=central, **_perturbation(structure, settings)))


def imle_layer(structure: Structure, settings: MethodFlags) -> Layer:
    """I-MLE."""
    return MAPLayer(structure.solve, imle(**_perturbation(structure, settings)))


def _perturbation(structure: Structure, settings: MethodFlags) -> dict[str, Any]:
    return {
        "target_distribution": TARGETS[settings.target](settings),
        "noise_distribution": NOISES[settings.noise](structure.k),
        "nb_samples": settings.nb_samples,
        "sample_reduction": settings.sample_reduction,
        "theta_noise_temperature": settings.theta_noise_temperature,
        "target_noise_temperature": settings.target_noise_temperature,
    }


def ste_layer(structure: Structure, settings: MethodFlags) -> Layer:
    """Straight-through."""
    estimator = ste(
        noise_distribution=NOISES[settings.ste_noise](structure.k),
        noise_temperature=settings.ste_noise_temperature,
        nb_samples=settings.nb_samples,
        sample_reduction=settings.sample_reduction,
    )
    return MAPLayer(structure.solve, estimator)


def score_function_layer(structure: Structure, settings: MethodFlags) -> Layer:
    """Solutions and their log-densities; what tells NVIL and REINFORCE apart is the baseline of their losses."""
    estimator = sfe(noise_distribution=structure.noise, nb_samples=settings.nb_samples, sample_reduction="sum")
    return MAPLayer(structure.solve, estimator)


def sst_layer(structure: Structure, settings: MethodFlags) -> Layer:
    """Stochastic softmax tricks, on any structure."""
    return _relaxed(structure, settings, functools.partial(stochastic_softmax, structure=structure, hard=settings.hard))


def softsub_layer(structure: Structure, settings: MethodFlags) -> Layer:
    """SoftSub, on `k_subsets` alone."""
    return _relaxed(structure, settings, functools.partial(softsub, k=structure.k))


def l2x_layer(structure: Structure, settings: MethodFlags) -> Layer:
    """The maximum of k Concrete samples, as in learning to explain; on `k_subsets` alone."""
    return _relaxed(structure, settings, functools.partial(concrete_max, k=structure.k))


def gumbel_softmax_layer(structure: Structure, settings: MethodFlags) -> Layer:
    """Gumbel-softmax, on `k_subsets(1)` alone."""
    return _relaxed(structure, settings, functools.partial(gumbel_softmax, hard=settings.hard))


def _relaxed(structure: Structure, settings: MethodFlags, relax: Callable[..., Tensor]) -> Layer:
    # "sum" for the VAE, too, as published: relaxed samples pass on their whole gradients
    return RelaxedLayer(structure.solve, relax, settings.relaxation_temperature, settings.nb_samples, "sum")


METHODS: dict[str, Callable[[Structure, MethodFlags], Layer]] = {
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

"""Flags of the estimators in which tasks agree: each makes the field of a configuration. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from aaai23.harness.config import SWITCH, non_negative_float, positive_float, setting

NOISES = ("none", "sog", "gumbel")
TARGETS = ("standard", "adaptive", "auto")

method = partial(setting, group="method")


def symmetric_perturbation(**switch: Any) -> Any:
    """Return `--aimle-symmetric`; `switch` are options of a flag that may stand alone."""
    explained = "central instead of forward differences"
    return method(False, "--aimle-symmetric", **(switch or SWITCH), methods=("aimle",), help=explained)


def target(methods: tuple[str, ...]) -> Any:
    """Return `--aimle-target`."""
    explained = "where lambda comes from: fixed, adaptive as published, or auto, which reads none of the flags below"
    return method("standard", "--aimle-target", choices=TARGETS, methods=methods, help=explained)


def perturbation_size(methods: tuple[str, ...], default: float) -> Any:
    """Return `--imle-lambda`."""
    explained = "lambda; for the adaptive target the first beta"
    return method(default, "--imle-lambda", type=non_negative_float, methods=methods, help=explained)


def beta_update_step(methods: tuple[str, ...], flag: str = "--aimle-beta-update-step") -> Any:
    """Return the flag of eta."""
    return method(1e-4, flag, type=non_negative_float, methods=methods, help="how fast beta moves")


def beta_update_momentum(methods: tuple[str, ...]) -> Any:
    """Return `--aimle-beta-update-momentum`."""
    explained = "how much of its last move is kept"
    return method(0.0, "--aimle-beta-update-momentum", type=non_negative_float, methods=methods, help=explained)


def target_norm(methods: tuple[str, ...]) -> Any:
    """Return `--aimle-target-norm`."""
    explained = "wanted non-zero entries of a gradient"
    return method(1.0, "--aimle-target-norm", type=positive_float, methods=methods, help=explained)


def gradient_scaling(methods: tuple[str, ...], **switch: Any) -> Any:
    """Return `--gradient-scaling`; `switch` are options of a flag that may stand alone."""
    explained = "divide by lambda; the adaptive target always does"
    return method(False, "--gradient-scaling", **(switch or SWITCH), methods=methods, help=explained)


def ste_noise() -> Any:
    """Return `--ste-noise`."""
    return method("sog", "--ste-noise", choices=NOISES, methods=("ste",), help="noise of method ste")


def ste_noise_temperature() -> Any:
    """Return `--ste-temperature`."""
    return method(0.0, "--ste-temperature", type=non_negative_float, methods=("ste",), help="noise of method ste")


def no_gradient(config: Any) -> Iterable[str]:
    """Yield a refusal of a lambda that is zero and stays so: no gradient would reach what is before the solver."""
    stays = config.target == "standard" or (config.target == "adaptive" and config.beta_update_step == 0)
    if config.method in ("imle", "aimle", "imletopk") and config.perturbation_size == 0 and stays:
        yield "--imle-lambda 0 that does not adapt gives no gradient: raise it, or give --aimle-target adaptive"

"""Flags of the methods, declared once for all tasks. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from aaai23.harness.config import SWITCH, Config, declared, non_negative_float, positive_float, setting

NOISES = ("none", "sog", "gumbel")
TARGETS = ("standard", "adaptive", "auto")
DIFFERENCES = ("aimle", "imle", "imletopk")
"""Methods that take finite differences."""

method = partial(setting, group="method")
_difference = partial(method, methods=DIFFERENCES)


@dataclass(frozen=True, kw_only=True)
class MethodFlags(Config):
    """What `aaai23.methods` reads: flags that all tasks have, and below them what a task may make a flag of its own.

    Settings have the library's names in all tasks; only the flags differ, see `changed`.
    """

    symmetric_perturbation: bool = method(
        False, "--aimle-symmetric", **SWITCH, methods=("aimle",), help="central instead of forward differences"
    )
    target: str = _difference(
        "standard",
        "--aimle-target",
        choices=TARGETS,
        help="where lambda comes from: fixed, adaptive as published, or auto, which reads none of the flags below",
    )
    perturbation_size: float = _difference(
        0.0, "--imle-lambda", type=non_negative_float, help="lambda; for the adaptive target the first beta"
    )
    beta_update_step: float = _difference(
        1e-4, "--aimle-beta-update-step", type=non_negative_float, help="how fast beta moves"
    )
    beta_update_momentum: float = _difference(
        0.0, "--aimle-beta-update-momentum", type=non_negative_float, help="how much of its last move is kept"
    )
    target_norm: float = _difference(
        1.0, "--aimle-target-norm", type=positive_float, help="wanted non-zero entries of a gradient"
    )
    gradient_scaling: bool = _difference(
        False, "--gradient-scaling", **SWITCH, help="divide by lambda; the adaptive target always does"
    )
    noise: str = _difference("sog", "--imle-noise", choices=NOISES, help="noise of aimle and imle")
    theta_noise_temperature: float = _difference(
        1.0, "--imle-temperature", type=non_negative_float, help="noise of aimle and imle, both passes"
    )

    exact_scaling = False  # of the adaptive and the auto target; True: the gradient does not grow with S
    sample_reduction: ClassVar[Literal["mean", "sum"]] = "sum"  # of losses that are a mean over samples; "mean": a sum
    hard = False  # sst and gumbel-softmax pass discrete solutions on, with the gradient of the relaxed ones

    @property
    def nb_samples(self) -> int:
        """Solutions for each instance [S]."""
        return 1

    @property
    def relaxation_temperature(self) -> float:
        """Of the relaxations; lower is closer to discrete and has gradients of larger variance."""
        return 0.1

    @property
    def target_noise_temperature(self) -> float:
        """Of the noise in the target pass; one flag perturbs both."""
        return self.theta_noise_temperature

    @property
    def ste_noise(self) -> str:
        """Of ste; one flag names the noise of all perturbed methods."""
        return self.noise

    @property
    def ste_noise_temperature(self) -> float:
        """Of ste; one flag perturbs all perturbed methods."""
        return self.theta_noise_temperature

    def refusals(self) -> Iterable[str]:
        """Yield a refusal of a lambda that is zero and stays so: no gradient would reach what is before the solver."""
        stays = self.target == "standard" or (self.target == "adaptive" and self.beta_update_step == 0)
        if self.chosen_method in DIFFERENCES and self.perturbation_size == 0 and stays:
            yield "--imle-lambda 0 that does not adapt gives no gradient: raise it, or give --aimle-target adaptive"


def changed(name: str, default: Any = dataclasses.MISSING, *flags: str, **options: Any) -> Any:
    """Return a field of `MethodFlags` with a task's own default, flags, help, methods, or options of the parser."""
    (field,) = (field for field in dataclasses.fields(MethodFlags) if field.name == name)
    known = declared(MethodFlags)[name]
    own = {key: options.pop(key, getattr(known, key)) for key in ("help", "methods")}
    flags, options = flags or known.flags, options or dict(known.argparse)
    return method(field.default if default is dataclasses.MISSING else default, *flags, **own, **options)

"""What the estimators share that perturb the forward pass and no other."""

from __future__ import annotations

from dataclasses import dataclass

from imle.perturb_and_map import PerturbAndMAP


@dataclass(frozen=True, kw_only=True, eq=False)
class OneTemperature(PerturbAndMAP):
    """Base of the estimators with one noise temperature.

    Args:
        noise_temperature: tau, how strongly the forward pass is perturbed; 0 returns MAP(theta).
    """

    noise_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_temperatures("noise_temperature")

    @property
    def tau(self) -> float:
        """How strongly the forward pass is perturbed."""
        return self.noise_temperature

"""Settings of a method without a task."""

from dataclasses import dataclass

from aaai23.flags import MethodFlags


@dataclass(frozen=True, kw_only=True)
class Settings(MethodFlags):
    """Everything that a method reads, each by itself."""

    nb_samples: int = 1
    relaxation_temperature: float = 0.1
    hard: bool = False
    target_noise_temperature: float = 1.0

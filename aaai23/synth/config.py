"""The settings of the measures of gradients. Nothing here imports torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from aaai23.harness.config import SWITCH, Config, launch, non_negative_float, positive_float, positive_int, setting


def item_weights(n: int) -> list[int]:
    """Return what the items of a knapsack weigh; half of all of it fits in."""
    return [3 + 2 * (item % 3) for item in range(n)]


def _knapsacks(n: int, k: int) -> int:
    ways = Counter({0: 1})  # how many sets weigh so much
    for weight in item_weights(n):
        ways += Counter({total + weight: count for total, count in ways.items()})
    return sum(count for total, count in ways.items() if total <= sum(item_weights(n)) // 2)


MEASURES = ("lambda", "samples", "bias-variance", "optimise", "adapt", "noise")
SIZES = {"subsets": 10, "trees": 6, "paths": 4, "rankings": 5, "knapsacks": 10}
SOLUTIONS: dict[str, Callable[[int, int], int]] = {  # how many there are
    "subsets": math.comb,
    "trees": lambda n, k: n ** (n - 2),
    "paths": lambda n, k: math.comb(2 * n - 2, n - 1),
    "rankings": lambda n, k: math.factorial(n),
    "knapsacks": _knapsacks,
}
MOST_SOLUTIONS = 20_000
QUICK = {"seeds": 16, "repeats": 100, "max_samples": 100, "steps": 40, "settle": 200, "reference_draws": 5000}

_of = partial(setting, group="measure")


@dataclass(frozen=True, kw_only=True)
class SynthConfig(Config):
    """What is measured, on which problems."""

    method: str = setting("lambda", "--measure", choices=MEASURES, help="the same as the first word")
    quick: bool = launch(False, "--quick", **SWITCH, help=f"in a minute: {QUICK} for what is not given")
    structure: str = setting("subsets", "--structure", choices=tuple(SIZES), help="what solutions are")
    n: int | None = setting(
        None, "-n", type=positive_int, help=f"entries, vertices of a tree, side of a grid; of {SIZES} if not given"
    )
    k: int = setting(5, "-k", type=positive_int, help="size of a subset")
    loss: str = setting(
        "separable", "--loss", choices=("separable", "coupled"), help="||z - b||^2, or ||A (z - b)||^2 with a random A"
    )
    noise: str = setting("gumbel", "--noise", choices=("gumbel", "sog"), help="of perturb-and-MAP; measure noise: both")
    seeds: int = setting(128, "--seeds", type=positive_int, help="problems: theta, b and A of each are drawn anew")
    only: list[str] | None = setting(
        None, "--only", nargs="+", help="estimators whose names begin so; if not given, all that the structure allows"
    )

    repeats: int = _of(
        2000, "--repeats", type=positive_int, methods=("lambda", "bias-variance"), help="gradients for each problem"
    )
    samples: int = _of(
        1, "--samples", type=positive_int, methods=("lambda", "adapt"), help="solutions for each gradient [S]"
    )
    max_samples: int = _of(
        10_000, "--max-samples", type=positive_int, methods=("samples",), help="the largest number of solutions [S]"
    )
    settle: int = _of(
        400,
        "--settle",
        type=positive_int,
        methods=("lambda", "samples", "bias-variance"),
        help="steps after which beta is frozen",
    )
    reference_draws: int = _of(
        100_000,
        "--reference-draws",
        type=positive_int,
        methods=("bias-variance", "noise"),
        help="solver calls for each problem behind what is known of perturb-and-MAP",
    )
    calls: int = _of(6, "--calls", type=positive_int, methods=("optimise",), help="solver calls a step, at most")
    steps: int = _of(300, "--steps", type=positive_int, methods=("optimise", "adapt"), help="steps to take")
    beta_update_step: float = _of(
        1e-3, "--beta-update-step", type=non_negative_float, methods=("adapt",), help="how fast beta moves"
    )
    target_norm: float = _of(
        1.0, "--target-norm", type=positive_float, methods=("adapt",), help="wanted non-zero entries of a gradient"
    )

    @property
    def size(self) -> int:
        """The size of the structure."""
        return SIZES[self.structure] if self.n is None else self.n

    @property
    def label(self) -> str:
        """What a reader of a folder's name should see first."""
        size = f"n{self.size}k{self.k}" if self.structure == "subsets" else f"n{self.size}"
        return f"{self.method}_{self.structure}_{size}_{self.noise}"

    def refusals(self) -> Iterator[str]:
        """Yield what is wrong with these settings, alone or together, and what to do."""
        if self.resume:
            yield "--resume: a measure is short and starts anew; leave it out"
        if self.precision != "float32":
            yield f"--precision {self.precision}: measures are taken in float32; leave it out"
        if self.structure == "subsets" and not self.k < self.size:
            yield f"-k {self.k} of -n {self.size} entries: choose fewer"
        if self.size < 2 or (self.structure == "trees" and self.size < 3):
            yield f"-n {self.size} leaves nothing to choose: raise it"
        elif (found := SOLUTIONS[self.structure](self.size, self.k)) > MOST_SOLUTIONS:
            yield f"-n {self.size} has {found} {self.structure}, more than {MOST_SOLUTIONS} to list: lower it"
        if self.reference_draws < 100:
            yield f"--reference-draws {self.reference_draws} gives no standard error: raise it to 100 or more"

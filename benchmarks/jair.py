"""The energy-price knapsack of the JAIR benchmark: test regret of the field's methods and of ours.

python -m benchmarks.jair --data-dir data/knapsack                            published or default settings
python -m benchmarks.jair --data-dir data/knapsack --tuned                    settings chosen by validation regret
python -m benchmarks.jair [--tuned]                                           the tables of what has been run

Mandi, Kotary, Berden, Mulamba, Bucarey, Guns, Fioretto, "Decision-Focused Learning: Foundations, State of the Art,
Benchmark and Future Opportunities", JAIR 2024; data: `./get_data.sh knapsack`. A day has 48 half-hours, 8 features and
a value each, and weights of 3, 5 or 7. The benchmark's protocol: one linear layer for every half-hour, 550 days to
learn from, 100 to validate, 139 to test, in an order that goes with the seed; 35 epochs of Adam in batches of 128 in
fixed order, and the last weights count. Regret: what is lost of the best selection's value, a mean over days, in
percent.

Each run is written to the record as it ends, and is not done again. Tuning, alike for all: 20 settings drawn
log-uniformly from the ranges of `METHODS`, with the same learning rates for all methods; of the five with the least
validation regret of seed 0 the one with the least mean of seeds 0 to 2; and ten other seeds for the test.
Hours are processor time of one thread.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from benchmarks.learning import Decide, Loss, decision_loss
from imle.aimle import aimle
from imle.blackbox import blackbox
from imle.fenchel_young import FenchelYoungLoss
from imle.identity import identity
from imle.imle import imle
from imle.knapsacks import marginals
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.perturbed import perturbed
from imle.solvers import binary_programme, knapsack
from imle.spo_plus import SPOPlusLoss
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution

CAPACITIES, TRAINING, VALIDATION, BATCH, EPOCHS = (60, 120, 180), 550, 100, 128, 35
DRAWS, RATE = 20, (0.05, 20.0)  # of tuning: settings, and the learning rates that they are drawn from
ROUNDS, FRESH = ((range(1), 5), (range(3), 1)), 10  # seeds that choose, and how many they leave; the first that counts
RECORDS = Path("docs/records/jair")

Factory = Callable[[Decide], Any]
"""Makes a `Loss` of predictions, values and best selections, or a layer whose selections are to be worth most."""


@dataclass(frozen=True)
class Method:
    """What is compared: its settings, a number or one for each capacity, and the ranges that tuning draws from."""

    make: Callable[..., Any]
    settings: dict[str, float | tuple[float, ...]]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def at(self, capacity: int) -> dict[str, float]:
        """Return the published or default settings for a capacity."""
        which = CAPACITIES.index(capacity)
        return {name: x[which] if isinstance(x, tuple) else x for name, x in self.settings.items()}

    def draw(self, number: int) -> dict[str, float]:
        """Return the settings of one draw of the search."""
        generator = np.random.default_rng(number)
        exponents = {name: generator.uniform(*np.log10(ends)) for name, ends in {"lr": RATE, **self.ranges}.items()}
        return self.at(CAPACITIES[0]) | {name: float(f"{10**x:.3g}") for name, x in exponents.items()}


def adaptive(beta: float, step: float, c: float) -> Factory:
    """Return forward AIMLE with the paper's rule."""
    target = AdaptiveTargetDistribution(initial_beta=beta, beta_update_step=step, target_norm=c)
    return aimle(target_distribution=target, noise_distribution=GumbelNoiseDistribution())


def sum_of_gamma_imle(beta: float, temperature: float) -> Factory:
    """Return I-MLE with the noise of the benchmark."""
    return imle(
        target_distribution=TargetDistribution(beta=beta),
        noise_distribution=SumOfGammaNoiseDistribution(k=5, nb_iterations=100),
        theta_noise_temperature=temperature,
        target_noise_temperature=temperature,
    )


def with_noise(estimator: Any, temperature: float) -> Factory:
    """Return an estimator with Gumbel noise, or none at temperature 0."""
    return estimator(noise_distribution=GumbelNoiseDistribution(), noise_temperature=temperature)


def fenchel_young(temperature: float, noise: Any = None) -> Factory:
    """Return the Fenchel-Young loss of one sample, a mean over instances."""

    def make(solver: Decide) -> Loss:
        loss = FenchelYoungLoss(solver, perturbed(noise_distribution=noise, noise_temperature=temperature))
        return lambda predictions, values, best: loss(predictions, best).mean()

    return make


def exact(temperature: float) -> Factory:
    """Return the expected value of selections of the exponential family, in place of a sample's."""

    def make(solver: Any) -> Loss:
        return decision_loss(lambda theta: marginals(theta / temperature, **solver.keywords), "regret", minimises=False)

    return make


def spo_plus(solver: Decide) -> Loss:
    """Return the SPO+ loss, a sum over instances."""
    loss = SPOPlusLoss(solver)
    return lambda predictions, values, best: loss(predictions, values, z_true=best).sum()


def squared_error(solver: Decide) -> Loss:
    """Return the mean squared error, for which nothing is solved."""
    return lambda predictions, values, best: F.mse_loss(predictions, values)


TEMPERATURE = {"temperature": (0.01, 100.0)}
BETA = {"beta": (1e-3, 1.0), "step": (1e-4, 1e-2), "c": (0.5, 16.0)}
METHODS: dict[str, Method] = {
    "bare": Method(aimle, {"lr": 0.5}),
    "forward": Method(functools.partial(aimle, symmetric_perturbation=False), {"lr": 0.5}),
    "four": Method(functools.partial(aimle, nb_samples=4, sample_reduction="sum"), {"lr": 0.5}),
    "adaptive": Method(adaptive, {"lr": 0.5, "beta": 0.0, "step": 1e-3, "c": 1.0}, BETA),
    "adaptive-.03": Method(adaptive, {"lr": 0.5, "beta": 0.03, "step": 1e-4, "c": 1.0}),
    "imle": Method(
        sum_of_gamma_imle,
        {"lr": 0.5, "beta": 0.1, "temperature": (0.5, 0.1, 5.0)},
        {"beta": (0.01, 100.0), **TEMPERATURE},
    ),
    "ste": Method(functools.partial(with_noise, ste), {"lr": 0.5, "temperature": 0.0}, TEMPERATURE),
    "identity": Method(
        functools.partial(with_noise, functools.partial(identity, projection="norm")),
        {"lr": 0.5, "temperature": 0.0},
        TEMPERATURE,
    ),
    "fenchel-young": Method(
        functools.partial(fenchel_young, noise=GumbelNoiseDistribution()),
        {"lr": (1.0, 1.0, 0.5), "temperature": (0.005, 0.5, 0.5)},
        TEMPERATURE,
    ),
    "FenchelYoungLoss": Method(fenchel_young, {"lr": 0.5, "temperature": 1.0}, TEMPERATURE),
    "exact": Method(exact, {"lr": 0.5, "temperature": 1.0}, TEMPERATURE),
    "spo+": Method(lambda: spo_plus, {"lr": (0.5, 1.0, 1.0)}),
    "black-box": Method(
        blackbox, {"lr": (0.5, 1.0, 0.5), "interpolation": (0.1, 1.0, 1.0)}, {"interpolation": (0.01, 100.0)}
    ),
    "two-stage": Method(lambda: squared_error, {"lr": (0.5, 1.0, 1.0)}),
}


@dataclass(frozen=True, eq=False)
class Data:
    """Days: features `[D, 48, 8]`, values `[D, 48]` and the weights of the 48 half-hours."""

    features: Tensor
    values: Tensor
    weights: list[int]

    def solver(self, capacity: int) -> Decide:
        """Return the exact solver."""
        return functools.partial(knapsack, weights=self.weights, capacity=capacity)

    @functools.cache  # noqa: B019
    def best(self, capacity: int) -> Tensor:
        """Return the best selection of each day `[D, 48]`."""
        return self.solver(capacity)(self.values)


def load(folder: Path | str) -> Data:
    """Read the benchmark's file, and standardise its features by those of its training days."""
    with np.load(Path(folder) / "Data.npz") as arrays:
        train, test, *values, weights = (
            arrays[f"{x}"] for x in ("X_1gtrain", "X_1gtest", "y_train", "y_test", "weights")
        )
    train, test = train[:, 1:], test[:, 1:]  # without the number of the day
    features = (np.concatenate([train, test]) - train.mean(axis=0)) / train.std(axis=0)
    length = len(weights)
    return Data(
        torch.from_numpy(features).float().view(-1, length, features.shape[1]),
        torch.from_numpy(np.concatenate(values)).float().view(-1, length),
        weights.tolist(),
    )


def regret(make: Factory, capacity: int, seed: int, lr: float, data: Data) -> tuple[float, float]:
    """Return the validation and the test regret after training, in percent.

    `make` is a factory as `aimle(...)` is, whose layer's loss is what its selections miss, or one of a loss.
    """
    order = np.arange(len(data.values))
    np.random.RandomState(seed).shuffle(order)
    features, values, best = (x[torch.from_numpy(order)] for x in (data.features, data.values, data.best(capacity)))
    torch.manual_seed(seed)
    model = torch.nn.Linear(features.shape[2], 1)
    solver = data.solver(capacity)
    made = make(solver)
    loss = decision_loss(made, "regret", minimises=False) if hasattr(made, "estimator") else made
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    batches = list(zip(*(x[:TRAINING].split(BATCH) for x in (features, values, best))))
    for _ in range(EPOCHS):
        for x, y, z in batches:
            optimiser.zero_grad()
            loss(model(x).squeeze(-1), y, z).backward()
            optimiser.step()
    with torch.no_grad():
        chosen = solver(model(features[TRAINING:]).squeeze(-1))
    found, most = ((values[TRAINING:] * z).sum(dim=1, dtype=torch.float64) for z in (chosen, best[TRAINING:]))
    missed = 100 * (1 - found / most)
    return missed[:VALIDATION].mean().item(), missed[VALIDATION:].mean().item()


def check(data: Data, capacity: int) -> float:
    """Return the largest relative difference in value of a day's best selection to that of scipy's `milp`."""
    values = data.values.double()
    theirs = binary_programme(values, A_ub=[data.weights], b_ub=[capacity])
    ours, theirs = ((values * z).sum(dim=1) for z in (data.best(capacity), theirs))
    return (ours / theirs - 1).abs().max().item()


class Record:
    """Finished runs: {method and capacity: {settings: {seed: [validation, test, seconds]}}}, in a file."""

    def __init__(self, path: Path, command: str, data: Data | None = None):
        self.path, self.command, self.data = path, command, data
        self.content = json.loads(path.read_text()) if path.exists() else {"runs": {}}

    def run(self, method: str, capacity: int, settings: dict[str, float], seeds: range) -> dict[int, list[float]]:
        """Return what has been found with these seeds; with the data, do what is lacking before."""
        by_settings = self.content["runs"].setdefault(f"{method} {capacity}", {})
        runs = by_settings.setdefault(" ".join(f"{name}={x:g}" for name, x in settings.items()), {})
        knobs = {name: x for name, x in settings.items() if name != "lr"}
        for seed in seeds:
            if self.data and str(seed) not in runs:
                self.data.best(capacity)  # which no method's seconds should hold
                start = time.process_time()
                found = regret(METHODS[method].make(**knobs), capacity, seed, settings["lr"], self.data)
                runs[str(seed)] = [round(x, 3) for x in (*found, time.process_time() - start)]
                self.write()
        return {seed: runs[str(seed)] for seed in seeds if str(seed) in runs}

    def search(self, method: str, capacity: int) -> dict[str, float] | None:
        """Return the settings of the least validation regret, or None where runs are lacking."""
        left = [METHODS[method].draw(number) for number in range(DRAWS)]
        for seeds, keep in ROUNDS:
            found = [self.run(method, capacity, settings, seeds) for settings in left]
            if any(len(runs) < len(seeds) for runs in found):
                return None
            order = np.argsort([np.mean([run[0] for run in runs.values()]) for runs in found], kind="stable")
            left = [left[n] for n in order[:keep]]
        return left[0]

    def hours(self, method: str, capacity: int) -> float:
        """Return how long all runs took, those of the search included."""
        by_settings = self.content["runs"][f"{method} {capacity}"]
        return sum(run[2] for runs in by_settings.values() for run in runs.values()) / 3600

    def write(self) -> None:
        """Replace the file, a line for each setting."""
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        blocks = []
        for name, by_settings in self.content["runs"].items():
            lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(runs)}" for key, runs in by_settings.items())
            blocks.append(f" {json.dumps(name)}: {{\n{lines}}}")
        head = f' "command": {json.dumps(self.command)},\n "versions": {json.dumps(versions)},\n'
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".part")
        aside.write_text("{\n" + head + ' "runs": {\n' + ",\n".join(blocks) + "}}\n")
        aside.replace(self.path)


def tables(record: Record, options: argparse.Namespace) -> str:
    """Return the tables in Markdown, after the runs that are lacking: regret, comparisons by seed, settings."""
    first = FRESH if options.tuned else 0
    chosen, found = {}, {}
    for key in itertools.product(options.methods, options.capacities):
        settings = record.search(*key) if options.tuned else METHODS[key[0]].at(key[1])
        if settings and (runs := record.run(*key, settings, range(first, first + options.seeds))):
            chosen[key], found[key] = settings, {seed: run[1] for seed, run in runs.items()}

    def table(title: str, cell: Callable[[str, int], str], last: str, end: Callable[[str], str]) -> str:
        lines = [[title, *map(str, options.capacities), last], ["---"] * (len(options.capacities) + 2)]
        for method in options.methods:
            cells = [cell(method, c) if (method, c) in found else "" for c in options.capacities]
            lines.append([method, *cells, end(method)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def regrets(method: str, capacity: int) -> str:
        values = list(found[method, capacity].values())
        return f"{np.mean(values):.2f} ± {np.std(values, ddof=min(len(values) - 1, 1)):.2f}"

    def hours(method: str) -> str:
        return f"{sum(record.hours(method, c) for c in options.capacities if (method, c) in found):.3f}"

    def less(method: str, capacity: int) -> np.ndarray:
        mine, theirs = found[method, capacity], found.get((options.against, capacity), {})
        return np.array([mine[seed] - theirs[seed] for seed in mine if seed in theirs])

    def paired(method: str, capacity: int) -> str:
        differences = less(method, capacity)
        if method == options.against or len(differences) < 2:
            return ""
        error = differences.std(ddof=1) / math.sqrt(len(differences))
        return f"{differences.mean():+.2f} ± {stats.t.ppf(0.975, len(differences) - 1) * error:.2f}"

    def won(method: str) -> str:
        by_capacity = [less(method, c) for c in options.capacities if (method, c) in found]
        return (
            "" if method == options.against else ", ".join(str((differences < 0).sum()) for differences in by_capacity)
        )

    def settings_of(method: str, capacity: int) -> str:
        return ", ".join(f"{name} {x:g}" for name, x in chosen[method, capacity].items())

    def ranges(method: str) -> str:
        ends = {"lr": RATE, **METHODS[method].ranges} if options.tuned else {}
        return ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in ends.items())

    return "\n\n".join(
        [
            table("test regret, %", regrets, "hours", hours),
            table(f"less that of {options.against}", paired, "seeds won", won),
            table("settings", settings_of, "drawn from" if options.tuned else "", ranges),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run what is lacking, if the data are given, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jair", description="The JAIR benchmark's knapsack.")
    parser.add_argument("--data-dir", help="where Data.npz lies; without it, only the record's tables are printed")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--capacities", nargs="+", type=int, choices=CAPACITIES, default=list(CAPACITIES))
    parser.add_argument("--seeds", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--tuned", action="store_true", help="settings chosen by validation regret; then fresh seeds")
    parser.add_argument("--against", choices=METHODS, default="bare", help="what is compared with, by seed")
    parser.add_argument("--record", type=Path, help=f"file of the runs (default in {RECORDS})")
    parser.add_argument("--check", action="store_true", help="compare the solver with scipy's on all days first")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = load(options.data_dir) if options.data_dir else None
    for capacity in options.capacities if options.check else ():
        if data:
            print(
                f"capacity {capacity}: values of days differ from milp's by at most {check(data, capacity):.1e} of them"
            )
    path = options.record or RECORDS / ("tuned.json" if options.tuned else "published.json")
    command = "python -m benchmarks.jair --data-dir data/knapsack" + " --tuned" * options.tuned
    print(tables(Record(path, command, data), options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

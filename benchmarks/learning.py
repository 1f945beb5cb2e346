"""How well the estimators learn with their defaults: regret of predicted costs, and the precision of a subset.

python -m benchmarks.learning [--seeds N]

Predict, then optimise: a linear model predicts costs from features, a solver decides by them, and the loss says what
the decision costs. Shortest paths on a grid of 5 x 5 and knapsacks of 32 items under two constraints, costs of degree
4 with multiplicative noise (Elmachtoub, Grigas, "Smart 'Predict, then Optimize'", 2022; Tang, Khalil, "PyEPO", 2024);
1,000 instances, 20 epochs of Adam at 1e-2, batches of 32. Normalised regret on 1,000 others, in percent: 0 is what the
true costs give. Loss: "regret", the cost of the decision, or "L1", its distance from the best one.

`imle()` is not listed: with the same rule and noise it is `aimle(symmetric_perturbation=False)`, bit by bit.

The subset: 300 steps of Adam at 1e-2 from random numbers towards 20 of 400 entries.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imle.aimle import aimle
from imle.noise import GumbelNoiseDistribution
from imle.solvers import select_k
from imle.spo_plus import SPOPlusLoss
from imle.target import AdaptiveTargetDistribution

Decide = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of predictions, costs and solutions

GRID, ITEMS, FEATURES, DEGREE, INSTANCES, BATCH, EPOCHS = 5, 32, 5, 4, 1000, 32, 20

DEFAULTS: dict[str, Callable[..., Callable[[Decide], Decide]]] = {
    "aimle()": aimle,
    "aimle(nb_samples=4)": lambda **options: aimle(nb_samples=4, sample_reduction="sum", **options),
    "aimle(symmetric_perturbation=False)": lambda **options: aimle(symmetric_perturbation=False, **options),
    "aimle(noise_distribution=None)": lambda **options: aimle(noise_distribution=None, **options),
    "aimle(target_distribution=from beta 1)": lambda **options: aimle(
        target_distribution=AdaptiveTargetDistribution(), noise_distribution=GumbelNoiseDistribution(), **options
    ),
    "aimle(target_distribution=from beta 0)": lambda **options: aimle(
        target_distribution=AdaptiveTargetDistribution(initial_beta=0.0), **options
    ),
}


@dataclass(frozen=True)
class Problem:
    """Instances of a linear problem: features `[N, F]`, costs `[N, n]`, and the solver of costs `[B, n]`."""

    features: Tensor
    costs: Tensor
    solver: Decide
    minimises: bool


def predictable(n: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return features `[N, F]` and costs `[N, n]` that are a polynomial of them, times noise within a half."""
    mixing = (torch.rand(n, FEATURES, generator=generator) < 0.5).float()
    features = torch.randn(2 * INSTANCES, FEATURES, generator=generator)
    costs = scale * ((features @ mixing.mT / math.sqrt(FEATURES) + 3) ** DEGREE + 1) / 3.5**DEGREE
    return features, costs * (0.5 + torch.rand(costs.shape, generator=generator))


def shortest_paths(seed: int) -> Problem:
    """Return paths to the right and down, by arcs."""
    arcs: dict[tuple[int, int, bool], int] = {}
    paths = []
    for down in itertools.combinations(range(2 * GRID - 2), GRID - 1):
        row = column = 0
        path = []
        for move in range(2 * GRID - 2):
            path.append(arcs.setdefault((row, column, move in down), len(arcs)))
            row, column = row + (move in down), column + (move not in down)
        paths.append(path)
    table = torch.zeros(len(paths), len(arcs)).scatter(1, torch.tensor(paths), 1.0)
    features, costs = predictable(len(arcs), 1.0, torch.Generator().manual_seed(seed))
    return Problem(features, costs, lambda theta: table[(theta @ table.mT).argmin(dim=1)], minimises=True)


def best_set(table: Tensor) -> Decide:
    """Return a solver that looks up the best of the sets `[sets, n]` that take no more items, less what is worth 0."""
    return lambda theta: table[(theta.clamp(min=0) @ table.mT).argmax(dim=1)] * (theta > 0)


def knapsacks(seed: int) -> Problem:
    """Return sets of items of which the weights of two kinds are at most 20 each."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(300, 800, (ITEMS, 2), generator=generator)
    pairs, sets = weights.tolist(), []

    def extend(chosen: list[int], left: tuple[int, int]) -> None:
        fitting = [i for i in range(ITEMS) if i not in chosen and all(w <= r for w, r in zip(pairs[i], left))]
        if not fitting:  # with values of at least 0, a set to which nothing can be added is among the best
            sets.append(chosen)
        for item in fitting:
            if not chosen or item > chosen[-1]:
                extend([*chosen, item], (left[0] - pairs[item][0], left[1] - pairs[item][1]))

    extend([], (2000, 2000))
    table = torch.zeros(len(sets), ITEMS)
    for row, chosen in enumerate(sets):
        table[row, chosen] = 1.0

    features, costs = predictable(ITEMS, 5.0, generator)
    return Problem(features, costs.ceil(), best_set(table), minimises=False)


def train(problem: Problem, loss: Loss, seed: int, epochs: int = EPOCHS) -> tuple[torch.nn.Module, float]:
    """Return a linear model after training, and the processor time of an epoch."""
    torch.manual_seed(seed)
    features, costs = problem.features[:INSTANCES], problem.costs[:INSTANCES]
    best = problem.solver(costs)
    model = torch.nn.Linear(FEATURES, best.shape[1])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    start = time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(INSTANCES).split(BATCH):
            optimiser.zero_grad()
            loss(model(features[rows]), costs[rows], best[rows]).backward()
            optimiser.step()
    return model, (time.process_time() - start) / epochs


def regret(problem: Problem, seed: int, loss: Loss) -> float:
    """Return the normalised test regret in percent after training."""
    model, _ = train(problem, loss, seed)
    features, costs = problem.features[INSTANCES:], problem.costs[INSTANCES:]
    with torch.no_grad():
        decisions = problem.solver(model(features))
    value, optimum = ((costs * z).sum(dtype=torch.float64) for z in (decisions, problem.solver(costs)))
    return 100 * ((value - optimum).abs() / optimum.abs()).item()


def decision_loss(decide: Decide, kind: str, minimises: bool) -> Loss:
    """Return the loss of decisions by predicted costs, a mean over instances and samples."""

    def loss(predictions: Tensor, costs: Tensor, best: Tensor) -> Tensor:
        z = decide(predictions)
        costs, best = (x.repeat_interleave(len(z) // len(x), dim=0) for x in (costs, best))
        value = (costs * z).sum(dim=1).mean() * (1 if minimises else -1)
        return value if kind == "regret" else F.l1_loss(z, best)

    return loss


def spo_plus(solver: Decide, minimises: bool) -> Loss:
    """Return the SPO+ loss, a mean over instances."""
    loss = SPOPlusLoss(solver, _is_minimization=minimises)
    return lambda predictions, costs, best: loss(predictions, costs, z_true=best).mean()


def precision(estimator: Callable[..., Callable[[Decide], Decide]], seed: int, n: int = 400, k: int = 20) -> float:
    """Return the share of the wanted entries among those that random numbers choose after 300 steps."""
    torch.manual_seed(seed)

    def solver(theta: Tensor) -> Tensor:
        return select_k(theta, k)

    goal, theta = solver(torch.randn(4, n)), torch.randn(4, n).requires_grad_()
    choose, optimiser = estimator()(solver), torch.optim.Adam([theta], lr=1e-2)
    for _ in range(300):
        z = choose(theta)
        optimiser.zero_grad()
        (z - goal.repeat_interleave(len(z) // 4, dim=0)).square().sum(dim=1).mean().backward()
        optimiser.step()
    return ((solver(theta.detach()) * goal).sum() / goal.sum()).item()


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def main(argv: list[str] | None = None) -> int:
    """Train and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description="Learning with the defaults.")
    parser.add_argument("--seeds", type=int, default=3, help="problems of a kind (default 3; a minute each)")
    seeds = range(parser.parse_args(argv).seeds)
    problems = [[make(seed) for seed in seeds] for make in (shortest_paths, knapsacks)]
    print(f"{'':40}{'path':>8}{'path L1':>9}{'knapsack':>10}{'L1':>7}{'subset':>8}", flush=True)
    path, knapsack = (
        [regret(p, seed, spo_plus(p.solver, p.minimises)) for seed, p in zip(seeds, same)] for same in problems
    )
    print(f"{'SPO+, which knows the solutions':40}{mean(path):8.2f}{'':9}{mean(knapsack):10.2f}", flush=True)
    for name, make in DEFAULTS.items():
        figures = []
        for same, kind in itertools.product(problems, ("regret", "L1")):
            found = []
            for seed, p in zip(seeds, same):
                decide = make(_is_minimization=p.minimises)(p.solver)
                found.append(regret(p, seed, decision_loss(decide, kind, p.minimises)))
            figures.append(mean(found))
        subset = mean([precision(make, seed) for seed in seeds])
        print(
            f"{name:40}{figures[0]:8.2f}{figures[1]:9.2f}{figures[2]:10.2f}{figures[3]:7.2f}{subset:8.2f}", flush=True
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

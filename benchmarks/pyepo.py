"""PyEPO's methods and ours on PyEPO's own generators: regret by its metric, and seconds an epoch.

python -m benchmarks.pyepo [path] [knapsack] [--seeds N]

Needs `pip install pyepo ortools`. Shortest paths on a grid of 5 x 5 and knapsacks of 32 items under two constraints,
degree 4, noise within a half: 1,000 instances to learn from, 1,000 to measure, a linear model, 20 epochs of Adam at
1e-2, batches of 32, one sample a solution, the defaults otherwise. Regret: normalised, in percent, mean and standard
deviation over the seeds. It does not depend on how an exact solver finds its answers, so all methods learn with quick
ones. Seconds: processor time of one thread for one epoch, PyEPO's methods and the adapter with PyEPO's OR-tools
models, then ours with a solver of a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imle.aimle import aimle
from imle.fenchel_young import FenchelYoungLoss
from imle.perturbed import PerturbedOptimiser
from imle.solvers import batched, shortest_path_arcs
from imle.spo_plus import SPOPlusLoss

INSTANCES, FEATURES, BATCH, EPOCHS = 1000, 5, 32, 20

Solver = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of predictions, costs, solutions and their values


@dataclass(frozen=True)
class Problem:
    """Instances, PyEPO's model of them, a quick one with the same answers, and a solver of a batch."""

    features: Tensor
    costs: Tensor
    model: Any
    quick: Any
    solver: Solver
    minimises: bool


def shortest_paths(seed: int) -> Problem:
    """Return paths to the right and down, by arcs."""
    from pyepo.data import shortestpath
    from pyepo.model.ort import shortestPathModel

    features, costs = shortestpath.genData(2 * INSTANCES, FEATURES, (5, 5), deg=4, noise_width=0.5, seed=seed)
    model = shortestPathModel((5, 5))
    tails, heads = zip(*model.arcs)
    solver = functools.partial(shortest_path_arcs, arcs=[list(tails), list(heads)], source=0, target=24)
    sinks = [[a for a, tail in enumerate(tails) if tail == v] for v in range(25)]

    def ways(vertex: int) -> list[list[int]]:
        return [[]] if vertex == 24 else [[a, *rest] for a in sinks[vertex] for rest in ways(heads[a])]

    table = np.zeros((70, len(tails)), dtype=np.float32)
    for row, way in zip(table, ways(0)):
        row[way] = 1
    return problem(features, costs, model, table, solver)


def knapsacks(seed: int) -> Problem:
    """Return sets of items of which the weights of two kinds are at most 20 each."""
    from pyepo.data import knapsack
    from pyepo.model.ort import knapsackModel

    weights, features, costs = knapsack.genData(2 * INSTANCES, FEATURES, 32, 2, deg=4, noise_width=0.5, seed=seed)
    sets, full = np.zeros((1, 32), dtype=np.float32), []
    while len(sets):
        fits = (weights[:, None] + (sets @ weights.T).T[..., None] <= 20 + 1e-6).all(axis=0) & (sets == 0)
        full.append(sets[~fits.any(axis=1)])  # with values above 0, a set that takes no more is among the best
        later = np.arange(32) > np.where(sets.any(axis=1), 31 - sets[:, ::-1].argmax(axis=1), -1)[:, None]
        rows, items = np.nonzero(fits & later)
        sets = sets[rows]
        sets[np.arange(len(rows)), items] = 1
    table = np.concatenate(full)
    lifted = torch.from_numpy(table)

    def solver(theta: Tensor) -> Tensor:
        return lifted[(theta.clamp(min=0) @ lifted.mT).argmax(dim=1)] * (theta > 0)

    return problem(features, costs, knapsackModel(weights, [20, 20]), table, solver)


def problem(features: Any, costs: Any, model: Any, table: Any, solver: Solver) -> Problem:
    """Return a problem whose quick model looks its solutions up in a table `[solutions, n]`."""
    from pyepo import EPO
    from pyepo.model.opt import optModel

    minimises = model.modelSense == EPO.MINIMIZE

    class Quick(optModel):
        modelSense = model.modelSense

        def _getModel(self) -> tuple[Any, Any]:
            return None, range(table.shape[1])

        def setObj(self, c: Any) -> None:
            self.cost = np.asarray(c, dtype=np.float32)

        def solve(self) -> tuple[Any, float]:
            if minimises:
                z = table[(table @ self.cost).argmin()]
            else:
                z = table[(table @ self.cost.clip(min=0)).argmax()] * (self.cost > 0)
            return z, float(z @ self.cost)

    features, costs = (torch.as_tensor(x, dtype=torch.float32) for x in (features, costs))
    return Problem(features, costs, model, Quick(), solver, minimises)


def adapted(model: Any) -> Solver:
    """Return PyEPO's model as a solver of a batch; docs/pyepo.md."""

    def solve(costs: Any) -> Any:
        model.setObj(costs)
        return np.asarray(model.solve()[0])

    return batched(solve)


def decisions(decide: Solver, minimises: bool, kind: str) -> Loss:
    """Return what decisions cost, or their distance from the best ones."""

    def loss(predicted: Tensor, costs: Tensor, best: Tensor, values: Tensor) -> Tensor:
        z = decide(predicted)
        regret = (costs * z).sum(dim=1).mean() * (1 if minimises else -1)
        return regret if kind == "regret" else F.l1_loss(z, best)

    return loss


def theirs(model: Any, minimises: bool) -> dict[str, Loss]:
    """Return PyEPO's methods."""
    from pyepo import func

    fenchel_young = func.perturbedFenchelYoung(model, n_samples=1)
    return {
        "PyEPO SPO+": func.SPOPlus(model),
        "PyEPO Fenchel-Young": lambda predicted, costs, best, values: fenchel_young(predicted, best),
        "PyEPO AI-MLE, regret": decisions(func.adaptiveImplicitMLE(model, n_samples=1), minimises, "regret"),
        "PyEPO AI-MLE, L1": decisions(func.adaptiveImplicitMLE(model, n_samples=1), minimises, "L1"),
    }


def ours(solver: Solver, minimises: bool) -> dict[str, Loss]:
    """Return our methods, the same losses."""
    spo_plus = SPOPlusLoss(solver, _is_minimization=minimises)
    fenchel_young = FenchelYoungLoss(solver, PerturbedOptimiser(_is_minimization=minimises))
    return {
        "SPOPlusLoss": lambda predicted, costs, best, values: spo_plus(predicted, costs, z_true=best).mean(),
        "FenchelYoungLoss": lambda predicted, costs, best, values: fenchel_young(predicted, best).mean(),
        "aimle(), regret": decisions(aimle(_is_minimization=minimises)(solver), minimises, "regret"),
        "aimle(), L1": decisions(aimle(_is_minimization=minimises)(solver), minimises, "L1"),
    }


def train(problem: Problem, loss: Loss, seed: int, epochs: int = EPOCHS) -> tuple[torch.nn.Module, float]:
    """Return a linear model after training, and the processor time of an epoch."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(FEATURES, problem.costs.shape[1])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    features, costs = problem.features[:INSTANCES], problem.costs[:INSTANCES]
    best = problem.solver(costs)
    values = (costs * best).sum(dim=1, keepdim=True)
    start = time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(INSTANCES).split(BATCH):
            optimiser.zero_grad()
            loss(model(features[rows]), costs[rows], best[rows], values[rows]).backward()
            optimiser.step()
    return model, (time.process_time() - start) / epochs


def regret(problem: Problem, model: torch.nn.Module) -> float:
    """Return PyEPO's normalised regret on the other instances, in percent."""
    from pyepo import metric
    from pyepo.data.dataset import optDataset

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        data = optDataset(problem.quick, problem.features[INSTANCES:].numpy(), problem.costs[INSTANCES:].numpy())
    return 100 * metric.regret(model, problem.quick, torch.utils.data.DataLoader(data, batch_size=INSTANCES))


PROBLEMS: dict[str, Callable[[int], Problem]] = {"path": shortest_paths, "knapsack": knapsacks}


def main(argv: list[str] | None = None) -> int:
    """Train, and print a row for each method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pyepo", description="PyEPO's methods and ours.")
    parser.add_argument("problems", nargs="*", metavar="problem", help="path or knapsack (default both)")
    parser.add_argument("--seeds", type=int, default=10, help="problems of a kind (default 10)")
    options = parser.parse_args(argv)
    if set(options.problems) - set(PROBLEMS):
        parser.error(f"a problem is one of {', '.join(PROBLEMS)}, not {' '.join(options.problems)}")
    missing = [name for name in ("pyepo", "ortools") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out: pip install {' '.join(missing)}")
        return 0
    torch.set_num_threads(1)
    for kind in options.problems or PROBLEMS:
        problems = [PROBLEMS[kind](seed) for seed in range(options.seeds)]
        first = problems[0]
        slow, lifted = theirs(first.model, first.minimises), ours(adapted(first.model), first.minimises)
        quick = ours(first.solver, first.minimises)
        print(f"{kind:24}{'regret':>8}{'std':>7}{'s, OR-tools':>13}{'s, batch':>10}", flush=True)
        for name in slow | lifted:
            figures = []
            for seed, p in enumerate(problems):
                loss = (theirs(p.quick, p.minimises) | ours(p.solver, p.minimises))[name]
                figures.append(regret(p, train(p, loss, seed)[0]))
            std = np.std(figures, ddof=1) if len(figures) > 1 else 0.0
            seconds = f"{train(first, (slow | lifted)[name], 0, epochs=1)[1]:13.3f}"
            seconds += f"{train(first, quick[name], 0, epochs=3)[1]:10.3f}" if name in quick else ""
            print(f"{name:24}{np.mean(figures):8.2f}{std:7.2f}{seconds}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.learning import FEATURES, INSTANCES, Decide, Loss, Problem, best_set, decision_loss, spo_plus, train
from imle.aimle import aimle
from imle.fenchel_young import FenchelYoungLoss
from imle.perturbed import PerturbedOptimiser
from imle.solvers import batched, shortest_path_arcs


@dataclass(frozen=True)
class PyEPOProblem(Problem):
    """A problem, PyEPO's model of it, and a quick one with the same answers."""

    model: Any
    quick: Any


def shortest_paths(seed: int) -> PyEPOProblem:
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


def knapsacks(seed: int) -> PyEPOProblem:
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
    return problem(features, costs, knapsackModel(weights, [20, 20]), table, best_set(torch.from_numpy(table)))


def problem(features: Any, costs: Any, model: Any, table: Any, solver: Decide) -> PyEPOProblem:
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
    return PyEPOProblem(features, costs, solver, minimises, model, Quick())


def adapted(model: Any) -> Decide:
    """Return PyEPO's model as a solver of a batch; docs/pyepo.md."""

    def solve(costs: Any) -> Any:
        model.setObj(costs)
        return np.asarray(model.solve()[0])

    return batched(solve)


def theirs(model: Any, minimises: bool) -> dict[str, Loss]:
    """Return PyEPO's methods."""
    from pyepo import func

    their_spo_plus, fenchel_young = func.SPOPlus(model), func.perturbedFenchelYoung(model, n_samples=1)
    value = lambda costs, best: (costs * best).sum(dim=1, keepdim=True)  # noqa: E731
    return {
        "PyEPO SPO+": lambda predicted, costs, best: their_spo_plus(predicted, costs, best, value(costs, best)),
        "PyEPO Fenchel-Young": lambda predicted, costs, best: fenchel_young(predicted, best),
        "PyEPO AI-MLE, regret": decision_loss(func.adaptiveImplicitMLE(model, n_samples=1), "regret", minimises),
        "PyEPO AI-MLE, L1": decision_loss(func.adaptiveImplicitMLE(model, n_samples=1), "L1", minimises),
    }


def ours(solver: Decide, minimises: bool) -> dict[str, Loss]:
    """Return our methods, the same losses."""
    fenchel_young = FenchelYoungLoss(solver, PerturbedOptimiser(_is_minimization=minimises))
    return {
        "SPOPlusLoss": spo_plus(solver, minimises),
        "FenchelYoungLoss": lambda predicted, costs, best: fenchel_young(predicted, best).mean(),
        "aimle(), regret": decision_loss(aimle(_is_minimization=minimises)(solver), "regret", minimises),
        "aimle(), L1": decision_loss(aimle(_is_minimization=minimises)(solver), "L1", minimises),
    }


def regret(problem: PyEPOProblem, model: torch.nn.Module) -> float:
    """Return PyEPO's normalised regret on the other instances, in percent."""
    from pyepo import metric
    from pyepo.data.dataset import optDataset

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        data = optDataset(problem.quick, problem.features[INSTANCES:].numpy(), problem.costs[INSTANCES:].numpy())
    return 100 * metric.regret(model, problem.quick, torch.utils.data.DataLoader(data, batch_size=INSTANCES))


PROBLEMS: dict[str, Callable[[int], PyEPOProblem]] = {"path": shortest_paths, "knapsack": knapsacks}


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

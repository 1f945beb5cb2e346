"""Plan tours by predicted travel times: your own solver of one instance, lifted by `batched`.

    python examples/plan_tours.py

Seven cities, travel times that depend on five features of the day (a polynomial of degree 4, as in PyEPO's generators),
and a linear model of them. Two stages: fit the times, then plan. One stage: fit what the planned tours take. The
solver is numpy that knows nothing of torch: it tries all 360 tours. Put OR-tools, Concorde or a service in its place.
"""

import argparse
import os
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imle.aimle import aimle
from imle.solvers import batched

CITIES, FEATURES, DEGREE = 7, 5, 4
PAIRS = np.triu_indices(CITIES, 1)
NUMBER = np.zeros((CITIES, CITIES), dtype=int)
NUMBER[PAIRS] = NUMBER.T[PAIRS] = np.arange(len(PAIRS[0]))
TOURS = np.array([(0, *order) for order in permutations(range(1, CITIES)) if order[0] < order[-1]])
LEGS = NUMBER[TOURS, np.roll(TOURS, -1, axis=1)]  # [360, 7]: the pairs of cities that each tour joins


def shortest_tour(times: np.ndarray) -> np.ndarray:
    """Return 1 for each of the 21 pairs of cities that the shortest tour joins, else 0: your solver."""
    z = np.zeros_like(times)
    z[LEGS[times[LEGS].sum(axis=1).argmin()]] = 1
    return z


solve = batched(shortest_tour)  # workers=8, executor="process", timeout=60.0, ... for solvers that take longer
plan = aimle(solve, nb_samples=2, sample_reduction="sum", _is_minimization=True)


def what_tours_take(predicted, times):
    """Return the true time of tours planned by predicted times."""
    z = plan(predicted)
    return (z * times.repeat_interleave(len(z) // len(times), dim=0)).sum(1).mean()


METHODS = {"aimle, one stage": what_tours_take, "two stages": F.mse_loss}


def make(days, seed, generator):
    """Return features of days `[N, 5]` and travel times between cities `[N, 21]`."""
    fixed = torch.Generator().manual_seed(seed)
    place = torch.rand(CITIES, 2, generator=fixed)
    distance = (place[PAIRS[0]] - place[PAIRS[1]]).norm(dim=1)
    mixing = (torch.rand(FEATURES, len(distance), generator=fixed) < 0.5).float()
    features = torch.randn(days, FEATURES, generator=generator)
    traffic = ((features @ mixing / FEATURES**0.5 + 3) ** DEGREE + 1) / 3.5**DEGREE
    return features, distance + traffic * (0.5 + torch.rand(traffic.shape, generator=generator))


def regret(model, features, times):
    """Return by how many percent tours take longer than the best ones."""
    with torch.no_grad():
        taken, best = (times * solve(model(features))).sum(), (times * solve(times)).sum()
    return 100 * (taken / best - 1).item()


def train(method, seed=0, steps=600, days=500):
    """Return the test regret every 50 steps."""
    torch.manual_seed(seed)
    features, times = make(days, seed, torch.Generator().manual_seed(seed + 500))
    test = make(500, seed, torch.Generator().manual_seed(seed + 1000))
    model = nn.Linear(FEATURES, len(PAIRS[0]))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    curve = []
    for step in range(steps + 1):
        if step % 50 == 0:
            curve.append(regret(model, *test))
        rows = torch.randint(days, (32,))
        optimiser.zero_grad()
        METHODS[method](model(features[rows]), times[rows]).backward()
        optimiser.step()
    return curve


def draw(curves, path):
    """Draw the regret over the steps."""
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's shell says
    from matplotlib import pyplot, rcdefaults

    rcdefaults()  # whatever a matplotlibrc says
    _, axes = pyplot.subplots(figsize=(4, 2.6), layout="constrained")
    for method, runs in curves.items():
        axes.semilogy(torch.arange(len(runs[0])) * 50, torch.tensor(runs).mean(0), label=method)
    axes.set(xlabel="step", ylabel="regret, %")
    axes.legend(frameon=False)
    pyplot.savefig(path, dpi=100)


def main(argv=None):
    """Train each method and print the test regret."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--picture", help="a file to draw the curves into")
    options = parser.parse_args(argv)
    curves = {method: [train(method, seed, options.steps) for seed in range(options.seeds)] for method in METHODS}
    for method, runs in curves.items():
        last = torch.tensor([run[-1] for run in runs])
        print(f"{method:20} regret {last.mean():.2f} ± {last.std(correction=0):.2f} %")
    if options.picture:
        draw(curves, options.picture)
    return curves


if __name__ == "__main__":
    main()

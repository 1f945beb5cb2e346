"""Learn to rank: raise the mean reciprocal rank (MRR) itself, not a stand-in for it.

    python examples/rank_documents.py

Each query has 16 documents, one of them relevant. A linear model scores them, `ranking` gives their places, and the
loss is minus the reciprocal rank of the relevant one. Beside it, the same model trained by the two usual stand-ins: is
this document relevant (a logistic regression of each), and which of the documents is it (a softmax over the list).
"""

import argparse
import os
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from imle.aimle import aimle
from imle.solvers import ranking

DOCUMENTS, WIDTH = 16, 8

places = partial(ranking, descending=True)  # the best has rank 1: a minimiser of <ranks, scores>, which says so
rank = aimle(places, nb_samples=4, sample_reduction="sum")


def reciprocal_rank(scores, relevant):
    """Return minus the reciprocal rank of the relevant document, `[B, 16]` -> a number, through the ranking."""
    ranks = rank(scores)
    return -(relevant.repeat_interleave(len(ranks) // len(relevant), dim=0) / ranks).sum(1).mean()


METHODS = {
    "aimle on MRR": reciprocal_rank,
    "each document": F.binary_cross_entropy_with_logits,
    "softmax of the list": lambda scores, relevant: F.cross_entropy(scores, relevant.argmax(1)),
}


def make(queries, generator):
    """Return features of documents `[N, 16, 8]` and the relevant one, one-hot `[N, 16]`.

    Most queries want the document that is best by one taste; a third are filed wrongly: theirs is one of the worst.
    """
    x = torch.randn(queries, DOCUMENTS, WIDTH, generator=generator)
    taste = torch.linspace(-1, 1, WIDTH)
    usefulness = x @ taste + torch.randn(queries, DOCUMENTS, generator=generator)
    wrong = torch.rand(queries, 1, generator=generator) < 1 / 3
    best = torch.where(wrong, -3 * x @ taste, usefulness).argmax(1)
    return x, F.one_hot(best, DOCUMENTS).float()


def mean_reciprocal_rank(model, x, relevant):
    """Return the MRR of a model."""
    with torch.no_grad():
        return (relevant / places(model(x).squeeze(2))).sum(1).mean().item()


def train(method, seed=0, steps=600, queries=1000):
    """Return the MRR of the test queries every 25 steps."""
    torch.manual_seed(seed)
    x, relevant = make(queries, torch.Generator().manual_seed(seed))
    test = make(2000, torch.Generator().manual_seed(seed + 1000))
    model = nn.Linear(WIDTH, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    curve = []
    for step in range(steps + 1):
        if step % 25 == 0:
            curve.append(mean_reciprocal_rank(model, *test))
        rows = torch.randint(queries, (64,))
        optimiser.zero_grad()
        METHODS[method](model(x[rows]).squeeze(2), relevant[rows]).backward()
        optimiser.step()
    return curve


def draw(curves, path):
    """Draw the MRR over the steps."""
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's shell says
    from matplotlib import pyplot, rcdefaults

    rcdefaults()  # whatever a matplotlibrc says
    _, axes = pyplot.subplots(figsize=(4, 2.6), layout="constrained")
    for method, runs in curves.items():
        axes.plot(torch.arange(len(runs[0])) * 25, torch.tensor(runs).mean(0), label=method)
    axes.set(xlabel="step", ylabel="mean reciprocal rank")
    axes.legend(frameon=False)
    pyplot.savefig(path, dpi=100)


def main(argv=None):
    """Train by each loss and print the MRR."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--picture", help="a file to draw the curves into")
    options = parser.parse_args(argv)
    curves = {method: [train(method, seed, options.steps) for seed in range(options.seeds)] for method in METHODS}
    for method, runs in curves.items():
        last = torch.tensor([run[-1] for run in runs])
        print(f"{method:20} MRR {last.mean():.3f} ± {last.std(correction=0):.3f}")
    if options.picture:
        draw(curves, options.picture)
    return curves


if __name__ == "__main__":
    main()

"""Find the trees behind moving points: which points pull one another is latent, and the law of the pull unknown.

    python examples/latent_trees.py

Eight systems of ten points; in each, points that a hidden tree joins pull one another. Edge weights of each system
and a network for the pull, which all share, are learned together by predicting the next step along the maximum
spanning tree: neural relational inference in small. Ways past the tree: `aimle`, straight through, and the relaxed
tree of a stochastic softmax (Paulus et al., 2020). Without learning: the tree of the pairs that stay nearest.
"""

import argparse
import os
from functools import partial

import torch
from torch import nn

from imle.aimle import aimle
from imle.layers import MAPLayer, RelaxedLayer
from imle.solvers import spanning_tree_edges
from imle.ste import ste
from imle.structures import spanning_trees, stochastic_softmax

SYSTEMS, POINTS, FRAMES = 8, 10, 24
A, B = torch.triu_indices(POINTS, POINTS, 1)  # the 45 pairs
relaxed_tree = partial(stochastic_softmax, structure=spanning_trees(POINTS))

METHODS = {
    "aimle": lambda: MAPLayer(spanning_tree_edges, aimle(nb_samples=4, sample_reduction="sum")),
    "straight through": lambda: MAPLayer(spanning_tree_edges, ste()),
    "relaxation": lambda: RelaxedLayer(spanning_tree_edges, relaxed_tree, temperature=0.5),
}


def moved(x, trees, pull):
    """Return points `[S, F, 10, 2]` a step later, under pulls along the edges of trees `[S, 45]`."""
    force = trees[:, None, :, None] * pull(x[:, :, B] - x[:, :, A])
    return x.index_add(2, A, force).index_add(2, B, -force)


def simulate(generator):
    """Return trees `[8, 45]` and the tracks of points `[8, 24, 10, 2]`, of random starts every fourth frame."""
    trees = spanning_tree_edges(torch.randn(SYSTEMS, len(A), generator=generator))
    x = torch.randn(SYSTEMS, FRAMES // 4, POINTS, 2, generator=generator)
    tracks = [x]
    for _ in range(3):
        tracks.append(moved(tracks[-1], trees, lambda apart: 0.1 * apart.tanh()))
    x = torch.stack(tracks, dim=2)
    return trees, (x + 0.01 * torch.randn(x.shape, generator=generator)).flatten(1, 2)


def right_edges(found, trees):
    """Return the share of right edges."""
    return ((found * trees).sum() / trees.sum()).item()


def nearest(x):
    """Return the trees of pairs that come nearer one another."""
    apart = (x[:, :, A] - x[:, :, B]).norm(dim=-1).unflatten(1, (-1, 4))
    return spanning_tree_edges((apart[:, :, 0] - apart[:, :, 3]).mean(1))


def train(method, seed=0, steps=300):
    """Return the share of right edges every 10 steps."""
    torch.manual_seed(seed)
    trees, x = simulate(torch.Generator().manual_seed(seed))
    starts = [frame for frame in range(FRAMES) if frame % 4 != 3]
    before, after = x[:, starts], x[:, [frame + 1 for frame in starts]]
    weights = nn.Parameter(torch.zeros(SYSTEMS, len(A)))
    pull, tree = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2, bias=False)), METHODS[method]()
    optimiser = torch.optim.Adam([{"params": [weights], "lr": 0.1}, {"params": pull.parameters(), "lr": 3e-2}])
    curve = []
    for step in range(steps + 1):
        if step % 10 == 0:
            curve.append(right_edges(tree.solve(weights), trees))
        z = tree.sample(weights)
        samples = len(z) // SYSTEMS
        off = moved(before.repeat_interleave(samples, dim=0), z, pull) - after.repeat_interleave(samples, dim=0)
        optimiser.zero_grad()
        off.square().sum((2, 3)).mean().backward()
        optimiser.step()
    return curve


def draw(curves, path):
    """Draw the share of right edges over the steps."""
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's shell says
    from matplotlib import pyplot, rcdefaults

    rcdefaults()  # whatever a matplotlibrc says
    _, axes = pyplot.subplots(figsize=(4, 2.6), layout="constrained")
    for method in METHODS:
        runs = torch.tensor(curves[method])
        axes.plot(torch.arange(runs.shape[1]) * 10, runs.mean(0), label=method)
    axes.axhline(torch.tensor(curves["nearest pairs"]).mean(), color="0.7", linestyle=":")
    axes.set(xlabel="step", ylabel="right edges")
    axes.legend(frameon=False)
    pyplot.savefig(path, dpi=100)


def main(argv=None):
    """Train each method and print the share of right edges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--picture", help="a file to draw the curves into")
    options = parser.parse_args(argv)
    curves = {method: [train(method, seed, options.steps) for seed in range(options.seeds)] for method in METHODS}
    drawn = [simulate(torch.Generator().manual_seed(seed)) for seed in range(options.seeds)]
    curves["nearest pairs"] = [[right_edges(nearest(x), trees)] for trees, x in drawn]
    for method, runs in curves.items():
        last = torch.tensor([run[-1] for run in runs])
        print(f"{method:20} right edges {last.mean():.3f} ± {last.std(correction=0):.3f}")
    if options.picture:
        draw(curves, options.picture)
    return curves


if __name__ == "__main__":
    main()

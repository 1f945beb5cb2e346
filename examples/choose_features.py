"""Choose three of twelve items by their descriptions, knowing only the sum of the chosen items' values.

    python examples/choose_features.py

A network scores the items, `select_k` takes the three best, and the prediction is the sum of their values: a
regression whose only unknown is which items count. Three ways past the choice: `aimle`, straight through, and the
relaxed subset of a stochastic softmax (Paulus et al., 2020), which is soft in training and hard in the test.
"""

import argparse
import os
from functools import partial

import torch
from torch import nn

from imle.aimle import aimle
from imle.layers import MAPLayer, RelaxedLayer
from imle.solvers import select_k
from imle.ste import ste
from imle.structures import k_subsets, stochastic_softmax

ITEMS, K, WIDTH = 12, 3, 6

select_three = partial(select_k, k=K)
METHODS = {
    "aimle": lambda: MAPLayer(select_three, aimle(nb_samples=4, sample_reduction="sum")),
    "straight through": lambda: MAPLayer(select_three, ste()),
    "relaxation": lambda: RelaxedLayer(
        select_three, partial(stochastic_softmax, structure=k_subsets(K)), temperature=0.5
    ),
}


def make(instances, generator):
    """Return descriptions `[N, 12, 6]`, values `[N, 12]`, the items that count, and what their values sum to."""
    described = torch.randn(instances, ITEMS, WIDTH, generator=generator)
    values = torch.randn(instances, ITEMS, generator=generator)
    true = select_three(described[..., 0] * described[..., 1] + described[..., 2])  # what the network has to find out
    return described, values, true, (true * values).sum(1)


def train(method, seed=0, steps=800, instances=4096):
    """Return the share of right items among the chosen ones in the test, every 50 steps."""
    torch.manual_seed(seed)
    described, values, _, y = make(instances, torch.Generator().manual_seed(seed))
    test, _, true, _ = make(1000, torch.Generator().manual_seed(seed + 1000))
    scores = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    choose = METHODS[method]()
    optimiser = torch.optim.Adam(scores.parameters(), lr=3e-3)
    curve = []
    for step in range(steps + 1):
        if step % 50 == 0:
            with torch.no_grad():
                curve.append((choose.eval()(scores(test).squeeze(2)) * true).sum().item() / true.sum().item())
        rows = torch.randint(instances, (64,))
        z = choose.train()(scores(described[rows]).squeeze(2))  # [64 S, 12]
        samples = len(z) // len(rows)
        predicted = (z * values[rows].repeat_interleave(samples, dim=0)).sum(1)
        optimiser.zero_grad()
        (predicted - y[rows].repeat_interleave(samples)).square().mean().backward()
        optimiser.step()
    return curve


def draw(curves, path):
    """Draw the share of right items over the steps."""
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's shell says
    from matplotlib import pyplot, rcdefaults

    rcdefaults()  # whatever a matplotlibrc says
    _, axes = pyplot.subplots(figsize=(4, 2.6), layout="constrained")
    for method, runs in curves.items():
        axes.plot(torch.arange(len(runs[0])) * 50, torch.tensor(runs).mean(0), label=method)
    axes.axhline(K / ITEMS, color="0.7", linestyle=":")
    axes.set(xlabel="step", ylabel="right items")
    axes.legend(frameon=False)
    pyplot.savefig(path, dpi=100)


def main(argv=None):
    """Train each method and print the share of right items."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--picture", help="a file to draw the curves into")
    options = parser.parse_args(argv)
    curves = {method: [train(method, seed, options.steps) for seed in range(options.seeds)] for method in METHODS}
    for method, runs in curves.items():
        last = torch.tensor([run[-1] for run in runs])
        print(f"{method:20} right items {last.mean():.3f} ± {last.std(correction=0):.3f}")
    if options.picture:
        draw(curves, options.picture)
    return curves


if __name__ == "__main__":
    main()

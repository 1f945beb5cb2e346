"""A sparse mixture of experts: each input is sent to two of eight experts.

    python examples/mix_experts.py

The output is the sum of the two chosen experts' outputs, so a choice cannot be softened away: it is right or wrong.
`select_k` chooses by a gate's scores. Ways past the choice: `aimle`; straight through; and what sparse mixtures
usually do, outputs weighted by the softmax of the chosen scores (Shazeer et al., 2017), which trains the gate by
those weights alone.
"""

import argparse
import os
from functools import partial

import torch
from torch import nn

from imle.aimle import aimle
from imle.solvers import select_k
from imle.ste import ste

EXPERTS, CHOSEN, WIDTH = 8, 2, 10

select_two = partial(select_k, k=CHOSEN)


def weighted(scores):
    """Return the softmax of the two largest scores, 0 for the others; together 2, as for two experts in full."""
    return CHOSEN * scores.masked_fill(select_two(scores) == 0, -torch.inf).softmax(1)


METHODS = {
    "aimle": aimle(select_two, nb_samples=4, sample_reduction="sum"),
    "straight through": ste(select_two),
    "weighted": weighted,
}


class Mixture(nn.Module):
    """Experts that are linear, and a gate that is a network."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, EXPERTS))
        self.experts = nn.Linear(WIDTH, EXPERTS)

    def forward(self, place, x, choose):
        """Return the outputs `[B*S]` for places `[B, 2]`, which the gate reads, and inputs `[B, 10]`."""
        z = choose(self.gate(place))
        return (z * self.experts(x).repeat_interleave(len(z) // len(x), dim=0)).sum(1)


def make(instances, seed, generator):
    """Return places `[N, 2]`, inputs `[N, 10]` and outputs `[N]`: two of eight linear maps, by the place."""
    fixed = torch.Generator().manual_seed(seed)
    centres, maps = torch.rand(EXPERTS, 2, generator=fixed), torch.randn(WIDTH, EXPERTS, generator=fixed)
    place = torch.rand(instances, 2, generator=generator)
    x = torch.randn(instances, WIDTH, generator=generator)
    return place, x, (select_two(-torch.cdist(place, centres)) * (x @ maps)).sum(1)


def train(method, seed=0, steps=1500, instances=8000):
    """Return the share of the variance that the chosen experts leave unexplained in the test, every 50 steps."""
    torch.manual_seed(seed)
    place, x, y = make(instances, seed, torch.Generator().manual_seed(seed + 500))
    test_place, test_x, test_y = make(2000, seed, torch.Generator().manual_seed(seed + 1000))
    model = Mixture()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    curve = []
    for step in range(steps + 1):
        if step % 50 == 0:
            with torch.no_grad():
                off = test_y - model(test_place, test_x, weighted if method == "weighted" else select_two)
                curve.append((off.square().mean() / test_y.var()).item())
        rows = torch.randint(instances, (128,))
        predicted = model(place[rows], x[rows], METHODS[method])
        optimiser.zero_grad()
        (predicted - y[rows].repeat_interleave(len(predicted) // len(rows))).square().mean().backward()
        optimiser.step()
    return curve


def draw(curves, path):
    """Draw the unexplained variance over the steps."""
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's shell says
    from matplotlib import pyplot, rcdefaults

    rcdefaults()  # whatever a matplotlibrc says
    _, axes = pyplot.subplots(figsize=(4, 2.6), layout="constrained")
    for method, runs in curves.items():
        axes.semilogy(torch.arange(len(runs[0])) * 50, torch.tensor(runs).mean(0), label=method)
    axes.set(xlabel="step", ylabel="unexplained variance")
    axes.legend(frameon=False)
    pyplot.savefig(path, dpi=100)


def main(argv=None):
    """Train each method and print the unexplained variance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--picture", help="a file to draw the curves into")
    options = parser.parse_args(argv)
    curves = {method: [train(method, seed, options.steps) for seed in range(options.seeds)] for method in METHODS}
    for method, runs in curves.items():
        last = torch.tensor([run[-1] for run in runs])
        print(f"{method:20} unexplained {last.mean():.3f} ± {last.std(correction=0):.3f}")
    if options.picture:
        draw(curves, options.picture)
    return curves


if __name__ == "__main__":
    main()

"""Cross a terrain seen from above: a network predicts what each cell costs, a solver finds the way.

    python examples/cross_terrain.py

Maps are drawn here: 8 x 8 cells of water, wood, grass and road, each a patch of 4 x 4 noisy pixels, with the cheapest
way from the top left to the bottom right (the form of the Warcraft task of Vlastelica et al., 2020). `aimle` learns
from the ways alone, through `shortest_path`. Beside it: two stages with the true costs of all cells as labels, which
is far more to be told, and two stages with the ways (is this cell on the way?), with -log p for the cost.
"""

import argparse
import os

import torch
import torch.nn.functional as F
from torch import nn

from imle.aimle import aimle
from imle.solvers import shortest_path

SIDE, PATCH, SAMPLES = 8, 4, 2
COSTS = torch.tensor([8.0, 3.0, 1.5, 0.8])
COLOURS = torch.tensor([[0.1, 0.3, 0.8], [0.1, 0.4, 0.1], [0.4, 0.7, 0.3], [0.7, 0.6, 0.4]])

find = aimle(shortest_path, nb_samples=SAMPLES, sample_reduction="sum")


def distance(y, costs, ways):
    """Return in how many cells the ways found by predicted costs differ from the best ones."""
    z = find(y.exp())
    return (z - ways.repeat_interleave(len(z) // len(ways), dim=0)).square().sum((1, 2)).mean()


# name: loss of the network's output, true costs and ways; and the costs that the output stands for
METHODS = {
    "aimle, told ways": (distance, torch.exp),
    "two stages, told ways": (lambda y, c, ways: F.binary_cross_entropy_with_logits(y, ways), lambda y: F.softplus(-y)),
    "two stages, told costs": (lambda y, costs, ways: F.mse_loss(y.exp(), costs), torch.exp),
}


def make(maps, generator):
    """Return images `[N, 3, 32, 32]`, costs of cells `[N, 8, 8]` and the cheapest ways `[N, 8, 8]`."""
    heights = F.avg_pool2d(torch.randn(maps, 1, SIDE + 2, SIDE + 2, generator=generator), 3, stride=1).squeeze(1)
    kinds = torch.bucketize(heights, torch.tensor([-0.2, 0.0, 0.2]))  # hills are dry
    images = COLOURS[kinds].movedim(3, 1).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return images + 0.3 * torch.randn(images.shape, generator=generator), COSTS[kinds], shortest_path(COSTS[kinds])


def train(method, seed=0, steps=500, maps=1000):
    """Return by how many percent ways cost more than the best, every 50 steps, and a test map with its ways."""
    torch.manual_seed(seed)
    images, costs, ways = make(maps, torch.Generator().manual_seed(seed))
    test, test_costs, best = make(500, torch.Generator().manual_seed(seed + 1000))
    network = nn.Sequential(
        nn.Conv2d(3, 32, PATCH, stride=PATCH), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 1, 1), nn.Flatten(1, 2),
    )  # fmt: skip
    loss, as_costs = METHODS[method]
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    curve = []
    for step in range(steps + 1):
        if step % 50 == 0:
            with torch.no_grad():
                found = shortest_path(as_costs(network(test)))
            curve.append(100 * ((found * test_costs).sum() / (best * test_costs).sum() - 1).item())
        rows = torch.randint(maps, (32,))
        optimiser.zero_grad()
        loss(network(images[rows]), costs[rows], ways[rows]).backward()
        optimiser.step()
    return curve, (test[0], best[0], found[0])


def draw(runs, path):
    """Draw a map with its ways, and the excess cost over the steps."""
    os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's shell says
    from matplotlib import pyplot, rcdefaults

    rcdefaults()  # whatever a matplotlibrc says
    _, (left, right) = pyplot.subplots(1, 2, figsize=(6, 2.6), layout="constrained")
    image, best, found = runs["aimle, told ways"][0][1]
    left.imshow(image.movedim(0, 2).clamp(0, 1).numpy())
    for way, mark in ((best, "ws"), (found, "k.")):
        rows, columns = (way.nonzero().T * PATCH + PATCH / 2 - 0.5).tolist()
        left.plot(columns, rows, mark, label="best" if mark == "ws" else "aimle")
    left.set_axis_off()
    for method, results in runs.items():
        curves = torch.tensor([curve for curve, _ in results])
        right.semilogy(torch.arange(curves.shape[1]) * 50, curves.mean(0), label=method)
    right.set(xlabel="step", ylabel="excess cost, %")
    right.legend(frameon=False, fontsize=8)
    pyplot.savefig(path, dpi=100)


def main(argv=None):
    """Train each method and print how much more its ways cost than the best."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--picture", help="a file to draw a map and the curves into")
    options = parser.parse_args(argv)
    runs = {method: [train(method, seed, options.steps) for seed in range(options.seeds)] for method in METHODS}
    curves = {method: [curve for curve, _ in results] for method, results in runs.items()}
    for method, last in ((method, torch.tensor([curve[-1] for curve in found])) for method, found in curves.items()):
        print(f"{method:24} excess cost {last.mean():.1f} ± {last.std(correction=0):.1f} %")
    if options.picture:
        draw(runs, options.picture)
    return curves


if __name__ == "__main__":
    main()

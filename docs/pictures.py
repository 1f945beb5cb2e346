"""The pictures of idea.md: `python docs/pictures.py [FOLDER]` draws them; every number in them is a run of the library.

SVG, with words as words, so that they stay small and sharp.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["MPLBACKEND"] = "agg"  # whatever a notebook's shell says
import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from imle.aimle import aimle
from imle.noise import GumbelNoiseDistribution, NormalNoiseDistribution
from imle.solvers import select_k, shortest_path
from imle.target import AdaptiveTargetDistribution, TargetDistribution

FOLDER = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#9aa0a6"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "imle",  # names of parts do not change from day to day
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def figure(columns: int, rows: int = 1, width: float = 9.0, height: float = 2.6, **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes `[rows, columns]`."""
    drawn = Figure(figsize=(width, height * rows), layout="constrained")
    return drawn, drawn.subplots(rows, columns, squeeze=False, **options)


def perturbed_paths() -> Figure:
    """Draw the forward pass: a path of the costs, paths of perturbed costs, and where paths go on average."""
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    theta = torch.full((12, 12), 3.0)
    for row, column, size, height in ((5.5, 5.5, 1.9, 6.0), (1, 10, 1.4, 3.0), (10, 1, 1.4, 3.1)):
        theta += height * torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * size**2))  # hills
    theta = theta.unsqueeze(0)
    noise = NormalNoiseDistribution(scale=0.9)
    paths = aimle(shortest_path, noise_distribution=noise, nb_samples=1000)(theta)
    torch.manual_seed(11)
    costs = theta + noise.sample((3, 12, 12))

    drawn, axes = figure(5, height=2.25)
    shown = [("theta", theta[0]), *((f"theta + eps, draw {n + 1}", cost) for n, cost in enumerate(costs))]
    for axis, (title, cost) in zip(axes[0], shown):
        axis.imshow(cost.numpy(), cmap="Greys", vmin=2, vmax=12)
        row, column = shortest_path(cost.unsqueeze(0))[0].nonzero(as_tuple=True)
        axis.scatter(column, row, s=22, color=ORANGE)
        axis.set_title(title)
    axes[0, 4].imshow(paths.mean(dim=0).numpy(), cmap="Oranges")
    axes[0, 4].set_title("mean of 1,000 paths")
    for axis in axes[0]:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return drawn


def difference() -> Figure:
    """Draw the backward pass for two steps: one that changes nothing, one that changes the solution."""
    noise = GumbelNoiseDistribution()
    theta = torch.tensor([[0.6, -0.2, 0.9, 0.1, -0.6, 0.4, 0.0, -0.3]])
    dy = torch.tensor([[1.0, -0.6, 0.1, -0.9, 0.3, 0.5, -0.2, -0.4]])  # the loss wants less of some, more of others
    torch.manual_seed(2)
    eps = noise.sample((1, 8))

    drawn, axes = figure(4, 2, height=2.1, sharey="col", sharex=True)
    for row, step in zip(axes, (0.1, 1.2)):
        parameters = theta.clone().requires_grad_()
        target = TargetDistribution(beta=step, do_gradient_scaling=True)
        torch.manual_seed(2)  # the noise drawn above
        z = aimle(lambda x: select_k(x, 3), target_distribution=target, noise_distribution=noise)(parameters)
        z.backward(dy)
        moved = theta + eps - step * dy
        for axis, values, chosen in (
            (row[0], theta + eps, z),
            (row[1], dy, None),
            (row[2], moved, select_k(moved, 3)),
            (row[3], parameters.grad, None),
        ):
            colours = [GREY if chosen is None or not one else ORANGE for one in (z if chosen is None else chosen)[0]]
            axis.bar(range(8), values[0].tolist(), color=BLUE if chosen is None else colours)
            axis.axhline(0, color="black", linewidth=0.6)
            axis.set(xticks=[])
        row[0].set_ylabel(f"lambda = {step:g}")
    for axis, title in zip(
        axes[0], ("theta + eps, and z", "dy", "theta + eps - lambda dy, and z'", "g = (z - z') / lambda")
    ):
        axis.set_title(title)
    return drawn


def chosen_one(theta: Tensor) -> Tensor:
    """Return the largest entry as a one."""
    return select_k(theta, 1)


def chords() -> Figure:
    """Draw what a central difference is: a chord of the smoothed staircase; and what lambda trades."""
    theta = torch.tensor([[0.9, 0.5, 0.0, -0.4, -0.8, -0.2]])
    dy = torch.tensor([[-0.6, 0.3, 1.0, -0.8, 0.6, -0.3]])
    steps = torch.linspace(-4, 4, 401).unsqueeze(1)
    stairs = (chosen_one(theta + steps * dy) * dy).sum(dim=1)
    smooth = ((theta + steps * dy).softmax(dim=1) * dy).sum(dim=1)  # Gumbel noise: the mean of one of N is a softmax
    drawn, (axes,) = figure(2, height=3.2, width_ratios=[1.15, 1])
    axes[0].plot(steps, stairs, color=GREY, linewidth=1.2, label="the solver alone")
    axes[0].plot(steps, smooth, color=BLUE, linewidth=2, label="mean over the noise")
    for step, style in ((0.5, ":"), (3.0, "--")):
        ends = torch.tensor([[-step], [step]])
        heights = ((theta + ends * dy).softmax(dim=1) * dy).sum(dim=1)
        slope = float(heights[1] - heights[0]) / (2 * step)
        label = f"lambda = {step:g}: slope {slope:.2f}"
        axes[0].plot(ends, heights, style, color=ORANGE, marker="o", markersize=4, label=label)
    p = theta.softmax(dim=1)
    exact = p * (dy - (p * dy).sum())
    axes[0].set(xlabel="step along dy", ylabel="<dy, z>", title=f"exact slope {(exact * dy).sum():.2f}")
    axes[0].legend(loc="upper left", fontsize=9)

    torch.manual_seed(0)
    sizes = torch.logspace(-1.3, 1.3, 22).tolist()
    bias, changed, samples = [], [], 20_000
    for size in sizes:
        target = TargetDistribution(beta=size, do_gradient_scaling=True)
        options = {"target_distribution": target, "noise_distribution": GumbelNoiseDistribution()}
        parameters = theta.repeat(samples, 1).requires_grad_()
        aimle(chosen_one, symmetric_perturbation=True, **options)(parameters).backward(dy.repeat(samples, 1))
        bias.append(1 - torch.cosine_similarity(parameters.grad.mean(dim=0), exact[0], dim=0).item())
        changed.append(parameters.grad.any(dim=1).float().mean().item())
    axes[1].semilogx(sizes, changed, color=BLUE, label="gradients that are not zero")
    axes[1].semilogx(sizes, bias, color=ORANGE, label="bias: 1 - cosine of the mean\ngradient to the exact one")
    axes[1].set(xlabel="lambda", title=f"{samples:,} gradients for each lambda", ylim=(-0.03, 1.03))
    axes[1].legend(loc="upper left", fontsize=9)
    return drawn


def adapting() -> Figure:
    """Draw how beta and lambda move in training, where the loss is multiplied by 1,000 half way."""
    steps, half, every = 400, 200, 4
    drawn, (axes,) = figure(3, height=2.7)
    for wanted, colour in ((1.0, BLUE), (4.0, ORANGE)):
        torch.manual_seed(0)
        target = AdaptiveTargetDistribution(initial_beta=0.0, beta_update_step=1e-2, target_norm=wanted)
        sizes: list[float] = []
        remember(target, sizes)
        layer = aimle(
            lambda x: select_k(x, 5),
            target_distribution=target,
            noise_distribution=GumbelNoiseDistribution(),
            nb_samples=1,
        )
        theta = torch.randn(8, 20).requires_grad_()
        goal, optimiser = torch.rand(8, 20), torch.optim.Adam([theta], lr=1e-3)
        betas, counts = [], []
        for step in range(steps):
            optimiser.zero_grad()
            loss = (layer(theta) - goal).square().sum()
            (loss * (1000 if step >= half else 1)).backward()
            optimiser.step()
            betas.append(target.beta)
            counts.append(target.grad_norm)
        label = f"c = {wanted:g}"
        axes[0].plot(range(0, steps, every), counts[::every], color=colour, label=label)
        axes[0].axhline(wanted, color=colour, linewidth=0.8, linestyle=":")
        axes[1].plot(range(0, steps, every), betas[::every], color=colour, label=label)
        axes[2].semilogy(range(0, steps, every), sizes[::every], color=colour, label=label)
    for axis, title in zip(axes, ("N, non-zero entries of a gradient", "beta", "lambda = beta ||theta|| / ||dy||")):
        axis.set(xlabel="step", title=title)
        axis.axvline(half, color=GREY, linewidth=0.8)
        axis.legend(fontsize=9)
    axes[2].annotate("loss x 1000", (half, axes[2].get_ylim()[1]), (4, -10), textcoords="offset points", color=GREY)
    return drawn


def remember(target: AdaptiveTargetDistribution, sizes: list[float]) -> None:
    """Let a target write down the lambdas that it gives."""
    size_of = target.perturbation_size

    def perturbation_size(theta: Tensor, dy: Tensor) -> Tensor:
        size = size_of(theta, dy)
        sizes.append(size.item() or float("nan"))  # a logarithm has no 0
        return size

    target.perturbation_size = perturbation_size  # type: ignore[method-assign]


PICTURES: dict[str, Callable[[], Figure]] = {
    "paths": perturbed_paths,
    "chords": chords,
    "difference": difference,
    "adapting": adapting,
}


def draw(folder: Path) -> None:
    """Draw all pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        for name, make in PICTURES.items():
            make().savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)

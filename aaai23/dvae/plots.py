"""What a discrete VAE has learnt, as pictures: its images, and the curves of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from aaai23.plots import picture
from imle.solvers import select_k

# what history calls it -> what a reader should see above the curve
CURVES = {
    "loss": "training loss (BCE summed over samples, + KL)",
    "test_loss": "test loss (training loss / samples)",
    "beta": "beta",
}
COLOUR = "#2b6cb0"


def random_codes(count: int, code_m: int, code_n: int, k: int, generator: Generator | None = None) -> Tensor:
    """Return codes [count, M*N] whose rows of N entries have k ones each, at places drawn uniformly."""
    scores = torch.rand(count * code_m, code_n, generator=generator)
    return select_k(scores, k).view(count, code_m * code_n)


def write_images(path: Path, rows: Mapping[str, Tensor], image_size: tuple[int, int], title: str) -> None:
    """Draw rows of images under their titles.

    Args:
        path: of the PNG.
        rows: a row's title -> its images, [C, H*W] in [0, 1].
        image_size: (H, W).
        title: above all.
    """
    with picture(path, figsize=(9, 1.1 * len(rows) + 0.4), dpi=110, layout="constrained") as figure:
        figure.suptitle(title)
        for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
            strip = torch.cat(list(images.detach().cpu().view(-1, *image_size)), dim=1)
            axes.imshow(strip.numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.set_title(name, fontsize=9, loc="left")
            axes.axis("off")


def write_curves(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw training loss, test loss and, where the method has one, beta against the epoch.

    Args:
        path: of the PNG.
        history: one mapping an epoch, as a record holds it; a metric that is None leaves a gap.
        title: above all.
    """
    shown = {key: name for key, name in CURVES.items() if any(entry.get(key) is not None for entry in history)}
    epochs = [entry["epoch"] for entry in history]
    with picture(path, figsize=(4 * len(shown), 3.2), dpi=110, layout="constrained") as figure:
        from matplotlib.ticker import MaxNLocator

        figure.suptitle(title)
        for axes, (key, name) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items()):
            values = [float("nan") if entry.get(key) is None else entry[key] for entry in history]
            axes.plot(epochs, values, color=COLOUR, marker="o" if len(history) <= 20 else None, markersize=3)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)

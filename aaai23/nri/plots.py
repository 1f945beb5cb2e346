"""Pictures of a run: true edges against inferred ones, and how bound and edge precision went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aaai23.nri.model import RelationalInference
from aaai23.plots import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, WRONG, MISSED, TRUTH, VERTEX = "#2b8a3e", "#e03131", "#adb5bd", "#364fc7", "#212529"
COLUMNS = 5


@torch.inference_mode()
def infer(model: RelationalInference, inputs: Tensor, reading: str = "as_is") -> Tensor:
    """Return the best graph of each instance, without noise: adjacency matrices, bool `[B, n, n]`.

    Args:
        model: the networks.
        inputs: positions `[B, n, T, dims]`.
        reading: "flipped" draws what the model takes for no edge, as its metrics were measured.
    """
    model.eval()
    vertices = inputs.shape[1]
    theta = model.logits(inputs)
    edges = (model.structure.solve(theta) > 0.5) ^ (reading == "flipped")
    return adjacency(model.directed(edges, vertices), vertices)


def adjacency(directed: Tensor, vertices: int) -> Tensor:
    """Return directed edges `[B, n(n-1)]` as matrices, bool `[B, n, n]`; either direction makes an edge."""
    off_diagonal = ~torch.eye(vertices, dtype=torch.bool, device=directed.device)
    matrix = torch.zeros(len(directed), vertices, vertices, dtype=torch.bool, device=directed.device)
    matrix[:, off_diagonal] = directed > 0.5
    return matrix | matrix.mT


def draw_graphs(path: Path, positions: Tensor, true: Tensor, inferred: Tensor, title: str) -> None:
    """Draw graphs in pairs: above the true edges, below the inferred ones.

    Args:
        path: of the PNG.
        positions: of the vertices, `[G, n, dims]`; two dimensions are drawn.
        true: adjacency matrices, bool `[G, n, n]`.
        inferred: likewise.
        title: above all.
    """
    positions = F.pad(positions, (0, 1))[..., :2]
    rows = -(-len(positions) // COLUMNS)
    with picture(path, figsize=(2 * COLUMNS, 4.2 * rows + 0.9), dpi=90, layout="constrained") as figure:
        figure.suptitle(
            f"{title}\nabove: true edges; below: inferred (green: right, red: wrong, grey: missed)", fontsize=10
        )
        axes = figure.subplots(2 * rows, COLUMNS, squeeze=False)
        for panel in axes.flat:
            panel.set_axis_off()
            panel.set_aspect("equal")
        for index, (points, truth, found) in enumerate(zip(positions.cpu(), true.cpu(), inferred.cpu(), strict=True)):
            row, column = divmod(index, COLUMNS)
            _draw_edges(axes[2 * row, column], points, {TRUTH: truth})
            _draw_edges(
                axes[2 * row + 1, column], points, {MISSED: truth & ~found, WRONG: found & ~truth, RIGHT: found & truth}
            )


def _draw_edges(panel: Axes, points: Tensor, edges: Mapping[str, Tensor]) -> None:
    x, y = points.T.tolist()
    for colour, matrix in edges.items():
        for first, second in matrix.triu().nonzero().tolist():
            style = ":" if colour == MISSED else "-"
            panel.plot([x[first], x[second]], [y[first], y[second]], style, color=colour, lw=1.8)
    panel.plot(x, y, "o", color=VERTEX, ms=4)
    panel.margins(0.1)


def draw_curves(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the validation bound, and the precision of the edges where it was measured, against the iteration."""
    curves = {"val_elbo": "validation ELBO", "val_precision": "edge precision"}
    with picture(path, figsize=(9, 3.4), dpi=90, layout="constrained") as figure:
        figure.suptitle(title, fontsize=10)
        for panel, (key, name) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
            points = [(entry["iteration"], entry[key]) for entry in history if entry.get(key) is not None]
            panel.plot(*zip(*points, strict=True) if points else ([], []), "o-", color=TRUTH, ms=3)
            panel.set(xlabel="iteration", ylabel=name)
            panel.grid(alpha=0.3)

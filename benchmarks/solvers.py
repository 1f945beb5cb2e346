"""Batched solvers against well-known implementations: scipy's, one instance at a time, and `torch.topk`."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Row, compare
from imle.solvers import select_k, shortest_path, spanning_tree


def scipy_trees(weights: np.ndarray) -> np.ndarray:
    """Return maximum spanning trees `[B, n, n]`, one scipy call each."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    trees = np.zeros_like(weights)
    for tree, weight in zip(trees, weights, strict=True):
        upper = np.triu(weight.max() + 1 - weight, 1)  # csgraph takes 0 for no edge
        tree[:] = minimum_spanning_tree(upper, overwrite=True).toarray() > 0
    return trees + trees.transpose(0, 2, 1)


def scipy_paths(costs: np.ndarray) -> list[np.ndarray]:
    """Return the predecessors of cheapest paths `[B, H, W]` with 8 neighbours, one Dijkstra each."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    height, width = costs.shape[1:]
    cells = np.arange(height * width).reshape(height, width)
    pairs = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        left = cells[: height - dy, max(0, -dx) : width - max(0, dx)]
        right = cells[dy:, max(0, dx) : width - max(0, -dx)]
        pairs += [(left.ravel(), right.ravel()), (right.ravel(), left.ravel())]
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    size = height * width
    return [
        dijkstra(
            csr_array((cost.ravel()[columns], (rows, columns)), (size, size)), indices=0, return_predecessors=True
        )[1]
        for cost in costs
    ]


def topk(theta: Tensor, k: int) -> Tensor:
    """Return the indicator of the k largest of each row by `torch.topk`."""
    return torch.zeros_like(theta).scatter_(-1, theta.topk(k, sorted=False).indices, 1.0)


def run(device: torch.device) -> list[Row]:
    """Measure over growing batches and instances."""
    rows = [_trees(batch, n, device) for batch, n in ((128, 10), (128, 20), (128, 50), (1280, 10))]
    rows += [_paths(batch, side, device) for batch, side in ((128, 12), (128, 32))]
    # On a CPU, a sorting network for the first four, `torch.topk` for the others: see imle/solvers/top_k.py.
    networks = ((2000, 20, 10), (20000, 20, 10), (40000, 20, 10), (4000, 32, 16))
    others = ((1280, 45, 22), (1280, 64, 32), (128, 90, 45), (40, 350, 10))
    rows += [_subsets(batch, n, k, device) for batch, n, k in networks + others]
    return rows


def _trees(batch: int, n: int, device: torch.device) -> Row:
    weights = torch.randn(batch, n, n, device=device)
    weights = weights + weights.mT
    array = weights.cpu().numpy()
    target = 1 / 20 if n == 10 else 1.0
    name = f"spanning_tree [{batch}, {n}, {n}]"
    return compare(
        name,
        lambda: spanning_tree(weights),
        "scipy loop",
        lambda: scipy_trees(array),
        device,
        repeats=3,
        target=target,
        per_call=batch,
        unit="trees",
    )


def _paths(batch: int, side: int, device: torch.device) -> Row:
    costs = torch.rand(batch, side, side, device=device)
    array = costs.cpu().numpy()
    name = f"shortest_path [{batch}, {side}, {side}]"
    return compare(
        name,
        lambda: shortest_path(costs),
        "scipy loop",
        lambda: scipy_paths(array),
        device,
        per_call=batch,
        unit="paths",
    )


def _subsets(batch: int, n: int, k: int, device: torch.device) -> Row:
    theta = torch.randn(batch, n, device=device)
    return compare(
        f"select_k [{batch}, {n}], k={k}",
        lambda: select_k(theta, k),
        "torch.topk",
        lambda: topk(theta, k),
        device,
        repeats=3,
        per_call=batch,
        unit="rows",
    )

"""Maximum spanning trees of complete graphs, many at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imle.solvers._checks import check_floating, sum_dtype


def spanning_tree(weights: Tensor) -> Tensor:
    """Return the adjacency matrix of the maximum spanning tree of each complete graph.

    Always a spanning tree, n - 1 edges, also on ties. An edge has the mean of its two entries as its weight: noise on
    both triangles is averaged, and an estimator's gradient is the same for dy on [u, v] and on [v, u]. A weight may be
    negative; -inf or NaN in either entry means "no edge", and such an edge is used only where the others do not
    connect the graph. For a minimum spanning tree, negate the weights.

    Prim's algorithm (R. C. Prim, Shortest connection networks and some generalizations, 1957), one step for the
    whole batch at a time, and nothing that waits for the host: the same on CPU and GPU.

    Args:
        weights: edge weights, floating point, [..., n, n], n >= 1. The diagonal is not read.

    Returns:
        z of the same shape, dtype and device: symmetric, zero diagonal, 1 for an edge of the tree, else 0.

    Raises:
        ValueError: weights are not square matrices.
        TypeError: weights are not floating point.

    Example:
        >>> spanning_tree(torch.tensor([[[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 0.0]]]))
        tensor([[[0., 1., 0.],
                 [1., 0., 1.],
                 [0., 1., 0.]]])
    """
    check_floating("weights", weights)
    if weights.dim() < 2 or weights.shape[-1] != weights.shape[-2] or weights.shape[-1] == 0:
        raise ValueError(f"weights must be square matrices [..., n, n]; their shape is {tuple(weights.shape)}")
    return _tree(_mean_of_triangles(weights.detach())).to(weights.dtype)


def spanning_tree_edges(weights: Tensor) -> Tensor:
    """Return the indicator of the maximum spanning tree's edges for each complete graph.

    The same as `spanning_tree`, on vectors of undirected edges in the order of `torch.triu_indices(n, n, 1)`:
    (0, 1), (0, 2), ..., (0, n-1), (1, 2), ...

    Args:
        weights: edge weights, floating point, [..., n (n - 1) / 2].

    Returns:
        z of the same shape, dtype and device: 1 for an edge of the tree, else 0.

    Raises:
        ValueError: the last dimension is not n (n - 1) / 2 for any n.
        TypeError: weights are not floating point.

    Example:
        >>> spanning_tree_edges(torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([[1., 0., 1.]])
    """
    check_floating("weights", weights)
    edges = weights.shape[-1] if weights.dim() else -1
    n = (1 + math.isqrt(1 + 8 * max(edges, 0))) // 2
    if n * (n - 1) // 2 != edges:
        raise ValueError(f"weights must be [..., n (n - 1) / 2] for some n; their shape is {tuple(weights.shape)}")
    u, v = torch.triu_indices(n, n, 1, device=weights.device)
    matrix = weights.new_zeros(*weights.shape[:-1], n, n)
    matrix[..., u, v] = matrix[..., v, u] = weights.detach()
    return _tree(matrix)[..., u, v]


def _mean_of_triangles(weights: Tensor) -> Tensor:
    """Return the mean of each entry [u, v] and its mirror [v, u], in float32 or float64."""
    # Halved first: the sum of two entries might overflow. An infinite entry stays infinite, -inf and inf make NaN.
    half = 0.5 * weights.to(sum_dtype(weights))
    return half + half.mT


def _tree(weights: Tensor) -> Tensor:
    """Return the adjacency matrices of the trees for symmetric weights [..., n, n], which are written on."""
    n = weights.shape[-1]
    batch = weights.shape[:-2].numel()
    parent = _parents(weights.contiguous().view(batch, n, n))
    z = weights.new_zeros(batch, n, n)
    z[:, 1:].scatter_(2, parent[:, 1:, None], 1.0)
    return (z + z.mT).view(weights.shape)


def _parents(weights: Tensor) -> Tensor:
    """Return each vertex's parent in the tree rooted at vertex 0, [B, n], for contiguous weights [B, n, n]."""
    batch, n, _ = weights.shape
    limits = torch.finfo(weights.dtype)
    # Finite weights leave -inf to mean "already in the tree".
    weights.nan_to_num_(nan=limits.min, posinf=limits.max, neginf=limits.min)
    rows = weights.view(batch * n, n)
    first_row = torch.arange(0, batch * n, n, device=weights.device)

    best = weights[:, 0].clone()  # [B, n]: the heaviest edge from the tree to each vertex outside of it
    ceiling = torch.full_like(best, torch.inf)  # inf outside of the tree, -inf inside
    best[:, 0] = ceiling[:, 0] = -torch.inf
    parent = torch.zeros_like(best, dtype=torch.long)
    for _ in range(n - 2):  # the last vertex to join is nobody's parent
        joined = best.max(dim=1).indices
        edges = rows.index_select(0, joined + first_row)
        joined = joined[:, None]
        best.scatter_(1, joined, -torch.inf)
        ceiling.scatter_(1, joined, -torch.inf)
        torch.minimum(edges, ceiling, out=edges)
        torch.where(edges > best, joined, parent, out=parent)
        torch.maximum(best, edges, out=best)
    return parent

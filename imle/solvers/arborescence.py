"""Maximum spanning arborescences of complete directed graphs, many at once."""

from __future__ import annotations

import torch
from torch import Tensor

from imle import _numerics
from imle.solvers._checks import answer, broken_rows, check_floating, nan_in


def arborescence(weights: Tensor, root: int = 0) -> Tensor:
    """Return the spanning arborescence of greatest total weight for each directed graph, as an adjacency matrix.

    This solver maximises <z, weights>; for a minimum, negate. Entry [u, v] is the edge from u to v, u the parent of v:
    every vertex but the root has exactly one parent, and the root reaches all. A weight of -inf is no edge. On ties it
    is one of the best, the same at every call.

    Edmonds' algorithm (Y. J. Chu, T. H. Liu, On the shortest arborescence of a directed graph, 1965; J. Edmonds,
    Optimum branchings, 1967), all cycles of the batch contracted at a time, at most n - 2 times; on an accelerator
    always as many, for nothing there waits for the host.

    Args:
        weights: edge weights, floating point, [B, n, n], n >= 1. The diagonal and the column of the root are not read.
        root: the vertex that all others descend from.

    Returns:
        z of the same shape, dtype and device: 1 for an edge of the arborescence, else 0.

    Raises:
        ValueError: weights are not square matrices, there is no such root, or it does not reach all vertices of one
            graph; the message names the row. On an accelerator the answer to that row is NaN.
        TypeError: weights are not floating point.
        FloatingPointError: a weight is NaN or +inf; on an accelerator the answer to that row is NaN.

    Example:
        >>> arborescence(torch.tensor([[[0.0, 3.0, 2.0], [0.0, 0.0, 1.0], [0.0, 4.0, 0.0]]]))
        tensor([[[0., 0., 1.],
                 [0., 0., 0.],
                 [0., 1., 0.]]])
    """
    check_floating("weights", weights)
    if weights.dim() != 3 or weights.shape[1] != weights.shape[2] or not weights.shape[1]:
        raise ValueError(f"weights must be square matrices, [B, n, n]; their shape is {tuple(weights.shape)}")
    n = weights.shape[1]
    if not 0 <= root < n:
        raise ValueError(f"root must be a vertex, from 0 to {n - 1}; it is {root}")
    weights = weights.detach()
    edges = _edges(weights, root)
    broken = broken_rows("weights", edges, torch.inf)
    # Subtractions below may not turn -inf into NaN, nor a great weight into an infinite one.
    wall = torch.finfo(edges.dtype).max / (4 * n)
    edges = torch.where(edges.isneginf(), edges, edges.clamp(-wall, wall))
    phases, unreached = _contract(edges, root)
    parent = _expand(phases, root)
    z = torch.zeros_like(weights, memory_format=torch.contiguous_format)
    z.scatter_(1, parent[:, None, :], 1.0)
    z[:, :, root] = 0.0
    return nan_in(answer(z, unreached, f"root {root} does not reach all vertices"), broken)


def _edges(weights: Tensor, root: int) -> Tensor:
    """Return the weights with -inf for what is no edge."""
    # Differences of weights decide: in float32 they would be lost beside one weight of 1e9.
    edges = weights.to(_numerics.exact_dtype(weights.device), copy=True)
    edges.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    edges[:, :, root] = -torch.inf
    return edges


# One phase: the component of each vertex, named by one of its vertices, and for each component, under that name, the
# heaviest edge into it: its head and its tail. All [B, n].
_Phase = tuple[Tensor, Tensor, Tensor]


def _contract(edges: Tensor, root: int) -> tuple[list[_Phase], Tensor]:
    """Contract the cycles of heaviest edges until there are none, and return each phase, and which rows fall apart.

    The edges [B, n, n] are written on: at each phase, the weight of the heaviest edge into a component is subtracted
    from all edges into it, which changes every arborescence alike.
    """
    batch, n, _ = edges.shape
    vertices = torch.arange(n, device=edges.device).expand(batch, n)
    component = vertices.clone()
    unreached = torch.zeros(batch, dtype=torch.bool, device=edges.device)
    phases: list[_Phase] = []
    for _ in range(max(1, n - 1)):
        heaviest, tail_of = edges.max(dim=1)
        weight = torch.full_like(heaviest, -torch.inf).scatter_reduce_(1, component, heaviest, "amax")
        own = weight.gather(1, component)
        is_entry = (heaviest == own) & heaviest.isfinite()
        head = torch.full_like(component, -1).scatter_reduce_(1, component, vertices.where(is_entry, -1), "amax")
        found, head = head >= 0, head.clamp(min=0)
        tail = tail_of.gather(1, head)
        phases.append((component, head, tail))
        needs_entry = (component == vertices) & (component != component[:, root, None])
        unreached |= (needs_entry & ~found).any(dim=1)

        edges -= own.masked_fill(~own.isfinite(), 0.0)[:, None, :]
        parent = torch.where(found & needs_entry, component.gather(1, tail), vertices)
        name = _name_cycles(parent, vertices)
        if _numerics.host_may_wait(edges) and torch.equal(name, vertices):
            break
        component = name.gather(1, component)
        edges.masked_fill_(component[:, :, None] == component[:, None, :], -torch.inf)
    return phases, unreached


def _name_cycles(parent: Tensor, vertices: Tensor) -> Tensor:
    """Return for each vertex on a cycle of parents [B, n] the least vertex of the cycle, for others themselves."""
    ancestor, least = parent, torch.minimum(vertices, parent)
    for _ in range((vertices.shape[1] - 1).bit_length()):  # twice as many generations each time, until there are n
        least = torch.minimum(least, least.gather(1, ancestor))
        ancestor = ancestor.gather(1, ancestor)
    on_cycle = torch.zeros_like(vertices).scatter_(1, ancestor, 1)  # n generations up, all ancestors are on one
    return torch.where(on_cycle.bool(), least, vertices)


def _expand(phases: list[_Phase], root: int) -> Tensor:
    """Return the parent of each vertex, [B, n]; 0 for the root, which has none.

    From the last phase back: the edge into a contracted cycle replaces the cycle's own edge into the same component.
    """
    component = phases[0][0]
    batch, n = component.shape
    parent = torch.full((batch, n + 1), -1, dtype=torch.long, device=component.device)  # one more, to write in vain
    for component, head, tail in reversed(phases):
        entered = torch.zeros_like(component).scatter_reduce_(1, component, (parent[:, :n] >= 0).long(), "amax")
        vertices = torch.arange(n, device=component.device)
        wanted = (component == vertices) & (component != component[:, root, None]) & (entered == 0)
        parent.scatter_(1, head.masked_fill(~wanted, n), tail)
    return parent[:, :n].clamp(min=0)

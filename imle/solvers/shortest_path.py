"""Cheapest paths across grids, many at once."""

from __future__ import annotations

import torch
from torch import Tensor

from imle import _numerics
from imle._compile import eager, kept
from imle.solvers._checks import answer, check_floating, in_range, minimiser, sum_dtype

_STEPS = {
    4: ((-1, 0), (0, -1), (0, 1), (1, 0)),
    8: ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
}


@minimiser(True)
def shortest_path(costs: Tensor, neighbours: int = 8) -> Tensor:
    """Return the cells of the cheapest path from the top left to the bottom right corner of each grid.

    This solver minimises <z, costs>, and estimators know it. A path costs the sum of its cells, both
    ends included. The result is always one simple path: among equally cheap ones, one with the fewest cells, the
    same at every call.

    A negative cost, which perturbation easily makes, counts as 0, for with negative cycles there would be no
    cheapest path: noise larger than the costs moves the answer less than it would a true minimiser's. Keep costs
    positive (`theta.exp()`, or a base cost), or take `shortest_path_arcs` with `grid_arcs`, whose moves right and down
    make no cycle, and negative costs exact. A cell of cost inf (or NaN) is never entered; start and goal, which are on
    every path, cost nothing then.

    The search is the Bellman-Ford recursion (R. Bellman, On a routing problem, 1958), one step for all cells of the
    batch at a time, as many as the longest cheapest path has. On an accelerator nothing waits for the host: there it
    takes as many steps as the longest path without a shortcut could have, H W / 2 with 8 neighbours, 3 H W / 4 with 4.

    Args:
        costs: cost of each cell, floating point, [B, H, W], H, W >= 1. Sums are taken in float64 for float64,
            else in float32.
        neighbours: cells reached from a cell: 4 (up, down, left, right), or 8 (diagonal steps too).

    Returns:
        z of the same shape, dtype and device: 1 for a cell of the path, else 0.

    Raises:
        ValueError: costs are not grids, neighbours is neither 4 nor 8, or no path leads to the goal; the message names
            the row. On an accelerator nothing may wait for the host, and such a row is NaN.
        TypeError: costs are not floating point.

    Example:
        >>> shortest_path(torch.tensor([[[1.0, 1.0, 5.0], [9.0, 9.0, 1.0], [9.0, 9.0, 1.0]]]))
        tensor([[[1., 1., 0.],
                 [0., 0., 1.],
                 [0., 0., 1.]]])
    """
    if neighbours not in _STEPS:
        raise ValueError(f"neighbours must be 4 or 8; it is {neighbours}")
    check_floating("costs", costs)
    # No other number of dimensions: flat costs [B, cells] would be one large grid.
    if costs.dim() != 3 or 0 in costs.shape[1:]:
        raise ValueError(f"costs must be a batch of grids, [B, H, W]; their shape is {tuple(costs.shape)}")
    grids = costs.detach().permute(1, 2, 0)
    distance, changed_at = _distances(_non_negative(grids), neighbours)
    z = _walk_back(distance, changed_at, neighbours).permute(2, 0, 1)
    z = z.to(costs.dtype, memory_format=torch.contiguous_format)
    return answer(z, distance[-2, -2].isinf(), "cells of cost inf leave no path")


def _non_negative(costs: Tensor) -> Tensor:
    """Return costs of at least 0 of which no sum over the grid is infinite, but for cells that no path may enter."""
    costs = costs.to(sum_dtype(costs)).contiguous().clamp(min=0.0).nan_to_num_(nan=torch.inf, posinf=torch.inf)
    cells = costs.shape[0] * costs.shape[1]
    costs = in_range(costs.flatten(0, 1), cells, dim=0).view(costs.shape)
    costs[-1, -1] = costs[-1, -1].masked_fill(costs[-1, -1].isinf(), 0.0)
    return costs


def _distances(costs: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return what the cheapest way to each cell costs, without its start, and the step at which it was found.

    For costs [H, W, B], both are [H + 2, W + 2, B], with a border that no path enters.
    """
    height, width, batch = costs.shape
    # The batch is the last dimension, so that every slice of cells is made of long contiguous runs.
    distance = costs.new_full((height + 2, width + 2, batch), torch.inf)
    changed_at = torch.zeros_like(distance)
    distance[1, 1] = 0.0  # what the start costs is on every path, and beside a great number others would be lost
    host_may_look = _numerics.host_may_wait(costs)
    for step in range(1, _most_cells(height, width, neighbours) + 1):
        h, w = min(step + 1, height), min(step + 1, width)  # what `step` moves can reach
        known, last_change = distance[1 : h + 1, 1 : w + 1], changed_at[1 : h + 1, 1 : w + 1]
        candidate = _cheapest_neighbour(distance[: h + 2, : w + 2], neighbours).add_(costs[:h, :w])
        # As numbers, not bool: several times faster, and this loop is where the time goes.
        improved = torch.lt(candidate, known, out=torch.empty_like(candidate))
        if host_may_look and not improved.sum():
            break
        torch.maximum(last_change, improved.mul_(step), out=last_change)
        torch.minimum(known, candidate, out=known)
    return distance, changed_at


def _most_cells(height: int, width: int, neighbours: int) -> int:
    """Return how many cells a path may have of which only consecutive ones touch; others can be made shorter.

    Such a path has no more than 2 cells in any square of 4 where all 4 touch one another, and 3 where they form a ring.
    """
    squares = -(-height // 2) * -(-width // 2)
    return min(height * width, squares * (2 if neighbours == 8 else 3))


def _cheapest_neighbour(distance: Tensor, neighbours: int) -> Tensor:
    """Return the minimum over the neighbours of each cell within the border, [H, W, B].

    With 8 neighbours the cell itself takes part, which changes nothing: costs are not negative.
    """
    if neighbours == 4:
        vertical = torch.minimum(distance[:-2, 1:-1], distance[2:, 1:-1])
        horizontal = torch.minimum(distance[1:-1, :-2], distance[1:-1, 2:])
        return torch.minimum(vertical, horizontal, out=vertical)
    columns = torch.minimum(torch.minimum(distance[:-2], distance[1:-1]), distance[2:])
    return torch.minimum(torch.minimum(columns[:, :-2], columns[:, 1:-1]), columns[:, 2:])


@eager
@kept
def _moves(width: int, neighbours: int, device: torch.device) -> Tensor:
    """Return how far away the neighbours of a cell are in rows of `width` cells, [moves, 1]; kept, for it is sent."""
    # Staying is a move too, which only the start prefers: paths of different lengths end together.
    moves = [0] + [down * width + right for down, right in _STEPS[neighbours]]
    return torch.tensor(moves, device=device)[:, None]


def _walk_back(distance: Tensor, changed_at: Tensor, neighbours: int) -> Tensor:
    """Return the cells of the path, [H, W, B], found from the goal backwards.

    A cell's predecessor is the neighbour at the smallest distance and, among those, the one that reached it first.
    The pair (distance, changed_at) falls at every move: the neighbour that gave a cell its distance is no farther,
    and if as far it was there earlier. Hence no cycle, even among cells that cost nothing, nor through rounding, and
    no shortcut: a cell that touches one of its later predecessors would have gone there at once.
    """
    height, width, batch = distance.shape
    start, goal = width + 1, (height - 2) * width + width - 2  # in rows of `width` cells, border included
    offsets = _moves(width, neighbours, distance.device)
    distance, changed_at = distance.flatten(0, 1), changed_at.flatten(0, 1)

    z = torch.zeros_like(distance, dtype=torch.bool)
    cell = torch.full((1, batch), goal, device=distance.device)
    z.scatter_(0, cell, True)
    all_at_start = torch.full_like(cell, start)
    host_may_look = _numerics.host_may_wait(distance)
    for _ in range(_most_cells(height - 2, width - 2, neighbours) - 1):
        if host_may_look and torch.equal(cell, all_at_start):
            break
        reachable = cell + offsets
        near = distance.gather(0, reachable)
        first = changed_at.gather(0, reachable)
        first.masked_fill_(near > near.amin(dim=0), torch.inf)
        cell = reachable.gather(0, first.argmin(dim=0, keepdim=True))
        z.scatter_(0, cell, True)
    return z.view(height, width, batch)[1:-1, 1:-1]

"""Cheapest paths along the arcs of a directed graph, many at once."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from imle._compile import kept
from imle.solvers._checks import answer, broken_rows, check_floating, in_range, minimiser, nan_in, sum_dtype

_MOST_UNEVEN = 4  # how many times the arcs of one head those of another may be, to share a table


@minimiser(True)
def shortest_path_arcs(costs: Tensor, arcs: Any, source: int, target: int) -> Tensor:
    """Return the arcs of the cheapest path from source to target of a directed graph without cycles, for each row.

    This solver minimises <z, costs>, and estimators know it. On ties it is one of the cheapest paths, the same at every
    call. An arc of cost inf cannot be taken. Negative costs, which perturbation easily makes, are exact: the distances
    of vertices are taken once each, in topological order. Arcs that no way from source to target can use are left out
    first, and may lie on cycles.

    The graph is the same for all rows, and looked at once: its order is kept for later calls. Under an estimator bind
    it first, by a closure or `functools.partial`, as in the example.

    Args:
        costs: cost of each arc, floating point, [B, A]. Sums are taken in float64 for float64, else in float32.
        arcs: tails and heads, whole numbers from 0 up, [2, A]: arc a leads from arcs[0][a] to arcs[1][a]. A tensor on
            an accelerator makes the host wait; keep it on the CPU.
        source: the vertex where paths start.
        target: the vertex where they end.

    Returns:
        z of the shape, dtype and device of costs: 1 for an arc of the path, else 0; all 0 where source is target.

    Raises:
        ValueError: shapes disagree, a vertex does not exist, the graph has a cycle, or no path leads to the target; the
            message names the row. On an accelerator nothing may wait for the host, and such a row is NaN.
        TypeError: costs are not floating point, or arcs no whole numbers.
        FloatingPointError: a cost is NaN or -inf; on an accelerator the answer to that row is NaN.

    Example:
        >>> import functools
        >>> arcs = [[0, 0, 1], [1, 2, 2]]  # 0 -> 1, 0 -> 2, 1 -> 2
        >>> solver = functools.partial(shortest_path_arcs, arcs=arcs, source=0, target=2)
        >>> solver(torch.tensor([[1.0, 3.0, 1.0], [1.0, 3.0, 4.0], [1.0, -3.0, -1.0]]))
        tensor([[1., 0., 1.],
                [0., 1., 0.],
                [0., 1., 0.]])
    """
    check_floating("costs", costs)
    graph = _graph_of(arcs, source, target, costs.device)
    if costs.dim() != 2 or costs.shape[1] != graph.arcs:
        raise ValueError(f"costs must be [B, {graph.arcs}], one for each arc; their shape is {tuple(costs.shape)}")
    costs = costs.detach()
    broken = broken_rows("costs", costs, -torch.inf)
    distance, best = _in_order(_table_of_costs(costs, graph), graph)
    z = _walk_back(best, graph, costs)
    return nan_in(answer(z, distance[graph.last].isinf(), f"no path leads from {source} to {target}"), broken)


def grid_arcs(height: int, width: int, moves: Iterable[tuple[int, int]] = ((0, 1), (1, 0))) -> Tensor:
    """Return the arcs of a grid for `shortest_path_arcs`: from each cell by each move that stays on the grid.

    Cells are counted row by row, from 0 at the top left to height * width - 1 at the bottom right. With the moves right
    and down, the default, the graph has no cycle, and a path of it takes negative costs as they are.

    Args:
        height: rows of cells.
        width: cells of a row.
        moves: (down, right) of each move.

    Returns:
        Tails and heads, [2, A], int64: row by row, in each row move by move, for each move from left to right.

    Example:
        >>> grid_arcs(2, 2)
        tensor([[0, 0, 1, 2],
                [1, 2, 3, 3]])
    """
    moves = tuple(moves)
    pairs = [
        (row * width + column, (row + down) * width + column + right)
        for row in range(height)
        for down, right in moves
        for column in range(width)
        if 0 <= row + down < height and 0 <= column + right < width
    ]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).t().contiguous()


@dataclass(frozen=True)
class _Block:
    """Vertices first..last - 1, and the table of the arcs into them: `[last - first, width]` of its rows from `start`.

    A head with fewer arcs than `width` has dummies, which cost inf.
    """

    first: int
    last: int
    start: int
    width: int
    tails: Tensor  # of the table's arcs, flat

    @property
    def shape(self) -> tuple[int, int]:
        return self.last - self.first, self.width

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.tails))


@dataclass(frozen=True)
class _Graph:
    """A graph with the arcs that some way from source to target can use; vertex 0 is the source.

    Row 0 of its table of arcs is a dummy from the source to itself, at which a walk back ends.
    """

    arcs: int
    vertices: int
    last: int  # the target
    depth: int  # arcs of the longest path
    blocks: tuple[_Block, ...]
    names: Tensor  # [rows]: the arc of each row of the table; `arcs` for a dummy
    stored: Tensor  # [rows]: the same, but arc 0 for a dummy
    surcharge: Tensor  # [rows, 1]: inf for a dummy, else 0
    tails: Tensor  # [rows]
    offsets: Tensor  # [V, 1]: the first row of the arcs into each vertex


def _graph_of(arcs: Any, source: int, target: int, device: torch.device) -> _Graph:
    tails, heads = _ends(arcs)
    return _prepare(tails, heads, operator.index(source), operator.index(target), device)


def _ends(arcs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tails and the heads as Python has them, so that nothing here is a tensor that torch traces.

    Raises:
        ValueError: they are not [2, A].
        TypeError: they are no whole numbers.
    """
    sides = arcs.tolist() if hasattr(arcs, "tolist") else [getattr(side, "tolist", lambda s=side: s)() for side in arcs]
    if len(sides) != 2 or not all(isinstance(side, Sequence) for side in sides) or len(sides[0]) != len(sides[1]):
        raise ValueError("arcs must be tails and heads, [2, A], as many of the one as of the other")
    for kind in set(map(type, (*sides[0], *sides[1]))):  # before anything is looked up, where 1.0 is 1
        if not issubclass(kind, Integral) or kind is bool:
            raise TypeError(f"arcs must be whole numbers, the vertices that they join, not {kind.__name__}")
    return tuple(sides[0]), tuple(sides[1])


@kept
def _prepare(tails: tuple[int, ...], heads: tuple[int, ...], source: int, target: int, device: torch.device) -> _Graph:
    """Look at a graph once: drop the arcs of no use, order the vertices, and lay out tables of the arcs into them."""
    count = len(tails)
    if not count:
        raise ValueError("arcs must be at least one; there is none")
    if min(*tails, *heads) < 0:
        raise ValueError(f"arcs must join vertices from 0 up, not {min(*tails, *heads)}")
    vertices = 1 + max(*tails, *heads)
    for name, vertex in (("source", source), ("target", target)):
        if not 0 <= vertex < vertices:
            raise ValueError(f"{name} must be a vertex of the arcs, from 0 to {vertices - 1}; it is {vertex}")
    useful = _reached(source, tails, heads) & _reached(target, heads, tails)
    if target not in useful:
        raise ValueError(f"no path leads from source {source} to target {target}, whatever it costs")
    used = [arc for arc in range(count) if tails[arc] in useful and heads[arc] in useful]
    into: dict[int, list[int]] = {vertex: [] for vertex in useful}
    for arc in used:
        into[heads[arc]].append(arc)
    height = _levels(source, useful, tails, heads, used)
    order = sorted(useful, key=lambda vertex: (height[vertex], len(into[vertex])))
    return _lay_out(order, height, into, tails, count, target, device)


def _lay_out(
    order: list[int],
    height: dict[int, int],
    into: dict[int, list[int]],
    tails: tuple[int, ...],
    arcs: int,
    target: int,
    device: torch.device,
) -> _Graph:
    """Return the graph with tables of the arcs into its vertices, in this order, a table for each height.

    Vertices of one height whose numbers of arcs differ too much get tables of their own, so that dummies stay few.
    """
    number = {vertex: i for i, vertex in enumerate(order)}
    names, sources, offsets, spans = [arcs], [0], [0] * len(order), []
    first = 1
    while first < len(order):
        least, last = len(into[order[first]]), first
        while last < len(order) and height[order[last]] == height[order[first]]:
            if len(into[order[last]]) > _MOST_UNEVEN * least:
                break
            last += 1
        width, start = len(into[order[last - 1]]), len(names)
        for vertex in order[first:last]:
            offsets[number[vertex]] = len(names)
            missing = width - len(into[vertex])
            names += into[vertex] + [arcs] * missing
            sources += [number[tails[arc]] for arc in into[vertex]] + [0] * missing
        spans.append((first, last, start, width))
        first = last

    def on_device(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    table, rows = on_device(sources), on_device(names)
    is_dummy = rows == arcs
    return _Graph(
        arcs=arcs,
        vertices=len(order),
        last=number[target],
        depth=height[target],
        blocks=tuple(
            _Block(first, last, start, width, table[start : start + (last - first) * width])
            for first, last, start, width in spans
        ),
        names=rows,
        stored=rows.masked_fill(is_dummy, 0),
        surcharge=torch.where(is_dummy, torch.inf, 0.0)[:, None],
        tails=table,
        offsets=on_device(offsets)[:, None],
    )


def _reached(start: int, tails: Sequence[int], heads: Sequence[int]) -> set[int]:
    """Return the vertices that can be reached from `start`."""
    out: dict[int, list[int]] = defaultdict(list)
    for tail, head in zip(tails, heads):
        out[tail].append(head)
    found, waiting = {start}, [start]
    while waiting:
        for head in out[waiting.pop()]:
            if head not in found:
                found.add(head)
                waiting.append(head)
    return found


def _levels(
    source: int, useful: set[int], tails: Sequence[int], heads: Sequence[int], kept: list[int]
) -> dict[int, int]:
    """Return how many arcs the longest way from the source to each vertex has.

    Raises:
        ValueError: there is a cycle.
    """
    missing, out = dict.fromkeys(useful, 0), {vertex: [] for vertex in useful}  # type: dict[int, int], dict[int, list[int]]
    for arc in kept:
        missing[heads[arc]] += 1
        out[tails[arc]].append(heads[arc])
    level, waiting = dict.fromkeys(useful, 0), [source] if not missing[source] else []
    done = 0
    while waiting:
        tail = waiting.pop()
        done += 1
        for head in out[tail]:
            level[head] = max(level[head], level[tail] + 1)
            missing[head] -= 1
            if not missing[head]:
                waiting.append(head)
    if done < len(useful):
        raise ValueError(
            "the graph has a cycle between source and target: shortest_path_arcs takes graphs without cycles; lift "
            "scipy.sparse.csgraph's shortest_path by `batched` for others"
        )
    return level


def _table_of_costs(costs: Tensor, graph: _Graph) -> Tensor:
    """Return the cost of each arc of the graph's table, [rows, B], such that sums over a path are finite or inf."""
    # The batch is the last dimension, so that an arc's costs are one contiguous run.
    costs = costs.to(sum_dtype(costs)).t().index_select(0, graph.stored)
    return in_range(costs, graph.vertices, dim=0).add_(graph.surcharge)


def _start(costs: Tensor, graph: _Graph) -> tuple[Tensor, Tensor]:
    """Return distances [V, B], 0 at the source and inf elsewhere, and the place of the best arc into each vertex."""
    distance = costs.new_full((graph.vertices, costs.shape[1]), torch.inf)
    distance[0] = 0.0
    return distance, torch.zeros_like(distance, dtype=torch.long)


def _in_order(costs: Tensor, graph: _Graph) -> tuple[Tensor, Tensor]:
    """Return the distance of each vertex and the place of the best arc into it, [V, B], for a graph without cycles."""
    distance, best = _start(costs, graph)
    for block in graph.blocks:
        ways = distance.index_select(0, block.tails).add_(costs[block.rows])
        vertices = slice(block.first, block.last)
        torch.min(ways.unflatten(0, block.shape), dim=1, out=(distance[vertices], best[vertices]))
    return distance, best


def _walk_back(best: Tensor, graph: _Graph, like: Tensor) -> Tensor:
    """Return the path to the target as `like` [B, A]."""
    rows = best.add_(graph.offsets)
    rows[0] = 0  # the dummy at the source, where a walk stays
    before = graph.tails[rows]
    vertex = torch.full_like(rows[:1], graph.last)
    path = []
    for _ in range(graph.depth):
        path.append(vertex)
        vertex = before.gather(0, vertex)
    z = torch.zeros(graph.arcs + 1, len(like), dtype=like.dtype, device=like.device)
    if path:
        z.scatter_(0, graph.names[rows.gather(0, torch.cat(path))], 1.0)
    return z[:-1].t().contiguous()

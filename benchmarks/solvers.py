"""Batched solvers against well-known ones: `torch.topk`, and scipy, networkx, OR-tools one instance at a time.

OR-tools is no dependency: where it is not installed, a line says which rows are left out.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Row, compare
from imle.solvers import (
    arborescence,
    assignment,
    binary_programme,
    grid_arcs,
    knapsack,
    ranking,
    select_k,
    shortest_path,
    shortest_path_arcs,
    spanning_tree,
)


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


def peer(module: str) -> Any:
    """Return a module that may not be installed; None, and a printed line, where it is not."""
    try:
        return importlib.import_module(module)
    except ImportError:
        print(f"left out: {module} is not installed", file=sys.stderr)
        return None


def scipy_arc_paths(costs: np.ndarray, arcs: np.ndarray, vertices: int) -> list[np.ndarray]:
    """Return the predecessors of cheapest paths from vertex 0 for costs `[B, A]`, one Dijkstra each."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    graphs = (csr_array((cost, (arcs[0], arcs[1])), (vertices, vertices)) for cost in costs)
    return [dijkstra(graph, indices=0, return_predecessors=True)[1] for graph in graphs]


def networkx_arborescences(networkx: Any, weights: np.ndarray) -> list[Any]:
    """Return maximum spanning arborescences rooted at 0 for weights `[B, n, n]` without edges into 0."""
    graphs = (networkx.from_numpy_array(matrix, create_using=networkx.DiGraph) for matrix in weights)
    return [networkx.maximum_spanning_arborescence(graph) for graph in graphs]


def ortools_knapsacks(solvers: Any, values: np.ndarray, weights: list[int], capacity: int) -> list[list[bool]]:
    """Return selections for values `[B, N]`, rounded to millionths, by OR-tools' fastest solver of those tried."""
    found = []
    for row in (values * 1e6).astype(np.int64):
        solver = solvers.KnapsackSolver(solvers.SolverType.KNAPSACK_MULTIDIMENSION_BRANCH_AND_BOUND_SOLVER, "")
        solver.init(row.tolist(), [weights], [capacity])
        solver.solve()
        found.append([solver.best_solution_contains(item) for item in range(len(weights))])
    return found


def ortools_assignments(solvers: Any, weights: np.ndarray) -> list[list[int]]:
    """Return the column of each row for weights `[B, n, n]`, rounded to millionths."""
    n = weights.shape[1]
    rows, columns = np.repeat(np.arange(n), n), np.tile(np.arange(n), n)
    found = []
    for costs in (weights * -1e6).astype(np.int64):
        solver = solvers.SimpleLinearSumAssignment()
        solver.add_arcs_with_cost(rows, columns, costs.ravel())
        solver.solve()
        found.append([solver.right_mate(row) for row in range(n)])
    return found


def scipy_programmes(theta: np.ndarray, matrix: np.ndarray, bound: np.ndarray) -> list[np.ndarray]:
    """Return the best 0/1 vectors for theta `[B, N]` with matrix z <= bound, by scipy's `milp`."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    limits, box = LinearConstraint(matrix, -np.inf, bound), Bounds(0, 1)
    return [milp(-row, integrality=1, bounds=box, constraints=limits).x for row in theta]


def ortools_programmes(model: Any, theta: np.ndarray, matrix: np.ndarray, bound: np.ndarray) -> list[list[int]]:
    """Return the same by OR-tools' CP-SAT on one thread, with theta rounded to millionths; matrix is whole numbers."""
    found = []
    for row in (theta * 1e6).astype(np.int64).tolist():
        programme = model.CpModel()
        z = [programme.new_bool_var("") for _ in row]
        for limits, most in zip(matrix.tolist(), bound.tolist(), strict=True):
            programme.add(model.LinearExpr.weighted_sum(z, limits) <= most)
        programme.maximize(model.LinearExpr.weighted_sum(z, row))
        solver = model.CpSolver()
        solver.parameters.num_workers = 1
        solver.solve(programme)
        found.append([solver.value(variable) for variable in z])
    return found


def run(device: torch.device) -> list[Row]:
    """Measure over growing batches and instances."""
    rows = [_trees(batch, n, device) for batch, n in ((128, 10), (128, 20), (128, 50), (1280, 10))]
    rows += [_paths(batch, side, device) for batch, side in ((128, 12), (128, 32))]
    # On a CPU, a sorting network for the first four, `torch.topk` for the others: see imle/solvers/top_k.py.
    networks = ((2000, 20, 10), (20000, 20, 10), (40000, 20, 10), (4000, 32, 16))
    others = ((1280, 45, 22), (1280, 64, 32), (128, 90, 45), (40, 350, 10))
    rows += [_subsets(batch, n, k, device) for batch, n, k in networks + others]
    rows += [_ranks(batch, n, device) for batch, n in ((32, 64), (1280, 64))]
    rows += _arc_paths(device)
    rows += _arborescences(device)
    rows += _assignments(device)
    rows += _knapsacks(device)
    rows += _programmes(device)
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


def _ranks(batch: int, n: int, device: torch.device) -> Row:
    theta = torch.randn(batch, n, device=device)
    array = theta.cpu().numpy()
    return compare(
        f"ranking [{batch}, {n}]",
        lambda: ranking(theta),
        "numpy argsort twice",
        lambda: array.argsort(axis=1).argsort(axis=1),
        device,
        repeats=3,
        per_call=batch,
        unit="rows",
    )


def _arc_paths(device: torch.device) -> list[Row]:
    """Compare on the grid of PyEPO's benchmark, and a larger one."""
    rows = []
    for batch, side in (32, 5), (512, 5), (128, 30):
        arcs = grid_arcs(side, side)
        costs, vertices = torch.rand(batch, arcs.shape[1], device=device) + 0.01, 1 + int(arcs.max())
        rows.append(
            compare(
                f"shortest_path_arcs [{batch}, {arcs.shape[1]}], {side}x{side}, right and down",
                functools.partial(shortest_path_arcs, costs, arcs, 0, vertices - 1),
                "scipy loop",
                functools.partial(scipy_arc_paths, costs.cpu().numpy(), arcs.numpy(), vertices),
                device,
                pairs=7,
                per_call=batch,
                unit="paths",
            )
        )
    return rows


def _arborescences(device: torch.device) -> list[Row]:
    networkx = peer("networkx")
    rows = []
    for batch, n in ((128, 10), (16, 30)) if networkx else ():
        weights = torch.randn(batch, n, n, device=device)
        weights[:, :, 0] = 0.0  # no edge, for networkx
        array = weights.cpu().numpy()
        rows.append(
            compare(
                f"arborescence [{batch}, {n}, {n}]",
                functools.partial(arborescence, weights),
                "networkx loop",
                functools.partial(networkx_arborescences, networkx, array),
                device,
                pairs=3,
                per_call=batch,
                unit="graphs",
            )
        )
    return rows


def _assignments(device: torch.device) -> list[Row]:
    from scipy.optimize import linear_sum_assignment

    def scipy_loop(weights: np.ndarray) -> list[Any]:
        return [linear_sum_assignment(matrix, maximize=True) for matrix in weights]

    ortools = peer("ortools.graph.python.linear_sum_assignment")
    rows = []
    for batch, n in ((128, 10), (128, 50)):
        weights = torch.rand(batch, n, n, device=device)
        array = weights.cpu().numpy()
        others: dict[str, Callable[[], object]] = {"scipy loop": functools.partial(scipy_loop, array)}
        if ortools:
            others["OR-tools loop"] = functools.partial(ortools_assignments, ortools, array)
        for name, other in others.items():
            ours = functools.partial(assignment, weights)
            case = f"assignment [{batch}, {n}, {n}]"
            rows.append(compare(case, ours, name, other, device, repeats=3, per_call=batch, unit="matrices"))
    return rows


def _knapsacks(device: torch.device) -> list[Row]:
    ortools = peer("ortools.algorithms.python.knapsack_solver")
    rows = []
    generator = np.random.default_rng(0)
    cases = ((32, 32, 20, (3, 9)), (32, 32, 2000, (300, 801)), (512, 32, 2000, (300, 801)), (128, 100, 1000, (1, 101)))
    for batch, n, capacity, (least, most) in cases:
        weights = generator.integers(least, most, n).tolist()
        values = torch.rand(batch, n, device=device)
        ours = functools.partial(knapsack, values, weights, capacity)
        programme = functools.partial(scipy_programmes, values.cpu().numpy(), np.array([weights]), np.array([capacity]))
        others: dict[str, tuple[Callable[[], object], int]] = {"scipy's milp loop": (programme, 2)}
        if ortools:
            loop = functools.partial(ortools_knapsacks, ortools, values.cpu().numpy(), weights, capacity)
            others["OR-tools loop"] = (loop, 9)
        for name, (other, pairs) in others.items():
            if name.startswith("scipy") and batch > 128:
                continue  # seconds a call, and the same for each instance
            case = f"knapsack [{batch}, {n}], capacity {capacity}"
            rows.append(compare(case, ours, name, other, device, pairs=pairs, per_call=batch, unit="knapsacks"))
    return rows


def _programmes(device: torch.device) -> list[Row]:
    """Compare on knapsacks of three dimensions."""
    generator = np.random.default_rng(0)
    matrix = generator.integers(300, 801, (3, 32))
    bound = np.full(3, 4000)
    theta = torch.rand(8, 32, device=device)
    ours = functools.partial(binary_programme, theta, matrix, bound)
    array = theta.cpu().numpy()
    others: dict[str, Callable[[], object]] = {
        "scipy's milp by hand": functools.partial(scipy_programmes, array, matrix, bound)
    }
    if ortools := peer("ortools.sat.python.cp_model"):
        others["OR-tools' CP-SAT"] = functools.partial(ortools_programmes, ortools, array, matrix, bound)
    case = "binary_programme [8, 32], 3 limits"
    return [
        compare(case, ours, name, other, device, pairs=3, per_call=8, unit="programmes")
        for name, other in others.items()
    ]

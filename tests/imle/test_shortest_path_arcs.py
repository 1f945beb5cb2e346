"""Paths by arcs against enumeration, scipy, and the solver of grids."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from imle.solvers import grid_arcs, shortest_path, shortest_path_arcs
from tests.reference.oracles import all_arc_paths, map_state

module = importlib.import_module("imle.solvers.shortest_path_arcs")
KING = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]


def acyclic(vertices, density):
    """Return the arcs of a random graph whose vertices are in order, then renamed; parallel arcs occur."""
    tails, heads = torch.triu_indices(vertices, vertices, 1)
    kept = torch.rand(len(tails)) < density
    kept[(tails + 1) == heads] = True  # a path from the first to the last
    arcs = torch.stack([tails[kept], heads[kept]]).repeat(1, 2)[:, torch.randperm(2 * int(kept.sum()))]
    names = torch.randperm(vertices)
    return names[arcs], int(names[0]), int(names[-1])


def cyclic(vertices, density):
    """Return the arcs of a random graph with cycles, and a way from the first vertex to the last."""
    pairs = (torch.rand(vertices, vertices) < density).fill_diagonal_(True)
    pairs[range(vertices - 1), range(1, vertices)] = True
    return pairs.nonzero().t().contiguous(), 0, vertices - 1


def test_the_oracle_lists_the_paths_of_a_grid():
    assert all_arc_paths(grid_arcs(5, 5), 0, 24).unique(dim=0).shape == (70, 40)
    assert all_arc_paths(grid_arcs(3, 3, [(0, 1), (1, 0), (0, -1), (-1, 0)]), 0, 8).shape == (12, 24)


@pytest.mark.parametrize("vertices, density", [(2, 1.0), (4, 0.7), (6, 0.5), (7, 0.3)])
def test_without_cycles_a_path_is_the_best_of_all_paths_whatever_the_sign_of_its_costs(vertices, density):
    for _ in range(4):
        arcs, source, target = acyclic(vertices, density)
        costs = torch.randn(40, arcs.shape[1], dtype=torch.float64)
        expected = map_state(-costs, all_arc_paths(arcs, source, target))
        for given in (arcs, arcs.tolist(), arcs.numpy(), tuple(arcs), arcs.int()):
            assert torch.equal(shortest_path_arcs(costs, given, source, target), expected)


def test_moves_right_and_down_on_a_grid_take_negative_costs():
    arcs = grid_arcs(5, 5)
    costs = torch.randn(60, 40, dtype=torch.float64)
    assert torch.equal(shortest_path_arcs(costs, arcs, 0, 24), map_state(-costs, all_arc_paths(arcs, 0, 24)))


@pytest.mark.parametrize("vertices, density", [(3, 1.0), (5, 0.6), (6, 0.4)])
def test_with_cycles_a_path_is_the_best_of_all_simple_paths(vertices, density):
    for _ in range(4):
        arcs, source, target = cyclic(vertices, density)
        costs = torch.rand(40, arcs.shape[1], dtype=torch.float64)
        states = all_arc_paths(arcs, source, target)
        assert torch.equal(shortest_path_arcs(costs, arcs, source, target), map_state(-costs, states))
        # a height for each vertex makes some costs negative, and every cycle costs what it did
        height = torch.randn(vertices, dtype=torch.float64)
        tilted = costs + height[arcs[0]] - height[arcs[1]]
        assert (tilted < 0).any()
        assert torch.equal(shortest_path_arcs(tilted, arcs, source, target), map_state(-costs, states))
        clamped = shortest_path_arcs(tilted, arcs, source, target, negative_as_zero=True)
        assert torch.equal(clamped, shortest_path_arcs(tilted.clamp(min=0), arcs, source, target))


def test_a_path_costs_what_dijkstra_finds_on_large_graphs_of_uneven_degrees():
    tails, heads = torch.randint(0, 200, (2, 900))
    tails[:150], heads[:150] = torch.arange(150), 7  # a hub: 150 arcs lead to it, where others have four
    tails[150:300], heads[150:300] = 7, torch.arange(150)
    arcs = torch.stack([tails, heads])
    costs = torch.rand(5, 900, dtype=torch.float64)
    z = shortest_path_arcs(costs, arcs, 0, 149)
    graph = module._graph_of(arcs, 0, 149, costs.device)
    assert len(graph.names) < 5 * 900  # dummies do not fill the tables
    for row, chosen in zip(costs.numpy(), z):
        graph = np.full((200, 200), np.inf)
        np.minimum.at(graph, tuple(arcs.numpy()), row)
        expected = dijkstra(csr_array(np.nan_to_num(graph, posinf=0.0)), indices=0)[149]
        assert math.isclose((chosen.numpy() * row).sum(), expected)


def test_a_grid_with_all_eight_moves_has_the_paths_of_the_solver_of_grids():
    cells, arcs = torch.rand(20, 5, 6, dtype=torch.float64) + 0.01, grid_arcs(5, 6, KING)
    z = shortest_path_arcs(cells.flatten(1)[:, arcs[1]], arcs, 0, 29)
    visited = torch.zeros(20, 30, dtype=torch.float64).index_add_(1, arcs[1], z)
    visited[:, 0] = 1
    assert torch.equal(visited.view(20, 5, 6), shortest_path(cells))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_on_ties_the_result_is_one_cheapest_path(dtype):
    for arcs, source, target in (acyclic(6, 0.6), cyclic(6, 0.5)):
        costs = torch.randint(0, 3, (60, arcs.shape[1])).to(dtype)
        z = shortest_path_arcs(costs, arcs, source, target)
        states = all_arc_paths(arcs, source, target)
        assert (z[:, None] == states.to(dtype)).all(dim=2).any(dim=1).all()
        best = map_state(-costs.double(), states)
        assert torch.equal((z * costs).double().sum(1), (best * costs).double().sum(1))


def test_cycles_that_cost_nothing_do_not_lead_in_circles_not_even_by_rounding():
    arcs, source, target = cyclic(8, 0.6)
    costs = torch.rand(200, arcs.shape[1]) ** 20
    costs[:100] = torch.randint(0, 2, (100, arcs.shape[1])).float()
    costs[::2, arcs[0] == source] = 1e20
    z = shortest_path_arcs(costs, arcs, source, target)
    states = all_arc_paths(arcs, source, target)
    assert (z[:, None] == states).all(dim=2).any(dim=1).all()


def test_an_arc_of_infinite_cost_is_never_taken_and_a_row_without_a_path_is_named():
    arcs = grid_arcs(4, 4)
    costs = torch.randn(60, 24, dtype=torch.float64)
    costs[torch.rand(60, 24) < 0.2] = math.inf
    costs[:, [0, 1, 2, 6, 13, 20]] = 50.0  # right along the top, then down: always a way out
    z = shortest_path_arcs(costs, arcs, 0, 15)
    assert (z[costs.isinf()] == 0).all()
    assert torch.equal(z, map_state(-costs.clamp(max=1e6), all_arc_paths(arcs, 0, 15)))
    costs[7, arcs[1] == 15] = math.inf
    with pytest.raises(ValueError, match="no path leads from 0 to 15 in row 7"):
        shortest_path_arcs(costs, arcs, 0, 15)


def test_costs_at_the_end_of_their_range_are_no_missing_arcs():
    arcs = grid_arcs(2, 3)
    costs = torch.full((1, 7), torch.finfo(torch.float32).max)
    assert shortest_path_arcs(costs, arcs, 0, 5).sum() == 3
    assert shortest_path_arcs(-costs, arcs, 0, 5).sum() == 3


def test_a_cycle_that_costs_less_than_nothing_is_named_only_if_a_path_could_use_it():
    arcs = torch.tensor([[0, 1, 2, 1, 3, 4, 2], [1, 2, 1, 3, 4, 3, 5]])  # 1 <-> 2 on the way, 3 <-> 4 off it
    costs = torch.ones(3, 7)
    costs[:, 4:6] = -5.0
    expected = torch.tensor([1.0, 1, 0, 0, 0, 0, 1]).expand(3, 7)
    assert torch.equal(shortest_path_arcs(costs, arcs, 0, 5), expected)
    costs[1, 2] = -1.5
    with pytest.raises(ValueError, match=r"a cycle costs less than nothing \(negative_as_zero=True.* in row 1"):
        shortest_path_arcs(costs, arcs, 0, 5)
    assert torch.equal(shortest_path_arcs(costs, arcs, 0, 5, negative_as_zero=True), expected)


def test_from_a_vertex_to_itself_no_arc_is_taken():
    costs = torch.rand(3, 4)
    assert torch.equal(shortest_path_arcs(costs, grid_arcs(2, 2), 1, 1), torch.zeros(3, 4))
    assert torch.equal(shortest_path_arcs(costs, [[0, 1, 1, 2], [1, 0, 2, 1]], 1, 1), torch.zeros(3, 4))


def test_where_nobody_may_look_the_answer_is_the_same_and_nan_where_there_is_none(no_waiting):
    for arcs, source, target in (acyclic(7, 0.5), cyclic(7, 0.5)):
        costs = torch.rand(9, arcs.shape[1])
        expected = shortest_path_arcs(costs, arcs, source, target)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("imle._numerics.host_may_wait", lambda x: False)
            assert torch.equal(shortest_path_arcs(costs, arcs, source, target), expected)
            costs[2, arcs[1] == target] = math.inf
            costs[4, 0] = math.nan
            costs[6] = -1.0
            z = shortest_path_arcs(costs, arcs, source, target)
        wrong = z.isnan().any(dim=1).nonzero().flatten().tolist()
        has_cycle = (arcs[0] == arcs[1]).any()
        assert wrong == ([2, 4, 6] if has_cycle else [2, 4])
        fine = [0, 1, 3, 5, 7, 8]
        assert torch.equal(z[fine], expected[fine])


def test_a_graph_is_looked_at_once_and_a_changed_one_again():
    arcs, costs = grid_arcs(3, 3), torch.rand(2, 12)
    shortest_path_arcs(costs, arcs, 0, 8)
    before = module._prepare.cache_info()
    shortest_path_arcs(costs, arcs.clone(), 0, 8)
    assert module._prepare.cache_info().misses == before.misses
    arcs[:, 0] = torch.tensor([0, 8])  # now one arc leads straight to the target
    costs[:, 0] = 0.0
    assert shortest_path_arcs(costs, arcs, 0, 8).tolist() == [[1.0] + [0.0] * 11] * 2


def test_the_arcs_of_a_grid_come_row_by_row_those_to_the_right_before_those_down():
    arcs = grid_arcs(3, 3).t().tolist()
    assert arcs[:5] == [[0, 1], [1, 2], [0, 3], [1, 4], [2, 5]]
    assert arcs[-2:] == [[6, 7], [7, 8]]
    assert grid_arcs(1, 1).shape == (2, 0)
    assert grid_arcs(4, 5, KING).shape[1] == 2 * (4 * 4 + 3 * 5 + 2 * 3 * 4)


def test_paths_by_arcs_are_refused_for_what_is_no_graph():
    costs, arcs = torch.zeros(2, 4), [[0, 0, 1, 2], [1, 2, 3, 3]]
    with pytest.raises(ValueError, match=r"costs must be \[B, 4\], one for each arc; their shape is \(2, 3\)"):
        shortest_path_arcs(costs[:, :3], arcs, 0, 3)
    with pytest.raises(ValueError, match=r"tails and heads, \[2, A\]; their shape is \(4, 2\)"):
        shortest_path_arcs(costs, torch.tensor(arcs).t(), 0, 3)
    with pytest.raises(TypeError, match="arcs must be whole numbers"):
        shortest_path_arcs(costs, torch.tensor(arcs).float(), 0, 3)
    with pytest.raises(ValueError, match="at least one"):
        shortest_path_arcs(costs[:, :0], grid_arcs(1, 1), 0, 0)
    with pytest.raises(ValueError, match="vertices from 0 up, not -1"):
        shortest_path_arcs(costs, [[0, 0, 1, -1], [1, 2, 3, 3]], 0, 3)
    with pytest.raises(ValueError, match="target must be a vertex of the arcs, from 0 to 3; it is 4"):
        shortest_path_arcs(costs, arcs, 0, 4)
    with pytest.raises(ValueError, match="no path leads from source 3 to target 0, whatever it costs"):
        shortest_path_arcs(costs, arcs, 3, 0)
    for wrong in (math.nan, -math.inf):
        costs[1, 2] = wrong
        with pytest.raises(FloatingPointError, match="row 1"):
            shortest_path_arcs(costs, arcs, 0, 3)

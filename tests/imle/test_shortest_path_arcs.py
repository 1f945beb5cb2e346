"""Paths by arcs against enumeration and scipy."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from imle.solvers import grid_arcs, shortest_path_arcs
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_on_ties_the_result_is_one_cheapest_path(dtype):
    arcs, source, target = acyclic(6, 0.6)
    costs = torch.randint(0, 3, (60, arcs.shape[1])).to(dtype)
    z = shortest_path_arcs(costs, arcs, source, target)
    states = all_arc_paths(arcs, source, target)
    assert (z[:, None] == states.to(dtype)).all(dim=2).any(dim=1).all()
    best = map_state(-costs.double(), states)
    assert torch.equal((z * costs).double().sum(1), (best * costs).double().sum(1))


def test_heads_of_many_arcs_do_not_fill_tables_with_dummies():
    tails = torch.cat([torch.zeros(100, dtype=torch.long), torch.arange(1, 101), torch.arange(1, 100)])
    heads = torch.cat([torch.arange(1, 101), torch.full((100,), 101), torch.arange(2, 101)])
    graph = module._graph_of(torch.stack([tails, heads]), 0, 101, torch.device("cpu"))
    assert len(graph.names) < 5 * len(tails)
    costs = torch.rand(20, len(tails), dtype=torch.float64)
    z = shortest_path_arcs(costs, torch.stack([tails, heads]), 0, 101)
    for row, chosen in zip(costs, z):
        matrix = csr_array((row.numpy(), (tails.numpy(), heads.numpy())), shape=(102, 102))
        assert math.isclose((chosen * row).sum().item(), dijkstra(matrix, indices=0)[101])


def test_a_graph_with_a_cycle_is_refused_if_a_path_could_use_it():
    arcs = [[0, 1, 2, 1, 3, 4], [1, 2, 3, 4, 1, 5]]  # 1 -> 2 -> 3 -> 1 on the way
    with pytest.raises(ValueError, match="the graph has a cycle between source and target"):
        shortest_path_arcs(torch.rand(2, 6), arcs, 0, 5)
    beside = [[0, 1, 2, 3], [1, 2, 3, 2]]  # 2 <-> 3 leads nowhere
    assert shortest_path_arcs(torch.rand(1, 4), beside, 0, 1).tolist() == [[1.0, 0.0, 0.0, 0.0]]


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


def test_from_a_vertex_to_itself_no_arc_is_taken():
    costs = torch.rand(3, 4)
    assert torch.equal(shortest_path_arcs(costs, grid_arcs(2, 2), 1, 1), torch.zeros(3, 4))


def test_where_nobody_may_look_the_answer_is_the_same_and_nan_where_there_is_none(no_waiting):
    arcs, source, target = acyclic(7, 0.5)
    costs = torch.rand(9, arcs.shape[1])
    expected = shortest_path_arcs(costs, arcs, source, target)
    no_waiting()
    assert torch.equal(shortest_path_arcs(costs, arcs, source, target), expected)
    costs[2, arcs[1] == target] = math.inf
    costs[4, 0] = math.nan
    z = shortest_path_arcs(costs, arcs, source, target)
    assert z.isnan().any(dim=1).nonzero().flatten().tolist() == [2, 4]
    fine = [0, 1, 3, 5, 6, 7, 8]
    assert torch.equal(z[fine], expected[fine])


def test_a_changed_graph_is_looked_at_again():
    arcs, costs = grid_arcs(3, 3), torch.rand(2, 12)
    shortest_path_arcs(costs, arcs, 0, 8)
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
    with pytest.raises(ValueError, match=r"arcs must be tails and heads, \[2, A\]"):
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


@pytest.mark.parametrize("kind", [np.uint8, np.int64, torch.tensor])
def test_source_and_target_may_be_of_any_kind_of_whole_numbers(kind):
    costs, arcs = torch.rand(3, 12), grid_arcs(3, 3)
    assert torch.equal(shortest_path_arcs(costs, arcs, kind(0), kind(8)), shortest_path_arcs(costs, arcs, 0, 8))

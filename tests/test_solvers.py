"""The solvers against enumeration, against scipy and networkx, and against their own symmetries."""

import copy
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading

import networkx
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import dijkstra

from imle.aimle import aimle
from imle.solvers import (
    batched,
    mathias_select_k,
    select_k,
    shortest_path,
    spanning_tree,
    spanning_tree_edges,
)
from imle.target import TargetDistribution
from tests.oracles import all_simple_paths, all_spanning_trees, all_subsets, exact_marginals, map_state

SMALL, LARGE = 7, 3000  # rows: LARGE takes the sorting network, SMALL does not
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def symmetric(*shape):
    weights = torch.randn(*shape, dtype=torch.float64)
    return (weights + weights.mT) / 2


def transposed_copy(tensor):
    """Return an equal tensor whose memory is laid out the other way round."""
    dims = tuple(reversed(range(tensor.dim())))
    copied = tensor.permute(dims).contiguous().permute(dims)
    assert not copied.is_contiguous()
    return copied


# --- oracles ---------------------------------------------------------------------------------------------------


def test_oracles_list_as_many_states_as_combinatorics_counts():
    assert all_subsets(6, 2).unique(dim=0).shape == (15, 6)
    for n, count in [(1, 1), (2, 1), (3, 3), (4, 16), (5, 125)]:
        assert all_spanning_trees(n).unique(dim=0).shape == (count, n, n)
    assert len(all_simple_paths(2, 2, 8)) == 5
    assert len(all_simple_paths(3, 3, 4)) == 12
    assert len(all_simple_paths(4, 4, 4)) == 184


def test_every_tree_of_the_oracle_is_a_tree():
    for state in all_spanning_trees(5):
        assert networkx.is_tree(networkx.from_numpy_array(state.numpy()))


def test_exact_marginals_of_one_of_n_are_a_softmax_and_freeze_into_the_map_state():
    theta = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(exact_marginals(theta, all_subsets(5, 1), 0.5), (theta / 0.5).softmax(dim=1))
    states = all_subsets(5, 2)
    torch.testing.assert_close(exact_marginals(theta, states, 1e-6), map_state(theta, states))


# --- top k -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [SMALL, LARGE])
@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_select_k_is_the_best_of_all_subsets(rows, k):
    theta = torch.randn(rows, 6, dtype=torch.float64)
    assert torch.equal(select_k(theta, k), map_state(theta, all_subsets(6, k)))


@pytest.mark.parametrize("n", [2, 3, 20, 33, 64, 65])
def test_select_k_agrees_with_a_full_sort_for_every_k(n):
    theta = torch.randn(LARGE, n, dtype=torch.float64)
    ranks = theta.argsort(dim=1, descending=True).argsort(dim=1)
    for k in {0, 1, n // 2, n - 1, n}:
        assert torch.equal(select_k(theta, k), (ranks < k).double())


@pytest.mark.parametrize("rows", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", FLOATS)
def test_select_k_takes_exactly_k_of_the_largest_even_on_ties(rows, dtype):
    theta = torch.randint(0, 4, (rows, 12)).to(dtype)
    z = select_k(theta, 5)
    assert z.dtype == dtype and z.is_contiguous()
    assert ((z == 0) | (z == 1)).all() and (z.sum(dim=1) == 5).all()
    assert torch.equal((z * theta).float().sum(dim=1), theta.float().topk(5, dim=1).values.sum(dim=1))
    assert (mathias_select_k(theta, 5).sum(dim=1) > 5).any()


@pytest.mark.parametrize("rows", [SMALL, LARGE])
def test_select_k_takes_exactly_k_of_equal_infinite_or_missing_scores(rows):
    theta = torch.randn(rows, 9)
    theta[0] = math.nan
    theta[1] = -math.inf
    theta[2] = math.inf
    theta[3, ::2] = math.nan
    theta[4, :5] = -math.inf
    theta[5] = 0.0
    z = select_k(theta, 6)
    assert (z.sum(dim=1) == 6).all()
    assert (z[3, ::2] == 1).all()
    assert (z[4, 5:] == 1).all()
    assert torch.equal(z[6:], select_k(theta[6:].double(), 6).float())


@pytest.mark.parametrize("rows", [SMALL, LARGE])
def test_select_k_does_not_depend_on_memory_layout_or_leading_dimensions(rows):
    theta = torch.randn(rows, 2, 8)
    z = select_k(theta.flatten(0, 1), 3).view_as(theta)
    assert torch.equal(select_k(theta, 3), z)
    assert torch.equal(select_k(transposed_copy(theta), 3), z)
    assert torch.equal(select_k(theta[:, 0], 3), z[:, 0])
    assert torch.equal(select_k(theta[0, 0], 3), z[0, 0])


@pytest.mark.parametrize("rows", [SMALL, LARGE])
def test_select_k_leaves_its_input_alone_and_returns_no_gradient(rows):
    theta = torch.randn(rows, 8, requires_grad=True)
    before = theta.detach().clone()
    z = select_k(theta, 3, mask=torch.ones(8, dtype=torch.bool))
    assert not z.requires_grad
    assert torch.equal(theta, before)


@pytest.mark.parametrize("rows", [SMALL, LARGE])
def test_a_mask_leaves_the_best_of_the_allowed_subsets(rows):
    theta = torch.randn(rows, 6, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, False, True])
    allowed = all_subsets(6, 2)
    allowed = allowed[(allowed[:, ~mask] == 0).all(dim=1)]
    assert torch.equal(select_k(theta, 2, mask), map_state(theta, allowed))
    assert torch.equal(select_k(theta, 2, mask.expand(rows, 6)), map_state(theta, allowed))


@pytest.mark.parametrize("rows", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_masked_row_gets_k_or_all_that_is_allowed(rows, dtype):
    theta = torch.randn(rows, 10).to(dtype)
    theta[:, ::3] = -math.inf
    theta[::2, 1] = math.nan
    mask = torch.rand(rows, 10) < torch.rand(rows, 1)
    mask[0] = False
    z = select_k(theta, 4, mask)
    assert (z[~mask] == 0).all()
    assert torch.equal(z.sum(dim=1).long(), mask.sum(dim=1).clamp(max=4))
    assert (mask.sum(dim=1) < 4).any() and (mask.sum(dim=1) > 4).any()


def test_a_mask_broadcasts_over_the_dimensions_between():
    theta, mask = torch.randn(5, 3, 7), torch.rand(5, 1, 7) < 0.6
    assert torch.equal(select_k(theta, 3, mask), select_k(theta, 3, mask.expand(5, 3, 7).clone()))


@pytest.mark.parametrize("solver", [select_k, mathias_select_k])
def test_top_k_without_ties_is_the_same_under_both_rules_and_any_monotone_map(solver):
    theta = torch.randn(50, 9, dtype=torch.float64)
    assert torch.equal(solver(theta, 4), select_k(theta.exp() * 3 - 1, 4))


def test_mathias_select_k_takes_all_that_reach_the_threshold():
    theta = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]])
    assert mathias_select_k(theta, 2).tolist() == [[0, 1, 1, 0, 1]]
    assert mathias_select_k(theta, 4).tolist() == [[0, 1, 1, 1, 1]]


def test_top_k_refuses_what_it_cannot_answer():
    theta = torch.randn(3, 4)
    for solver, k in [(select_k, -1), (select_k, 5), (mathias_select_k, 0), (mathias_select_k, 5)]:
        with pytest.raises(ValueError, match=f"and 4, the entries of a row; it is {k}"):
            solver(theta, k)
    with pytest.raises(ValueError, match="at least one dimension"):
        select_k(torch.tensor(1.0), 1)
    with pytest.raises(TypeError, match="floating point"):
        select_k(torch.arange(4), 1)
    with pytest.raises(TypeError, match="mask must be bool"):
        select_k(theta, 1, torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"\(3, 5\) for parameters \(3, 4\)"):
        select_k(theta, 1, torch.ones(3, 5, dtype=torch.bool))


def test_solvers_answer_an_empty_batch():
    assert select_k(torch.zeros(0, 4), 2).shape == (0, 4)
    assert spanning_tree(torch.zeros(0, 4, 4)).shape == (0, 4, 4)
    assert spanning_tree_edges(torch.zeros(0, 6)).shape == (0, 6)
    assert shortest_path(torch.zeros(0, 3, 5)).shape == (0, 3, 5)


# --- spanning trees --------------------------------------------------------------------------------------------


def assert_trees(z):
    assert torch.equal(z, z.mT) and ((z == 0) | (z == 1)).all()
    for adjacency in z.float().numpy():
        assert networkx.is_tree(networkx.from_numpy_array(adjacency))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_spanning_tree_is_the_best_of_all_trees(n):
    weights = symmetric(40, n, n)
    assert torch.equal(spanning_tree(weights), map_state(weights, all_spanning_trees(n)))


@pytest.mark.parametrize("n", [10, 30])
def test_spanning_tree_agrees_with_networkx(n):
    weights = symmetric(6, n, n)
    for adjacency, matrix in zip(spanning_tree(weights), weights):
        graph = networkx.from_numpy_array(matrix.fill_diagonal_(0).numpy())
        expected = networkx.to_numpy_array(networkx.maximum_spanning_tree(graph), weight=None)
        assert np.array_equal(adjacency.numpy(), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_on_ties_the_result_is_a_tree_of_greatest_weight(dtype):
    weights = symmetric(60, 5, 5).round().to(dtype)
    z = spanning_tree(weights)
    assert z.dtype == dtype
    assert_trees(z)
    best = map_state(weights.double(), all_spanning_trees(5))
    assert torch.equal((z * weights).double().sum((1, 2)), (best * weights).double().sum((1, 2)))
    assert_trees(spanning_tree(torch.zeros(2, 6, 6, dtype=dtype)))


def test_an_edge_of_weight_minus_infinity_is_used_only_where_the_graph_falls_apart_without_it():
    weights = torch.full((1, 4, 4), -math.inf)
    for u, v in [(0, 2), (2, 1), (1, 3)]:
        weights[0, u, v] = weights[0, v, u] = -1e30
    assert spanning_tree(weights).triu().nonzero()[:, 1:].tolist() == [[0, 2], [1, 2], [1, 3]]
    assert_trees(spanning_tree(torch.full((1, 5, 5), -math.inf)))
    assert_trees(spanning_tree(torch.full((1, 5, 5), math.nan)))
    weights[0, 0, 3] = weights[0, 3, 0] = math.inf
    z = spanning_tree(weights)
    assert_trees(z)
    assert z[0, 0, 3] == 1


def test_a_spanning_tree_depends_only_on_the_order_of_the_weights():
    weights = symmetric(20, 8, 8)
    z = spanning_tree(weights)
    for mapped in (5 * weights - 100, weights.sinh(), weights.sigmoid()):
        assert torch.equal(spanning_tree(mapped), z)


def test_a_spanning_tree_moves_with_the_names_of_its_vertices():
    weights, order = symmetric(20, 9, 9), torch.randperm(9)
    assert torch.equal(spanning_tree(weights[:, order][:, :, order]), spanning_tree(weights)[:, order][:, :, order])


def test_the_diagonal_is_not_read_and_layout_and_leading_dimensions_do_not_matter():
    weights = symmetric(3, 4, 6, 6)
    z = spanning_tree(weights)
    assert torch.equal(spanning_tree(weights + 1e6 * torch.eye(6)), z)
    assert torch.equal(spanning_tree(transposed_copy(weights)), z)
    assert torch.equal(spanning_tree(weights[0, 0]), z[0, 0])


def test_edge_vectors_and_matrices_give_the_same_trees():
    weights = symmetric(3, 4, 7, 7)
    u, v = torch.triu_indices(7, 7, 1)
    z = spanning_tree_edges(weights[..., u, v])
    assert torch.equal(z, spanning_tree(weights)[..., u, v])
    assert (z.sum(dim=-1) == 6).all()
    assert torch.equal(spanning_tree_edges(torch.randn(5, 1)), torch.ones(5, 1))


def test_spanning_trees_are_refused_for_what_is_no_graph():
    for shape in [(3, 4), (4,), (2, 0, 0)]:
        with pytest.raises(ValueError, match="square matrices"):
            spanning_tree(torch.zeros(shape))
    for shape in [(2, 4), ()]:
        with pytest.raises(ValueError, match=r"n \(n - 1\) / 2"):
            spanning_tree_edges(torch.zeros(shape))
    with pytest.raises(TypeError, match="floating point"):
        spanning_tree(torch.zeros(2, 3, 3, dtype=torch.long))


# --- shortest paths --------------------------------------------------------------------------------------------


def assert_paths(z, neighbours):
    """Check that each z is a simple path between the corners: consecutive cells touch, and no shortcut is left."""
    height, width = z.shape[-2:]
    for cells in z:
        assert cells[0, 0] == 1 and cells[-1, -1] == 1 and ((cells == 0) | (cells == 1)).all()
        graph = networkx.Graph(edges_between(cells.nonzero().tolist(), neighbours))
        graph.add_node((0, 0))
        assert networkx.has_path(graph, (0, 0), (height - 1, width - 1))
        assert len(graph) == int(cells.sum())


def edges_between(cells, neighbours):
    reach = 1 if neighbours == 4 else 2
    for i, (row, column) in enumerate(cells):
        for other_row, other_column in cells[:i]:
            down, right = abs(row - other_row), abs(column - other_column)
            if max(down, right) == 1 and down + right <= reach:
                yield (row, column), (other_row, other_column)


def dijkstra_costs(costs, neighbours):
    """Return the cost of the cheapest path of one grid, by scipy."""
    height, width = costs.shape
    cells = [(row, column) for row in range(height) for column in range(width)]
    graph = np.zeros((height * width, height * width))
    for (row, column), (other_row, other_column) in edges_between(cells, neighbours):
        graph[row * width + column, other_row * width + other_column] = costs[other_row, other_column]
        graph[other_row * width + other_column, row * width + column] = costs[row, column]
    return costs[0, 0] + dijkstra(graph, indices=0)[-1]


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("h, w", [(1, 1), (1, 4), (3, 1), (3, 3), (2, 5)])
def test_shortest_path_is_the_best_of_all_paths(h, w, neighbours):
    costs = torch.rand(60, h, w, dtype=torch.float64) ** 3
    z = shortest_path(costs, neighbours)
    assert torch.equal(z, map_state(-costs, all_simple_paths(h, w, neighbours)))


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("h, w", [(12, 12), (9, 14)])
def test_shortest_path_costs_what_dijkstra_finds(h, w, neighbours):
    costs = torch.rand(4, h, w, dtype=torch.float64) ** 4 + 1e-3
    z = shortest_path(costs, neighbours)
    assert_paths(z, neighbours)
    expected = [dijkstra_costs(grid, neighbours) for grid in costs.numpy()]
    torch.testing.assert_close((z * costs).sum((1, 2)), torch.tensor(expected, dtype=torch.float64))


def test_shortest_path_winds_through_a_maze():
    wall = 100.0
    maze = torch.ones(1, 7, 7)
    maze[0, 1, :6] = maze[0, 3, 1:] = maze[0, 5, :6] = wall
    z = shortest_path(maze, neighbours=4)
    assert (z * maze).sum() == z.sum() == 25
    assert_paths(z, neighbours=4)


@pytest.mark.parametrize("neighbours", [4, 8])
def test_cells_that_cost_nothing_do_not_lead_in_circles(neighbours):
    costs = torch.randint(0, 2, (80, 6, 6)).float()
    costs[0] = 0.0
    z = shortest_path(costs, neighbours)
    assert_paths(z, neighbours)
    expected = (z * costs).sum((1, 2))
    shifted = shortest_path(costs.double() + 1e-4, neighbours)  # of the cheapest, one with the fewest cells
    assert torch.equal(expected, (shifted * costs).sum((1, 2)).float())
    assert torch.equal(z.sum((1, 2)), shifted.sum((1, 2)).float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_costs_lost_to_rounding_do_not_lead_in_circles(dtype):
    costs = torch.rand(50, 8, 8, dtype=dtype) ** 8
    costs[:, 0, 0] = 1e20
    z = shortest_path(costs)
    assert z.dtype == dtype
    assert_paths(z, 8)


def test_a_negative_cost_counts_as_zero():
    costs = torch.randn(40, 5, 6)
    assert (costs < 0).any(dim=(1, 2)).all()
    z = shortest_path(costs)
    assert torch.equal(z, shortest_path(costs.clamp(min=0.0)))
    assert_paths(z, 8)


def test_cells_of_infinite_cost_are_entered_only_where_there_is_no_other_way():
    costs = torch.ones(3, 4, 5)
    costs[0, :3, 2] = math.inf
    costs[1, :, 2] = math.inf
    costs[2] = math.inf
    costs[0, 0, 2] = math.nan
    z = shortest_path(costs)
    assert_paths(z, 8)
    assert z[:, :, 2].sum(dim=1).tolist() == [1, 1, 1]
    assert z[0, 3, 2] == 1


def test_half_precision_costs_are_summed_in_single_precision():
    costs = torch.rand(20, 12, 12) + 0.05
    for dtype in (torch.bfloat16, torch.float16):
        z = shortest_path(costs.to(dtype))
        assert z.dtype == dtype
        assert torch.equal(z.float(), shortest_path(costs.to(dtype).float()))


def test_a_path_mirrored_at_the_diagonal_is_the_path_of_the_mirrored_costs():
    costs = torch.rand(10, 6, 8, dtype=torch.float64)
    assert torch.equal(shortest_path(costs.mT), shortest_path(costs).mT)
    assert torch.equal(shortest_path(costs.flip(1, 2)), shortest_path(costs).flip(1, 2))


def test_paths_do_not_depend_on_memory_layout_or_leading_dimensions():
    costs = torch.rand(2, 3, 4, 5)
    z = shortest_path(costs)
    assert torch.equal(shortest_path(transposed_copy(costs)), z)
    assert torch.equal(shortest_path(costs[0, 1]), z[0, 1])


def test_shortest_path_refuses_what_it_cannot_answer():
    with pytest.raises(ValueError, match="4 or 8; it is 6"):
        shortest_path(torch.zeros(1, 2, 2), neighbours=6)
    for shape in [(3,), (2, 0, 3)]:
        with pytest.raises(ValueError, match="grids"):
            shortest_path(torch.zeros(shape))
    with pytest.raises(TypeError, match="floating point"):
        shortest_path(torch.zeros(1, 2, 2, dtype=torch.long))


# --- batched ---------------------------------------------------------------------------------------------------


def one_hot(theta):
    z = np.zeros_like(theta)
    z[theta.argmax()] = 1
    return z


def one_hot_in_torch(theta):
    assert isinstance(theta, torch.Tensor)
    return torch.nn.functional.one_hot(theta.argmax(), len(theta))


def one_hot_list(theta):
    return [int(i == theta.argmax()) for i in range(len(theta))]


def assignment(theta):
    z = np.zeros_like(theta)
    z[linear_sum_assignment(theta, maximize=True)] = 1
    return z


def fails_on_negative(theta):
    if theta.min() < 0:
        raise KeyError("no such thing")
    return theta


def ends_the_process_of_negative(theta):
    return os._exit(3) if theta.min() < 0 else theta


def process_id(theta):
    return [os.getpid()]


@batched(workers=1, executor="process")
def decorated(theta, scale):
    return scale * one_hot(theta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("solver, instance", [(one_hot, "numpy"), (one_hot_list, "numpy"), (one_hot_in_torch, "torch")])
def test_a_lifted_solver_solves_each_instance(solver, instance, workers, dtype):
    theta = torch.randn(13, 5).to(dtype).requires_grad_()
    z = batched(solver, instance=instance, workers=workers)(theta)
    assert z.dtype == dtype and not z.requires_grad
    assert torch.equal(z, select_k(theta, 1))


def test_batched_is_a_decorator_with_and_without_options():
    @batched
    def bare(theta):
        """Say hello."""
        return one_hot(theta)

    @batched(workers=2)
    def with_options(theta):
        return one_hot(theta)

    theta = torch.randn(4, 3)
    assert torch.equal(bare(theta), select_k(theta, 1))
    assert torch.equal(with_options(theta), select_k(theta, 1))
    assert (bare.__name__, bare.__doc__) == ("bare", "Say hello.")


def test_a_lifted_solver_keeps_the_shape_of_its_instances():
    theta = torch.randn(3, 4, 4, dtype=torch.float64)
    z = batched(assignment)(transposed_copy(theta))
    assert z.shape == theta.shape
    assert torch.equal(z.sum(1), torch.ones(3, 4)) and torch.equal(z.sum(2), torch.ones(3, 4))
    assert torch.equal(z, batched(assignment, workers=2)(theta))
    assert batched(assignment)(torch.zeros(0, 4, 4)).shape == (0, 4, 4)
    assert batched(lambda x: x > 0)(torch.tensor([0.5, -0.5])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("instance", ["numpy", "torch"])
def test_further_arguments_are_dealt_out_where_their_first_dimension_is_the_batch(instance):
    seen = []

    @batched(instance=instance)
    def solver(theta, rows, table, *, sizes, word):
        seen.append((rows, table, sizes, word))
        return theta

    theta, rows, table = torch.zeros(3, 2), torch.arange(6).view(3, 2), torch.ones(4, 3)
    solver(theta, rows, table, sizes=np.array([7, 8, 9]), word="abc")
    assert [list(row) for row, *_ in seen] == [[0, 1], [2, 3], [4, 5]]
    assert all(isinstance(row, torch.Tensor) == (instance == "torch") for row, *_ in seen)
    assert all(item is table for _, item, *_ in seen)
    assert [(int(size), word) for *_, size, word in seen] == [(7, "abc"), (8, "abc"), (9, "abc")]


@pytest.mark.parametrize("instance", ["numpy", "torch"])
def test_a_lifted_solver_may_write_on_its_input_and_return_it(instance):
    @batched(instance=instance)
    def scribble(theta):
        theta[:] = theta + 1
        return theta

    theta = torch.zeros(3, 2)
    assert torch.equal(scribble(theta), torch.ones(3, 2))
    assert torch.equal(theta, torch.zeros(3, 2))


def test_a_lifted_solver_may_return_views_running_backwards():
    theta = torch.randn(3, 4)
    assert torch.equal(batched(lambda x: x[::-1])(theta), theta.flip(1))


def test_threads_solve_at_the_same_time_and_are_used_again():
    barrier = threading.Barrier(2)

    @batched(workers=2)
    def meet(theta):
        barrier.wait(timeout=30)
        return [threading.get_ident()]

    first, second = (meet(torch.zeros(2, 1, dtype=torch.float64)) for _ in range(2))
    assert len(first.unique()) == 2 and threading.get_ident() not in first
    assert torch.equal(first.unique(), second.unique())


def test_a_failure_names_the_instance_and_keeps_its_cause():
    theta = torch.ones(9, 2)
    theta[6, 1] = -1.0
    for workers in (0, 2):
        with pytest.raises(RuntimeError, match="instance 6: KeyError: 'no such thing'") as caught:
            batched(fails_on_negative, workers=workers)(theta)
        assert isinstance(caught.value.__cause__, KeyError)


def test_a_lifted_solver_refuses_results_that_do_not_fit_together():
    with pytest.raises(ValueError, match=r"shape \(2,\) for instance 2 and \(0,\) for instance 0"):
        batched(lambda x: x[x > 0])(torch.tensor([[-1.0, -1.0], [-1.0, -2.0], [1.0, 1.0]]))
    for result in (None, "text", [[1.0], [1.0, 2.0]]):
        with pytest.raises(TypeError, match=f"returned {type(result).__name__} for instance 0"):
            batched(lambda x, result=result: result)(torch.zeros(2, 2))


def test_batched_refuses_options_it_does_not_know():
    with pytest.raises(TypeError, match="function of one instance"):
        batched(3)
    for options in [{"workers": -1}, {"executor": "gpu"}, {"instance": "jax"}]:
        with pytest.raises(ValueError, match="must be"):
            batched(one_hot, **options)
    with pytest.raises(ValueError, match="batch dimension"):
        batched(one_hot)(torch.tensor(1.0))


def test_a_lifted_solver_can_be_copied_and_pickled_and_leaves_its_pool_behind():
    theta = torch.randn(5, 4)
    solver = batched(one_hot, workers=2)
    z = solver(theta)
    for twin in (copy.copy(solver), copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert twin is not solver
        assert torch.equal(twin(theta), z)
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    assert copy.deepcopy(decorated) is decorated


@aimle(target_distribution=TargetDistribution(beta=1.0))
@batched
def largest_under_two_decorators(theta):
    return theta == theta.max()


def test_a_batched_solver_under_another_decorator_is_pickled_by_name():
    inner = largest_under_two_decorators.__wrapped__
    assert pickle.loads(pickle.dumps(inner)) is inner
    assert pickle.loads(pickle.dumps(largest_under_two_decorators)) is largest_under_two_decorators


def test_a_process_pool_needs_a_solver_that_can_be_imported():
    with pytest.raises(TypeError, match="top level of a module"):
        batched(lambda x: x, workers=1, executor="process")(torch.zeros(2, 2))


def test_processes_solve_fail_and_die_in_the_open():
    theta = torch.randn(9, 4, dtype=torch.float64)
    assert torch.equal(decorated(theta, 2.0), 2 * select_k(theta, 1))
    first, second = (decorated(theta, scale) for scale in (torch.arange(9.0), np.ones(4)))
    assert torch.equal(first, torch.arange(9.0)[:, None] * select_k(theta, 1))
    assert torch.equal(second, select_k(theta, 1))
    with pytest.raises(RuntimeError, match="instance 0: ValueError"):
        decorated(theta, np.ones(3))


@pytest.mark.slow
def test_processes_are_others_are_used_again_and_their_death_is_reported():
    solver = batched(process_id, workers=1, executor="process")
    first, second = (solver(torch.zeros(40, 1, dtype=torch.float64)) for _ in range(2))
    assert torch.equal(first, second) and len(first.unique()) == 1 and os.getpid() not in first
    in_torch = batched(one_hot_in_torch, instance="torch", workers=2, executor="process")
    theta = torch.randn(30, 4).bfloat16()
    assert torch.equal(in_torch(theta), select_k(theta, 1))
    mortal = batched(ends_the_process_of_negative, workers=1, executor="process")
    with pytest.raises(RuntimeError, match="ended abruptly"):
        mortal(-torch.ones(2, 2))
    assert torch.equal(mortal(torch.ones(2, 2)), torch.ones(2, 2))


@pytest.mark.slow
def test_processes_serve_a_solver_defined_in_a_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import torch
        from imle.solvers import batched

        @batched(workers=2, executor="process")
        def double(theta):
            return 2 * theta

        if __name__ == "__main__":
            print(double(torch.ones(3, 2)).tolist())
        """)
    )
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.stdout == "[[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]\n", done.stderr


@pytest.mark.gpu
def test_solvers_on_a_gpu_agree_with_the_cpu_and_do_not_wait():
    theta, weights = torch.randn(50, 20), symmetric(8, 10, 10)
    mask = torch.rand(50, 20) < 0.7
    on_gpu = [tensor.cuda() for tensor in (theta, weights, mask)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = select_k(on_gpu[0], 10, on_gpu[2]), mathias_select_k(on_gpu[0], 10), spanning_tree(on_gpu[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = select_k(theta, 10, mask), mathias_select_k(theta, 10), spanning_tree(weights)
    for z, z_cpu in zip(found, expected):
        assert torch.equal(z.cpu(), z_cpu)
    costs = torch.rand(8, 12, 12)
    assert torch.equal(shortest_path(costs.cuda()).cpu(), shortest_path(costs))
    assert torch.equal(batched(one_hot, workers=2)(theta.cuda()).cpu(), select_k(theta, 1))

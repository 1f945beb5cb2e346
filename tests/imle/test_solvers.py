"""The solvers against enumeration, against scipy and networkx, and against their own symmetries."""

import math

import networkx
import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import dijkstra
from torch.utils._python_dispatch import TorchDispatchMode

from imle.aimle import aimle
from imle.imle import imle
from imle.noise import GumbelNoiseDistribution
from imle.solvers import (
    batched,
    mathias_select_k,
    select_k,
    shortest_path,
    spanning_tree,
    spanning_tree_edges,
)
from imle.target import TargetDistribution
from tests.reference.oracles import all_simple_paths, all_spanning_trees, all_subsets, exact_marginals, map_state

SMALL, LARGE = 7, 4000  # rows: LARGE, of 8 to 32 entries, takes the sorting network, SMALL does not
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
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_select_k_is_the_best_of_all_subsets(rows, k):
    theta = torch.randn(rows, 8, dtype=torch.float64)
    assert torch.equal(select_k(theta, k), map_state(theta, all_subsets(8, k)))


@pytest.mark.parametrize("n", [2, 3, 8, 13, 20, 32, 33])
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
    theta = torch.randn(rows, 8, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, False, True, True, False])
    allowed = all_subsets(8, 2)
    allowed = allowed[(allowed[:, ~mask] == 0).all(dim=1)]
    assert torch.equal(select_k(theta, 2, mask), map_state(theta, allowed))
    assert torch.equal(select_k(theta, 2, mask.expand(rows, 8)), map_state(theta, allowed))


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


class Operations(TorchDispatchMode):
    """Record the names of the operations that run, and the shape of the first tensor of each."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        shape = next((tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)), ())
        self.seen.append((function.overloadpacket.__name__, shape))
        return function(*args, **kwargs or {})

    def shapes(self, *names):
        return [shape for name, shape in self.seen if name in names]


def operations(theta, k):
    with Operations() as recorded:
        select_k(theta, k)
    return recorded


def test_many_short_rows_are_selected_without_topk_but_for_rows_with_ties():
    theta = torch.randn(LARGE, 20)
    for k in (1, 10, 19):
        assert operations(theta, k).shapes("topk") == []
    assert operations(theta[:SMALL], 10).shapes("topk") == [(SMALL, 20)]
    assert operations(torch.randn(LARGE, 45), 10).shapes("topk") == [(LARGE, 45)]
    assert operations(torch.randn(LARGE, 4), 2).shapes("topk") == [(LARGE, 4)]
    assert operations(torch.randn(2000, 32), 16).shapes("topk") == [(2000, 32)]
    theta[5] = 0.0
    assert operations(theta, 10).shapes("topk") == [(1, 20)]


@pytest.mark.parametrize("k, needed", [(1, 120), (10, 144), (19, 120)])
def test_only_comparisons_that_the_kth_largest_depends_on_are_made(k, needed):
    # Batcher's network sorts 20 entries by 97 comparators, a maximum and a minimum each: 194 operations.
    assert len(operations(torch.randn(LARGE, 20), k).shapes("maximum", "minimum")) <= needed


def test_very_many_rows_are_worked_through_in_pieces():
    theta = torch.randn(140_001, 8)
    recorded = operations(theta, 3)
    assert max(rows for rows, *_ in recorded.shapes("maximum", "minimum")) <= 70_000
    expected = torch.zeros_like(theta).scatter_(1, theta.topk(3).indices, 1.0)
    assert torch.equal(select_k(theta, 3), expected)


def test_a_mask_broadcasts_over_the_dimensions_between():
    theta, mask = torch.randn(5, 3, 7), torch.rand(5, 1, 7) < 0.6
    assert torch.equal(select_k(theta, 3, mask), select_k(theta, 3, mask.expand(5, 3, 7).clone()))


@pytest.mark.parametrize("solver", [select_k, mathias_select_k])
def test_top_k_without_ties_is_the_same_under_both_rules_and_any_monotone_map(solver):
    theta = torch.randn(50, 9, dtype=torch.float64)
    assert torch.equal(solver(theta, 4), select_k(theta.exp() * 3 - 1, 4))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, torch.tensor])
@pytest.mark.parametrize("solver", [select_k, mathias_select_k])
def test_k_may_be_of_any_kind_of_whole_numbers(solver, kind):
    theta = torch.randn(4000, 20)  # rows enough for the sorting network
    assert torch.equal(solver(theta, kind(2)), solver(theta, 2))
    with pytest.raises(TypeError, match="integer"):
        solver(theta, 2.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_allowed_minus_infinity_comes_after_the_least_number(dtype):
    theta = torch.tensor([[-math.inf, torch.finfo(dtype).min, 0, -math.inf]], dtype=dtype)
    mask = torch.tensor([True, True, True, False])
    assert select_k(theta, 2, mask).tolist() == [[0, 1, 1, 0]]
    assert select_k(theta, 3, mask).tolist() == [[1, 1, 1, 0]]


def test_mathias_select_k_does_not_depend_on_memory_layout_or_leading_dimensions():
    theta = torch.randint(0, 5, (4, 3, 8)).double()
    z = mathias_select_k(theta, 3)
    rows = torch.stack([mathias_select_k(row, 3) for row in theta.flatten(0, 1)])
    assert torch.equal(z.flatten(0, 1), rows)
    assert torch.equal(mathias_select_k(transposed_copy(theta), 3), z)


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
    with pytest.raises(TypeError, match="mask must be bool"):
        select_k(theta, 1, torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"\(3, 5\) for parameters \(3, 4\)"):
        select_k(theta, 1, torch.ones(3, 5, dtype=torch.bool))


SOLVERS = {
    "select_k": (lambda theta: select_k(theta, 1), (2, 4)),
    "select_k, many rows": (lambda theta: select_k(theta, 1), (LARGE, 10)),
    "mathias_select_k": (lambda theta: mathias_select_k(theta, 1), (2, 4)),
    "spanning_tree": (spanning_tree, (2, 3, 3)),
    "spanning_tree_edges": (spanning_tree_edges, (2, 3)),
    "shortest_path": (shortest_path, (2, 3, 3)),
    "batched": (batched(lambda theta: theta), (2, 3)),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_every_solver_says_that_parameters_must_be_floating_point(name, dtype):
    solver, shape = SOLVERS[name]
    with pytest.raises(TypeError, match=f"must be floating point, not {dtype}; convert"):
        solver(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_takes_any_memory_layout_and_leaves_its_input_alone(name):
    solver, shape = SOLVERS[name]
    theta = torch.rand(shape, dtype=torch.float64)
    before = theta.clone()
    z = solver(theta)
    assert torch.equal(theta, before) and z.shape == theta.shape and z.dtype == theta.dtype
    assert torch.equal(solver(transposed_copy(theta)), z)


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


@pytest.mark.parametrize("n", [2, 3, 5])
def test_an_edge_has_the_mean_of_its_two_entries_as_weight(n):
    weights = torch.randn(60, n, n, dtype=torch.float64)
    expected = map_state((weights + weights.mT) / 2, all_spanning_trees(n))
    assert torch.equal(spanning_tree(weights), expected)
    assert torch.equal(spanning_tree(weights.mT), expected)
    assert torch.equal(spanning_tree(2 * weights.triu(1)), map_state(weights.triu(1), all_spanning_trees(n)))


@pytest.mark.parametrize("missing", [-math.inf, math.nan])
def test_minus_infinity_or_nan_in_one_of_its_two_entries_means_no_edge(missing):
    for other in (-1.0, math.inf):
        weights = torch.tensor([[0.0, -1.0, -3.0], [-1.0, 0.0, -2.0], [-3.0, -2.0, 0.0]])
        for u, v in [(0, 1), (1, 0)]:
            broken = weights.clone()
            broken[u, v], broken[v, u] = missing, other
            assert spanning_tree(broken).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mean_of_two_entries_does_not_overflow(dtype):
    largest = torch.finfo(dtype).max
    weights = torch.full((3, 3), 0.75 * largest, dtype=dtype)
    weights[0, 1] = weights[1, 0] = largest
    weights[1, 2] = weights[2, 1] = 0.875 * largest
    assert spanning_tree(weights).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert spanning_tree(-weights).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_of_two_entries_is_not_rounded_to_half_precision(dtype):
    weights = torch.ones(3, 3, dtype=dtype)
    weights[0, 2] = weights[1, 2] = weights[2, 1] = 1 + torch.finfo(dtype).eps  # edge 02 has the mean of two numbers
    assert spanning_tree(weights).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]


def test_gradients_of_a_spanning_tree_do_not_depend_on_the_triangle_of_dy():
    weights = torch.tensor([[[0.0, 3.0, 2.0], [3.0, 0.0, 1.0], [2.0, 1.0, 0.0]]])
    found = []
    for u, v in [(0, 1), (1, 0)]:
        theta = weights.clone().requires_grad_()
        imle(target_distribution=TargetDistribution(beta=5.0))(spanning_tree)(theta)[0, u, v].backward()
        found.append(theta.grad[0].tolist())
    assert found == 2 * [[[0, 1, 0], [1, 0, -1], [0, -1, 0]]]


def test_noise_on_both_triangles_is_averaged_and_gradients_are_those_of_one_symmetric_matrix():
    rows, beta, gradients = 4000, 1.5, []
    weights = symmetric(1, 4, 4).expand(rows, 4, 4)
    for u, v in [(0, 1), (1, 0)]:
        theta = weights.clone().requires_grad_()
        torch.manual_seed(3)
        solver = imle(
            noise_distribution=GumbelNoiseDistribution(),
            target_distribution=TargetDistribution(beta=beta),
            theta_noise_temperature=1.0,
            target_noise_temperature=1.0,
        )(spanning_tree)
        solver(theta)[:, u, v].sum().backward()
        gradients.append(theta.grad)
    assert torch.equal(*gradients) and torch.equal(gradients[0], gradients[0].mT)
    # In the mean, and in the variance, what a plain loop over the two triangles' averaged noise gives.
    noise = GumbelNoiseDistribution().sample((rows, 4, 4)).double()
    theta = weights + (noise + noise.mT) / 2
    moved = theta.clone()
    moved[:, 0, 1] -= beta / 2
    moved[:, 1, 0] -= beta / 2
    trees = all_spanning_trees(4)
    expected = map_state(theta, trees) - map_state(moved, trees)
    error = ((gradients[0].var(0) + expected.var(0)) / rows).sqrt()
    assert ((gradients[0].mean(0) - expected.mean(0)).abs() <= 4 * error).all()
    assert (gradients[0].var(0) - expected.var(0)).abs().max() < 4 * (2 / rows) ** 0.5


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
def test_shortest_path_through_random_mazes_costs_what_dijkstra_finds(neighbours):
    mazes = torch.where(torch.rand(30, 9, 8) < 0.45, 100.0, 1.0 + torch.rand(30, 9, 8)).double()
    z = shortest_path(mazes, neighbours)
    assert_paths(z, neighbours)
    expected = [dijkstra_costs(maze, neighbours) for maze in mazes.numpy()]
    torch.testing.assert_close((z * mazes).sum((1, 2)), torch.tensor(expected, dtype=torch.float64))


def test_with_8_neighbours_a_path_takes_steps_in_every_direction():
    rows = [
        ".......#",
        "#######.",
        "##..###.",
        "#.##...#",
        "#.######",
        "#.##.###",
        "#.#.#.##",
        "#.#.#.##",
        "#.#.#.##",
        "##.###..",
    ]
    maze = torch.tensor([[1.0 if cell == "." else 100.0 for cell in row] for row in rows])
    z = shortest_path(maze.unsqueeze(0), neighbours=8)
    assert torch.equal(z[0], (maze == 1).float())  # the only way without a wall
    assert_paths(z, neighbours=8)


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


def test_cells_of_infinite_cost_are_never_entered():
    costs = torch.rand(3, 4, 5)
    costs[0, :3, 2] = math.inf
    costs[1, 0, 2] = math.nan
    costs[2, 0, 0] = costs[2, -1, -1] = math.inf  # on every path, so they say nothing
    z = shortest_path(costs)
    assert_paths(z, 8)
    assert not (z.bool() & costs.isfinite().logical_not())[:2].any()
    assert torch.equal(z[2], shortest_path(costs[2:].nan_to_num(posinf=0.0))[0])


def test_finite_costs_count_beside_an_infinite_start():
    costs = torch.tensor([[[math.inf, 5, 5, 1], [1, 1, 5, 1], [9, 1, 1, 1]]])
    expected = torch.tensor([[[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1]]])
    assert torch.equal(shortest_path(costs, neighbours=4), expected)


@pytest.mark.parametrize("start", [math.inf, 1e38, 1e9, -3.0])
def test_a_path_does_not_depend_on_what_its_ends_cost(start):
    costs = torch.rand(30, 4, 4)
    expected = shortest_path(costs)
    costs[:, 0, 0] = costs[:, -1, -1] = start
    assert torch.equal(shortest_path(costs), expected)


def test_a_grid_that_walls_cut_in_two_is_named(no_waiting):
    costs = torch.ones(3, 4, 5)
    costs[1, :, 2] = math.inf
    with pytest.raises(ValueError, match="cells of cost inf leave no path in row 1"):
        shortest_path(costs)
    no_waiting()
    z = shortest_path(costs)
    assert z[1].isnan().all() and z[[0, 2]].isfinite().all()


@pytest.mark.parametrize("scale", [1e37, 3e38])
def test_costs_at_the_end_of_their_range_do_not_become_equal(scale):
    costs = torch.rand(10, 5, 5) + 0.1
    costs = costs / costs.max()
    assert torch.equal(shortest_path(costs * scale), shortest_path(costs))


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


def test_paths_do_not_depend_on_the_rest_of_the_batch():
    costs = torch.rand(6, 4, 5)
    z = shortest_path(costs)
    for i in range(6):
        assert torch.equal(shortest_path(costs[i : i + 1]), z[i : i + 1])


def test_shortest_path_refuses_what_it_cannot_answer():
    with pytest.raises(ValueError, match="4 or 8; it is 6"):
        shortest_path(torch.zeros(1, 2, 2), neighbours=6)
    for shape in [(3,), (2, 0, 3), (5, 40), (2, 3, 4, 5)]:
        with pytest.raises(ValueError, match=r"batch of grids, \[B, H, W\]; their shape is"):
            shortest_path(torch.zeros(shape))


def test_flat_costs_are_no_grid_for_an_estimator_either():
    with pytest.raises(ValueError, match=r"batch of grids, \[B, H, W\]"):
        aimle(shortest_path, _is_minimization=True)(torch.rand(5, 40))


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

"""Arborescences against enumeration and networkx."""

import math

import networkx
import pytest
import torch

from imle.solvers import arborescence, spanning_tree
from tests.reference.oracles import all_arborescences, map_state


def assert_arborescences(z, root):
    for matrix in z.float().numpy():
        graph = networkx.from_numpy_array(matrix, create_using=networkx.DiGraph)
        assert networkx.is_arborescence(graph) and graph.in_degree(root) == 0


def test_the_oracle_lists_every_arborescence_once():
    for n, count in [(1, 1), (2, 1), (3, 3), (4, 16), (5, 125)]:
        states = all_arborescences(n, n - 1)
        assert states.unique(dim=0).shape == (count, n, n)
        assert_arborescences(states, n - 1)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_an_arborescence_is_the_best_of_all(n):
    for root in range(n):
        weights = torch.randn(80, n, n, dtype=torch.float64)
        assert torch.equal(arborescence(weights, root), map_state(weights, all_arborescences(n, root)))


@pytest.mark.parametrize("n", [8, 16])
def test_an_arborescence_agrees_with_networkx(n):
    weights = torch.randn(6, n, n)
    weights += 3 * torch.eye(n)[torch.arange(n) ^ 1]  # pairs, and pairs of pairs, that want one another: cycles nest
    weights += 2 * torch.eye(n)[torch.arange(n) ^ 2]
    for z, matrix in zip(arborescence(weights, root=1), weights):
        matrix = matrix.clone().fill_diagonal_(0.0)
        matrix[:, 1] = 0.0
        graph = networkx.from_numpy_array(matrix.numpy(), create_using=networkx.DiGraph)
        expected = networkx.maximum_spanning_arborescence(graph)
        assert sorted(map(tuple, z.nonzero().tolist())) == sorted(expected.edges)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_on_ties_the_result_is_an_arborescence_of_greatest_weight(dtype):
    weights = torch.randint(-2, 2, (60, 5, 5)).to(dtype)
    z = arborescence(weights)
    assert_arborescences(z, 0)
    best = map_state(weights.double(), all_arborescences(5, 0))
    assert torch.equal((z * weights).double().sum((1, 2)), (best * weights).double().sum((1, 2)))
    assert_arborescences(arborescence(torch.zeros(1, 7, 7, dtype=dtype), 3), 3)


def test_an_edge_of_weight_minus_infinity_is_never_taken():
    weights = torch.randn(60, 5, 5, dtype=torch.float64)
    weights[torch.rand(60, 5, 5) < 0.3] = -math.inf
    weights[:, range(4), range(1, 5)] = -50.0  # always a way out
    z = arborescence(weights)
    assert (z[weights.isneginf()] == 0).all()
    assert torch.equal(z, map_state(weights.clamp(min=-1e6), all_arborescences(5, 0)))


def test_small_differences_count_beside_weights_of_a_billion():
    weights = torch.randn(60, 5, 5)
    weights[:, 1, 2] = weights[:, 2, 1] = 1e9
    weights[:, 3, 4] = -1e9
    expected = map_state(weights.double(), all_arborescences(5, 0))
    assert torch.equal(arborescence(weights), expected.float())


def test_the_diagonal_and_the_column_of_the_root_are_not_read():
    weights = torch.randn(20, 6, 6)
    z = arborescence(weights, 2)
    weights[:, :, 2] = math.inf
    weights.diagonal(dim1=1, dim2=2).fill_(math.nan)
    assert torch.equal(arborescence(weights, 2), z)


def test_with_symmetric_weights_an_arborescence_is_a_spanning_tree_looked_at_from_its_root():
    weights = torch.randn(20, 7, 7)
    weights = weights + weights.mT
    z = arborescence(weights, 4)
    assert torch.equal(z + z.mT, spanning_tree(weights))


def test_the_row_whose_root_does_not_reach_all_vertices_is_named():
    weights = torch.randn(4, 5, 5)
    weights[1, :3, 3:] = -math.inf  # from 0, 1, 2 no edge leads to 3, 4
    with pytest.raises(ValueError, match="root 0 does not reach all vertices in row 1"):
        arborescence(weights)
    assert_arborescences(arborescence(weights, 3), 3)


def test_where_nobody_may_look_the_answer_is_the_same_and_nan_where_there_is_none(no_waiting):
    weights = torch.randn(6, 7, 7)
    expected = arborescence(weights)
    no_waiting()
    assert torch.equal(arborescence(weights), expected)
    weights[2, :, 3] = -math.inf
    weights[4, 0, 1] = math.nan
    z = arborescence(weights)
    assert z[[2, 4]].isnan().all() and torch.equal(z[[0, 1, 3, 5]], expected[[0, 1, 3, 5]])


def test_an_arborescence_is_refused_for_what_is_no_graph():
    for shape in [(3, 3), (1, 2, 3), (2, 0, 0)]:
        with pytest.raises(ValueError, match="square matrices"):
            arborescence(torch.zeros(shape))
    for root in (-1, 3):
        with pytest.raises(ValueError, match=f"from 0 to 2; it is {root}"):
            arborescence(torch.zeros(1, 3, 3), root)
    for wrong in (math.inf, math.nan):
        weights = torch.zeros(3, 3, 3)
        weights[1, 1, 2] = wrong
        with pytest.raises(FloatingPointError, match="row 1"):
            arborescence(weights)

"""Knapsacks against enumeration."""

import importlib
import math

import numpy as np
import pytest
import torch

from imle.solvers import knapsack, select_k
from tests.reference.oracles import all_binary_vectors, map_state

knapsack_module = importlib.import_module("imle.solvers.knapsack")


def best_selection(values, weights, capacity):
    """Return the best of all selections [B, N] by enumeration, for weights [N] or [B, N], capacity a number or [B]."""
    states = all_binary_vectors(values.shape[1]).double()
    weights = torch.as_tensor(weights).expand_as(values).double()
    fits = weights @ states.mT <= torch.as_tensor(capacity).expand(len(values))[:, None]
    scores = (values.double() @ states.mT).masked_fill(~fits, -math.inf)
    return states[scores.argmax(dim=1)]


@pytest.mark.parametrize("capacity", [0, 1, 7, 12, 100])
def test_a_knapsack_is_the_best_of_all_selections_that_fit(capacity):
    values = torch.randn(60, 8, dtype=torch.float64)
    weights = torch.randint(0, 7, (8,))
    weights[:2] = torch.tensor([0, 50])
    expected = best_selection(values, weights, capacity)
    for given in (weights, weights.tolist(), weights.numpy(), weights.int()):
        assert torch.equal(knapsack(values, given, capacity), expected)


def test_weights_and_capacities_may_be_those_of_each_instance():
    values, weights, capacity = torch.randn(80, 7).double(), torch.randint(0, 9, (80, 7)), torch.randint(0, 30, (80,))
    assert torch.equal(knapsack(values, weights, capacity), best_selection(values, weights, capacity))
    assert torch.equal(knapsack(values, weights[0], capacity), best_selection(values, weights[0], capacity))
    assert torch.equal(knapsack(values, weights.numpy(), 11), best_selection(values, weights, 11))


def test_without_a_limit_that_binds_all_items_of_positive_value_are_taken():
    values = torch.randn(50, 9)
    assert torch.equal(knapsack(values, [3] * 9, 27), (values > 0).float())
    assert torch.equal(knapsack(values, [0] * 9, 0), (values > 0).float())
    assert torch.equal(knapsack(values, torch.full((50, 9), 3), 10**9), (values > 0).float())


def test_an_item_that_is_worth_nothing_is_never_taken():
    values = torch.randint(-1, 2, (60, 8)).float()
    values[:, 0] = -math.inf
    values[:, 1] = 0.0
    z = knapsack(values, torch.randint(0, 4, (8,)), 9)
    assert (z[values <= 0] == 0).all() and z.any(dim=1).sum() > 50


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_on_ties_a_knapsack_is_worth_the_most_and_prefers_items_before_others(dtype):
    values = torch.randint(0, 4, (60, 7)).to(dtype)
    weights = torch.randint(1, 5, (7,))
    z = knapsack(values, weights, 9)
    assert ((z.double() @ weights.double()) <= 9).all()
    expected = best_selection(values, weights, 9)
    assert torch.equal((z * values).double().sum(1), (expected * values).sum(1))
    assert knapsack(torch.ones(1, 4, dtype=dtype), [1] * 4, 2).tolist() == [[1, 1, 0, 0]]


def test_values_at_the_end_of_their_range_are_not_added_up_to_infinity():
    values = torch.full((1, 4), torch.finfo(torch.float32).max)
    assert knapsack(values, [1, 1, 1, 1], 3).sum() == 3


def test_a_large_batch_is_worked_through_in_pieces(monkeypatch):
    values, weights = torch.randn(23, 6), torch.randint(1, 9, (23, 6))
    whole = [knapsack(values, weights, 12), knapsack(values, weights[0], 12)]
    monkeypatch.setattr(knapsack_module, "_CELLS_AT_ONCE", 5 * 6 * 13)
    assert torch.equal(knapsack(values, weights, 12), whole[0])
    assert torch.equal(knapsack(values, weights[0], 12), whole[1])


def test_weights_that_nobody_may_look_at_give_the_same_answer_and_nan_where_they_are_wrong(no_waiting):
    values, weights = torch.randn(9, 6), torch.randint(0, 9, (9, 6))
    expected = [knapsack(values, weights, 12), knapsack(values, weights[0], 12)]
    no_waiting()
    assert torch.equal(knapsack(values, weights, 12), expected[0])
    assert torch.equal(knapsack(values, weights[0], 12), expected[1])
    weights[3, 2] = -1
    values[5, 0] = math.nan
    z = knapsack(values, weights, 12)
    assert z.isnan().any(dim=1).nonzero().flatten().tolist() == [3, 5]
    assert torch.equal(z[[0, 1, 2, 4, 6]], expected[0][[0, 1, 2, 4, 6]])


def test_a_knapsack_is_refused_for_what_it_cannot_answer():
    values = torch.randn(3, 4)
    for weights in ([1.0, 2.0, 3.0, 4.0], np.ones(4), torch.ones(4, dtype=torch.bool)):
        with pytest.raises(TypeError, match=r"weights must be whole numbers, not torch\..*power of ten"):
            knapsack(values, weights, 3)
    with pytest.raises(TypeError, match="capacity must be whole numbers"):
        knapsack(values, [1] * 4, 2.5)
    with pytest.raises(ValueError, match=r"weights must be \[4\] or \[3, 4\]; its shape is \[5\]"):
        knapsack(values, [1] * 5, 3)
    with pytest.raises(ValueError, match=r"capacity must be \[\] or \[3\]; its shape is \[2\]"):
        knapsack(values, [1] * 4, [3, 3])
    with pytest.raises(ValueError, match=r"capacity must be from 0 to 2\^63 - 1 in row 1; the least is -2"):
        knapsack(values, [1] * 4, torch.tensor([3, -2, 0]))
    with pytest.raises(ValueError, match=r"capacity must be from 0 to 2\^63 - 1; the least is -1"):
        knapsack(values, [1] * 4, -1)
    with pytest.raises(ValueError, match=r"weights must be from 0 to 2\^63 - 1 in row 2; the least is -3"):
        knapsack(values, torch.tensor([[1] * 4, [1] * 4, [1, 1, -3, 1]]), 3)
    for beyond in ([1, 1, 1, 2**63], np.array([1, 1, 1, 2**63], dtype=np.uint64)):
        with pytest.raises(ValueError, match=r"2\^63 - 1"):
            knapsack(values, beyond, 3)
    with pytest.raises(ValueError, match="divide weights and capacity by a common factor"):
        knapsack(values, [2**40] * 4, 2**62)
    with pytest.raises(ValueError, match=r"values must be \[B, N\]"):
        knapsack(torch.zeros(4), [1] * 4, 3)
    values[1, 1] = math.inf
    with pytest.raises(FloatingPointError, match="row 1"):
        knapsack(values, [1] * 4, 3)


def test_a_knapsack_of_one_each_is_a_choice_of_the_best_k():
    values = torch.randn(40, 9, dtype=torch.float64)
    assert torch.equal(knapsack(values, [2] * 9, 7), select_k(values, 3) * (values > 0))
    assert torch.equal(map_state(values, all_binary_vectors(9)), knapsack(values, [0] * 9, 0))


@pytest.mark.parametrize("never", [11, 2**31, 2**62, 2**63 - 1])
@pytest.mark.parametrize("how_many", [1, 2, 4])
def test_an_item_that_weighs_more_than_all_is_never_taken(never, how_many):
    values = torch.randn(30, 7, dtype=torch.float64)
    weights = [4, 3, 2] + [never] * how_many + [1] * (4 - how_many)
    expected = knapsack(values.masked_fill(torch.tensor(weights) == never, -1.0), [min(w, 1 + 10) for w in weights], 10)
    assert torch.equal(knapsack(values, weights, 10), expected)
    assert torch.equal(knapsack(values, torch.tensor([weights] * 30), 10), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32, np.uint64, np.int64])
def test_weights_may_be_of_any_kind_of_whole_numbers(dtype):
    values, weights = torch.randn(10, 6, dtype=torch.float64), np.array([100, 90, 80, 70, 60, 50], dtype=dtype)
    assert torch.equal(knapsack(values, weights, dtype(120)), knapsack(values, weights.tolist(), 120))
    assert torch.equal(knapsack(values, weights, 10**6), (values > 0).to(values))


def test_values_at_the_end_of_their_range_do_not_become_equal():
    assert knapsack(torch.tensor([[2e38, 3e38, 1e38]]), [1, 1, 1], 1).tolist() == [[0.0, 1.0, 0.0]]


def test_what_fits_into_no_capacity_of_its_own_row_does_not_make_the_table_larger():
    values, weights = torch.ones(2, 3), torch.tensor([[2**40, 1, 1], [1, 1, 1]])
    assert knapsack(values, weights, torch.tensor([2, 2**62])).tolist() == [[0, 1, 1], [1, 1, 1]]


def test_weights_are_the_hosts_own_whatever_the_default_device_is():
    values, weights = torch.rand(2, 3), [1, 2, 3]
    expected = knapsack(values, weights, 3)
    with torch.device("meta"):
        assert torch.equal(knapsack(values, weights, 3), expected)

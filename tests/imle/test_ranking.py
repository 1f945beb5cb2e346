"""Ranks against enumeration."""

import math

import pytest
import torch

from imle.solvers import ranking, select_k
from tests.reference.oracles import all_permutations, map_state


@pytest.mark.parametrize("n", [1, 2, 5])
def test_ranks_are_the_best_of_all_permutations(n):
    theta = torch.randn(60, n, dtype=torch.float64)
    assert torch.equal(ranking(theta), map_state(theta, all_permutations(n)))
    assert torch.equal(ranking(theta, descending=True), map_state(-theta, all_permutations(n)))


def test_ranks_that_ascend_and_descend_mirror_one_another_and_the_ranks_above_n_minus_k_are_the_k_largest():
    theta = torch.randn(4, 3, 9)
    assert torch.equal(ranking(theta) + ranking(theta, descending=True), torch.full_like(theta, 10.0))
    assert torch.equal((ranking(theta) > 9 - 4).float(), select_k(theta, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_entries_are_ranked_in_the_order_in_which_they_stand(dtype):
    theta = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]], dtype=dtype)
    assert ranking(theta).tolist() == [[3, 1, 4, 2, 5]]
    assert ranking(theta, descending=True).tolist() == [[1, 4, 2, 5, 3]]
    ties = torch.randint(0, 3, (30, 200)).to(dtype)
    assert torch.equal(ranking(ties).sort(dim=1).values, torch.arange(1, 201).to(dtype).expand(30, 200))


def test_infinite_scores_come_first_and_last_and_nan_counts_as_the_largest_number():
    theta = torch.tensor([[0.0, math.inf, -math.inf, 1.0, math.nan]])
    assert ranking(theta).tolist() == [[2, 4, 1, 3, 5]]
    assert ranking(theta, descending=True).tolist() == [[4, 2, 5, 3, 1]]


def test_ranks_that_a_dtype_cannot_count_to_are_refused():
    for dtype, most in [(torch.bfloat16, 256), (torch.float16, 2048)]:
        assert ranking(torch.zeros(1, most, dtype=dtype)).max() == most
        with pytest.raises(ValueError, match=f"counts to {most}, but there are {most + 1} entries"):
            ranking(torch.zeros(1, most + 1, dtype=dtype))
    with pytest.raises(ValueError, match="at least one dimension"):
        ranking(torch.tensor(1.0))

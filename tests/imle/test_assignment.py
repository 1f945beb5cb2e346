"""Matchings against enumeration."""

import math
import sys

import pytest
import torch

from imle.solvers import assignment
from tests.reference.oracles import all_matchings, map_state


@pytest.mark.parametrize("n, m", [(1, 1), (3, 3), (4, 4), (2, 4), (4, 3), (1, 5)])
def test_an_assignment_is_the_best_of_all_matchings(n, m):
    weights = torch.randn(60, n, m, dtype=torch.float64)
    assert torch.equal(assignment(weights), map_state(weights, all_matchings(n, m)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_on_ties_an_assignment_is_a_matching_of_greatest_weight(dtype):
    weights = torch.randint(0, 3, (60, 4, 4)).to(dtype)
    z = assignment(weights)
    assert (z.sum(1) == 1).all() and (z.sum(2) == 1).all()
    best = map_state(weights.double(), all_matchings(4, 4))
    assert torch.equal((z * weights).double().sum((1, 2)), (best * weights).double().sum((1, 2)))


def test_a_pair_of_weight_minus_infinity_is_never_matched():
    weights = torch.randn(80, 4, 4, dtype=torch.float64)
    weights[torch.rand(80, 4, 4) < 0.3] = -math.inf
    weights.diagonal(dim1=1, dim2=2).fill_(-50.0)  # always a way out
    z = assignment(weights)
    assert (z[weights.isneginf()] == 0).all()
    assert torch.equal(z, map_state(weights.clamp(min=-1e6), all_matchings(4, 4)))


def test_the_row_that_allows_no_matching_is_named():
    weights = torch.randn(5, 3, 3)
    weights[3, :2, 1:] = -math.inf  # two rows want the one column that is left
    with pytest.raises(ValueError, match="no matching in row 3"):
        assignment(weights)


def test_an_assignment_is_refused_for_what_is_no_matrix_of_weights():
    for shape in [(3,), (3, 3), (2, 3, 3, 3)]:
        with pytest.raises(ValueError, match=r"batch of matrices, \[B, n, m\]; their shape is"):
            assignment(torch.zeros(shape))
    for wrong in (math.nan, math.inf):
        weights = torch.zeros(4, 2, 2)
        weights[2, 1, 0] = wrong
        with pytest.raises(FloatingPointError, match="row 2"):
            assignment(weights)


def test_without_scipy_the_solver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="assignment needs scipy: pip install scipy"):
        assignment(torch.zeros(1, 2, 2))

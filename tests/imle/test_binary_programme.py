"""0/1 programmes against enumeration, and against the solvers of special ones."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from imle.solvers import assignment, binary_programme, knapsack, select_k
from tests.reference.oracles import all_binary_vectors, map_state


def feasible(A_ub, b_ub):
    states = all_binary_vectors(A_ub.shape[1])
    return states[(states.double() @ A_ub.double().mT <= b_ub.double() + 1e-9).all(dim=1)]


@pytest.mark.parametrize("maximise", [True, False])
def test_a_binary_programme_is_the_best_of_all_vectors_that_meet_the_constraints(maximise):
    theta = torch.randn(20, 7, dtype=torch.float64)
    A_ub, b_ub = torch.randn(3, 7), torch.tensor([0.5, 1.0, 2.0])
    states = feasible(A_ub, b_ub)
    assert 5 < len(states) < 100
    expected = map_state(theta if maximise else -theta, states)
    for matrix in (A_ub, A_ub.tolist(), A_ub.numpy(), csr_array(A_ub.numpy())):
        assert torch.equal(binary_programme(theta, matrix, b_ub, maximise=maximise), expected)


def test_equalities_hold_and_all_constraints_hold_at_once():
    theta = torch.randn(15, 6, dtype=torch.float64)
    A_ub, b_ub = torch.tensor([[1, 1, 0, 0, 0, 0]]), torch.tensor([1])
    states = feasible(A_ub, b_ub)
    states = states[states.sum(dim=1) == 3]
    z = binary_programme(theta, A_ub, b_ub, A_eq=torch.ones(1, 6), b_eq=[3])
    assert torch.equal(z, map_state(theta, states))


def test_limits_may_be_those_of_each_instance():
    theta = torch.randn(6, 5)
    k = torch.tensor([[0], [1], [2], [3], [4], [5]])
    z = binary_programme(theta, A_eq=torch.ones(1, 5), b_eq=k)
    assert torch.equal(z, torch.cat([select_k(row, int(count)) for row, count in zip(theta.split(1), k)]))


def test_without_constraints_every_entry_with_a_gain_is_taken():
    theta = torch.randn(8, 2, 3)
    assert torch.equal(binary_programme(theta), (theta > 0).float())
    assert torch.equal(binary_programme(theta, maximise=False), (theta < 0).float())


def test_special_programmes_agree_with_their_own_solvers():
    values, weights = torch.rand(10, 8), torch.randint(1, 6, (8,))
    assert torch.equal(binary_programme(values, weights[None], [11]), knapsack(values, weights, 11))
    pairs = torch.randn(10, 3, 3)
    rows, columns = torch.eye(3).repeat_interleave(3, dim=1), torch.eye(3).repeat(1, 3)
    z = binary_programme(pairs, A_eq=torch.cat([rows, columns]), b_eq=np.ones(6))
    assert torch.equal(z, assignment(pairs))


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e30])
def test_the_best_is_told_from_the_next_best_at_every_scale(scale):
    theta = scale * (1 + 1e-7 * torch.rand(10, 6, dtype=torch.float64))
    z = binary_programme(theta, A_eq=torch.ones(1, 6), b_eq=[3])
    assert torch.equal(z, select_k(theta, 3))


def test_the_best_is_found_where_many_vectors_come_within_a_ten_thousandth_of_it():
    weights = torch.randint(300, 800, (14,), generator=torch.Generator().manual_seed(1))
    values = weights + 0.1 * torch.rand(2, 14, dtype=torch.float64)
    z, best = binary_programme(values, weights[None], [4000]), knapsack(values, weights, 4000)
    torch.testing.assert_close((z * values).sum(1), (best * values).sum(1), rtol=1e-12, atol=0)


def test_an_entry_that_the_solver_avoids_without_bounds_is_never_taken():
    theta = torch.randn(6, 5)
    theta[:, 2] = -math.inf
    z = binary_programme(theta, A_eq=torch.ones(1, 5), b_eq=[4])
    assert z.tolist() == [[1, 1, 0, 1, 1]] * 6
    assert torch.equal(binary_programme(-theta, A_eq=torch.ones(1, 5), b_eq=[4], maximise=False), z)


def test_the_row_that_nothing_satisfies_is_named():
    theta = torch.zeros(4, 3)
    theta[2, :2] = -math.inf
    with pytest.raises(ValueError, match="meets the constraints in row 2"):
        binary_programme(theta, A_eq=[[1, 1, 1]], b_eq=[2])


def test_the_row_that_takes_too_long_is_named(monkeypatch):
    answers = iter([SimpleNamespace(status=0, x=np.ones(3)), SimpleNamespace(status=1, x=None)])
    options = []

    def milp(*_, **kwargs):
        options.append(kwargs["options"])
        return next(answers)

    monkeypatch.setattr("scipy.optimize.milp", milp)
    with pytest.raises(TimeoutError, match=r"row 1 was not solved within 0\.5 seconds"):
        binary_programme(torch.ones(3, 3), time_limit=0.5)
    assert [option["time_limit"] for option in options] == [0.5, 0.5]


def test_a_binary_programme_is_refused_for_what_it_cannot_answer():
    theta = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="A_ub and b_ub go together"):
        binary_programme(theta, A_ub=[[1, 1, 1]])
    with pytest.raises(ValueError, match=r"A_eq must be a matrix \[m, 3\] for N=3; it is \(1, 2\)"):
        binary_programme(theta, A_eq=[[1, 1]], b_eq=[1])
    with pytest.raises(ValueError, match=r"b_ub must be \[1\] or \[2, 1\].*it is \(2,\)"):
        binary_programme(theta, [[1, 1, 1]], [1, 2])
    with pytest.raises(ValueError, match="batch dimension first"):
        binary_programme(torch.zeros(3))
    for maximise, wrong in [(True, math.inf), (False, -math.inf), (True, math.nan)]:
        theta[1, 0] = wrong
        with pytest.raises(FloatingPointError, match="row 1"):
            binary_programme(theta, maximise=maximise)


@pytest.mark.parametrize("weight", [2**50, 2**63 - 1, 2**70, math.inf, math.nan])
@pytest.mark.parametrize("kind", ["ub", "eq"])
def test_a_constraint_that_counts_beyond_what_the_solver_can_is_refused_as_such(kind, weight):
    limits = {f"A_{kind}": [[1, 1, weight]], f"b_{kind}": [1]}
    with pytest.raises(ValueError, match=f"A_{kind} must hold numbers below 1e.15"):
        binary_programme(torch.ones(1, 3), **limits)

"""The exact family of knapsacks against enumeration."""

import functools
import math

import pytest
import torch

from imle import knapsacks
from tests.reference.oracles import all_knapsacks, exact_marginals

CASES = [([3, 1, 0, 7, 3, 20], 10), ([2, 2, 5], 0), ([4, 4, 4], 3), ([1, 2], 50), ([5], 5)]
WEIGHTS, CAPACITY = CASES[0]
FUNCTIONS = [knapsacks.log_partition, knapsacks.marginals, knapsacks.sample]
marginals = functools.partial(knapsacks.marginals, weights=WEIGHTS, capacity=CAPACITY)


@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
@pytest.mark.parametrize(("weights", "capacity"), CASES)
def test_all_quantities_agree_with_enumeration(weights, capacity, scale):
    theta = scale * torch.randn(4, len(weights), dtype=torch.float64)
    states = all_knapsacks(weights, capacity).double()
    found = knapsacks.log_partition(theta, weights, capacity)
    torch.testing.assert_close(found, torch.logsumexp(theta @ states.T, 1), rtol=1e-12, atol=1e-12)
    found = knapsacks.marginals(theta, weights, capacity)
    torch.testing.assert_close(found, exact_marginals(theta, states), rtol=0, atol=1e-10)
    z = knapsacks.sample(theta, weights, capacity, 5)
    assert z.shape == (20, len(weights)) and (z.unsqueeze(1) == states).all(-1).any(1).all()


def test_marginals_are_the_gradient_of_log_partition_and_their_jacobian_is_that_of_finite_differences():
    theta = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(knapsacks.log_partition(theta, WEIGHTS, CAPACITY).sum(), theta)
    torch.testing.assert_close(marginals(theta), gradient)
    assert torch.autograd.gradcheck(marginals, theta)


def test_samples_have_the_exact_distribution_and_lie_side_by_side():
    theta, draws = torch.randn(2, 6), 20000
    theta[1] *= 3
    states = all_knapsacks(WEIGHTS, CAPACITY)
    p = torch.softmax(theta @ states.T, dim=-1)
    z = knapsacks.sample(theta, WEIGHTS, CAPACITY, draws).view(2, draws, 1, 6)
    counts = (z == states).all(-1).sum(1)
    assert ((counts - draws * p).square() / (draws * p)).sum(1).max() < len(states) + 5 * math.sqrt(2 * len(states))


def test_as_many_half_hours_as_a_day_has_lose_little_in_float32():
    theta = 10 * torch.randn(20, 48)
    weights = [3, 5, 7] * 16
    for function in FUNCTIONS[:2]:
        exact = function(theta.double(), weights, 120)
        torch.testing.assert_close(function(theta, weights, 120).double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("wall", [-1e9, torch.finfo(torch.float32).min, -torch.inf])
def test_masked_items_are_never_taken_and_get_no_gradient(wall):
    theta = torch.randn(4, 6)
    wide = torch.cat([torch.full((4, 1), wall), theta], dim=1).requires_grad_()
    weights = [2, *WEIGHTS]
    mu = knapsacks.marginals(wide, weights, CAPACITY)
    torch.testing.assert_close(mu[:, 1:], marginals(theta))
    assert not mu[:, 0].any() and not knapsacks.sample(wide, weights, CAPACITY, 100)[:, 0].any()
    mu[:, 1].sum().backward()
    assert wide.grad.isfinite().all() and wide.grad[:, 1:].any() and not wide.grad[:, 0].any()


def test_of_no_items_there_is_one_selection():
    none, weights = torch.zeros(2, 0), torch.zeros(0, dtype=torch.long)
    assert knapsacks.log_partition(none, weights, 3).tolist() == [0, 0]
    assert knapsacks.marginals(none, weights, 3).shape == knapsacks.sample(none, weights, 3).shape == (2, 0)


def test_scores_of_any_size_stay_finite():
    theta = torch.tensor([[1e37, -torch.inf, 3e38, 1e38, 2.0, -3e38]], requires_grad=True)
    mu = marginals(theta)
    assert torch.equal(mu.detach()[0, :4], torch.tensor([1.0, 0, 1, 1]))
    mu.sum().backward()
    assert theta.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_results_have_the_dtype_of_theta(dtype):
    theta = torch.randn(3, 6).to(dtype)
    for function in FUNCTIONS:
        assert function(theta, WEIGHTS, CAPACITY).dtype == dtype
    torch.testing.assert_close(marginals(theta).double(), marginals(theta.double()), rtol=0, atol=1e-2)


def test_strides_transforms_and_modes_change_nothing():
    theta = torch.randn(6, 4).mT
    expected = marginals(theta.contiguous())
    torch.testing.assert_close(marginals(theta), expected)
    torch.testing.assert_close(torch.func.vmap(marginals)(theta), expected)
    torch.testing.assert_close(marginals(theta.view(2, 2, 6)), expected.view(2, 2, 6))
    with torch.inference_mode():
        torch.testing.assert_close(marginals(theta), expected)
    kinds = (torch.tensor(WEIGHTS), torch.tensor(CAPACITY)), (tuple(WEIGHTS), CAPACITY)
    for weights, capacity in kinds:
        assert torch.equal(knapsacks.marginals(theta, weights, capacity), marginals(theta))


def test_a_generator_repeats_samples():
    theta = torch.randn(3, 6)
    draws = [knapsacks.sample(theta, WEIGHTS, CAPACITY, 9, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("item", [2, 5])  # that weighs nothing, that is too heavy
def test_a_row_of_nan_stays_by_itself_and_no_sample_is_drawn_from_it(item, no_waiting):
    theta = torch.randn(3, 6)
    expected = marginals(theta)
    theta[1, item] = torch.nan
    mu = marginals(theta)
    assert mu[1, :5].isnan().all() and torch.equal(mu[[0, 2]], expected[[0, 2]])
    with pytest.raises(FloatingPointError, match="theta is NaN in row 1"):
        knapsacks.sample(theta, WEIGHTS, CAPACITY)
    no_waiting()
    z = knapsacks.sample(theta, WEIGHTS, CAPACITY, 2)
    assert z[2:4].isnan().all() and z[[0, 1, 4, 5]].isfinite().all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_input_is_refused(function):
    theta = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"weights must be \[3\]; its shape is \[2\]"):
        function(theta, [1, 2], 3)
    for weights, capacity in (([1, -2, 3], 3), ([1, 2, 3], -1)):
        with pytest.raises(ValueError, match="must be from 0"):
            function(theta, weights, capacity)
    with pytest.raises(TypeError, match="must be whole numbers"):
        function(theta, [0.5, 1, 2], 3)
    with pytest.raises(TypeError, match="must be floating point"):
        function(theta.long(), [1, 2, 3], 3)
    with pytest.raises(ValueError, match=r"batch dimension first|must be"):
        knapsacks.sample(torch.zeros(3), [1, 2, 3], 3)

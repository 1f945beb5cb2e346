"""Exact distributions, against brute force, finite differences and closed forms."""

import math

import pytest
import torch

from aaai23.synth.config import SOLUTIONS
from aaai23.synth.exact import FAMILIES, knapsacks, paths, rankings, subsets, trees
from imle.k_subsets import log_prob
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.solvers import grid_arcs
from tests.reference.oracles import all_arc_paths, all_knapsacks, all_permutations, all_spanning_trees, all_subsets

SIZES = {"subsets": (5, 2), "trees": (4, 0), "paths": (3, 0), "rankings": (4, 0), "knapsacks": (5, 0)}
GUMBEL = GumbelNoiseDistribution()


@pytest.fixture(params=SIZES)
def family(request):
    return FAMILIES[request.param](*SIZES[request.param])


def normal(rows, family, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(rows, family.states.shape[1], generator=generator, dtype=torch.float64)
    return theta, torch.randn(rows, len(family.states), generator=generator, dtype=torch.float64)


def test_all_solutions_are_listed_once():
    first, second = torch.triu_indices(5, 5, 1)
    expected = [
        (subsets(6, 3), all_subsets(6, 3)),
        (trees(5), all_spanning_trees(5)[:, first, second]),
        (paths(4), all_arc_paths(grid_arcs(4, 4), 0, 15)),
        (rankings(4), all_permutations(4)),
        (knapsacks(5), all_knapsacks([3, 5, 7, 3, 5], 11)),
    ]
    for family, states in expected:
        assert sorted(family.states.tolist()) == sorted(states.tolist())


def test_the_number_of_solutions_is_known_without_listing_them():
    for name, size in SIZES.items():
        assert len(FAMILIES[name](*size).states) == SOLUTIONS[name](*size)


def test_the_solver_returns_the_likeliest_solution(family):
    theta, _ = normal(50, family)
    assert torch.equal(family.index(family.solve(theta)), family.log_probs(theta).argmax(dim=1))
    assert torch.equal(family.index(family.states), torch.arange(len(family.states)))


def test_marginals_are_the_gradient_of_the_log_partition_function(family):
    theta = normal(3, family)[0].requires_grad_()
    (gradient,) = torch.autograd.grad((family.sign * theta @ family.states.double().T).logsumexp(1).sum(), theta)
    torch.testing.assert_close(family.marginals(theta), family.sign * gradient)


def test_probabilities_and_marginals_are_those_of_the_library():
    pairs = subsets(5, 2)
    theta, _ = normal(3, pairs)
    torch.testing.assert_close(pairs.log_probs(theta), log_prob(theta.unsqueeze(1), pairs.states.double(), 2))
    for family in (pairs, trees(4), knapsacks(5)):
        theta, _ = normal(3, family)
        torch.testing.assert_close(family.marginals(theta), family.structure.marginals(theta))


def test_gradients_agree_with_finite_differences_for_any_loss(family):
    (theta, losses), h = normal(3, family), 1e-5
    found = family.gradient(theta, losses)
    for n, step in enumerate(h * torch.eye(theta.shape[1], dtype=torch.float64)):
        rise = family.mean_loss(theta + step, losses) - family.mean_loss(theta - step, losses)
        torch.testing.assert_close(found[:, n], rise / (2 * h), rtol=1e-5, atol=1e-8)


def test_gumbel_noise_draws_one_of_n_by_softmax():
    family = subsets(4, 1)
    theta, losses = normal(2, family)
    torch.manual_seed(0)
    frequencies = family.frequencies(theta, GUMBEL, 100_000)
    torch.testing.assert_close(frequencies, family.log_probs(theta).exp(), rtol=0, atol=5 * 0.5 / math.sqrt(100_000))
    gradient, error = family.perturbed_gradient(theta, losses, GUMBEL, 200_000)
    exact = family.gradient(theta, losses)
    assert ((gradient - exact).norm(dim=1) < 4 * error * exact.norm(dim=1)).all() and (error < 0.05).all()


def plackett_luce(theta, family):
    """Return p(z) of rankings: the best of all is first, the best of those that are left second, ..."""
    order = family.states.argsort(dim=1, descending=True)
    scores = theta[:, order]  # [B, C, N], the best first
    return (scores - scores.flip(-1).logcumsumexp(-1).flip(-1)).sum(-1).exp()


def test_gumbel_noise_draws_rankings_by_plackett_and_luce_and_not_by_the_exponential_family():
    family = rankings(4)
    (theta, losses), draws = normal(2, family), 200_000
    theta = theta.requires_grad_()
    expected = plackett_luce(theta, family)
    torch.testing.assert_close(expected.sum(1), torch.ones(2, dtype=torch.float64))
    (exact,) = torch.autograd.grad((expected * losses).sum(), theta)
    theta = theta.detach()
    torch.manual_seed(0)
    assert (family.frequencies(theta, GUMBEL, draws) - expected).abs().max() < 5 * 0.5 / math.sqrt(draws)
    assert (family.log_probs(theta).exp() - expected).abs().sum(1).min() > 0.1
    gradient, error = family.perturbed_gradient(theta, losses, GUMBEL, draws)
    assert ((gradient - exact).norm(dim=1) < 4 * error * exact.norm(dim=1)).all() and (error < 0.1).all()


class Unknown:
    """Gumbel noise whose density nobody knows."""

    def sample(self, shape):
        return GUMBEL.sample(shape)


@pytest.mark.parametrize("name", ["subsets", "paths"])
def test_both_ways_to_the_gradient_of_perturb_and_map_agree(name):
    family = FAMILIES[name](*SIZES[name])
    theta, losses = normal(2, family)
    torch.manual_seed(0)
    one, its_error = family.perturbed_gradient(theta, losses, GUMBEL, 100_000)
    other, other_error = family.perturbed_gradient(theta, losses, Unknown(), 300_000)
    error = (its_error + other_error) * one.norm(dim=1)
    assert ((one - other).norm(dim=1) < 4 * error).all() and (error < 0.4 * one.norm(dim=1)).all()


def test_sum_of_gamma_noise_draws_one_of_n_nearly_by_softmax_and_subsets_far_from_it():
    torch.manual_seed(0)
    distance = {}
    for k in (1, 5):
        family, noise = subsets(10, k), SumOfGammaNoiseDistribution(k=k)
        theta, _ = normal(2, family)
        found = family.frequencies(theta, noise, 50_000)
        distance[k] = (found - family.log_probs(theta).exp()).abs().sum(1).mean() / 2
    assert distance[1] < 0.02 and distance[5] > 0.4

"""Small problems whose distributions and expected gradients are known exactly."""

import functools
import math

import pytest
import torch

from imle.aimle import aimle
from imle.identity import identity
from imle.imle import imle
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.perturbed import perturbed
from imle.sfe import sfe
from imle.solvers import select_k, spanning_tree
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution
from tests.reference.oracles import all_spanning_trees

THETA = torch.tensor([0.5, -0.3, 0.1, 0.9, 0.0], dtype=torch.float64)
COST = torch.tensor([1.0, -1.0, 0.5, 0.8, -0.2], dtype=torch.float64)
DRAWS = 40000


def top_one(theta):
    return select_k(theta, 1)


identity_as_it_is = functools.partial(identity, projection=None)


def estimates(estimator, cost=COST, solver=top_one, theta=THETA):
    """Independent estimates of the gradient of E <cost, z>, one a row, [DRAWS, N]."""
    leaf = theta.expand(DRAWS, -1).clone().requires_grad_()
    estimator(solver)(leaf).backward(cost.expand(DRAWS, -1))
    return leaf.grad


def assert_mean(samples, expected, sigmas=4.5):
    mean, error = samples.mean(dim=0), samples.std(dim=0) / math.sqrt(len(samples))
    assert error.max() < 0.1 * expected.norm()  # else the next line says nothing
    assert ((mean - expected).abs() < sigmas * error).all()


def assert_frequencies(counts, probabilities):
    """Pearson's chi-square, against its mean and standard deviation."""
    expected = counts.sum() * probabilities
    assert expected.min() > 5
    freedom = len(counts) - 1
    statistic = ((counts - expected).square() / expected).sum().item()
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


# Distributions


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("function", [aimle, imle, ste])
def test_the_largest_entry_under_gumbel_noise_is_a_draw_from_the_softmax(function, tau):
    name = "noise_temperature" if function is ste else "theta_noise_temperature"
    solver = function(noise_distribution=GumbelNoiseDistribution(), nb_samples=DRAWS, **{name: tau})(top_one)
    counts = solver(THETA[None]).sum(dim=0)
    assert counts.sum() == DRAWS
    assert_frequencies(counts, (THETA / tau).softmax(dim=0))


@pytest.mark.parametrize(
    "noise", [GumbelNoiseDistribution(), SumOfGammaNoiseDistribution(k=1, nb_iterations=400)], ids=["gumbel", "sog"]
)
@pytest.mark.parametrize("function", [aimle, imle, ste, perturbed, sfe, identity_as_it_is])
def test_the_least_entry_of_costs_under_noise_is_a_draw_from_the_softmax_of_minus_costs(function, noise):
    if function in (perturbed, sfe) and not hasattr(noise, "log_prob"):
        pytest.skip("needs a density")
    layer = function(lambda costs: top_one(-costs), noise_distribution=noise, _is_minimization=True)
    z = layer((-THETA).expand(DRAWS, -1))
    assert_frequencies((z[0] if isinstance(z, tuple) else z).sum(dim=0), THETA.softmax(dim=0))


def test_sum_of_gamma_noise_for_one_of_n_is_gumbel_noise_in_the_limit():
    noise = SumOfGammaNoiseDistribution(k=1, nb_iterations=400)
    counts = imle(noise_distribution=noise, nb_samples=DRAWS)(top_one)(THETA[None]).sum(dim=0)
    assert_frequencies(counts, THETA.softmax(dim=0))


def test_equal_weights_under_gumbel_noise_reach_every_spanning_tree():
    layer = ste(noise_distribution=GumbelNoiseDistribution(), nb_samples=4000)(
        lambda upper: spanning_tree(upper.triu(1) + upper.triu(1).mT)
    )
    z = layer(torch.zeros(1, 4, 4))
    trees = all_spanning_trees(4)
    counts = (z.flatten(1) @ trees.flatten(1).mT == 6).sum(dim=0)
    assert len(trees) == 16
    assert counts.sum() == 4000
    # by symmetry, all 4 stars are as likely, and all 12 paths
    stars = (trees.sum(dim=1) == 3).any(dim=1)
    for kind in (stars, ~stars):
        assert_frequencies(counts[kind].double(), torch.full((int(kind.sum()),), 1 / int(kind.sum())))


# Expected gradients: E MAP(theta + eps) = softmax(theta) makes them differences of softmaxes, for any lambda


@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("minimise", [False, True])
def test_the_mean_of_imle_is_a_difference_of_softmaxes(size, minimise):
    sign = -1 if minimise else 1
    estimator = imle(
        target_distribution=TargetDistribution(beta=size),
        noise_distribution=GumbelNoiseDistribution(),
        _is_minimization=minimise,
    )
    # a minimiser at -theta is the maximiser at theta
    found = estimates(estimator, theta=sign * THETA, solver=lambda x: top_one(sign * x))
    assert_mean(found, sign * (THETA.softmax(dim=0) - (THETA - size * COST).softmax(dim=0)))


@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_the_mean_of_central_aimle_is_a_central_difference_of_softmaxes(size):
    target = TargetDistribution(beta=size, do_gradient_scaling=True)
    noise = GumbelNoiseDistribution()
    found = estimates(aimle(target_distribution=target, noise_distribution=noise, symmetric_perturbation=True))
    expected = (THETA + size * COST).softmax(dim=0) - (THETA - size * COST).softmax(dim=0)
    assert_mean(found, expected / (2 * size))


@pytest.mark.parametrize(("alpha", "tau"), [(0.5, 1.0), (1.0, 0.5)])
def test_the_mean_of_forward_aimle_takes_alpha_and_the_target_temperature(alpha, tau):
    estimator = aimle(
        target_distribution=TargetDistribution(alpha=alpha, beta=1.0),
        noise_distribution=GumbelNoiseDistribution(),
        target_noise_temperature=tau,
    )
    base, moved = alpha * THETA / tau, (alpha * THETA - COST) / tau
    assert_mean(estimates(estimator), base.softmax(dim=0) - moved.softmax(dim=0))


def exact_gradient(theta=THETA, cost=COST):
    """Of <cost, softmax(theta)>."""
    theta = theta.clone().requires_grad_()
    (cost * theta.softmax(dim=0)).sum().backward()
    return theta.grad


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_small_step_gives_the_direction_and_the_length_of_the_exact_gradient(symmetric):
    target = TargetDistribution(beta=0.1, do_gradient_scaling=True)
    noise = GumbelNoiseDistribution()
    found = estimates(aimle(target_distribution=target, noise_distribution=noise, symmetric_perturbation=symmetric))
    exact = exact_gradient()
    mean = found.mean(dim=0)
    assert torch.cosine_similarity(mean, exact, dim=0) > 0.98
    assert mean.norm().item() == pytest.approx(exact.norm().item(), rel=0.15)


def test_a_small_adaptive_step_gives_the_exact_gradient_of_the_batch():
    """With beta fixed, lambda = beta ||theta|| / ||dy|| is that of one instance, since all are the same."""
    target = AdaptiveTargetDistribution(initial_beta=0.05, beta_update_step=0.0)
    noise = GumbelNoiseDistribution()
    found = estimates(aimle(target_distribution=target, noise_distribution=noise, symmetric_perturbation=True))
    size = (0.05 * THETA.norm() / COST.norm()).item()
    nonzero = found[found != 0].abs().unique()
    assert torch.allclose(nonzero, torch.tensor([1 / (2 * size)], dtype=torch.float64))
    assert torch.cosine_similarity(found.mean(dim=0), exact_gradient(), dim=0) > 0.98


def test_central_differences_are_less_biased_and_large_steps_less_sparse():
    """The two knobs of the method, as its docstrings say which way they push."""
    exact = exact_gradient()

    def bias_and_density(symmetric, size):
        target = TargetDistribution(beta=size, do_gradient_scaling=True)
        noise = GumbelNoiseDistribution()
        found = estimates(aimle(target_distribution=target, noise_distribution=noise, symmetric_perturbation=symmetric))
        return (found.mean(dim=0) - exact).norm().item(), (found != 0).double().mean().item()

    forward, forward_density = bias_and_density(False, 1.0)
    central, _ = bias_and_density(True, 1.0)
    large, large_density = bias_and_density(False, 4.0)
    assert central < forward / 2 < large / 2
    assert forward_density < large_density


def test_samples_divide_the_variance_by_their_number_and_keep_the_mean():
    expected = ((THETA + COST).softmax(dim=0) - (THETA - COST).softmax(dim=0)) / 2

    def variance(nb_samples):
        """The variance of one gradient, summed over its entries, and the standard error of that."""
        estimator = aimle(
            target_distribution=TargetDistribution(beta=1.0, do_gradient_scaling=True),
            noise_distribution=GumbelNoiseDistribution(),
            nb_samples=nb_samples,
            symmetric_perturbation=True,
        )
        leaf = THETA.expand(DRAWS // nb_samples, -1).clone().requires_grad_()
        z = estimator(top_one)(leaf)
        z.backward(COST.expand(z.shape))
        assert_mean(leaf.grad, expected)
        squares = (leaf.grad - expected).square().sum(dim=1)
        return squares.mean().item(), squares.std().item() / math.sqrt(len(squares))

    single, error_of_single = variance(1)
    for nb_samples in (2, 4):
        several, error = variance(nb_samples)
        uncertainty = math.hypot(nb_samples * error, error_of_single)
        assert uncertainty < 0.03 * single  # else the next line says nothing
        assert abs(nb_samples * several - single) < 4.5 * uncertainty

"""Algebra of AIMLE and I-MLE: the formulas, written out in slow loops, and what holds between the estimators."""

import itertools
import math

import pytest
import torch

from imle.aimle import aimle
from imle.auto import AutoTargetDistribution
from imle.imle import imle
from imle.noise import GumbelNoiseDistribution
from imle.solvers import select_k
from imle.target import AdaptiveTargetDistribution, TargetDistribution

K = 2


class Given:
    """A noise that was drawn before."""

    def __init__(self, eps):
        self.eps = eps

    def sample(self, shape):
        return self.eps.reshape(shape)


def select_two(theta):
    return select_k(theta, K)


def gradient(solver, theta, dy):
    theta = theta.clone().requires_grad_()
    solver(theta).backward(dy)
    return theta.grad


def norm(numbers):
    return math.sqrt(sum(x * x for x in numbers))


def slow_map(theta):
    """The best of all k-subsets, as a list of 0 and 1."""
    best = max(itertools.combinations(range(len(theta)), K), key=lambda chosen: sum(theta[i] for i in chosen))
    return [float(i in best) for i in range(len(theta))]


def slow_gradient(rule, theta, eps, dy, size, alpha, tau, tau_target, sign):
    """One of the three formulas for a list of instances: eps and dy [B][S][M][N]; not scaled by lambda."""

    def solve(*terms):
        """MAP of a sum of scaled vectors; for a solver that minimises, of minus the sum. Noise is subtracted there."""
        return slow_map([sign * sum(c * x[i] for c, x in terms) for i in range(len(terms[0][1]))])

    gradients = []
    for theta_b, eps_b, dy_b in zip(theta, eps, dy):
        total = [0.0] * len(theta_b)
        for eps_s, dy_s in zip(eps_b, dy_b):
            for eps_m, dy_m in zip(eps_s, dy_s):
                base = [(alpha, theta_b), (sign * tau_target, eps_m)]
                minus = solve(*base, (-size * sign, dy_m))
                if rule == "imle":
                    plus = solve((1.0, theta_b), (sign * tau, eps_m))
                elif rule == "forward":
                    plus = solve(*base)
                else:
                    plus = solve(*base, (size * sign, dy_m))
                half = 0.5 if rule == "central" else 1.0
                total = [t + sign * half * (p - m) for t, p, m in zip(total, plus, minus)]
        gradients.append([t / (len(eps_b) * len(eps_b[0])) for t in total])
    return torch.tensor(gradients, dtype=torch.float64)


@pytest.mark.parametrize("minimise", [False, True], ids=["maximise", "minimise"])
@pytest.mark.parametrize(("nb_samples", "nb_marginal_samples"), [(1, 1), (3, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize(("alpha", "tau", "tau_target"), [(1, 1, 1), (1, 1, 0.5), (0.5, 1, 1), (1, 0, 1), (0.2, 1, 0)])
@pytest.mark.parametrize("rule", ["imle", "forward", "central"])
def test_gradients_are_those_of_the_formulas(rule, alpha, tau, tau_target, nb_samples, nb_marginal_samples, minimise):
    theta = torch.randn(4, 5, dtype=torch.float64)
    eps = torch.randn(4, nb_samples, nb_marginal_samples, 5, dtype=torch.float64)
    dy = torch.randn(4, nb_samples, nb_marginal_samples, 5, dtype=torch.float64)
    options = {
        "target_distribution": TargetDistribution(alpha=alpha, beta=1.5),
        "noise_distribution": Given(eps),
        "nb_samples": nb_samples,
        "nb_marginal_samples": nb_marginal_samples,
        "theta_noise_temperature": tau,
        "target_noise_temperature": tau_target,
        "_is_minimization": minimise,
    }
    estimator = imle(**options) if rule == "imle" else aimle(symmetric_perturbation=rule == "central", **options)
    sign = -1 if minimise else 1
    found = gradient(estimator(lambda x: select_two(sign * x)), theta, dy.flatten(0, 2))
    expected = slow_gradient(rule, theta.tolist(), eps.tolist(), dy.tolist(), 1.5, alpha, tau, tau_target, sign=sign)
    assert expected.abs().sum() > 0
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("nb_samples", [1, 3])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_adaptive_gradient_is_the_formula_with_the_step_relative_to_theta(symmetric, nb_samples):
    theta = torch.randn(4, 5, dtype=torch.float64)
    eps = torch.randn(4, nb_samples, 1, 5, dtype=torch.float64)
    dy = torch.randn(4, nb_samples, 1, 5, dtype=torch.float64)
    beta = 2.0
    # lambda = beta ||theta|| / ||dy||, norms over the whole batch, theta repeated S times
    size = beta * norm(theta.flatten().tolist() * nb_samples) / norm(dy.flatten().tolist())
    rule = "central" if symmetric else "forward"
    difference = slow_gradient(rule, theta.tolist(), eps.tolist(), dy.tolist(), size, 1, 1, 1, sign=1)
    for exact, expected in ((True, difference / size), (False, difference / size * math.sqrt(nb_samples))):
        estimator = aimle(
            target_distribution=AdaptiveTargetDistribution(initial_beta=beta, exact_scaling=exact),
            noise_distribution=Given(eps),
            nb_samples=nb_samples,
            symmetric_perturbation=symmetric,
        )
        found = gradient(estimator(select_two), theta, dy.flatten(0, 2))
        assert expected.abs().sum() > 0
        assert torch.allclose(found, expected)


@pytest.mark.parametrize("nb_samples", [1, 2, 9])
@pytest.mark.parametrize("target", [AdaptiveTargetDistribution, AutoTargetDistribution])
def test_the_two_scalings_differ_by_the_root_of_the_number_of_samples(target, nb_samples):
    theta, dy = torch.randn(4, 5), torch.randn(4 * nb_samples, 5)
    found = {}
    for exact in (False, True):
        torch.manual_seed(1)
        estimator = aimle(
            target_distribution=target(exact_scaling=exact),
            noise_distribution=GumbelNoiseDistribution(),
            nb_samples=nb_samples,
        )
        found[exact] = gradient(estimator(select_two), theta, dy)
    assert found[True].abs().sum() > 0
    assert torch.allclose(found[False], math.sqrt(nb_samples) * found[True])


@pytest.mark.parametrize("target", ["fixed", "adaptive"])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("nb_samples", "nb_marginal_samples"), [(1, 1), (3, 2)])
def test_forward_aimle_is_imle_at_alpha_one_and_equal_temperatures(target, tau, nb_samples, nb_marginal_samples):
    theta, dy = torch.randn(8, 5), torch.randn(8 * nb_samples * nb_marginal_samples, 5)
    results = []
    for function in (aimle, imle):
        torch.manual_seed(1)
        estimator = function(
            target_distribution=TargetDistribution(beta=2.0) if target == "fixed" else AdaptiveTargetDistribution(),
            noise_distribution=GumbelNoiseDistribution(),
            nb_samples=nb_samples,
            nb_marginal_samples=nb_marginal_samples,
            theta_noise_temperature=tau,
            target_noise_temperature=tau,
        )
        results.append(gradient(estimator(select_two), theta, dy))
    assert results[0].abs().sum() > 0
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("options", [{"alpha": 0.5}, {"tau_target": 0.5}], ids=str)
def test_forward_aimle_is_not_imle_otherwise(options):
    theta, dy = torch.randn(50, 5), torch.randn(50, 5)
    results = []
    for function in (aimle, imle):
        torch.manual_seed(1)
        estimator = function(
            target_distribution=TargetDistribution(alpha=options.get("alpha", 1.0), beta=1.0),
            noise_distribution=GumbelNoiseDistribution(),
            target_noise_temperature=options.get("tau_target", 1.0),
        )
        results.append(gradient(estimator(select_two), theta, dy))
    assert not torch.equal(results[0], results[1])


RULES = {
    "imle": lambda **options: imle(**options),
    "forward": lambda **options: aimle(**options),
    "central": lambda **options: aimle(symmetric_perturbation=True, **options),
}


@pytest.mark.parametrize("target", ["fixed", "adaptive"])
@pytest.mark.parametrize("rule", RULES)
def test_minimising_is_maximising_of_minus_theta(rule, target):
    theta, dy = torch.randn(8, 5), torch.randn(8 * 3, 5)
    eps = torch.randn(8, 3, 5)

    def options():
        fixed = TargetDistribution(alpha=0.7, beta=2.0, do_gradient_scaling=True)
        return {
            "target_distribution": fixed if target == "fixed" else AdaptiveTargetDistribution(),
            "noise_distribution": Given(eps),
            "nb_samples": 3,
        }

    minimiser = RULES[rule](_is_minimization=True, **options())(lambda costs: select_two(-costs))
    maximiser = RULES[rule](**options())(select_two)
    assert torch.equal(minimiser(theta), maximiser(-theta))
    by_minimiser = gradient(minimiser, theta, dy)
    by_maximiser = gradient(lambda costs: maximiser(-costs), theta, dy)
    assert by_minimiser.abs().sum() > 0
    assert torch.equal(by_minimiser, by_maximiser)


def test_every_rule_moves_the_solution_downhill():
    """A step against g lowers the weight of what the loss dislikes: the sign of g is that of a gradient."""
    theta = torch.tensor([[1.0, 0.9, 0.8, 0.0]])
    dy = torch.tensor([[1.0, 0.0, -1.0, 0.0]])
    for rule in RULES.values():
        maximised = gradient(rule(target_distribution=TargetDistribution(beta=1.0))(select_two), theta, dy)
        assert maximised[0, 0] > 0 > maximised[0, 2]
        minimiser = rule(target_distribution=TargetDistribution(beta=1.0), _is_minimization=True)
        minimised = gradient(minimiser(lambda costs: select_two(-costs)), -theta, dy)
        assert minimised[0, 0] < 0 < minimised[0, 2]


@pytest.mark.parametrize("target", ["fixed", "adaptive"])
def test_central_differences_are_odd_in_dy(target):
    theta, dy = torch.randn(8, 5), torch.randn(8 * 2, 5)
    found = []
    for sign in (1, -1):
        torch.manual_seed(1)
        fixed = TargetDistribution(beta=2.0)
        estimator = aimle(
            target_distribution=fixed if target == "fixed" else AdaptiveTargetDistribution(),
            noise_distribution=GumbelNoiseDistribution(),
            nb_samples=2,
            symmetric_perturbation=True,
        )
        found.append(gradient(estimator(select_two), theta, sign * dy))
    assert found[0].abs().sum() > 0
    assert torch.equal(found[0], -found[1])


def test_central_differences_are_the_mean_of_the_forward_ones_of_both_signs():
    theta, dy = torch.randn(8, 5), torch.randn(8, 5)

    def found(symmetric, sign):
        torch.manual_seed(1)
        target = TargetDistribution(beta=2.0)
        noise = GumbelNoiseDistribution()
        estimator = aimle(target_distribution=target, noise_distribution=noise, symmetric_perturbation=symmetric)
        return gradient(estimator(select_two), theta, sign * dy)

    central = found(True, 1)
    assert central.abs().sum() > 0
    assert torch.allclose(central, (found(False, 1) - found(False, -1)) / 2)


@pytest.mark.parametrize("rule", RULES)
def test_the_adaptive_gradient_does_not_depend_on_the_scale_of_theta(rule):
    """The step is relative: c theta, with c eps, is solved as theta is, and g shrinks with the lambda that grew."""
    theta, eps, dy = torch.randn(8, 5).double(), torch.randn(8, 5).double(), torch.randn(8, 5).double()
    small, large = (
        gradient(
            RULES[rule](target_distribution=AdaptiveTargetDistribution(), noise_distribution=Given(c * eps))(
                select_two
            ),
            c * theta,
            dy,
        )
        for c in (1.0, 8.0)
    )
    assert small.abs().sum() > 0
    assert torch.allclose(small, 8 * large)


@pytest.mark.parametrize("rule", RULES)
def test_the_adaptive_gradient_is_proportional_to_dy(rule):
    theta, dy = torch.randn(8, 5), torch.randn(8, 5)
    one, thousand = (
        gradient(RULES[rule](target_distribution=AdaptiveTargetDistribution())(select_two), theta, c * dy)
        for c in (1.0, 1024.0)
    )
    assert one.abs().sum() > 0
    assert torch.allclose(thousand, 1024 * one)


# Scaling by lambda


@pytest.mark.parametrize("rule", RULES)
def test_a_fixed_target_divides_by_beta_on_demand(rule):
    theta, dy = torch.randn(8, 5), torch.randn(8, 5)
    plain, scaled = (
        gradient(
            RULES[rule](target_distribution=TargetDistribution(beta=4.0, do_gradient_scaling=scaling))(select_two),
            theta,
            dy,
        )
        for scaling in (False, True)
    )
    assert set(plain.unique().tolist()) <= {-1.0, -0.5, 0.0, 0.5, 1.0}
    assert plain.abs().sum() > 0
    assert torch.allclose(scaled, plain / 4)


@pytest.mark.parametrize(
    "target", [TargetDistribution(beta=0.0), TargetDistribution(beta=0.0, do_gradient_scaling=True)]
)
@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_zero_gives_a_gradient_of_zero(rule, target):
    theta, dy = torch.randn(8, 5), torch.randn(8, 5)
    assert torch.equal(gradient(RULES[rule](target_distribution=target)(select_two), theta, dy), torch.zeros(8, 5))
    adaptive = AdaptiveTargetDistribution(initial_beta=0.0)
    assert torch.equal(gradient(RULES[rule](target_distribution=adaptive)(select_two), theta, dy), torch.zeros(8, 5))


# Marginal samples


def test_marginal_samples_are_discrete_in_the_forward_pass_and_side_by_side():
    eps = torch.randn(4, 2, 3, 5)
    solver = aimle(noise_distribution=Given(eps), nb_samples=2, nb_marginal_samples=3)(select_two)
    theta = torch.randn(4, 5)
    expected = [slow_map((theta[b] + eps[b, s, m]).tolist()) for b, s, m in itertools.product(*map(range, (4, 2, 3)))]
    assert torch.equal(solver(theta), torch.tensor(expected))


@pytest.mark.parametrize("rule", ["imle", "forward", "central"])
def test_entries_are_counted_after_the_mean_over_marginal_samples(rule):
    """Two marginal samples whose differences cancel count as none, and more of them as one."""
    eps = torch.zeros(1, 1, 2, 2)
    dy = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # of the two marginal samples
    counts = {}
    for samples, marginals in ((2, 1), (1, 2)):
        target = AdaptiveTargetDistribution(initial_beta=10.0, grad_norm_decay_rate=0.0)
        estimator = RULES[rule](
            target_distribution=target,
            noise_distribution=Given(eps),
            nb_samples=samples,
            nb_marginal_samples=marginals,
        )
        gradient(estimator(lambda theta: (theta > 1).to(theta)), torch.tensor([[1.0, 1.0]]), dy)
        counts[marginals] = target.grad_norm
    assert counts == ({1: 2.0, 2: 0.0} if rule == "central" else {1: 1.0, 2: 2.0})


# Forbidden entries


@pytest.mark.parametrize("rule", RULES)
def test_entries_at_minus_infinity_are_never_chosen_and_get_no_gradient(rule):
    theta = torch.randn(8, 5).index_fill(1, torch.tensor([1, 3]), -torch.inf)
    layer = RULES[rule](
        target_distribution=AdaptiveTargetDistribution(), noise_distribution=GumbelNoiseDistribution(), nb_samples=3
    )(select_two)
    assert not layer(theta)[:, [1, 3]].any()
    found = gradient(layer, theta, torch.randn(24, 5))
    assert not found[:, [1, 3]].any()
    assert found.isfinite().all() and found.abs().sum() > 0

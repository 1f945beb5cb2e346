"""The defaults of `aimle` and `imle`: naming one changes nothing, and the noise belongs to the target."""

import copy
import functools
import inspect
import math
import pickle
import types
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imle as imle_package
from imle.aimle import aimle
from imle.auto import AutoTargetDistribution
from imle.finite_difference import walls
from imle.identity import identity
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import BaseNoiseDistribution, GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.solvers import select_k
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution

BARE = {
    "aimle": aimle,
    "imle": imle,
    "central": lambda **options: aimle(symmetric_perturbation=True, **options),
    "samples": lambda **options: aimle(nb_samples=3, **options),
    "marginals": lambda **options: aimle(nb_samples=2, nb_marginal_samples=3, **options),
    "minimise": lambda **options: aimle(_is_minimization=True, **options),
}


class Given(BaseNoiseDistribution):
    """Noise that is known beforehand."""

    def __init__(self, values):
        self.values = values

    def sample(self, shape):
        return self.values.reshape(shape)


def select_three(theta):
    return select_k(theta, 3)


def gradient(estimator, theta, dy, solver=select_three):
    """Return the gradient at theta `[B, N]` of solutions whose gradient is dy `[B*R, N]`."""
    theta = theta.clone().requires_grad_()
    torch.manual_seed(3)
    estimator(solver)(theta).backward(dy)
    return theta.grad


def auto(eps=None, **options):
    noise = None if eps is None else Given(eps)
    return aimle(target_distribution=AutoTargetDistribution(), noise_distribution=noise, **options)


@pytest.mark.parametrize("function", [aimle, imle])
def test_a_bare_call_has_noise_and_a_rule_without_numbers(function):
    for estimator in (function(), function(select_three).estimator, function(nb_samples=4)):
        assert isinstance(estimator.target_distribution, AutoTargetDistribution)
        assert isinstance(estimator.noise_distribution, GumbelNoiseDistribution)
        assert not estimator.target_distribution.state_dict()
    assert function().target_distribution is not function().target_distribution


@pytest.mark.parametrize("function", [aimle, imle])
def test_naming_a_default_changes_nothing(function):
    theta, dy = torch.randn(4, 8), torch.randn(4, 8)
    target, noise = AutoTargetDistribution(), GumbelNoiseDistribution()
    named = [{"target_distribution": target}, {"noise_distribution": noise}]
    bare, *others = (gradient(function(**o), theta, dy) for o in ({}, *named, named[0] | named[1]))
    assert bare.any() and all(torch.equal(bare, other) for other in others)


@pytest.mark.parametrize(("function", "published"), [(aimle, AdaptiveTargetDistribution), (imle, TargetDistribution)])
def test_the_noise_belongs_to_the_target_and_none_means_none_and_the_published_one(function, published):
    target, noise = TargetDistribution(beta=3.0), SumOfGammaNoiseDistribution(k=3)
    assert function(target_distribution=target).noise_distribution is None
    assert function(target_distribution=target).target_distribution is target
    assert (
        function(target_distribution=AdaptiveTargetDistribution(), noise_distribution=noise).noise_distribution is noise
    )
    assert function(noise_distribution=None).noise_distribution is None
    assert isinstance(function(noise_distribution=noise).target_distribution, AutoTargetDistribution)
    estimator = function(target_distribution=None)
    assert estimator.noise_distribution is None and type(estimator.target_distribution) is published
    assert estimator.target_distribution.beta == estimator.target_distribution.alpha == 1.0


def test_help_shows_what_the_defaults_are():
    parameters = inspect.signature(aimle).parameters
    assert isinstance(parameters["target_distribution"].default, AutoTargetDistribution)
    assert "Gumbel(0, 1) for AutoTargetDistribution" in str(parameters["noise_distribution"])


@pytest.mark.parametrize("name", ["aimle", "blackbox", "identity", "imle", "lpgd", "perturbed", "sfe", "ste"])
def test_a_module_is_called_as_the_function_of_its_name(name):
    module = getattr(imle_package, name)
    options = {"projection": None} if name == "identity" else {}
    assert isinstance(module, types.ModuleType)
    assert type(module(**options)) is type(getattr(module, name)(**options))
    assert module(select_three, **options).solver is select_three


@pytest.mark.parametrize("copied", [replace, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_bare_estimator_have_its_noise_and_its_rule(copied):
    twin = copied(aimle())
    assert isinstance(twin.target_distribution, AutoTargetDistribution)
    assert isinstance(twin.noise_distribution, GumbelNoiseDistribution)
    layer = MAPLayer(select_three, copied(aimle()))
    layer.target_distribution = TargetDistribution()
    assert isinstance(layer.estimator.noise_distribution, GumbelNoiseDistribution)


@pytest.mark.parametrize("function", [aimle, imle])
def test_a_bare_estimator_learns_a_subset(function):
    """10 of 100, from random numbers; a start at beta 0 without noise finds a tenth."""
    goal, theta = select_k(torch.randn(4, 100), 10), torch.randn(4, 100).requires_grad_()
    choose = function(lambda theta: select_k(theta, 10))
    optimiser = torch.optim.Adam([theta], lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        (choose(theta) - goal).square().sum().backward()
        optimiser.step()
    assert (select_k(theta.detach(), 10) * goal).sum() > 0.85 * goal.sum()


@pytest.mark.parametrize("function", [aimle, imle])
def test_a_bare_estimator_learns_costs_from_the_regret_of_decisions(function):
    """As many features as costs, so a linear model can do without regret; it minimises."""

    def solver(costs):
        return select_k(-costs, 3)

    mixing, features = torch.randn(10, 10), torch.randn(256, 10)
    costs = features @ mixing
    best = (costs * solver(costs)).sum()
    model = torch.nn.Linear(10, 10)
    decide = function(solver, _is_minimization=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-2)

    def regret():
        return ((costs * solver(model(features))).sum() - best).item() / abs(best.item())

    assert regret() > 0.5
    for rows in torch.arange(256).repeat(15).split(32):
        optimiser.zero_grad()
        (costs[rows] * decide(model(features[rows]))).sum(dim=1).mean().backward()
        optimiser.step()
    assert regret() < 0.05


@pytest.mark.parametrize("estimator", BARE)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_the_gradient_goes_with_the_scale_of_the_loss(estimator, scale):
    theta, dy = torch.randn(4, 8), torch.randn(4 * BARE[estimator]().rows, 8)
    g = gradient(BARE[estimator](), theta, dy)
    assert g.any()
    torch.testing.assert_close(gradient(BARE[estimator](), theta, dy * scale) / scale, g, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_theta_and_noise_together_in_other_units_change_nothing_but_the_unit(scale):
    theta, eps, dy = torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 8)
    scaled = gradient(auto(eps * scale), theta * scale, dy)
    torch.testing.assert_close(scaled * scale, gradient(auto(eps), theta, dy), rtol=1e-4, atol=1e-6)


PER_ROW = {
    "auto": lambda eps: auto(eps),
    "central": lambda eps: auto(eps, symmetric_perturbation=True),
    "per instance": lambda eps: aimle(
        target_distribution=AdaptiveTargetDistribution(per_instance=True), noise_distribution=Given(eps)
    ),
    "fixed": lambda eps: imle(target_distribution=TargetDistribution(beta=3.0), noise_distribution=Given(eps)),
    "identity": lambda eps: identity(projection="std", noise_distribution=Given(eps)),
}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), exponents=st.lists(st.floats(-6, 6), min_size=8, max_size=8))
@pytest.mark.parametrize("name", PER_ROW)
@pytest.mark.parametrize("minimise", [False, True], ids=["maximise", "minimise"])
def test_the_gradient_of_a_row_does_not_depend_on_the_other_rows(name, minimise, seed, exponents):
    generator, sign = torch.Generator().manual_seed(seed), -1 if minimise else 1
    theta, eps, dy, other_theta, other_dy = (torch.randn(4, 8, generator=generator) for _ in range(5))
    scales = 10.0 ** torch.tensor(exponents).view(2, 4, 1)
    theta, other_theta = theta * scales[0], other_theta * scales[1]
    other_theta[0], other_dy[0] = theta[0], dy[0]
    solver = functools.partial(select_k, k=3) if sign > 0 else lambda costs: select_k(-costs, 3)
    found = []
    for rows in ((theta, dy), (other_theta, other_dy)):
        estimator = replace(PER_ROW[name](eps), _is_minimization=minimise)
        found.append(gradient(estimator, *rows, solver)[0])
    assert torch.equal(*found)


def test_only_an_infinity_or_a_hundred_million_is_a_mask():
    best = functools.partial(select_k, k=1)
    dy = torch.tensor([[1.0, 0.0, 0.0]])
    row = torch.tensor([[0.5, 1.0, -2000.0]])
    beside = torch.cat([row, torch.tensor([[-500.0, 3.0, 1.0]])])
    rule = aimle(noise_distribution=None)
    assert torch.equal(gradient(rule, row, dy, best)[0], gradient(rule, beside, dy.repeat(2, 1), best)[0])
    for dtype, least in ((torch.float32, 1e8), (torch.bfloat16, 1e8), (torch.float16, 32752)):
        numbers = torch.tensor([[0.5, -0.99 * least, -1.01 * least, -torch.inf, torch.finfo(dtype).min]], dtype=dtype)
        assert walls(numbers, 1).tolist() == [[False, False, True, True, True]]
        assert walls(-numbers, -1).tolist() == walls(numbers, 1).tolist()
        assert walls(-numbers, 1) is None or not walls(-numbers, 1).any()


@pytest.mark.parametrize("sigma", [None, 0.7])
def test_lambda_makes_the_weighted_mean_step_four_standard_deviations(sigma):
    theta, dy = 3 * torch.randn(5, 7, 9) + 20, torch.randn(5, 4, 7, 9)
    size = AutoTargetDistribution().perturbation_size(theta, dy, sigma)
    assert size.shape == (5, 1, 1, 1)
    weighted = ((size * dy.abs()) * dy.abs()).flatten(1).sum(dim=1) / dy.abs().flatten(1).sum(dim=1)
    spread = theta.flatten(1).std(dim=1, correction=0) if sigma is None else torch.full((5,), sigma)
    torch.testing.assert_close(weighted, 4 / math.sqrt(4) * spread)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_the_estimator_tells_the_rule_how_large_the_noise_of_the_target_is(temperature):
    eps, dy = 5 * torch.randn(3, 2, 8), torch.randn(6, 8)
    estimator = auto(eps, nb_samples=2, target_noise_temperature=temperature)
    sigma = temperature * eps.square().mean().sqrt() if temperature else None  # where there is none, theta's own
    theta = torch.randn(3, 8)
    expected = estimator.target.perturbation_size(theta, dy.unflatten(0, (3, 2)), sigma)
    torch.testing.assert_close(estimator.size(theta, eps, dy.unflatten(0, (3, 2)), 1), expected)


def test_the_difference_belongs_to_the_target_unless_it_is_named():
    theta, eps, dy = torch.randn(40, 8), torch.randn(40, 8), torch.randn(40, 8)
    for target, own in ((AutoTargetDistribution(), True), (TargetDistribution(beta=2.0), False)):
        make = functools.partial(aimle, target_distribution=target, noise_distribution=Given(eps))
        found, central, forward = (
            gradient(make(**options), theta, dy)
            for options in ({}, {"symmetric_perturbation": True}, {"symmetric_perturbation": False})
        )
        assert torch.equal(found, central if own else forward) and not torch.equal(central, forward)


def test_walls_count_for_nothing():
    theta, eps, dy = torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 8)
    theta[:, 0] = 0
    gradients = []
    for wall in (-1e8, -1e9, -torch.inf):
        gradients.append(gradient(auto(eps), theta.index_fill(1, torch.tensor(0), wall), dy))
    assert gradients[0].any() and torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("wall", [-1e8, -1e9, -torch.inf])
@pytest.mark.parametrize("function", [auto, functools.partial(auto, _is_minimization=True)])
def test_masked_entries_change_nothing_for_the_others_wherever_these_lie(function, wall):
    theta, dy = 20 + torch.randn(4, 5), torch.randn(4, 5)
    estimator, sign = function(), 1 if function is auto else -1
    wide = torch.cat([sign * theta, torch.full((4, 30), sign * wall)], dim=1)
    wide_dy = torch.nn.functional.pad(dy.unsqueeze(1), (0, 30))
    size = estimator.size(wide, None, wide_dy, sign)
    torch.testing.assert_close(size, estimator.size(sign * theta, None, dy.unsqueeze(1), sign))
    wide[1, :4] = sign * wall
    assert size[1] != estimator.size(wide, None, wide_dy, sign)[1] > 0  # one entry that is left goes by its own size
    assert torch.equal(size[2], estimator.size(wide, None, wide_dy, sign)[2])


@pytest.mark.parametrize("estimator", BARE)
def test_an_instance_without_a_gradient_gets_none(estimator):
    theta, dy = torch.randn(4, 8), torch.randn(4, BARE[estimator]().rows, 8)
    dy[1] = 0
    g = gradient(BARE[estimator](), theta, dy.flatten(0, 1))
    assert not g[1].any() and g[[0, 2, 3]].any()


def test_a_single_entry_moves_by_its_own_size():
    estimator = auto(symmetric_perturbation=False)
    g = gradient(estimator, torch.tensor([[0.3], [-0.3]]), torch.ones(2, 1), lambda theta: (theta > 0).to(theta))
    torch.testing.assert_close(g, torch.tensor([[1 / 1.2], [0.0]]))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0)])
def test_nothing_has_a_gradient_of_nothing(shape):
    g = gradient(aimle(), torch.zeros(shape), torch.zeros(shape), solver=torch.zeros_like)
    assert g.shape == shape and not g.any()


def test_jacobians_and_gradients_of_each_instance_are_those_of_autograd():
    theta, eps, weights = torch.randn(4, 8), torch.randn(4, 8), torch.randn(8)
    solver = auto(eps)(select_three)
    g = gradient(auto(eps), theta, weights.expand(4, 8))
    torch.testing.assert_close(torch.func.grad(lambda x: (solver(x) * weights).sum())(theta), g)
    jacobian = torch.func.jacrev(lambda x: solver(x) @ weights)(theta)
    torch.testing.assert_close(jacobian.diagonal(dim1=0, dim2=1).mT, g)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_give_the_same_rule(dtype):
    theta, dy = torch.randn(4, 8).to(dtype), torch.randn(4, 1, 8).to(dtype)
    size = AutoTargetDistribution().perturbation_size(theta, dy, 1.0)
    expected = AutoTargetDistribution().perturbation_size(theta.double(), dy.double(), 1.0)
    torch.testing.assert_close(size.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("options", [{"nb_samples": 2}, {"nb_marginal_samples": 2}])
@pytest.mark.parametrize("function", [aimle, imle, ste])
def test_several_samples_without_noise_are_warned_of(function, options):
    with pytest.warns(UserWarning, match="the 2 solutions of an instance are equal"):
        function(noise_distribution=None, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(noise_distribution=GumbelNoiseDistribution(), **options)
        function(noise_distribution=None)
        if function is not ste:
            function(**options)
            function(theta_noise_temperature=0.0, **options)


def test_the_warning_names_the_line_of_the_call():
    with pytest.warns(UserWarning) as caught:
        aimle(select_three, target_distribution=TargetDistribution(), nb_samples=2)
    assert caught[0].filename == __file__

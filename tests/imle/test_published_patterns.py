"""How published programs call torch-imle and the released code: each way runs, at most with another import."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from imle import target as targets
from imle.aimle import aimle as library_aimle
from imle.imle import imle as library_imle
from imle.noise import BaseNoiseDistribution, GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.solvers import select_k
from imle.wrapper import AdaptiveTargetDistribution, BaseTargetDistribution, TargetDistribution, _AsTold, aimle, imle


def select_two(theta):
    return select_k(theta, 2)


def cheapest(costs):
    """The cheapest of N: it minimises."""
    return nn.functional.one_hot(costs.argmin(dim=-1), costs.shape[-1]).to(costs)


def ranks(scores):
    """Position of each entry from the largest, which is 1."""
    return (-scores).argsort(dim=1).argsort(dim=1).float() + 1


def gradient(layer, theta, dy):
    theta = theta.clone().requires_grad_()
    torch.manual_seed(1)
    z = layer(theta)
    z.backward(dy.expand_as(z))
    return z.detach(), theta.grad


# Solvers


def test_a_ranking_function_learns_an_order_under_adagrad():
    @aimle(target_distribution=AdaptiveTargetDistribution(beta_update_step=1e-2))
    def differentiable_ranks(scores):
        return ranks(scores)

    theta = nn.Parameter(torch.randn(32, 64))
    wanted = ranks(torch.randn(32, 64))
    optimiser, losses = torch.optim.Adagrad([theta], lr=0.3), []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (differentiable_ranks(theta) - wanted).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_answers_need_not_be_zeros_and_ones():
    z, g = gradient(aimle(ranks, TargetDistribution(beta=5.0)), torch.randn(4, 6), torch.randn(4, 6))
    assert sorted(set(z.flatten().tolist())) == [1, 2, 3, 4, 5, 6] and g.abs().sum() > 0
    torch.testing.assert_close(g.sum(1), torch.zeros(4))  # ranks have one sum


def test_theta_of_three_dimensions_keeps_its_shape():
    layer = aimle(cheapest, target_distribution=AdaptiveTargetDistribution(), _is_minimization=True)
    z, g = gradient(layer, torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    assert z.shape == g.shape == (2, 3, 4) and g.abs().sum() > 0


def test_a_solver_under_inference_mode_has_a_gradient():
    def top1(theta):
        with torch.inference_mode():
            return nn.functional.one_hot(theta.argmax(-1), theta.shape[-1]).to(theta)

    for layer in (aimle(top1, AdaptiveTargetDistribution()), aimle(top1, symmetric_perturbation=True), imle(top1)):
        _, g = gradient(layer, torch.randn(2, 3, 4), 9 * torch.randn(2, 3, 4))
        assert g.abs().sum() > 0


class Selector(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(5, 6)
        self.layer = aimle(select_two, target_distribution=AdaptiveTargetDistribution())

    def forward(self, x):
        return self.layer(self.scores(x))


def test_a_module_runs_under_bfloat16_autocast():
    model = Selector()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(torch.randn(3, 5))
        loss = (z * torch.randn(3, 6)).sum()
    loss.backward()
    assert z.dtype == torch.bfloat16 and model.scores.weight.grad.dtype == torch.float32
    assert model.scores.weight.grad.abs().sum() > 0


def test_a_module_that_was_copied_deeply_still_learns():
    model = copy.deepcopy(Selector())
    model(torch.randn(3, 5)).backward(torch.randn(3, 6))
    assert model.scores.weight.grad.abs().sum() > 0


def test_a_numpy_solver_of_one_instance_is_stacked_by_hand():
    @imle(target_distribution=TargetDistribution(alpha=1.0, beta=10.0), nb_samples=3)
    def solve(weights):
        batch = weights.detach().cpu().numpy()
        return torch.tensor(np.asarray([(w >= np.sort(w)[-2]).astype(np.float32) for w in list(batch)]))

    z, g = gradient(solve, torch.randn(4, 6), torch.randn(12, 6))
    assert z.shape == (12, 6) and g.abs().sum() > 0


@pytest.mark.parametrize("samples", [1, 3])
def test_a_ragged_batch_reaches_the_solver_row_by_row_through_a_closure(samples):
    ptr, seen = [2, 5, 1], []

    def best_of_each_graph(logits):
        seen.append(len(logits))
        parts = torch.split(logits, [samples * size for size in ptr])
        return torch.cat([nn.functional.one_hot(part.argmax(0), len(part)).T.to(logits) for part in parts])

    layer = imle(best_of_each_graph, TargetDistribution(beta=10.0), GumbelNoiseDistribution(), samples)
    z, g = gradient(layer, torch.randn(8, 4), torch.randn(8 * samples, 4))
    assert set(seen) == {8 * samples} and z.shape == (8 * samples, 4) and g.abs().sum() > 0


@pytest.mark.parametrize("make", [imle, aimle])
def test_of_an_answer_with_something_beside_it_the_first_is_the_solution(make):
    theta, dy = torch.randn(4, 6), torch.randn(4, 6)
    found = gradient(make(lambda theta: (select_two(theta), "what it cost")), theta, dy)
    assert all(map(torch.equal, found, gradient(make(select_two), theta, dy)))


def test_a_minimiser_is_turned_into_a_maximiser_over_a_batch_of_one():
    y, dy = torch.randn(6, requires_grad=True), torch.randn(1, 6)
    layer = imle(lambda y: cheapest(-y), target_distribution=TargetDistribution(beta=10.0))
    z = layer(y.view(1, -1))
    z.backward(dy)
    assert z.argmax() == y.argmax() and y.grad.abs().sum() > 0
    as_minimiser = imle(cheapest, TargetDistribution(beta=10.0), _is_minimization=True)
    torch.testing.assert_close(-gradient(as_minimiser, -y.detach().view(1, -1), dy)[1][0], y.grad)


def test_k_comes_by_closure():
    def sample(theta, k):
        @imle(target_distribution=TargetDistribution(beta=10.0))
        def solve(theta):
            return select_k(theta, k)

        return solve(theta)

    assert [sample(torch.randn(3, 6), k).sum().item() for k in (1, 2, 4)] == [3, 6, 12]


# How it is called


OPTIONS = {"nb_samples": 3, "input_noise_temperature": 0.5, "target_noise_temperature": 2.0}


def by_the_library():
    """What the same options give with the names of this library."""
    target = targets.TargetDistribution(alpha=0.0, beta=10.0)
    return library_imle(
        select_two,
        target_distribution=target,
        noise_distribution=SumOfGammaNoiseDistribution(k=2),
        nb_samples=3,
        theta_noise_temperature=0.5,
        target_noise_temperature=2.0,
    )


def torch_imle(*function, target=TargetDistribution):
    noise = SumOfGammaNoiseDistribution(k=2, nb_iterations=10)
    return imle(*function, target_distribution=target(alpha=0.0, beta=10.0), noise_distribution=noise, **OPTIONS)


@pytest.mark.parametrize(
    "layer",
    [
        torch_imle(select_two),
        torch_imle()(select_two),
        torch_imle(select_two, target=targets.TargetDistribution),
        imle(select_two, TargetDistribution(0.0, 10.0), SumOfGammaNoiseDistribution(2, 10), 3, 0.5, 2.0),
        imle(
            select_two,
            TargetDistribution(0.0, 10.0),
            SumOfGammaNoiseDistribution(2),
            3,
            7.0,
            2.0,
            theta_noise_temperature=0.5,
        ),
    ],
    ids=["a call", "a decorator", "the library's target", "by position", "the released name of the temperature"],
)
def test_torch_imles_options_mean_the_librarys(layer):
    theta, dy = torch.randn(4, 6), torch.randn(12, 6)
    assert all(map(torch.equal, gradient(layer, theta, dy), gradient(by_the_library(), theta, dy)))


def test_a_bare_call_has_a_fixed_lambda_of_one_and_no_noise():
    theta, dy = torch.randn(4, 6), torch.randn(4, 6)
    for layer in (imle(select_two), aimle(select_two)):
        z, g = gradient(layer, theta, dy)
        assert torch.equal(z, select_two(theta)) and torch.equal(g, z - select_two(theta - dy))


def test_the_bare_decorator_serves_too():
    @imle
    def solve(theta):
        """Choose two."""
        return select_two(theta)

    assert solve.__doc__ == "Choose two." and solve(torch.randn(3, 5)).sum() == 6


def test_aimle_takes_the_released_options_by_position():
    target, noise = AdaptiveTargetDistribution(initial_beta=0.5), GumbelNoiseDistribution()
    theta, dy = torch.randn(4, 6), torch.randn(24, 6)
    found = gradient(aimle(select_two, target, noise, 3, 2, 0.5, 2.0, True, False), theta, dy)
    expected = library_aimle(
        select_two,
        target_distribution=targets.AdaptiveTargetDistribution(initial_beta=0.5),
        noise_distribution=noise,
        nb_samples=3,
        nb_marginal_samples=2,
        theta_noise_temperature=0.5,
        target_noise_temperature=2.0,
        symmetric_perturbation=True,
    )
    assert all(map(torch.equal, found, gradient(expected, theta, dy)))


@pytest.mark.parametrize("make", [imle, aimle])
def test_no_target_distribution_at_validation(make):
    with torch.no_grad():
        assert torch.equal(make(select_two, target_distribution=None)(torch.eye(3, 5)), select_two(torch.eye(3, 5)))


def test_imle_is_built_anew_in_each_forward_pass_over_one_target():
    adaptive = AdaptiveTargetDistribution(initial_beta=1.0, beta_update_step=0.1, target_norm=100.0)
    theta = torch.randn(4, 6, requires_grad=True)
    for _ in range(3):
        imle(select_two, target_distribution=adaptive)(theta).sum().backward()
    assert adaptive.beta == pytest.approx(1.3)


# Noise of one's own


class Uniform(BaseNoiseDistribution):
    def __init__(self, width):
        super().__init__()
        self.width = width

    def sample(self, shape):
        return self.width * torch.rand(shape)


def test_a_noise_class_needs_no_more_than_sample_of_a_shape():
    layer = imle(select_two, noise_distribution=Uniform(9.0), nb_samples=50)
    z, g = gradient(layer, torch.zeros(2, 6, dtype=torch.float64), torch.randn(100, 6, dtype=torch.float64))
    assert z.dtype == torch.float64 and (z.unflatten(0, (2, 50)).mean(1) > 0).all() and g.abs().sum() > 0


# Target distributions of one's own


class Fixed(BaseTargetDistribution):
    """alpha theta - beta dy, by the released protocol."""

    def __init__(self, alpha=1.0, beta=1.0, divide=False):
        super().__init__()
        self.alpha, self.beta, self.divide = alpha, beta, divide

    def params(self, theta, dy, _is_minimization=False):
        step = 0.0 if dy is None else self.beta * dy
        return self.alpha * theta + (step if _is_minimization else -step)

    def process(self, theta, dy, gradient):
        return gradient / self.beta if self.divide else gradient


class Adaptive:
    """The adaptive rule by the released protocol, and derived from nothing."""

    def __init__(self, beta, target_norm):
        self.beta, self.norm, self.target_norm = beta, 1.0, target_norm

    def size(self, theta, dy):
        return self.beta * float(theta.norm() / dy.norm())

    def params(self, theta, dy, _is_minimization=False):
        step = 0.0 if dy is None else self.size(theta, dy) * dy
        return theta + step if _is_minimization else theta - step

    def process(self, theta, dy, gradient):
        g = gradient / self.size(theta, dy)
        entries = (gradient != 0).sum().item() / (gradient.shape[0] * gradient.shape[1])
        self.norm = 0.9 * self.norm + 0.1 * entries
        self.beta = max(self.beta + (0.1 if self.norm < self.target_norm else -0.1), 0.0)
        return g


KINDS = {
    "imle": (imle, {}),
    "aimle forward": (aimle, {}),
    "aimle central": (aimle, {"symmetric_perturbation": True}),
}


@pytest.mark.parametrize("options", [{}, {"nb_samples": 3, "nb_marginal_samples": 2, "target_noise_temperature": 0.3}])
@pytest.mark.parametrize("minimises", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_of_ones_own_gives_what_the_librarys_gives(kind, minimises, options):
    make, more = KINDS[kind]
    more = {**more, **options, "noise_distribution": GumbelNoiseDistribution(), "_is_minimization": minimises}
    theta = torch.randn(4, 6, dtype=torch.float64)
    dy = torch.randn(4 * math.prod(options.get(name, 1) for name in ("nb_samples", "nb_marginal_samples")), 6)
    solver = cheapest if minimises else select_two
    for own, ours in (
        (Fixed(0.5, 3.0), TargetDistribution(0.5, 3.0)),
        (Fixed(1.0, 3.0, divide=True), TargetDistribution(1.0, 3.0, True)),
        (Adaptive(1.0, 2.0), AdaptiveTargetDistribution(initial_beta=1.0, beta_update_step=0.1, target_norm=2.0)),
    ):
        layers = [make(solver, target_distribution=target, **more) for target in (own, ours)]
        assert isinstance(layers[0].estimator, _AsTold) and not isinstance(layers[1].estimator, _AsTold)
        for _ in range(3):  # the adaptive ones move
            found, expected = (gradient(layer, theta, dy.double()) for layer in layers)
            torch.testing.assert_close(found, expected)
            assert expected[1].abs().sum() > 0
            assert own.beta == pytest.approx(ours.beta)
        assert getattr(own, "norm", None) == (pytest.approx(ours.grad_norm) if isinstance(own, Adaptive) else None)


def test_torch_imles_targets_have_no_more_than_params():
    class Old:
        def params(self, theta, dy):
            return 0.5 * theta - 3.0 * dy

    theta, dy = torch.randn(4, 6), torch.randn(4, 6)
    found, expected = (gradient(imle(select_two, it), theta, dy) for it in (Old(), TargetDistribution(0.5, 3.0)))
    assert all(map(torch.equal, found, expected)) and found[1].abs().sum() > 0


def test_a_target_derived_from_the_librarys_may_replace_params_or_process():
    class Doubled(TargetDistribution):
        def params(self, theta, dy, _is_minimization=False):
            return super().params(theta, None if dy is None else 2 * dy, _is_minimization=_is_minimization)

    class Negated(AdaptiveTargetDistribution):
        def process(self, theta, dy, gradient):
            return -super().process(theta, dy, gradient)

    theta, dy = torch.randn(40, 6), torch.randn(40, 6)
    found, expected = (
        gradient(aimle(select_two, it), theta, dy)[1] for it in (Doubled(), TargetDistribution(beta=2.0))
    )
    assert torch.equal(found, expected) and found.abs().sum() > 0
    negated, plain = Negated(), AdaptiveTargetDistribution()
    found, expected = (gradient(aimle(select_two, it), theta, dy)[1] for it in (negated, plain))
    torch.testing.assert_close(found, -expected)
    assert found.abs().sum() > 0 and negated.beta == plain.beta != 1.0


def test_a_row_without_dy_has_no_gradient_under_a_target_of_ones_own_either():
    dy = torch.randn(4, 6) * torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    for make in (imle, aimle):
        _, g = gradient(make(select_two, Fixed(alpha=-1.0, beta=3.0)), torch.randn(4, 6), dy)
        assert not g[[0, 3]].any() and g[[1, 2]].abs().sum() > 0


def test_a_target_without_params_is_refused():
    with pytest.raises(TypeError, match=r"needs a method params\(theta, dy\), 3\.0 has none"):
        imle(select_two, target_distribution=3.0)
    with pytest.raises(TypeError, match="stands in the place of the solver"):
        imle(TargetDistribution())


# Target distributions by hand


def test_params_of_a_fixed_target_by_hand():
    target = TargetDistribution(alpha=0.5, beta=2.0)
    theta, dy = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0])
    assert target.params(theta=theta, dy=dy).tolist() == [-1.5, 3.0]
    assert target.params(theta, dy, _is_minimization=True).tolist() == [2.5, -1.0]
    assert target.params(theta, None).tolist() == [0.5, 1.0]


def test_params_of_an_adaptive_target_by_hand_are_a_relative_step_away():
    target = AdaptiveTargetDistribution(initial_beta=0.25)
    theta, dy = torch.randn(4, 6), torch.randn(4, 6)
    moved = target.params(theta=theta, dy=dy) - theta
    torch.testing.assert_close(moved, -0.25 * theta.norm() / dy.norm() * dy)
    assert target.beta == 0.25
    assert torch.equal(target.params(theta, None), theta)


class AsTold(AdaptiveTargetDistribution):
    def params(self, theta, dy, _is_minimization=False):
        return super().params(theta, dy, _is_minimization)


def test_a_target_of_ones_own_over_an_adaptive_one_moves_in_training_alone():
    target, theta = AsTold(initial_beta=1.0), torch.randn(4, 6, requires_grad=True)
    solve = aimle(select_two, target)
    target.eval()
    solve(theta).square().sum().backward()
    target.train()
    torch.func.grad(lambda theta: solve(theta).square().sum())(theta.detach())
    assert target.beta == 1.0
    solve(theta).square().sum().backward()
    assert target.beta != 1.0


def test_a_fixed_target_divides_by_eps_at_least():
    theta, dy = torch.randn(4, 6), torch.randn(4, 6)
    plain, divided, least = (
        gradient(imle(select_two, target), theta, dy)[1]
        for target in (TargetDistribution(1.0, 4.0), TargetDistribution(1.0, 4.0, True, eps=1e-7),
                       TargetDistribution(1.0, 4.0, do_gradient_scaling=True, eps=8.0))
    )  # fmt: skip
    assert plain.abs().sum() > 0
    torch.testing.assert_close(divided, plain / 4)
    torch.testing.assert_close(least, plain / 8)
    zero = TargetDistribution(beta=0.0, do_gradient_scaling=True)
    assert not gradient(imle(select_two, zero), theta, dy)[1].any()


def test_beta_set_by_hand_is_the_size_of_the_next_step():
    theta, dy = torch.randn(40, 6), torch.randn(40, 6)
    by_hand, from_start = AdaptiveTargetDistribution(initial_beta=0.0), AdaptiveTargetDistribution(initial_beta=0.5)
    by_hand.beta = 0.5
    found, expected = (gradient(aimle(select_two, it), theta, dy)[1] for it in (by_hand, from_start))
    assert torch.equal(found, expected) and found.abs().sum() > 0 and by_hand.beta == from_start.beta
    by_hand.beta = torch.tensor(0.75)
    assert by_hand.state_dict()["_state"][0] == 0.75
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="beta must be"):
            by_hand.beta = wrong


def test_beta_prints_as_a_number():
    assert f"{AdaptiveTargetDistribution(initial_beta=0.12345).beta:.4f}" == "0.1235"


def test_the_state_of_an_adaptive_target_can_be_read_after_a_step():
    adaptive = AdaptiveTargetDistribution(beta_update_step=0.01, target_norm=100.0)
    theta = torch.randn(4, 6, requires_grad=True)
    z = aimle(select_two, target_distribution=adaptive)(theta)
    z.backward(torch.randn(4, 6))
    nonzero = (theta.grad != 0).sum().item() / 4
    assert adaptive.grad_norm == pytest.approx(0.9 + 0.1 * nonzero)
    assert adaptive.previous_beta_update == pytest.approx(0.01) and adaptive.beta == pytest.approx(1.01)

"""The report on gradients against closed forms: Gumbel noise over the largest entry is a softmax."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from imle.aimle import aimle
from imle.diagnostics import gradient_report
from imle.identity import identity
from imle.layers import MAPLayer
from imle.noise import GumbelNoiseDistribution
from imle.perturbed import perturbed
from imle.sfe import sfe
from imle.solvers import ranking, select_k
from imle.ste import STE, ste
from imle.structures import positive
from imle.target import AdaptiveTargetDistribution, TargetDistribution
from imle.wrapper import BaseTargetDistribution
from imle.wrapper import aimle as released_aimle

GUMBEL = GumbelNoiseDistribution()


def largest(theta):
    return select_k(theta, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Exact(STE):
    """The gradient of the expectation of a loss <c, z> of one of N, in closed form; then a fault of our own."""

    fault: object = lambda g: g

    def gradient(self, solve, theta, noise, z, dy, take_note):
        p = theta.softmax(1)
        c = dy[:, 0]
        return self.fault(p * (c - (p * c).sum(1, keepdim=True))).unsqueeze(1)


def linear_problem(instances=2, entries=6):
    theta, costs = torch.randn(instances, entries), torch.randn(instances, entries)
    return theta, lambda z: (z * costs.repeat_interleave(len(z) // instances, dim=0)).sum(1)


def exact(theta, loss):
    """The gradient of the expected loss by enumeration."""
    theta = theta.clone().requires_grad_()
    each = torch.stack([loss(nn.functional.one_hot(torch.tensor(i), theta.shape[1]).float().expand_as(theta))
                        for i in range(theta.shape[1])], dim=1)  # fmt: skip
    (theta.softmax(1) * each).sum().backward()
    return theta.grad


def test_the_exact_gradient_has_no_bias_and_the_right_size():
    theta, loss = linear_problem()
    report = gradient_report(Exact(noise_distribution=GUMBEL)(largest), theta, loss, nb_repeats=3)
    assert abs(report.bias) < 3 * report.errors["bias"] + 0.002 < 0.03
    assert abs(report.size - 1) < 3 * report.errors["size"] + 0.02 < 0.3
    assert report.cosine == pytest.approx(1 - report.bias) and report.agreement == pytest.approx(1)
    assert report.verdict == "the mean gradient points the right way"


def test_a_planted_sign_a_planted_factor_and_a_planted_angle_are_seen():
    theta, loss = linear_problem()
    right = exact(theta, loss)
    across = torch.randn_like(right)
    across -= (across * right).sum() / right.square().sum() * right
    across *= math.sqrt(3) * right.norm() / across.norm()  # 60 degrees off
    negative, double, askew = (
        gradient_report(Exact(noise_distribution=GUMBEL, fault=fault)(largest), theta, loss, nb_repeats=3)
        for fault in (lambda g: -g, lambda g: 2 * g, lambda g: g + across)
    )
    assert negative.cosine < -0.9 and "wrong way" in negative.verdict
    assert abs(double.size - 2) < 3 * double.errors["size"] + 0.04
    assert abs(askew.bias - 0.5) < 3 * askew.errors["bias"] < 0.1


def test_straight_through_a_minimiser_points_the_wrong_way_unless_it_is_told():
    theta, loss = linear_problem()
    for told, sign in ((False, -1), (True, 1)):
        layer = ste(lambda theta: largest(-theta), noise_distribution=GUMBEL, _is_minimization=told)
        assert sign * gradient_report(layer, theta, loss, nb_repeats=10).cosine > 0.3


def test_what_is_reported_of_aimle_is_what_the_exact_gradient_says_of_it():
    theta, loss = linear_problem(3)
    target = TargetDistribution(beta=0.5, do_gradient_scaling=True)
    layer = aimle(largest, target_distribution=target, noise_distribution=GUMBEL, symmetric_perturbation=True)
    right, gradients = exact(theta, loss), []
    for _ in range(800):
        leaf = theta.clone().requires_grad_()
        loss(layer(leaf)).sum().backward()
        gradients.append(leaf.grad.flatten())
    gradients, right = torch.stack(gradients), right.flatten()
    report = gradient_report(layer, theta, loss, nb_repeats=300)
    cosine = torch.cosine_similarity(gradients, right, dim=1).mean().item()
    assert abs(report.cosine - cosine) < 3 * report.errors["cosine"] < 0.12
    assert abs(report.bias - 1 + torch.cosine_similarity(gradients.mean(0), right, dim=0)) < 3 * report.errors["bias"]
    assert abs(report.size - gradients.mean(0).norm() / right.norm()) < 3 * report.errors["size"]
    assert report.nonzero == pytest.approx((gradients != 0).float().mean().item() * 6, abs=0.25)
    to_mean = torch.cosine_similarity(gradients, gradients.mean(0, keepdim=True), dim=1)
    assert report.variance == pytest.approx(to_mean.var().item(), rel=0.35)
    assert (report.perturbation_size, report.beta, report.entries) == (pytest.approx(0.5), 0.5, 6)


def test_standard_errors_are_as_large_as_the_errors():
    theta, loss = linear_problem()
    right, off = exact(theta, loss), []
    noisy = Exact(noise_distribution=GUMBEL, fault=lambda g: g + right.norm() * torch.randn_like(g) / 2)(largest)
    for seed in range(40):
        report = gradient_report(noisy, theta, loss, nb_repeats=10, nb_reference=1000, seed=seed)
        off.append([report.bias / report.errors["bias"], (report.size - 1) / report.errors["size"]])
    spread = torch.tensor(off).square().mean(0).sqrt()
    assert (spread > 0.5).all() and (spread < 1.6).all()


def test_neither_the_adaptive_state_nor_a_random_state_moves():
    theta, loss = linear_problem()
    target, generator = AdaptiveTargetDistribution(initial_beta=0.3, beta_update_step=0.1), torch.Generator()
    layer = aimle(largest, target_distribution=target, noise_distribution=GUMBEL, generator=generator)
    before = [torch.get_rng_state(), generator.get_state(), *(it.clone() for it in target.state_dict().values())]
    first, again = (gradient_report(layer, theta, loss, nb_repeats=5, nb_reference=100) for _ in range(2))
    after = [torch.get_rng_state(), generator.get_state(), *target.state_dict().values()]
    assert all(map(torch.equal, before, after))
    assert str(first) == str(again) and first.beta == pytest.approx(0.3)
    assert first.perturbation_size == pytest.approx(0.3 * theta.norm().item() / loss_slope(theta, loss))


def loss_slope(theta, loss):
    z = torch.zeros_like(theta, requires_grad=True)
    loss(z).sum().backward()
    return z.grad.norm().item()


def test_without_noise_there_is_no_reference_unless_a_step_smooths_the_loss():
    theta, loss = linear_problem()
    layer = aimle(largest, target_distribution=TargetDistribution(beta=10.0))
    report = gradient_report(layer, theta, lambda z: (z * theta).sum(1), nb_repeats=3)
    assert math.isnan(report.cosine) and math.isnan(report.bias) and report.verdict == "undecided"
    assert report.agreement == pytest.approx(1) and report.variance == pytest.approx(0) and "nan" not in str(report)
    assert "none: without noise the loss is constant" in str(report)

    @dataclass(frozen=True, kw_only=True, eq=False)
    class Smoothed(STE):
        def gradient(self, solve, theta, noise, z, dy, take_note):  # d/dtheta P(theta + xi / 2 > 0) c
            return torch.exp(-2 * theta.square()).unsqueeze(1) * dy

    report = gradient_report(Smoothed()(positive), theta, loss, nb_repeats=3, step=0.5)
    assert abs(report.bias) < 3 * report.errors["bias"] < 0.03
    assert report.size == pytest.approx(math.sqrt(math.pi / 2), abs=3 * report.errors["size"])


def test_a_reference_that_is_too_noisy_decides_nothing():
    theta, loss = linear_problem(1, 200)
    report = gradient_report(sfe(largest), theta, loss, nb_repeats=5, nb_reference=40)
    assert report.verdict.startswith("undecided")


def test_the_score_function_has_no_bias_and_the_right_size():
    theta, loss = linear_problem()
    report = gradient_report(sfe(largest, nb_samples=32), theta, loss, nb_reference=20_000)
    assert abs(report.bias) < 3 * report.errors["bias"] < 0.1
    assert abs(report.size - 1) < 3 * report.errors["size"] < 0.3


def test_a_gradient_of_zeros_is_called_so():
    theta, loss = linear_problem()
    target = TargetDistribution(beta=0.0)
    report = gradient_report(aimle(largest, target_distribution=target, noise_distribution=GUMBEL), theta, loss)
    assert report.cosine == 0 and report.nonzero == 0 and report.verdict.startswith("the gradient is zero")


class Known(BaseTargetDistribution):
    def params(self, theta, dy, _is_minimization=False):
        return theta if dy is None else theta - 0.5 * dy


@pytest.mark.parametrize(
    "layer",
    [
        MAPLayer(largest, aimle(noise_distribution=GUMBEL, nb_samples=8)),
        MAPLayer(largest, aimle(noise_distribution=GUMBEL, nb_samples=2, nb_marginal_samples=4)).eval(),
        sfe(largest, nb_samples=32),
        ste(largest, noise_distribution=GUMBEL),
        released_aimle(largest, Known(), GUMBEL, 8),
    ],
    ids=["layer", "layer in evaluation", "sfe", "ste", "a target of one's own"],
)
def test_every_estimator_has_a_report(layer):
    theta, loss = linear_problem(4)
    report = gradient_report(layer, theta, loss)
    assert report.verdict == "the mean gradient points the right way", str(report)


def test_further_arguments_reach_the_solver():
    theta, loss = linear_problem(3)
    mask = torch.tensor([[True, True, True, False, False, False]]).expand(3, 6)

    @ste(noise_distribution=GUMBEL)
    def of_some(theta, mask, k=1):
        return select_k(theta, k, mask)

    report = gradient_report(of_some, theta, loss, mask, nb_repeats=3, k=2)
    without = exact_of_pairs(theta[:, :3], loss)
    assert report.verdict == "the mean gradient points the right way"
    assert report.size == pytest.approx(loss_slope(theta, loss) / without.norm().item(), abs=3 * report.errors["size"])


def exact_of_pairs(theta, loss):
    """The gradient of the expected loss of two of three: the one that is left out has the least utility."""
    theta = theta.clone().requires_grad_()
    p = theta.softmax(1)
    total = 0.0
    for i in range(3):
        for j in range(3):
            if i != j:
                z = torch.zeros(3, 6)
                z[:, [i, j]] = 1.0
                total = total + (p[:, i] * p[:, j] / (1 - p[:, i]) * loss(z)).sum()  # i first, then j of the rest
    total.backward()
    return theta.grad


@pytest.mark.parametrize("options", [{"multiplicative": True}, {"multiplicative": False}])
def test_perturbed_optimisers_have_no_bias_and_the_right_size(options):
    theta, loss = linear_problem()
    layer = perturbed(largest, nb_marginal_samples=100, noise_temperature=0.5, **options)
    report = gradient_report(layer, 1 + theta.abs(), loss, step=0.05, nb_reference=30_000)
    assert abs(report.bias) < 3 * report.errors["bias"] + 0.01 < 0.1
    assert abs(report.size - 1) < 3 * report.errors["size"] + 0.02 < 0.3


def test_the_reference_of_a_projection_is_of_what_is_solved():
    """P(theta) does not change with the scale of theta, so the gradient has no part along it."""
    theta, loss = linear_problem(1)
    layer = identity(largest, projection="norm", noise_distribution=GUMBEL, noise_temperature=0.3)
    large, small = (gradient_report(layer, scale * theta, loss, step=0.1 * scale) for scale in (10.0, 0.1))
    assert large.size == pytest.approx(small.size, rel=1e-3) and large.cosine == pytest.approx(small.cosine, rel=1e-3)


def test_a_noise_in_other_units_than_theta_asks_for_a_step():
    theta, loss = linear_problem()
    for layer in (
        perturbed(largest, multiplicative=True),
        identity(largest, projection="std", noise_distribution=GUMBEL),
    ):
        with pytest.raises(ValueError, match="name a step"):
            gradient_report(layer, theta, loss, nb_repeats=3)


def test_a_report_without_a_beta_names_none():
    theta, loss = linear_problem()
    text = str(gradient_report(aimle(largest), theta, loss, nb_repeats=3, nb_reference=40))
    assert "lambda" in text and "beta" not in text and "nan" not in text


ORDERS = {
    "argsort": lambda theta: theta.argsort(1),
    "a tour that ends where the highest score is, from 1 on": lambda theta: theta.argsort(1, descending=True) + 1,
    "columns of orders": lambda theta: theta.argsort(1),
    "labels of the same order whatever theta is": lambda theta: torch.arange(theta.shape[1]).expand_as(theta),
}
WEIGHTS = {
    "ranks from 0": lambda theta: theta.argsort(1).argsort(1),
    "ranks from 1": ranking,
    "places in a list, which minimise": lambda theta: ranking(theta, descending=True),
    "one of three, and what is left": lambda theta: select_k(theta, 1) - 1,
    "numbers that repeat": lambda theta: theta.argsort(1).argsort(1) // 2,
}


@pytest.mark.parametrize("noise", [GUMBEL, None])
@pytest.mark.parametrize("name", [*ORDERS, *WEIGHTS])
def test_solutions_that_are_orders_are_noted_and_ranks_are_not(name, noise):
    theta, loss = linear_problem(10, 5)
    if "columns" in name:
        theta, loss = torch.randn(2, 5, 3), lambda z: z[:, 0, 0]
    layer = ste({**ORDERS, **WEIGHTS}[name], noise_distribution=noise)
    report = gradient_report(layer, theta, loss, nb_repeats=3, nb_reference=40)
    assert ("note: a solution looks like labels" in str(report)) == bool(report.note) == (name in ORDERS)


def test_neither_ties_nor_infinities_make_an_order_of_ranks():
    for solver in (ranking, lambda theta: ranking(theta, descending=True)):
        assert not gradient_report(ste(solver), torch.zeros(4, 5), lambda z: z[:, 0], nb_repeats=3).note
    masked = torch.randn(4, 6).masked_fill(torch.tensor([0, 1, 0, 0, 1, 0]).bool(), -math.inf)
    assert not gradient_report(ste(ranking), masked, lambda z: z[:, 0], nb_repeats=3).note
    assert gradient_report(ste(lambda theta: theta.argsort(1)), masked, lambda z: z[:, 0], nb_repeats=3).note


def test_wrong_input_is_refused():
    theta, loss = linear_problem()
    layer = ste(largest, noise_distribution=GUMBEL)
    with pytest.raises(TypeError, match="needs a decorated solver or a MAPLayer"):
        gradient_report(largest, theta, loss)
    for options in ({"nb_reference": 39}, {"nb_repeats": 2}, {"step": 0.0}):
        with pytest.raises(ValueError, match="nb_reference must be 40 or more, nb_repeats 3 or more, step positive"):
            gradient_report(layer, theta, loss, **options)
    with pytest.raises(ValueError, match=r"loss returned \(\) for solutions \(2, 6\), not one number a row"):
        gradient_report(layer, theta, lambda z: z.sum())

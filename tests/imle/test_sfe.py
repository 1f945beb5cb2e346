"""The score-function estimator: unbiased against exact gradients, and its loss as a surrogate."""

import math

import pytest
import torch

from imle.layers import MAPLayer
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.sfe import score_function_loss, sfe
from imle.solvers import select_k
from tests.reference.oracles import all_subsets

THETA = torch.tensor([0.5, -0.3, 0.1, 0.9], dtype=torch.float64)
DRAWS = 20000


def loss_table(states):
    """A loss that is no linear function of z, one value for each state."""
    weights = torch.linspace(-1, 1, states.shape[-1], dtype=states.dtype)
    return (states @ weights + 0.3).square() + 2 * states[..., 0] * (1 - states[..., -1])


def probability_of_subset(theta, chosen):
    """P(z) for the k largest of Gumbel-perturbed theta: the sum over orders of drawing without replacement."""
    if not chosen:
        return torch.ones((), dtype=theta.dtype)
    weights = theta.exp()
    total = 0.0
    for first in chosen:
        left = torch.arange(len(theta)) != first
        rest = [i - (i > first) for i in chosen if i != first]
        total = total + weights[first] / weights.sum() * probability_of_subset(theta[left], rest)
    return total


def exact_gradient(k, tau):
    theta = THETA.clone().requires_grad_()
    states = all_subsets(len(theta), k).double()
    probabilities = torch.stack([probability_of_subset(theta / tau, z.nonzero().flatten().tolist()) for z in states])
    assert probabilities.sum().item() == pytest.approx(1.0)
    (probabilities * loss_table(states)).sum().backward()
    return theta.grad


def sampled_gradients(k, tau, nb_samples=1, baseline=None, noise=None, loss=loss_table):
    """Independent gradient estimates of the expected loss, one a row, [DRAWS, N]."""
    theta = THETA.expand(DRAWS, -1).clone().requires_grad_()
    layer = sfe(noise_distribution=noise, noise_temperature=tau, nb_samples=nb_samples)(lambda x: select_k(x, k))
    z, log_prob = layer(theta)
    losses = score_function_loss(loss(z), log_prob, nb_samples=nb_samples, baseline=baseline)
    losses.sum().backward()
    return theta.grad


def assert_unbiased(gradients, exact, precision):
    mean, error = gradients.mean(dim=0), gradients.std(dim=0) / math.sqrt(len(gradients))
    assert error.max() < precision * exact.norm()  # else the next line says nothing
    assert ((mean - exact).abs() < 4.5 * error).all()


@pytest.mark.parametrize("tau", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("k", [1, 2])
def test_its_mean_is_the_exact_gradient(k, tau):
    assert_unbiased(sampled_gradients(k, tau), exact_gradient(k, tau), precision=0.2)


@pytest.mark.parametrize("k", [1, 2])
def test_the_leave_one_out_baseline_keeps_the_mean_and_lowers_the_variance(k):
    plain = sampled_gradients(k, tau=1.0, nb_samples=4)
    with_baseline = sampled_gradients(k, tau=1.0, nb_samples=4, baseline="leave_one_out")
    exact = exact_gradient(k, tau=1.0)
    assert_unbiased(plain, exact, precision=0.2)
    assert_unbiased(with_baseline, exact, precision=0.1)
    assert with_baseline.var(dim=0).sum() < 0.8 * plain.var(dim=0).sum()


def test_a_constant_added_to_the_loss_is_noise_that_the_baseline_removes():
    def loss(z):
        return loss_table(z) + 100

    plain = sampled_gradients(1, tau=1.0, nb_samples=4, loss=loss)
    with_baseline = sampled_gradients(1, tau=1.0, nb_samples=4, baseline="leave_one_out", loss=loss)
    assert_unbiased(with_baseline, exact_gradient(1, tau=1.0), precision=0.1)
    assert with_baseline.var(dim=0).sum() < 1e-2 * plain.var(dim=0).sum()


def test_normal_noise_is_unbiased_too():
    """Of two entries with N(0, tau^2) noise, the first is chosen with probability Phi((a - b) / (tau sqrt 2))."""
    tau = 0.8
    theta = torch.tensor([0.2, -0.3], dtype=torch.float64, requires_grad=True)
    chosen = torch.special.ndtr((theta[0] - theta[1]) / (tau * math.sqrt(2)))
    (3 * chosen + 1 * (1 - chosen)).backward()
    leaf = theta.detach().expand(DRAWS, -1).clone().requires_grad_()
    z, log_prob = sfe(noise_distribution=torch.distributions.Normal(0.0, 1.0), noise_temperature=tau)(
        lambda x: select_k(x, 1)
    )(leaf)
    score_function_loss(z @ z.new_tensor([3.0, 1.0]), log_prob).sum().backward()
    assert_unbiased(leaf.grad, theta.grad, precision=0.1)


def test_more_samples_lower_the_variance():
    one, nine = (sampled_gradients(1, tau=1.0, nb_samples=s).var(dim=0).sum() for s in (1, 9))
    assert nine.item() == pytest.approx(one.item() / 9, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_prob_is_the_density_of_the_perturbed_theta(dtype):
    seen = []

    def solver(theta):
        seen.append(theta.clone())
        return select_k(theta, 1)

    theta = torch.randn(3, 2, 4, dtype=dtype, requires_grad=True)
    _, log_prob = sfe(nb_samples=5, noise_temperature=0.7)(solver)(theta)
    density = torch.distributions.Gumbel(theta.detach().double(), 0.7)
    expected = density.log_prob(seen[0].double().view(3, 5, 2, 4).transpose(0, 1)).flatten(2).sum(dim=2)
    assert log_prob.shape == (15,)
    assert torch.allclose(log_prob.view(3, 5).double(), expected.T, atol=1e-4)


# The loss


def test_the_value_of_the_loss_is_unchanged():
    losses, log_prob = torch.randn(6), torch.randn(6)
    for options in ({}, {"nb_samples": 3}, {"nb_samples": 3, "baseline": "leave_one_out"}):
        assert torch.equal(score_function_loss(losses, log_prob, **options), losses)


def test_each_loss_less_the_mean_of_the_others_weighs_its_own_score():
    losses = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 8.0])
    log_prob = torch.zeros(6, requires_grad=True)
    score_function_loss(losses, log_prob, nb_samples=3, baseline="leave_one_out").sum().backward()
    assert log_prob.grad.tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, 5 - 6.5, 5 - 6.5, 8 - 5]


@pytest.mark.parametrize("baseline", [None, "leave_one_out"])
def test_gradients_pass_to_a_decoder_as_if_the_solutions_were_data(baseline):
    decoder = torch.nn.Linear(5, 1)
    theta = torch.randn(3, 5, requires_grad=True)
    z, log_prob = sfe(nb_samples=2)(lambda x: select_k(x, 2))(theta)
    score_function_loss(decoder(z).squeeze(1).square(), log_prob, 2, baseline).mean().backward()
    found = [p.grad.clone() for p in decoder.parameters()]
    decoder.zero_grad()
    decoder(z).squeeze(1).square().mean().backward()
    assert found[0].abs().sum() > 0
    assert all(torch.equal(one, p.grad) for one, p in zip(found, decoder.parameters()))
    assert theta.grad.abs().sum() > 0


def test_solutions_carry_no_gradient_and_the_loss_no_gradient_through_them():
    theta = torch.randn(3, 5, requires_grad=True)
    z, log_prob = sfe(lambda x: select_k(x, 2))(theta)
    assert not z.requires_grad
    assert log_prob.requires_grad


def test_entries_at_minus_infinity_are_never_chosen_and_get_no_gradient():
    theta = torch.tensor([[0.3, -torch.inf, 0.1, 0.0]] * 4, requires_grad=True)
    z, log_prob = sfe(nb_samples=3)(lambda x: select_k(x, 2))(theta)
    score_function_loss(z @ torch.arange(4.0), log_prob, 3).sum().backward()
    assert not z[:, 1].any()
    assert theta.grad.isfinite().all()
    assert not theta.grad[:, 1].any()
    assert theta.grad[:, [0, 2, 3]].abs().sum() > 0


# Errors


def test_noise_without_a_density_is_refused():
    with pytest.raises(TypeError, match="use GumbelNoiseDistribution"):
        sfe(noise_distribution=SumOfGammaNoiseDistribution(k=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_temperature": 0.0}, "noise_temperature above 0"),
        ({"nb_marginal_samples": 2}, "nb_marginal_samples"),
        ({"nonfinite": "skip"}, "nonfinite"),
        ({"nb_samples": 0}, "nb_samples"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sfe(noise_distribution=GumbelNoiseDistribution(), **options)


@pytest.mark.parametrize(
    ("losses", "log_prob", "options", "message"),
    [
        ((6, 2), (6,), {}, r"losses \(6, 2\) and log_prob \(6,\) must both be \[B\*S\]"),
        ((5,), (6,), {}, r"losses \(5,\) and log_prob \(6,\)"),
        ((6,), (6,), {"nb_samples": 4}, "S = 4"),
        ((6,), (6,), {"baseline": "leave_one_out"}, "nb_samples of 2 or more"),
        ((6,), (6,), {"baseline": "mean"}, "baseline must be 'leave_one_out' or None, not 'mean'"),
    ],
)
def test_losses_that_do_not_match_are_refused(losses, log_prob, options, message):
    with pytest.raises(ValueError, match=message):
        score_function_loss(torch.zeros(losses), torch.zeros(log_prob), **options)


def test_a_layer_returns_a_pair_in_both_modes_and_what_is_solved_for_is_certain():
    layer = MAPLayer(select_k, sfe(nb_samples=3))
    theta = torch.randn(4, 5)
    z, log_prob = layer(theta, 2)
    assert (z.shape, log_prob.shape) == ((12, 5), (12,))
    z, log_prob = layer.eval()(theta[:2], 2)
    assert torch.equal(z, select_k(theta[:2], 2))
    assert torch.equal(log_prob, torch.zeros(2))

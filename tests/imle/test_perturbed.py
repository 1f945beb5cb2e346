"""Perturbed optimisers, Fenchel-Young and SPO+ losses: against closed forms, enumeration and finite differences."""

import copy
import math
import pickle

import pytest
import torch

from imle.fenchel_young import FenchelYoungLoss
from imle.identity import identity
from imle.noise import GumbelNoiseDistribution, NormalNoiseDistribution, SumOfGammaNoiseDistribution
from imle.perturbed import perturbed
from imle.sfe import sfe
from imle.solvers import select_k
from imle.spo_plus import SPOPlusLoss
from imle.ste import ste
from tests.reference.oracles import all_subsets

NOISES = {"normal": NormalNoiseDistribution(), "gumbel": GumbelNoiseDistribution()}
BASELINES = [None, "leave_one_out", "solution"]
DY = torch.tensor([1.0, -0.5, 0.3, 0.8], dtype=torch.float64)
THETA = torch.tensor([0.5, 0.9, 0.2, 0.7], dtype=torch.float64)
DRAWS = 20000


def select_one(theta):
    return select_k(theta, 1)


def cheapest(theta):
    return select_k(-theta, 1)


def estimates(dy=DY, solver=select_one, theta=THETA, **options):
    """Independent estimates of the gradient of <dy, E z>, a row each."""
    theta = theta.expand(DRAWS, -1).clone().requires_grad_()
    (perturbed(**options)(solver)(theta) * dy).sum().backward()
    return theta.grad


def assert_mean(gradients, exact, precision=0.1):
    mean, error = gradients.mean(0), gradients.std(0) / math.sqrt(len(gradients))
    assert error.norm() < precision * exact.norm()  # else the next line says nothing
    assert ((mean - exact).abs() < 4.5 * error).all()


def top_one(theta, tau, noise, multiplicative=False):
    """P(i is the largest), by numerical integration over the noise of i; `[N]`, differentiable."""
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64) if noise == "normal" else None
    if noise == "gumbel":
        return torch.softmax(theta / tau, 0)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    level = theta.log() if multiplicative else theta  # the log of theta exp(tau eps - tau^2 / 2) is shifted by tau^2/2
    below = torch.special.ndtr((level[:, None, None] - level[None, :, None]) / tau + x)  # [i, j, x]
    others = torch.where(torch.eye(len(theta), dtype=torch.bool)[..., None], 1.0, below).prod(1)
    return torch.trapezoid(others * density, x)


def exact_gradient(dy=DY, **options):
    theta = THETA.clone().requires_grad_()
    (top_one(theta, **options) * dy).sum().backward()
    return theta.grad


# The perturbed optimiser


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("noise", NOISES)
def test_its_gradient_is_unbiased(noise, baseline):
    options = {"nb_marginal_samples": 4, "noise_temperature": 0.5}
    gradients = estimates(noise_distribution=NOISES[noise], baseline=baseline, **options)
    assert_mean(gradients, exact_gradient(tau=0.5, noise=noise))


@pytest.mark.parametrize("baseline", BASELINES)
def test_its_gradient_is_unbiased_under_multiplicative_noise(baseline):
    gradients = estimates(multiplicative=True, nb_marginal_samples=4, noise_temperature=0.5, baseline=baseline)
    assert_mean(gradients, exact_gradient(tau=0.5, noise="normal", multiplicative=True))


def test_its_mean_is_that_of_the_perturbed_solutions():
    theta = THETA.expand(2, -1)
    z = perturbed(nb_marginal_samples=DRAWS, noise_temperature=0.5)(select_one)(theta)
    assert z.shape == (2, 4)
    assert (z - top_one(THETA, 0.5, "normal")).abs().max() < 0.02
    z = perturbed(nb_marginal_samples=DRAWS, nb_samples=3, multiplicative=True, noise_temperature=0.5)(select_one)(
        theta
    )
    assert z.shape == (6, 4)
    assert (z - top_one(THETA, 0.5, "normal", multiplicative=True)).abs().max() < 0.02


@pytest.mark.parametrize("baseline", ["leave_one_out", "solution"])
def test_a_baseline_lowers_the_variance(baseline):
    plain, better = (
        estimates(DY + 1, nb_marginal_samples=8, noise_temperature=0.3, baseline=name).var(0).sum()
        for name in (None, baseline)
    )
    assert better < 0.5 * plain


def test_leave_one_out_is_the_formula_of_each_solution_less_the_others():
    eps = torch.randn(1, 3, 4, dtype=torch.float64)

    class Fixed(NormalNoiseDistribution):
        def sample(self, shape, **options):
            return eps

    theta = THETA[None].clone().requires_grad_()
    layer = perturbed(
        noise_distribution=Fixed(), nb_marginal_samples=3, baseline="leave_one_out", noise_temperature=0.5
    )
    layer(select_one)(theta).backward(DY[None])
    z = select_one(THETA + 0.5 * eps[0])
    terms = [(z[m] - z[[i for i in range(3) if i != m]].mean(0)) @ DY * eps[0, m] / 0.5 for m in range(3)]
    assert torch.allclose(theta.grad[0], sum(terms) / 3)


def test_a_minimiser_at_minus_theta_has_the_mirrored_gradient():
    exact = exact_gradient(tau=0.5, noise="normal")
    options = {"nb_marginal_samples": 4, "noise_temperature": 0.5, "_is_minimization": True}
    assert_mean(-estimates(solver=cheapest, theta=-THETA, **options), exact)


@pytest.mark.parametrize("multiplicative", [False, True])
def test_what_noise_cannot_move_gets_no_gradient(multiplicative):
    theta = torch.tensor([[0.3, -torch.inf, 0.5, 0.0]] * 3, requires_grad=True)
    layer = perturbed(nb_marginal_samples=50, multiplicative=multiplicative)
    layer(select_one)(theta).backward(torch.randn(3, 4))
    assert theta.grad.isfinite().all() and theta.grad[:, [0, 2]].all()
    assert not theta.grad[:, 1].any()
    assert theta.grad[:, 3].any() != multiplicative


def test_multiplicative_noise_keeps_signs_and_means():
    seen = []

    def solver(theta):
        seen.append(theta.clone())
        return theta.sign()

    theta = torch.tensor([[0.5, -2.0, 0.0]])
    z = perturbed(nb_marginal_samples=DRAWS, multiplicative=True, noise_temperature=0.5)(solver)(theta)
    assert torch.equal(z, theta.sign())
    assert torch.allclose(seen[0].mean(0), theta[0], rtol=0.02)


def test_the_score_is_that_of_the_density():
    eps = torch.linspace(-2, 3, 50, dtype=torch.float64)
    assert torch.allclose(perturbed().score(eps, 1), eps)
    layer = perturbed(noise_distribution=GumbelNoiseDistribution(location=0.5, scale=2.0))
    gumbel = layer.score(eps, 1)
    assert torch.equal(layer.score(-eps, -1), -gumbel)
    assert torch.allclose(gumbel, (1 - torch.exp(-(eps - 0.5) / 2)) / 2)


def test_normal_noise_has_its_moments_and_its_density():
    noise = NormalNoiseDistribution(location=0.5, scale=2.0)
    eps = noise.sample((100000,), dtype=torch.float64)
    assert (eps.mean() - 0.5).abs() < 0.04 and (eps.std() - 2).abs() < 0.03
    assert torch.allclose(noise.log_prob(eps), torch.distributions.Normal(0.5, 2.0).log_prob(eps))
    with pytest.raises(ValueError, match="scale is 0"):
        NormalNoiseDistribution(scale=0.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise_distribution": SumOfGammaNoiseDistribution(k=2)}, TypeError, "use NormalNoiseDistribution"),
        ({"noise_temperature": 0.0}, ValueError, "noise_temperature above 0"),
        ({"baseline": "mean"}, ValueError, "baseline must be"),
        ({"baseline": "leave_one_out"}, ValueError, "nb_marginal_samples of 2 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        perturbed(**options)


# The Fenchel-Young loss


@pytest.mark.parametrize("minimise", [False, True], ids=["maximise", "minimise"])
def test_the_gradient_of_fenchel_young_is_the_mean_solution_less_the_wanted_one(minimise):
    layer = perturbed(nb_marginal_samples=7, nb_samples=2, noise_temperature=0.5, _is_minimization=minimise)
    solver = cheapest if minimise else select_one
    theta, z_true = torch.randn(3, 4, requires_grad=True), select_one(torch.randn(3, 4))
    torch.manual_seed(1)
    FenchelYoungLoss(solver, layer)(theta, z_true).sum().backward()
    torch.manual_seed(1)
    mean = layer(solver)(theta).detach().view(3, 2, 4).mean(1)
    assert torch.allclose(theta.grad, (z_true - mean) if minimise else (mean - z_true), atol=1e-6)


@pytest.mark.parametrize("multiplicative", [False, True])
def test_the_gradient_of_fenchel_young_is_that_of_its_value(multiplicative):
    layer = perturbed(nb_marginal_samples=200, noise_temperature=0.5, multiplicative=multiplicative)
    loss, z_true = FenchelYoungLoss(select_one, layer), torch.tensor([[0.0, 1, 0, 0]]).double()

    def value(theta):
        torch.manual_seed(1)
        return loss(theta, z_true)

    assert torch.autograd.gradcheck(value, THETA[None].clone().requires_grad_(), eps=1e-7, atol=1e-5)


def test_fenchel_young_with_gumbel_noise_is_the_cross_entropy():
    """F(theta) = logsumexp(theta) + Euler's constant, for the best of N entries with Gumbel(0, 1) noise."""
    layer = perturbed(noise_distribution=GumbelNoiseDistribution(), nb_marginal_samples=DRAWS)
    z_true = torch.eye(4, dtype=torch.float64)
    found = FenchelYoungLoss(select_one, layer)(THETA.expand(4, 4), z_true)
    expected = torch.nn.functional.cross_entropy(THETA.expand(4, 4), torch.arange(4), reduction="none") + 0.57721566
    assert torch.allclose(found, expected, atol=0.05)


def test_fenchel_young_pulls_theta_to_the_wanted_solution():
    theta, z_true = torch.zeros(8, 6, requires_grad=True), select_k(torch.randn(8, 6), 2)
    loss = FenchelYoungLoss(lambda x, k: select_k(x, k), perturbed(nb_marginal_samples=5))
    optimiser = torch.optim.SGD([theta], lr=0.5)
    for _ in range(60):
        optimiser.zero_grad()
        loss(theta, z_true, k=2).sum().backward()
        optimiser.step()
    assert torch.equal(select_k(theta, 2), z_true)


# SPO+


def regret(theta, costs, minimise):
    sign = -1 if minimise else 1
    best, chosen = ((select_k(sign * x, 2) * costs).sum(1) for x in (costs, theta))
    return sign * (best - chosen)


@pytest.mark.parametrize("minimise", [False, True], ids=["maximise", "minimise"])
def test_spo_plus_is_its_definition_by_enumeration_and_bounds_the_regret(minimise):
    sign = -1 if minimise else 1
    theta, costs = torch.randn(500, 5, dtype=torch.float64), torch.randn(500, 5, dtype=torch.float64)
    solver = lambda x: select_k(sign * x, 2)  # noqa: E731
    loss = SPOPlusLoss(solver, _is_minimization=minimise)
    theta.requires_grad_()
    losses = loss(theta, costs)
    states, z_true = all_subsets(5, 2).double(), solver(costs)
    mirrored, truth = sign * theta, sign * costs
    expected = ((2 * mirrored - truth) @ states.T).amax(1) - (2 * mirrored * z_true).sum(1) + (truth * z_true).sum(1)
    assert torch.allclose(losses, expected)
    assert (losses >= regret(theta, costs, minimise) - 1e-12).all()
    assert regret(theta, costs, minimise).max() > 0.1
    losses.sum().backward()
    # the paper, minimising: 2 (w*(c) - w*(2 theta - c))
    assert torch.equal(theta.grad, 2 * sign * (solver(2 * theta - costs) - z_true))
    assert torch.equal(loss(theta, costs, z_true=z_true), losses)
    assert not loss(costs, costs).any()


def test_the_gradient_of_spo_plus_is_a_subgradient():
    loss = SPOPlusLoss(lambda x: select_k(x, 2))
    theta, other, costs = (torch.randn(500, 5, dtype=torch.float64) for _ in range(3))
    theta.requires_grad_()
    losses = loss(theta, costs)
    losses.sum().backward()
    assert (loss(other, costs) >= losses + (theta.grad * (other - theta)).sum(1) - 1e-12).all()


# Both


def losses_of(name):
    if name == "SPO+":
        return SPOPlusLoss(select_one), torch.randn(4, 5)
    return FenchelYoungLoss(select_one, perturbed(nb_marginal_samples=3)), select_one(torch.randn(4, 5))


@pytest.mark.parametrize("name", ["SPO+", "Fenchel-Young"])
def test_a_loss_keeps_dtype_strides_masks_transforms_and_copies(name):
    loss, truth = losses_of(name)
    theta = torch.randn(5, 4).mT

    def value(x, truth=truth):
        torch.manual_seed(1)
        return loss(x, truth)

    expected = value(theta.contiguous())
    assert expected.shape == (4,)
    assert torch.equal(value(theta), expected)
    assert value(theta.double()).dtype == torch.float64
    leaf = theta.clone().requires_grad_()
    value(leaf).sum().backward()
    assert torch.allclose(torch.func.grad(lambda x: value(x).sum())(theta), leaf.grad)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.manual_seed(1)
        assert torch.equal(twin(theta, truth), expected)
    walls = torch.full((4, 2), -torch.inf)
    wide = torch.cat([leaf.detach(), walls], dim=1).requires_grad_()
    masked = loss(wide, torch.cat([truth, walls if name == "SPO+" else torch.zeros(4, 2)], dim=1))
    masked.sum().backward()
    assert masked.isfinite().all()
    assert wide.grad.isfinite().all() and not wide.grad[:, 5:].any()


def test_a_solver_may_scribble_on_what_a_loss_gives_it_and_nan_is_not_hidden_on_an_accelerator(no_waiting):
    def scribbler(theta):
        z = select_one(theta)
        theta.fill_(7.0)
        return z

    theta, truth = torch.randn(4, 5), torch.randn(4, 5)
    for clean, dirty, other in (
        (SPOPlusLoss(select_one), SPOPlusLoss(scribbler), truth),
        (FenchelYoungLoss(select_one), FenchelYoungLoss(scribbler), select_one(truth)),
    ):
        found = []
        for loss in (clean, dirty):
            torch.manual_seed(1)
            found.append(loss(theta, other))
        assert torch.equal(*found)
    no_waiting()
    theta[1, 2] = torch.nan
    for loss, other in ((SPOPlusLoss(select_one), truth), (FenchelYoungLoss(select_one), select_one(truth))):
        assert loss(theta, other).isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", ["SPO+", "Fenchel-Young"])
def test_a_loss_refuses_what_does_not_fit(name):
    loss, truth = losses_of(name)
    with pytest.raises(ValueError, match=r"\(4, 3\) must have the shape of theta, \(4, 5\)"):
        loss(torch.randn(4, 5), truth[:, :3])
    with pytest.raises(FloatingPointError, match="in row 1: look for overflow"):
        loss(torch.randn(4, 5).index_fill(0, torch.tensor([1]), torch.nan), truth)
    with pytest.raises(TypeError, match=r"a solver must be callable|estimator must be a call"):
        SPOPlusLoss(3) if name == "SPO+" else FenchelYoungLoss(select_one, ste)
    with pytest.raises(TypeError, match="estimator must be a call"):
        FenchelYoungLoss(select_one, sfe())


def test_a_loss_of_theta_refuses_to_perturb_a_projection_of_it():
    """Its linear term would be of theta, its maximum of the projection: wrong in value and gradient."""
    with pytest.raises(TypeError, match="projection"):
        FenchelYoungLoss(select_one, identity(noise_distribution=NormalNoiseDistribution()))
    FenchelYoungLoss(select_one, identity(projection=None, noise_distribution=NormalNoiseDistribution()))

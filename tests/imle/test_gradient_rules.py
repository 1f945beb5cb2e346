"""Black-box differentiation, identity with projection and LPGD: their formulas, and the algebra between estimators."""

from dataclasses import replace

import pytest
import torch

from imle.aimle import aimle
from imle.blackbox import blackbox
from imle.identity import identity
from imle.imle import imle
from imle.lpgd import lpgd
from imle.noise import GumbelNoiseDistribution
from imle.solvers import select_k
from imle.ste import ste
from imle.target import TargetDistribution
from tests.reference.oracles import all_subsets

PROJECTIONS = ["mean", "norm", "std", None]


def select_two(theta):
    return select_k(theta.flatten(1), 2).view(theta.shape)


def cheapest_two(theta):
    return select_two(-theta)


def gradient(estimator, theta, dy, solver=select_two):
    """Return z and the gradient of theta, from one seed."""
    theta = theta.clone().requires_grad_()
    torch.manual_seed(1)
    z = estimator(solver)(theta)
    z.backward(dy)
    return z.detach(), theta.grad


def fixed(size):
    return TargetDistribution(beta=size, do_gradient_scaling=True)


def same(one, other):
    assert one[1].abs().sum() > 0
    return all(torch.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(one, other))


# Algebra between estimators


@pytest.mark.parametrize("minimise", [False, True], ids=["maximise", "minimise"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nb_samples": 3, "noise_distribution": GumbelNoiseDistribution()},
        {"nb_samples": 2, "nb_marginal_samples": 3},
    ],
    ids=["plain", "noise", "marginal"],
)
def test_blackbox_is_imle_and_aimle_and_lpgd_with_a_fixed_lambda_that_divides(options, minimise):
    rows = options.get("nb_samples", 1) * options.get("nb_marginal_samples", 1)
    theta, dy = torch.randn(5, 6), torch.randn(5 * rows, 6)
    options = options | {"_is_minimization": minimise}
    solver = cheapest_two if minimise else select_two
    expected = gradient(blackbox(interpolation=2.0, **options), theta, dy, solver)
    for function in (imle, aimle, lpgd):
        assert same(expected, gradient(function(target_distribution=fixed(2.0), **options), theta, dy, solver))
    central = gradient(aimle(target_distribution=fixed(2.0), symmetric_perturbation=True, **options), theta, dy, solver)
    average = gradient(lpgd(target_distribution=fixed(2.0), envelope="average", **options), theta, dy, solver)
    assert same(central, average)


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_the_average_envelope_is_the_mean_of_lower_and_upper_and_upper_is_lower_of_a_negative_step(rho):
    theta, dy = torch.randn(5, 6), torch.randn(5, 6)
    lower, upper, average = (
        gradient(lpgd(target_distribution=fixed(2.0), envelope=name, rho=rho), theta, dy)[1]
        for name in ("lower", "upper", "average")
    )
    assert torch.allclose(average, (lower + upper) / 2)
    assert not torch.equal(lower, upper)
    assert torch.allclose(upper, gradient(lpgd(target_distribution=fixed(-2.0), rho=rho), theta, dy)[1])


@pytest.mark.parametrize("minimise", [False, True], ids=["maximise", "minimise"])
def test_identity_without_projection_is_straight_through(minimise):
    options = {"nb_samples": 3, "noise_distribution": GumbelNoiseDistribution(), "_is_minimization": minimise}
    theta, dy = torch.randn(5, 6), torch.randn(15, 6)
    assert same(gradient(identity(projection=None, **options), theta, dy), gradient(ste(**options), theta, dy))


@pytest.mark.parametrize(
    "estimator",
    [
        blackbox(interpolation=2.0),
        *(lpgd(target_distribution=fixed(2.0), rho=0.3, envelope=name) for name in ("lower", "upper", "average")),
        *(identity(projection=name) for name in PROJECTIONS),
    ],
    ids=repr,
)
def test_a_minimiser_at_minus_theta_is_the_maximiser_seen_in_a_mirror(estimator):
    """MAP(theta) = MIN(-theta), hence the gradient with respect to -theta has the other sign."""
    theta, dy = torch.randn(5, 6), torch.randn(5, 6)
    options = (
        {"target_distribution": estimator.target_distribution} if hasattr(estimator, "target_distribution") else {}
    )
    z, g = gradient(estimator, theta, dy)
    mirrored = replace(estimator, _is_minimization=True, **options)
    mirrored_z, mirrored_g = gradient(mirrored, -theta, dy, cheapest_two)
    assert same((z, g), (mirrored_z, -mirrored_g))


# Black-box differentiation


def test_blackbox_is_the_slope_of_the_interpolated_loss_of_the_paper():
    """f_lambda(w) = f(y_lambda(w)) - (c(w, y(w)) - c(w, y_lambda(w))) / lambda, for a linear f and a minimiser."""
    size = 3.0
    w, dy = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    states = all_subsets(6, 2).double()

    def interpolated(w):
        y = states[(w @ states.T).argmin(1)]
        moved = states[((w + size * dy) @ states.T).argmin(1)]
        return (dy * moved).sum(1) - ((w * y).sum(1) - (w * moved).sum(1)) / size

    _, g = gradient(blackbox(interpolation=size, _is_minimization=True), w, dy, cheapest_two)
    slope = torch.stack(
        [(interpolated(w + 1e-6 * e) - interpolated(w - 1e-6 * e)) / 2e-6 for e in torch.eye(6).double()], dim=1
    )
    assert torch.allclose(g, slope, atol=1e-6)


@pytest.mark.parametrize("interpolation", [0.0, -1.0, float("nan"), float("inf")])
def test_an_interpolation_that_is_not_positive_is_refused(interpolation):
    with pytest.raises(ValueError, match="interpolation must be a finite number above 0"):
        blackbox(interpolation=interpolation)


def test_a_large_step_in_half_precision_stays_finite():
    seen = []

    def solver(theta):
        seen.append(theta.clone())
        return select_two(theta)

    theta = torch.randn(2, 5, dtype=torch.float16)
    gradient(blackbox(interpolation=1e4), theta, torch.full((2, 5), 100.0, dtype=torch.float16), solver)
    assert seen[1].isfinite().all()


# Identity with projection


def project(theta, projection):
    """The projections of the paper, written for autograd."""
    if projection in ("mean", "std"):
        theta = theta - theta.flatten(1).mean(1).view(-1, *[1] * (theta.dim() - 1))
    if projection in ("norm", "std"):
        theta = theta / theta.flatten(1).norm(dim=1).view(-1, *[1] * (theta.dim() - 1))
    return theta * (theta[0].numel() ** 0.5 if projection == "std" else 1.0)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e7])
@pytest.mark.parametrize("shape", [(6,), (3, 2)], ids=str)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_the_gradient_is_that_of_the_projection_and_the_solver_sees_its_value(projection, shape, scale):
    seen = []

    def solver(theta):
        seen.append(theta.clone())
        return select_two(theta)

    theta, dy = scale * torch.randn(4, *shape), torch.randn(12, *shape)
    _, g = gradient(identity(projection=projection, nb_samples=3), theta, dy, solver)
    leaf = theta.double().requires_grad_()
    value = project(leaf, projection)
    value.backward(dy.double().unflatten(0, (4, 3)).mean(1))
    assert torch.allclose(seen[0][::3].double(), value.detach(), rtol=1e-4, atol=1e-6 * value.abs().max().item())
    assert torch.allclose(g.double(), leaf.grad, rtol=1e-4, atol=1e-6 * leaf.grad.abs().max().item())


@pytest.mark.parametrize(("projection", "blind_to"), [("mean", "ones"), ("norm", "theta"), ("std", "both")])
def test_nothing_is_learned_along_what_the_solver_does_not_see(projection, blind_to):
    theta, dy = torch.randn(4, 6), torch.randn(4, 6)
    _, g = gradient(identity(projection=projection), theta, dy)
    if blind_to in ("ones", "both"):
        assert torch.allclose(g.sum(1), torch.zeros(4), atol=1e-6)
    if blind_to in ("theta", "both"):
        assert torch.allclose((g * theta).sum(1), torch.zeros(4), atol=1e-6)


@pytest.mark.parametrize("wall", [-torch.inf, -1e9, -1e8])
@pytest.mark.parametrize("projection", ["mean", "norm", "std"])
def test_masks_take_no_part_in_a_projection(projection, wall):
    theta, dy = torch.randn(4, 6), torch.randn(4, 9)
    expected = gradient(identity(projection=projection), theta, dy[:, :6])
    wide = torch.cat([theta, torch.full((4, 3), wall)], dim=1)
    z, g = gradient(identity(projection=projection), wide, dy)
    assert same(expected, (z[:, :6], g[:, :6]))
    assert not z[:, 6:].any() and not g[:, 6:].any()


@pytest.mark.parametrize("projection", ["mean", "norm", "std"])
def test_equal_entries_still_get_a_gradient(projection):
    _, g = gradient(identity(projection=projection), torch.zeros(2, 5), torch.randn(2, 5))
    assert g.isfinite().all() and g.abs().sum() > 0


def test_an_unknown_projection_is_refused():
    with pytest.raises(ValueError, match="projection must be 'mean', 'norm', 'std' or None, not 'plane'"):
        identity(projection="plane")


# LPGD


@pytest.mark.parametrize("minimise", [False, True], ids=["maximise", "minimise"])
@pytest.mark.parametrize("rho", [0.2, 2.0])
def test_the_moved_solution_is_that_of_the_proximal_problem(rho, minimise):
    """By enumeration of all 0/1 vectors: the number of ones differs, so that the quadratic term does too."""
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).double()
    sign, size = (-1 if minimise else 1), 1.5

    def solver(theta):
        return states[(sign * theta @ states.T).argmax(1)]

    theta, dy = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 4, dtype=torch.float64)
    estimator = lpgd(target_distribution=fixed(size), rho=rho, _is_minimization=minimise)
    z, g = gradient(estimator, theta, dy, solver)
    # minimise c z' + size dy z' + rho/2 |z' - z|^2, and the mirror image of it
    objective = (-sign * theta + size * dy) @ states.T + rho / 2 * (states - z.unsqueeze(1)).square().sum(2)
    assert torch.allclose(g, sign * (z - states[objective.argmin(1)]) / size)


def test_a_larger_rho_changes_fewer_entries():
    theta, dy = torch.randn(200, 8), torch.randn(200, 8)
    counts = [
        (gradient(lpgd(target_distribution=fixed(3.0), rho=rho), theta, dy)[1] != 0).sum().item()
        for rho in (0.0, 0.5, 2.0, 1e3)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[2] > counts[3] == 0


def test_lpgd_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="the solver must return zeros and ones"):
        gradient(lpgd(rho=0.5), torch.randn(2, 4), torch.randn(2, 4), lambda theta: theta.argsort().argsort().float())
    with pytest.raises(ValueError, match="rho must be a finite number of at least 0"):
        lpgd(rho=-1.0)
    with pytest.raises(ValueError, match="envelope must be 'lower', 'upper' or 'average', not 'middle'"):
        lpgd(envelope="middle")

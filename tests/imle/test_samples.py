"""The size of a gradient does not depend on the number of samples: docs/samples.md."""

from functools import partial

import pytest
import torch

from imle.aimle import aimle
from imle.blackbox import blackbox
from imle.identity import identity
from imle.imle import imle
from imle.k_subset_sfe import KSubsetSFE
from imle.k_subsets import marginals
from imle.layers import MAPLayer, RelaxedLayer
from imle.noise import GumbelNoiseDistribution
from imle.perturbed import perturbed
from imle.relaxations import softsub
from imle.sfe import score_function_loss, sfe
from imle.simple import SIMPLE
from imle.solvers import select_k
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution

ROWS = 3000  # all of the same theta
select_three = partial(select_k, k=3)
GUMBEL = {"noise_distribution": GumbelNoiseDistribution()}
ESTIMATORS = {
    "ste": ste,
    "sfe": sfe,
    "identity": partial(identity, projection="mean"),
    "blackbox": partial(blackbox, interpolation=2.0),
    "imle, lambda 1": lambda **options: imle(target_distribution=TargetDistribution(), **options),
    "imle, lambda 10": lambda **options: imle(target_distribution=TargetDistribution(beta=10.0), **options),
    "imle, marginals": lambda **options: imle(
        target_distribution=TargetDistribution(beta=2.0), nb_marginal_samples=2, **options
    ),
    "aimle, adaptive": lambda **options: aimle(
        target_distribution=AdaptiveTargetDistribution(initial_beta=0.5, exact_scaling=True), **options
    ),
    "perturbed": lambda **options: perturbed(nb_marginal_samples=4, noise_temperature=0.5, **options),
}
LAYERS = {
    **{
        name: lambda make=make, **options: MAPLayer(select_three, make(**GUMBEL, **options))
        for name, make in ESTIMATORS.items()
    },
    "relaxed": lambda **options: RelaxedLayer(select_three, partial(softsub, k=3), temperature=0.5, **options),
    "SIMPLE": partial(SIMPLE, 3),
    "KSubsetSFE": partial(KSubsetSFE, 3),
}
LINEAR = torch.tensor([1.0, -0.5, 0.3, 0.8, -1.0, 0.1])
THETA = torch.tensor([[1.0, 0.5, 0.0, -0.5, 0.2, -0.8]])


def gradients(name, samples, reduction, **options):
    """Return the gradient of each row of a batch `[ROWS, 6]`, for the loss that the reduction is for."""
    torch.manual_seed(1)
    theta = THETA.repeat(ROWS, 1).requires_grad_()
    z = LAYERS[name](nb_samples=samples, sample_reduction=reduction, **options)(theta)
    z, log_prob = z if isinstance(z, tuple) else (z, None)
    losses = z @ LINEAR
    if log_prob is not None:
        losses = score_function_loss(losses, log_prob, samples, "leave_one_out" if samples > 1 else None)
    rows_of_an_instance = len(z) // ROWS
    (losses.sum() if reduction == "mean" else losses.sum() / rows_of_an_instance).backward()
    return theta.grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_mean_gradient_is_as_large_with_sixteen_samples_as_with_one(name, reduction):
    one, sixteen = (gradients(name, samples, reduction) for samples in (1, 16))
    error = (one.std(dim=0).norm() + sixteen.std(dim=0).norm()).item() / ROWS**0.5 + 1e-5
    assert (one.mean(dim=0) - sixteen.mean(dim=0)).norm().item() < 4 * error < 0.6 * sixteen.mean(dim=0).norm().item()


@pytest.mark.parametrize("name", [name for name in LAYERS if "KSubset" not in name and name != "sfe"])
def test_both_ways_are_one_gradient(name):
    torch.testing.assert_close(gradients(name, 4, "mean"), gradients(name, 4, "sum"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_of_exact_samples_is_that_of_the_marginals(reduction):
    theta = THETA.clone().requires_grad_()
    (marginals(theta, 3) @ LINEAR).sum().backward()
    torch.testing.assert_close(gradients("SIMPLE", 16, reduction)[:1], theta.grad)


def test_four_times_the_samples_halve_the_spread():
    one, four = gradients("aimle, adaptive", 1, "mean"), gradients("aimle, adaptive", 4, "mean")
    assert four.std(dim=0).norm().item() == pytest.approx(0.5 * one.std(dim=0).norm().item(), rel=0.05)


def test_the_published_adaptive_target_grows_as_the_root_of_the_number_of_samples():
    sizes = []
    for samples in (1, 4, 16):
        torch.manual_seed(1)
        theta, target = THETA.repeat(ROWS, 1).requires_grad_(), AdaptiveTargetDistribution(initial_beta=0.5)
        (aimle(target_distribution=target, nb_samples=samples, **GUMBEL)(select_three)(theta) @ LINEAR).sum().backward()
        sizes.append(theta.grad.mean(dim=0).norm().item())
    assert [size / sizes[0] for size in sizes[1:]] == pytest.approx([2, 4], rel=0.06)

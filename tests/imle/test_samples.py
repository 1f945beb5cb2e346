"""docs/samples.md: how the size of a gradient depends on the number of samples, for a sum and a mean over them."""

import re
from pathlib import Path

import pytest
import torch

from imle.aimle import aimle
from imle.imle import imle
from imle.noise import GumbelNoiseDistribution
from imle.sfe import score_function_loss, sfe
from imle.solvers import select_k
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution

ROWS = 6000  # all of the same theta
PAGE = (Path(__file__).parents[2] / "docs" / "samples.md").read_text(encoding="utf-8")
TARGETS = {
    "`imle`, lambda 1": lambda: TargetDistribution(beta=1.0),
    "`imle`, lambda 10": lambda: TargetDistribution(beta=10.0),
    "`aimle`, adaptive target": lambda: AdaptiveTargetDistribution(initial_beta=0.5),
    "`aimle`, adaptive target with `exact_scaling=True`": lambda: AdaptiveTargetDistribution(
        initial_beta=0.5, exact_scaling=True
    ),
}


def select_three(theta):
    return select_k(theta, 3)


def gradients(name, samples, mean):
    """Return the gradient of each row of a batch `[ROWS, 6]`, for a loss that is summed over rows."""
    torch.manual_seed(1)
    theta = torch.tensor([[1.0, 0.5, 0.0, -0.5, 0.2, -0.8]]).repeat(ROWS, 1).requires_grad_()
    options = {"noise_distribution": GumbelNoiseDistribution(), "nb_samples": samples}
    if name in TARGETS:
        function = imle if name.startswith("`imle`") else aimle
        options["target_distribution"] = TARGETS[name]()
    else:
        function = {"`ste`": ste, "`sfe`": sfe}[name]
    z = function(**options)(select_three)(theta)
    if function is sfe:
        z, log_prob = z
    losses = z @ torch.tensor([1.0, -0.5, 0.3, 0.8, -1.0, 0.1])
    if function is sfe:
        losses = score_function_loss(losses, log_prob, samples)
    (losses.sum() / (samples if mean else 1)).backward()
    return theta.grad


def published(name):
    (cells,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    return {mean: [float(number) for number in cell.split(", ")] for mean, cell in zip((False, True), cells)}


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("name", ["`ste`", *TARGETS])
def test_the_page_on_samples_says_how_large_gradients_are(name, mean):
    one, *more = (gradients(name, samples, mean).mean(dim=0).norm().item() for samples in (1, 4, 16))
    assert [size / one for size in more] == pytest.approx(published(name)[mean], rel=0.08, abs=0.01)


def test_a_sum_over_samples_keeps_the_expected_gradient_and_halves_its_spread_for_four_times_the_samples():
    name = "`aimle`, adaptive target with `exact_scaling=True`"
    one, four = gradients(name, 1, mean=False), gradients(name, 4, mean=False)
    assert four.std(dim=0).norm().item() == pytest.approx(0.5 * one.std(dim=0).norm().item(), rel=0.05)
    assert torch.nn.functional.cosine_similarity(one.mean(dim=0), four.mean(dim=0), dim=0) > 0.995


def test_the_score_function_takes_a_mean_over_all_rows():
    one, four = (gradients("`sfe`", samples, mean=True).mean(dim=0) for samples in (1, 4))
    assert (one - four).norm() < 0.15 * four.norm()

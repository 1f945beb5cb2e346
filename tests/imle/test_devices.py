"""What would happen on a GPU, without one; see `tests.fake_device`.

A new estimator, noise or solver joins by a line.
"""

import functools

import pytest
import torch

from imle import _numerics
from imle.aimle import aimle
from imle.auto import AutoTargetDistribution
from imle.blackbox import blackbox
from imle.fenchel_young import FenchelYoungLoss
from imle.identity import identity
from imle.imle import imle
from imle.k_subset_sfe import KSubsetSFE
from imle.k_subsets import marginals
from imle.layers import MAPLayer
from imle.lpgd import lpgd
from imle.noise import BaseNoiseDistribution, GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.perturbed import perturbed
from imle.sfe import score_function_loss, sfe
from imle.simple import SIMPLE
from imle.solvers import (
    arborescence,
    batched,
    mathias_select_k,
    ranking,
    select_k,
    shortest_path,
    spanning_tree,
    spanning_tree_edges,
)
from imle.spo_plus import SPOPlusLoss
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution
from tests.fake_device import DEVICE, EXISTS, faults

pytestmark = pytest.mark.skipif(not EXISTS, reason="this torch cannot register a device in Python")


class Own(BaseNoiseDistribution):
    """A noise that is told a shape and nothing else."""

    def sample(self, shape):
        return torch.randn(shape, device=DEVICE)


def select_two(theta, mask=None, offset=0.0):
    return select_k(theta + offset, 2, mask=mask)


ESTIMATORS = {
    "aimle": aimle,
    "aimle, central": functools.partial(aimle, symmetric_perturbation=True),
    "aimle, other base": functools.partial(aimle, target_noise_temperature=0.5),
    "aimle, fixed target": lambda **options: aimle(target_distribution=TargetDistribution(), **options),
    "aimle, one lambda": lambda **options: aimle(
        target_distribution=AdaptiveTargetDistribution(exact_scaling=True), **options
    ),
    "aimle, lambda by rows": lambda **options: aimle(
        target_distribution=AdaptiveTargetDistribution(per_instance=True), **options
    ),
    "aimle, no number": lambda **options: aimle(target_distribution=AutoTargetDistribution(), **options),
    "blackbox": blackbox,
    "identity": functools.partial(identity, projection="std"),
    "lpgd": lpgd,
    "perturbed": perturbed,
    "imle": imle,
    "imle, other base": functools.partial(imle, target_noise_temperature=0.5),
    "imle, adaptive target": lambda **options: imle(target_distribution=AdaptiveTargetDistribution(), **options),
    "ste": ste,
    "sfe": sfe,
}
NOISES = {
    "no noise": lambda: None,
    "Gumbel": GumbelNoiseDistribution,
    "Sum-of-Gamma": lambda: SumOfGammaNoiseDistribution(k=2),
    "a noise of one's own": Own,
}
SOLVERS = {  # and what each is given
    "select_k": (functools.partial(select_k, k=2), (6, 5)),
    "select_k, many short rows": (functools.partial(select_k, k=2), (4000, 20)),
    "select_k, masked": (lambda theta: select_k(theta, 2, mask=allowed(theta)), (6, 5)),
    "mathias_select_k": (functools.partial(mathias_select_k, k=2), (6, 5)),
    "spanning_tree": (spanning_tree, (6, 4, 4)),
    "spanning_tree_edges": (spanning_tree_edges, (6, 6)),
    "shortest_path": (shortest_path, (6, 4, 4)),
    "ranking": (ranking, (6, 5)),
    "arborescence": (arborescence, (6, 4, 4)),
    "marginals of k-subsets": (functools.partial(marginals, k=2), (6, 5)),
    "SIMPLE": (SIMPLE(2), (6, 5)),
    "KSubsetSFE": (KSubsetSFE(2), (6, 5)),
    "SPO+": (lambda theta: SPOPlusLoss(select_two)(theta, theta.flip(1)), (6, 5)),
    "Fenchel-Young": (lambda theta: FenchelYoungLoss(select_two)(theta, select_two(theta)), (6, 5)),
    "batched, tensors": (batched(lambda theta: theta > 0, instance="torch"), (6, 5)),
    "batched, arrays": (batched(lambda theta: theta > 0), (6, 5)),
}
# the file in which a case is known to wait, and why it may
WAITING = {
    "aimle, Sum-of-Gamma": "imle/sum_of_gamma.py",  # its table, of which none of fake tensors is kept
    "batched, arrays": "imle/solvers/batched.py",  # arrays live on the host
    "shortest_path": "torch.tensor(moves, device=device)",  # as the table
}


def allowed(theta):
    """Return the same mask for all rows."""
    return torch.arange(theta.shape[-1], device=theta.device) < 4


def backward(answer, nb_samples):
    """Backpropagate a loss of solutions, or of solutions and their log-densities."""
    z, log_prob = answer if isinstance(answer, tuple) else (answer, None)
    losses = (z - 0.3).square().sum(dim=1)
    if log_prob is not None:
        losses = score_function_loss(losses, log_prob, nb_samples, "leave_one_out" if nb_samples > 1 else None)
    losses.sum().backward()


def plain(estimator, noise=GumbelNoiseDistribution):
    """Return a case: a forward and a backward pass."""

    def case():
        layer = estimator(noise_distribution=noise())(select_two)
        theta = torch.randn(6, 5, device=DEVICE, requires_grad=True)
        return lambda: backward(layer(theta), 1)

    return case


def everything(estimator, **options):
    """Return a case: a layer in bfloat16 with samples, side data and entries that no solution can take."""

    def case():
        layer = MAPLayer(select_two, estimator(noise_distribution=GumbelNoiseDistribution(), nb_samples=3, **options))
        theta = torch.randn(6, 5, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        side = {"mask": allowed(theta).expand(6, 5), "offset": torch.randn(6, 5, device=DEVICE)}
        return lambda: backward(layer(theta.masked_fill(~allowed(theta), -torch.inf), **side), 3)

    return case


def a_call(function, shape):
    """Return a case: one call of a function of parameters."""

    def case():
        theta = torch.randn(shape, device=DEVICE)
        return lambda: function(theta)

    return case


def without_float64(case):
    """Return a case on a device of which the library knows that it lacks float64."""

    def told():
        _numerics.lacks_float64 = lambda device: device.type == DEVICE
        return case()

    return told


def prepare():
    """Make tables of numbers while numbers are to be had."""
    SumOfGammaNoiseDistribution(k=2).sample((1,))


WITH_DY = {"nb_marginal_samples": 2, "_is_minimization": True, "nonfinite": "skip"}
CASES = {
    **{name: plain(estimator) for name, estimator in ESTIMATORS.items()},
    **{
        f"{name}, all options": everything(estimator, **({} if name == "sfe" else WITH_DY))
        for name, estimator in ESTIMATORS.items()
    },
    **{f"aimle, {name}": plain(aimle, noise) for name, noise in NOISES.items()},
    "sfe, a noise of torch's": plain(
        sfe, lambda: torch.distributions.Laplace(*torch.ones(2, device=DEVICE), validate_args=False)
    ),
    **{name: a_call(solver, shape) for name, (solver, shape) in SOLVERS.items()},
    "solve": a_call(MAPLayer(select_two, aimle()).solve, (6, 5)),
}
AWARE = hasattr(_numerics, "lacks_float64")
WITHOUT_FLOAT64 = {
    name: without_float64(case)
    for name, case in CASES.items()
    if AWARE or name in SOLVERS or name.startswith(("ste", "sfe"))
}


def test_nothing_waits_for_a_device_and_nothing_is_on_two():
    found = faults(__name__, "CASES", "WITHOUT_FLOAT64")
    unexpected = {
        name: [line for line in lines if WAITING.get(name.removesuffix(", without float64"), "nowhere") not in line]
        for name, lines in found.items()
    }
    assert {name: lines for name, lines in unexpected.items() if lines} == {}
    assert [name for name in WAITING if not found[name]] == []  # what no longer waits leaves the list

"""Under the transforms of `torch.func`, estimators and solvers give what plain autograd gives; and what they refuse."""

import functools

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from imle.aimle import aimle
from imle.imle import imle
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.sfe import score_function_loss, sfe
from imle.solvers import batched, mathias_select_k, select_k, shortest_path, spanning_tree, spanning_tree_edges
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution

ESTIMATORS = {
    "aimle": lambda **options: aimle(target_distribution=AdaptiveTargetDistribution(initial_beta=2.0), **options),
    "aimle, central": lambda **options: aimle(
        target_distribution=AdaptiveTargetDistribution(), symmetric_perturbation=True, **options
    ),
    "imle": lambda **options: imle(target_distribution=TargetDistribution(beta=5.0), **options),
    "ste": ste,
}
SOLVERS = {
    "select_k": (functools.partial(select_k, k=2), (3, 5)),
    "mathias_select_k": (functools.partial(mathias_select_k, k=2), (3, 5)),
    "spanning_tree": (spanning_tree, (3, 4, 4)),
    "spanning_tree_edges": (spanning_tree_edges, (3, 6)),
    "shortest_path": (shortest_path, (3, 4, 4)),
    "batched, tensors": (batched(lambda theta: theta > theta.mean(), instance="torch"), (3, 5)),
    "batched, arrays": (batched(lambda theta: theta > theta.mean()), (3, 5)),
}


def moved(theta, offset, scale=1.0):
    """A solver with side data."""
    return select_k(theta * scale + offset, 2)


def loss(layer, theta, *args, **kwargs):
    """Return a sum of squares, by which every solution has a gradient of its own."""
    output = layer(theta, *args, **kwargs)
    z, log_prob = output if isinstance(output, tuple) else (output, None)
    wanted = torch.linspace(-1, 1, z[0].numel()).view(z.shape[1:])
    losses = (z - wanted).square().flatten(1).sum(dim=1)
    return losses.sum() if log_prob is None else score_function_loss(losses, log_prob, len(z) // len(theta)).sum()


def plain(layer, theta, *args, **kwargs):
    """Return the gradient that `backward()` gives."""
    theta = theta.clone().requires_grad_()
    loss(layer, theta, *args, **kwargs).backward()
    return theta.grad


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_transform_agrees_with_plain_autograd(name, solver):
    solve, shape = SOLVERS[solver]
    options = {"_is_minimization": True} if solver == "shortest_path" else {}

    def layer():  # an adaptive state starts anew
        return ESTIMATORS[name](**options)(solve)

    thetas = torch.rand(4, *shape)
    theta = thetas[0]
    gradients = torch.stack([plain(layer(), member) for member in thetas])
    assert gradients.any()
    assert torch.allclose(grad(functools.partial(loss, layer()))(theta), gradients[0])
    assert torch.equal(vmap(layer())(thetas), torch.stack([layer()(member) for member in thetas]))
    mapped = vmap(lambda member: grad(functools.partial(loss, layer()))(member))(thetas)
    assert torch.allclose(mapped, gradients)
    rows = []
    for i in range(theta.numel()):
        leaf = theta.clone().requires_grad_()
        rows += torch.autograd.grad(layer()(leaf).flatten()[i], leaf)
    assert torch.allclose(jacrev(layer())(theta), torch.stack(rows).view(*shape, *shape))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_solver_of_one_instance_is_mapped_over_rows(name):
    @batched(instance="torch")
    def above_the_mean(theta):
        return theta > theta.mean()

    theta = torch.rand(4, 5)
    f = ESTIMATORS[name]()(above_the_mean)
    assert torch.equal(vmap(lambda row: f(row[None])[0])(theta), above_the_mean(theta))
    mapped = vmap(grad(lambda row: loss(ESTIMATORS[name]()(above_the_mean), row[None])))(theta)
    each = [plain(ESTIMATORS[name]()(above_the_mean), row[None])[0] for row in theta]
    assert torch.allclose(mapped, torch.stack(each))


@pytest.mark.parametrize("in_dims", [(0, 0), (None, 0), (0, None), (1, 2)], ids=str)
@pytest.mark.parametrize("name", [*ESTIMATORS, "sfe"])
def test_side_data_are_mapped_over_with_theta_or_without(name, in_dims):
    noise = {"noise_distribution": GumbelNoiseDistribution()} if name == "sfe" else {}
    estimator = sfe if name == "sfe" else ESTIMATORS[name]
    stacked = torch.randn(2, 4, 3, 5)
    theta, offset = (
        member[0] if dim is None else member.movedim(0, dim) for member, dim in zip(stacked, in_dims, strict=True)
    )
    pairs = [
        [member if dim is None else member.select(dim, i) for member, dim in zip((theta, offset), in_dims)]
        for i in range(4)
    ]

    def gradient(theta, offset):
        layer = estimator(nb_samples=2, **noise)(moved)
        return grad(lambda theta: loss(layer, theta, offset, scale=2.0))(theta)

    torch.manual_seed(1)
    mapped = vmap(gradient, in_dims=in_dims, randomness="same")(theta, offset)
    for found, (theta, offset) in zip(mapped, pairs, strict=True):
        torch.manual_seed(1)
        assert torch.allclose(found, plain(estimator(nb_samples=2, **noise)(moved), theta, offset, scale=2.0))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_tensor_that_is_mapped_over_behind_the_solvers_back_is_named(name):
    def hidden(theta, offset):
        return ESTIMATORS[name]()(lambda theta: select_k(theta + offset, 2))(theta)

    with pytest.raises(RuntimeError, match="give it to the solver as an argument"):
        vmap(hidden)(torch.rand(4, 3, 5), torch.rand(4, 3, 5))


def noisy_gradient(name, noise, theta):
    layer = (sfe if name == "sfe" else ESTIMATORS[name])(noise_distribution=noise, nb_samples=2)
    return grad(functools.partial(loss, layer(functools.partial(select_k, k=2))))(theta)


NOISY = [
    *((name, noise) for name in ESTIMATORS for noise in (GumbelNoiseDistribution(), SumOfGammaNoiseDistribution(k=2))),
    ("sfe", GumbelNoiseDistribution()),
]


@pytest.mark.parametrize(("name", "noise"), NOISY, ids=str)
def test_noise_is_one_draw_for_all_members_or_one_for_each(name, noise):
    def layer():
        estimator = sfe if name == "sfe" else ESTIMATORS[name]
        return estimator(noise_distribution=noise, nb_samples=2)(functools.partial(select_k, k=2))

    def gradient(theta):
        return grad(functools.partial(loss, layer()))(theta)

    thetas = torch.randn(4, 3, 5)
    torch.manual_seed(1)
    mapped = vmap(gradient, randomness="same")(thetas)
    for found, theta in zip(mapped, thetas, strict=True):
        torch.manual_seed(1)
        assert torch.allclose(found, plain(layer(), theta), atol=1e-5)
    equal = thetas[:1].expand(16, -1, -1)
    assert len(vmap(gradient, randomness="same")(equal).unique(dim=0)) == 1
    assert len(vmap(gradient, randomness="different")(equal).unique(dim=0)) > 1
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(gradient)(thetas)


def dual(f, theta):
    with torch.autograd.forward_ad.dual_level():
        return f(torch.autograd.forward_ad.make_dual(theta, theta))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    "forward_mode",
    [lambda f, theta: jvp(f, (theta,), (theta,)), lambda f, theta: jacfwd(f)(theta), dual],
    ids=["jvp", "jacfwd", "dual numbers"],
)
def test_forward_mode_is_refused_in_one_sentence(name, forward_mode):
    layer = ESTIMATORS[name]()(functools.partial(select_k, k=2))
    with pytest.raises(RuntimeError, match=r"no derivative in forward mode, .*use reverse mode"):
        forward_mode(lambda theta: loss(layer, theta), torch.rand(3, 5))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_second_derivatives_are_refused_in_one_sentence(name):
    layer = ESTIMATORS[name]()(functools.partial(select_k, k=2))
    theta = torch.rand(3, 5)
    with pytest.raises(RuntimeError, match=r"no derivative in forward mode, .*hessian"):
        hessian(functools.partial(loss, layer))(theta)
    with pytest.raises(RuntimeError, match="has no gradient of its own"):
        jacrev(jacrev(functools.partial(loss, layer)))(theta)

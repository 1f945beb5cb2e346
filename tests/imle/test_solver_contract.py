"""What every solver promises, and that an estimator makes each of them differentiable."""

import functools

import pytest
import torch

from imle.aimle import aimle
from imle.blackbox import blackbox
from imle.identity import identity
from imle.imle import imle
from imle.layers import MAPLayer
from imle.lpgd import lpgd
from imle.noise import GumbelNoiseDistribution
from imle.solver import sign_of
from imle.solvers import (
    arborescence,
    assignment,
    binary_programme,
    grid_arcs,
    knapsack,
    ranking,
    select_k,
    shortest_path,
    shortest_path_arcs,
    spanning_tree,
)
from imle.ste import ste
from imle.target import TargetDistribution

FLOATS = [torch.float64, torch.float32, torch.bfloat16]
SOLVERS = {  # solver, shape of an instance, whether it minimises, whether it looks at numbers on an accelerator
    "arborescence": (arborescence, (5, 5), False, False),
    "assignment": (assignment, (4, 4), False, True),
    "assignment, wide": (assignment, (3, 5), False, True),
    "binary_programme": (functools.partial(binary_programme, A_eq=[[1] * 6], b_eq=[2]), (6,), False, True),
    "binary_programme, least": (
        functools.partial(binary_programme, A_eq=[[1] * 6], b_eq=[2], maximise=False),
        (2, 3),
        True,
        True,
    ),
    "knapsack": (functools.partial(knapsack, weights=[1, 2, 3, 2, 1, 4], capacity=6), (6,), False, False),
    "ranking": (ranking, (6,), False, False),
    "ranking, descending": (functools.partial(ranking, descending=True), (6,), True, False),
    "select_k": (functools.partial(select_k, k=2), (6,), False, False),
    "shortest_path": (shortest_path, (4, 4), True, False),
    "shortest_path_arcs": (
        functools.partial(shortest_path_arcs, arcs=grid_arcs(3, 3).tolist(), source=0, target=8),
        (12,),
        True,
        False,
    ),
    "spanning_tree": (spanning_tree, (5, 5), False, False),
}


def transposed_copy(tensor):
    dims = tuple(reversed(range(tensor.dim())))
    copied = tensor.permute(dims).contiguous().permute(dims)
    assert not copied.is_contiguous()
    return copied


def draw(name, dtype=torch.float64, rows=6):
    solver, shape, minimises, _ = SOLVERS[name]
    theta = torch.rand(rows, *shape).to(dtype)
    return solver, theta, minimises


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16])
def test_an_answer_is_like_its_parameters_which_are_left_alone_and_carries_no_gradient(name, dtype):
    solver, theta, _ = draw(name, dtype)
    before = theta.clone()
    z = solver(theta.requires_grad_())
    assert (z.shape, z.dtype, z.device) == (theta.shape, theta.dtype, theta.device) and z.is_contiguous()
    assert not z.requires_grad and torch.equal(theta, before)
    assert torch.equal(z, solver(transposed_copy(theta.detach())))
    assert torch.equal(z, solver(theta))
    whole = z.flatten(1).sort(dim=1).values
    assert torch.equal(whole.round(), whole) and (z >= 0).all() and (z.sum() > 0)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(name):
    solver, theta, _ = draw(name)
    z = solver(theta)
    for i in range(len(theta)):
        assert torch.equal(solver(theta[i : i + 1]), z[i : i + 1])
    assert solver(theta[:0]).shape == theta[:0].shape


@pytest.mark.parametrize("name", SOLVERS)
def test_no_other_answer_of_the_batch_is_better(name):
    solver, theta, minimises = draw(name, rows=12)
    z, sign = solver(theta).flatten(1), -1 if minimises else 1
    scores = sign * theta.flatten(1) @ z.mT
    assert (scores.diagonal()[:, None] >= scores - 1e-12).all()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_estimator_gives_each_solver_a_gradient_of_finite_numbers(name, dtype):
    solver, theta, minimises = draw(name, dtype, rows=3)
    differentiable = aimle(
        solver,
        target_distribution=TargetDistribution(beta=2.0),
        noise_distribution=GumbelNoiseDistribution(),
        theta_noise_temperature=0.1,
        nb_samples=2,
        symmetric_perturbation=True,
        _is_minimization=minimises,
    )
    theta = transposed_copy(theta).requires_grad_()
    z = differentiable(theta)
    assert z.shape == (2 * len(theta), *theta.shape[1:]) and z.dtype == dtype
    wanted = solver(torch.rand(theta.shape).to(dtype)).repeat_interleave(2, dim=0)
    (z - wanted).square().sum().backward()
    assert theta.grad.isfinite().all() and theta.grad.ne(0).any() and theta.grad.dtype == dtype


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_parameters_that_are_not_floating_point_are_refused(name, dtype):
    solver, shape, *_ = SOLVERS[name]
    with pytest.raises(TypeError, match=f"must be floating point, not {dtype}; convert"):
        solver(torch.zeros(2, *shape).to(dtype))


@pytest.mark.parametrize("name", [name for name, (*_, looks) in SOLVERS.items() if not looks])
def test_what_runs_on_an_accelerator_never_looks_at_a_number(name, no_waiting, monkeypatch):
    solver, theta, _ = draw(name)
    expected = solver(theta)
    no_waiting()

    def look(*_, **__):
        pytest.fail("the host looked at a number")

    with monkeypatch.context() as patch:
        for question in ("__bool__", "__int__", "__float__", "item", "tolist", "nonzero"):
            patch.setattr(torch.Tensor, question, look)
        patch.setattr(torch, "equal", look)
        if name.startswith("knapsack"):  # its weights and its capacity are the host's own
            patch.undo()
        z = solver(theta)
    assert torch.equal(z, expected)


AT_ZERO = {
    "aimle": aimle(theta_noise_temperature=0.0),
    "imle": imle(theta_noise_temperature=0.0),
    "lpgd": lpgd(noise_distribution=GumbelNoiseDistribution(), theta_noise_temperature=0.0),
    "ste": ste(noise_distribution=GumbelNoiseDistribution(), noise_temperature=0.0),
    "blackbox": blackbox(noise_distribution=GumbelNoiseDistribution(), noise_temperature=0.0),
    "identity": identity(projection=None, noise_distribution=GumbelNoiseDistribution(), noise_temperature=0.0),
    "identity, norm": identity(projection="norm"),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("estimator", AT_ZERO)
def test_a_sample_at_temperature_zero_is_the_solution(name, estimator):
    solver, theta, _ = draw(name)
    layer = MAPLayer(solver, AT_ZERO[estimator])
    assert torch.equal(layer.sample(theta), layer.solve(theta))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_that_minimises_says_so(name):
    solver, _, minimises = draw(name)
    assert sign_of(solver, (), {}) == (-1 if minimises else 1)

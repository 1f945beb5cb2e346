"""The contract that every estimator keeps, in every spelling."""

import copy
import functools
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imle.aimle import aimle
from imle.blackbox import blackbox
from imle.identity import identity
from imle.imle import imle
from imle.layers import MAPLayer
from imle.lpgd import lpgd
from imle.noise import BaseNoiseDistribution, GumbelNoiseDistribution
from imle.perturb_and_map import PerturbAndMAP
from imle.perturbed import perturbed
from imle.sfe import score_function_loss, sfe
from imle.solver import shared
from imle.solvers import batched, select_k, spanning_tree
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution

WITH_TARGET = ["aimle forward", "aimle central", "aimle other base", "imle", "lpgd"]
PERTURBED = ["perturbed", "multiplicative"]  # they return means of solutions, and need noise
WITH_DY = [*WITH_TARGET, "ste", "blackbox", "identity", *PERTURBED]
FAMILY = [*WITH_DY, "sfe"]
SPELLINGS = ["decorator", "layer"]
# how often a solver is called in a forward and a backward pass
CALLS = {
    "aimle forward": 2,
    "aimle central": 3,
    "aimle other base": 3,
    "imle": 2,
    "lpgd": 3,
    "blackbox": 2,
} | dict.fromkeys(["ste", "identity", "sfe", *PERTURBED], 1)
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


OTHERS = {
    "ste": ste,
    "sfe": sfe,
    "blackbox": functools.partial(blackbox, interpolation=5.0),
    "identity": functools.partial(identity, projection="std"),
    "perturbed": perturbed,
    "multiplicative": functools.partial(perturbed, multiplicative=True),
}


def make(name, **options):
    """Return the named estimator, of a step large enough that small examples get a gradient."""
    options = {"noise_distribution": GumbelNoiseDistribution()} | options
    if name == "imle":
        return imle(target_distribution=TargetDistribution(beta=5.0), **options)
    if name in OTHERS:
        return OTHERS[name](**options)
    if name == "lpgd":
        target = TargetDistribution(beta=5.0, do_gradient_scaling=True)
        return lpgd(target_distribution=target, rho=0.1, envelope="average", **options)
    extra = {"aimle forward": {}, "aimle central": {"symmetric_perturbation": True}}
    other_base = {"theta_noise_temperature": 1.0, "target_noise_temperature": 0.5}
    return aimle(
        target_distribution=AdaptiveTargetDistribution(initial_beta=1.0), **extra.get(name, other_base), **options
    )


def spell(spelling, solver, estimator):
    if spelling == "layer":
        return MAPLayer(solver, estimator)

    @estimator
    def differentiable_solver(theta, *args, **kwargs):
        return solver(theta, *args, **kwargs)

    return differentiable_solver


def select_two(theta):
    """The two largest entries of each instance, whatever its shape."""
    return select_k(theta.flatten(1), 2).view(theta.shape)


def solutions(output):
    return output[0] if isinstance(output, tuple) else output


def backward(output, goal, nb_samples=1):
    """Backpropagate the squared distance of the solutions from the goal."""
    losses = (solutions(output) - goal).square().flatten(1).sum(dim=1)
    if isinstance(output, tuple):
        losses = score_function_loss(losses, output[1], nb_samples)
    losses.sum().backward()


def run(layer, theta, *args, nb_samples=1, **kwargs):
    """Return the solutions and the gradient of a goal that the solutions miss."""
    theta = theta.detach().requires_grad_() if theta.is_leaf else theta
    theta.retain_grad()
    output = layer(theta, *args, **kwargs)
    goal = torch.linspace(-1, 1, theta[0].numel()).view(theta.shape[1:]).to(theta)
    backward(output, goal, nb_samples)
    return solutions(output).detach(), theta.grad


# Shapes


@pytest.mark.parametrize("shape", [(4,), (3, 2), (4, 4)], ids=str)
@pytest.mark.parametrize("nb_marginal_samples", [1, 3])
@pytest.mark.parametrize("nb_samples", [1, 3])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_solutions_and_gradients_have_the_promised_shapes(name, spelling, nb_samples, nb_marginal_samples, shape):
    if name == "sfe" and nb_marginal_samples > 1:
        with pytest.raises(TypeError, match="nb_marginal_samples"):
            make(name, nb_marginal_samples=nb_marginal_samples)
        return
    solver = spanning_tree if shape == (4, 4) else select_two
    ones = 6 if shape == (4, 4) else 2
    marginals = {} if name == "sfe" else {"nb_marginal_samples": nb_marginal_samples}
    layer = spell(spelling, solver, make(name, nb_samples=nb_samples, **marginals))
    theta = torch.randn(5, *shape)
    theta = theta + theta.mT if shape == (4, 4) else theta
    z, gradient = run(layer, theta, nb_samples=nb_samples)
    assert z.shape == (5 * nb_samples * (1 if name in PERTURBED else nb_marginal_samples), *shape)
    thirds = z * nb_marginal_samples if name in PERTURBED else z  # of means
    assert set(thirds.round(decimals=5).unique().tolist()) <= {*range(nb_marginal_samples + 1)}
    assert torch.allclose(z.flatten(1).sum(dim=1), torch.tensor(float(ones)))
    assert gradient.shape == theta.shape
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_samples_of_one_instance_lie_side_by_side(name, spelling):
    theta, quiet = torch.randn(4, 6), GumbelNoiseDistribution(scale=1e-6)  # it does not change these choices
    z, _ = run(spell(spelling, select_two, make(name, nb_samples=3, noise_distribution=quiet)), theta, nb_samples=3)
    assert torch.equal(z, select_two(theta).repeat_interleave(3, dim=0))


@pytest.mark.parametrize("name", FAMILY)
def test_an_empty_batch_gives_an_empty_answer_without_a_call_of_the_solver(name):
    def solver(theta):
        raise AssertionError("called")

    layer = MAPLayer(solver, make(name, nb_samples=3))
    theta = torch.zeros(0, 4, requires_grad=True)
    output = layer(theta)
    backward(output, torch.zeros(4), nb_samples=3)
    assert solutions(output).shape == theta.grad.shape == (0, 4)
    assert solutions(layer.eval()(theta)).shape == (0, 4)


# Spellings


@pytest.mark.parametrize("function", [aimle, imle, ste, sfe, blackbox, perturbed, lpgd])
def test_the_spellings_agree(function):
    @function
    def bare(theta):
        return select_two(theta)

    @function()
    def called(theta):
        return select_two(theta)

    theta = torch.randn(3, 5)
    results = []
    for layer in (bare, called, MAPLayer(select_two, function())):
        torch.manual_seed(1)
        results.append(run(layer, theta))
    for z, gradient in results[1:]:
        assert torch.equal(z, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("name", FAMILY)
def test_a_decorated_solver_keeps_its_name_and_docstring(name):
    @make(name)
    def find_the_best_route(theta):
        """Routes."""
        return select_two(theta)

    assert find_the_best_route.__name__ == "find_the_best_route"
    assert find_the_best_route.__doc__ == "Routes."


def test_an_estimator_is_a_value_that_serves_many_solvers():
    estimator = make("ste")
    one, two = estimator(lambda theta: select_k(theta, 1)), estimator(lambda theta: select_k(theta, 2))
    theta = torch.randn(3, 5)
    assert one(theta).sum() == 3
    assert two(theta).sum() == 6


# Evaluation


@pytest.mark.parametrize("nb_samples", [1, 3])
@pytest.mark.parametrize("name", FAMILY)
def test_evaluation_is_the_solver_itself(name, nb_samples):
    layer = MAPLayer(select_two, make(name, nb_samples=nb_samples))
    theta = torch.randn(50, 6, requires_grad=True)
    for z in (solutions(layer.eval()(theta)), solutions(layer.train().solve(theta))):
        assert torch.equal(z, select_two(theta))
        assert not z.requires_grad
    sampled = solutions(layer.eval().sample(theta))
    assert sampled.requires_grad or name == "sfe"
    assert not torch.equal(sampled, select_two(theta).repeat_interleave(nb_samples, dim=0))
    sampled = solutions(layer.train()(theta))
    assert not torch.equal(sampled, select_two(theta).repeat_interleave(nb_samples, dim=0))


def test_evaluation_passes_further_arguments_and_keeps_theta():
    def solver(theta, k, mask=None):
        z = select_k(theta, k, mask=mask)
        theta.zero_()
        return z

    layer = MAPLayer(solver, ste()).eval()
    theta = torch.randn(4, 5).double().mT  # not contiguous
    expected = select_k(theta, 2, mask=torch.ones(4, dtype=torch.bool))
    before = theta.clone()
    assert torch.equal(layer(theta, 2, mask=shared(torch.ones(4, dtype=torch.bool))), expected)
    assert torch.equal(theta, before)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_without_gradients_it_samples_as_before(name, spelling):
    layer = spell(spelling, select_two, make(name))
    theta = torch.randn(3, 5, requires_grad=True)
    torch.manual_seed(1)
    expected = solutions(layer(theta)).detach()
    torch.manual_seed(1)
    with torch.no_grad():
        output = layer(theta)
    assert torch.equal(solutions(output), expected)
    assert not any(x.requires_grad for x in (output if isinstance(output, tuple) else (output,)))


# Extra arguments


class Witness:
    """A solver that checks, row by row, that its arguments belong to the instance it is given."""

    def __init__(self):
        self.rows = []

    def __call__(self, theta, tags, matrix, whole, array=None, scalar=None, solver="none", flag=False):
        instance = (theta.mean(dim=1) / 1000).round()
        assert torch.equal(instance, tags.to(instance))
        assert torch.equal(instance, matrix[:, 1].to(instance))
        assert not matrix.requires_grad
        assert np.array_equal(instance.float().numpy(), array[:, 0])
        assert whole.shape == (7, 2)
        assert scalar.shape == ()
        assert (solver, flag) == ("exact", True)
        self.rows.append(theta.shape[0])
        return select_k(theta, 2)


@pytest.mark.parametrize(("nb_samples", "nb_marginal_samples"), [(1, 1), (3, 1), (1, 3), (3, 3)])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_extra_arguments_are_repeated_to_match_the_rows(name, spelling, nb_samples, nb_marginal_samples):
    options = {"nb_samples": nb_samples}
    if name != "sfe":
        options["nb_marginal_samples"] = nb_marginal_samples
    # nothing that moves theta from its instance
    options |= {"identity": {"projection": None}, "multiplicative": {"noise_temperature": 1e-4}}.get(name, {})
    estimator, witness = make(name, **options), Witness()
    if name.startswith("aimle"):  # a step small enough that instances stay apart
        estimator.target_distribution.beta = 1e-3
    tags = torch.tensor([4, 2, 3])
    matrix = torch.stack([torch.zeros(3), tags.float()], dim=1).requires_grad_()
    array = tags[:, None].float().numpy()
    theta = 1000 * tags[:, None] + torch.randn(3, 5)
    run(
        spell(spelling, witness, estimator),
        theta,
        tags,
        matrix,
        shared(torch.zeros(7, 2)),
        nb_samples=nb_samples,
        array=array,
        scalar=torch.tensor(1.0),
        solver="exact",
        flag=True,
    )
    assert matrix.grad is None
    assert witness.rows == [3 * nb_samples * (nb_marginal_samples if name != "sfe" else 1)] * CALLS[name]


def test_a_mask_reaches_the_target_pass_too():
    mask = torch.tensor([[True, True, False, False], [False, False, True, True]]).repeat(20, 1)
    layer = make("aimle central", nb_samples=3)(select_k)
    theta = torch.randn(40, 4, requires_grad=True)
    z = layer(theta, 1, mask=mask)
    backward(z, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert not z[~mask.repeat_interleave(3, dim=0)].any()
    assert (theta.grad[~mask] == 0).all()
    assert (theta.grad[mask] != 0).float().mean() > 0.5


@pytest.mark.parametrize("nb_samples", [1, 3])
def test_arguments_are_dealt_out_by_a_batched_solver_inside(nb_samples):
    seen = []

    @make("aimle central", nb_samples=nb_samples)
    @batched
    def solver(theta, costs, k):
        seen.append((int(np.round(theta.mean() / 1000)), costs.shape, float(costs[0]), k))
        return np.eye(len(theta))[theta.argmax()]

    theta = 1000 * torch.arange(3.0)[:, None] + torch.randn(3, 4)
    run(solver, theta.clone(), torch.arange(3.0)[:, None].expand(3, 4), k=3)
    run(solver, theta.clone(), np.arange(3.0)[:, None] * np.ones(4), k=3)
    forward = seen[: 3 * nb_samples]
    assert len(seen) == 2 * 3 * nb_samples * CALLS["aimle central"]
    assert all(instance == costs and shape == (4,) and k == 3 for instance, shape, costs, k in forward)
    assert all(shape == (4,) and k == 3 for _, shape, _, k in seen)


# What solvers may do


ANSWERS = {
    "int": lambda z: z.long(),
    "bool": lambda z: z.bool(),
    "float64": lambda z: z.double(),
    "numpy": lambda z: z.numpy(),
    "numpy int8": lambda z: z.numpy().astype(np.int8),
    "list": lambda z: z.tolist(),
    "requires grad": lambda z: z.clone().requires_grad_(),
    "not contiguous": lambda z: z.mT.contiguous().mT,
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", FAMILY)
def test_any_kind_of_answer_gives_the_same_solutions_and_gradient(name, answer):
    theta = torch.randn(3, 5)
    results = []
    for solver in (select_two, lambda x: ANSWERS[answer](select_two(x))):
        torch.manual_seed(1)
        results.append(run(make(name)(solver), theta))
        assert not any(x.requires_grad for x in results[-1])
    (z, gradient), (other_z, other_gradient) = results
    assert other_z.dtype == torch.float32
    assert torch.equal(z, other_z)
    assert torch.equal(gradient, other_gradient)
    layer = MAPLayer(lambda x: ANSWERS[answer](select_two(x)), make(name)).eval()
    assert torch.equal(solutions(layer(theta)), select_two(theta))


@pytest.mark.parametrize("name", FAMILY)
def test_a_solver_may_convert_its_input_to_numpy_without_detaching_it(name):
    layer = MAPLayer(lambda theta: np.eye(5)[theta.numpy().argmax(axis=1)], make(name))
    theta = torch.randn(3, 5, requires_grad=True)
    z, gradient = run(layer, theta)
    assert z.sum() == 3
    assert gradient.abs().sum() > 0
    assert torch.equal(solutions(layer.eval()(theta)), select_k(theta, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILY)
def test_solutions_and_gradient_have_the_dtype_of_theta(name, dtype):
    seen = []

    def solver(theta):
        seen.append(theta.dtype)
        return select_two(theta)

    layer = MAPLayer(solver, make(name, nb_samples=3))
    theta = torch.randn(3, 5, dtype=dtype)
    z, gradient = run(layer, theta, nb_samples=3)
    assert z.dtype == gradient.dtype == solutions(layer.eval()(theta)).dtype == dtype
    assert set(seen) == {dtype}
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_theta_need_not_be_contiguous(name, spelling):
    def solver(theta):
        assert theta.is_contiguous()
        return select_two(theta)

    strided = torch.randn(4, 3, 5).permute(1, 2, 0)
    results = []
    for theta in (strided, strided.contiguous()):
        torch.manual_seed(1)
        results.append(run(spell(spelling, solver, make(name)), theta))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("noise", [None, GumbelNoiseDistribution()], ids=["no noise", "noise"])
@pytest.mark.parametrize("name", WITH_DY)
def test_a_solver_may_scribble_on_its_input(name, noise):
    def scribbler(theta):
        z = select_two(theta)
        theta.view(-1).fill_(float("nan"))
        return theta.copy_(z)

    theta = torch.randn(3, 5)
    before = theta.clone()
    results = []
    for solver in (select_two, scribbler):
        torch.manual_seed(1)
        results.append(run(make(name, noise_distribution=noise, nb_samples=3)(solver), theta))
    assert torch.equal(theta, before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(solutions(MAPLayer(scribbler, make(name)).eval()(theta)), select_two(theta))
    assert torch.equal(theta, before)


@pytest.mark.parametrize("kind", ["tensor", "array"])
@pytest.mark.parametrize("name", FAMILY)
def test_a_solver_may_answer_in_the_same_memory_each_time(name, kind):
    buffer = torch.zeros(6, 5)

    def solver(theta):
        answer = buffer[: len(theta)]
        answer.copy_(select_two(theta))
        return answer if kind == "tensor" else answer.numpy()

    theta = torch.randn(3, 5)
    results = []
    for one in (select_two, solver):
        torch.manual_seed(1)
        layer = make(name)(one)
        z = solutions(layer(theta))
        layer(-theta)
        results.append((z, *run(layer, theta)))
    for expected, found in zip(*results):
        assert torch.equal(expected, found)
    layer = MAPLayer(solver, make(name)).eval()
    first = solutions(layer(theta))
    layer(-theta)
    assert torch.equal(first, select_two(theta))


@pytest.mark.parametrize("name", FAMILY)
def test_a_solver_that_tries_to_be_differentiable_does_not_bypass_the_estimator(name):
    weight = torch.ones(5, requires_grad=True)
    theta = torch.randn(3, 5)
    torch.manual_seed(1)
    _, expected = run(make(name)(select_two), theta)
    torch.manual_seed(1)
    _, gradient = run(make(name)(lambda x: select_two(x) * weight + 0 * x), theta)
    assert torch.equal(gradient, expected)
    assert weight.grad is None


# Broken contracts


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_an_answer_of_the_wrong_shape_is_an_error_that_names_both_sides(name, spelling):
    layer = spell(spelling, lambda theta: theta[:, :3], make(name))
    with pytest.raises(ValueError, match=r"solver returned \(10, 3\) for parameters \(10, 4\)"):
        layer(torch.zeros(10, 4))
    if spelling == "layer":
        with pytest.raises(ValueError, match=r"solver returned \(10, 3\) for parameters \(10, 4\)"):
            layer.eval()(torch.zeros(10, 4))


@pytest.mark.parametrize("name", WITH_TARGET)
def test_a_wrong_shape_in_the_backward_pass_is_an_error_too(name):
    calls = []

    def solver(theta):
        calls.append(theta.shape)
        return select_two(theta) if len(calls) == 1 else theta[:, :3]

    with pytest.raises(ValueError, match=r"solver returned \(\d+, 3\) for parameters \(\d+, 5\)"):
        run(make(name)(solver), torch.randn(3, 5))


@pytest.mark.parametrize("answer", [None, "solved", object()], ids=["none", "text", "object"])
def test_an_answer_without_numbers_is_an_error(answer):
    with pytest.raises(TypeError, match="a solver must return a tensor or an array of numbers, not"):
        ste(lambda theta: answer)(torch.randn(3, 5))


@pytest.mark.parametrize("option", [AdaptiveTargetDistribution(), GumbelNoiseDistribution()])
def test_an_option_in_the_place_of_the_solver_is_refused(option):
    with pytest.raises(TypeError, match="give options by name"):
        aimle(option)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_a_theta_of_the_wrong_kind_is_refused(name, spelling):
    layer = spell(spelling, select_two, make(name))
    with pytest.raises(TypeError, match=r"theta must be a tensor of floating-point numbers, not torch\.int64"):
        layer(torch.ones(3, 5, dtype=torch.long))
    with pytest.raises(TypeError, match="theta must be a tensor of floating-point numbers, not ndarray"):
        layer(np.ones((3, 5)))
    with pytest.raises(ValueError, match=r"batch dimension first, not \(5,\)"):
        layer(torch.ones(5))


@pytest.mark.parametrize("name", FAMILY)
def test_errors_of_the_solver_arrive_unchanged(name):
    def solver(theta):
        raise KeyError("infeasible")

    with pytest.raises(KeyError, match="infeasible"):
        make(name)(solver)(torch.randn(3, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nb_samples": 0}, "nb_samples"),
        ({"nb_samples": 1.5}, "nb_samples"),
        ({"nb_marginal_samples": 0}, "nb_marginal_samples"),
        ({"theta_noise_temperature": -1.0}, "theta_noise_temperature"),
        ({"target_noise_temperature": -1.0}, "target_noise_temperature"),
        ({"theta_noise_temperature": float("nan")}, "theta_noise_temperature"),
        ({"noise_distribution": 3}, "sample"),
        ({"target_distribution": 3}, "target_distribution"),
        ({"nonfinite": "ignore"}, "nonfinite"),
        ({"nb_sample": 3}, "nb_sample"),
    ],
)
@pytest.mark.parametrize("function", [aimle, imle])
def test_options_out_of_range_are_refused_by_name(function, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        function(**options)


def test_things_in_the_wrong_place_are_refused():
    with pytest.raises(TypeError, match="a solver must be callable"):
        aimle()(3)
    with pytest.raises(TypeError, match="estimator must be a call such as"):
        MAPLayer(select_two, ste)
    with pytest.raises(NotImplementedError, match="no gradient rule"):
        run(PerturbAndMAP()(select_two), torch.randn(3, 5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", WITH_DY)
def test_a_gradient_that_is_not_finite_is_refused_or_skipped(name, bad):
    theta = torch.randn(3, 5, requires_grad=True)
    dy = torch.ones(3, 5)
    dy[1, 2] = bad
    with pytest.raises(FloatingPointError, match="dy that reached the solver is not finite"):
        make(name)(select_two)(theta).backward(dy)
    assert theta.grad is None
    with pytest.warns(UserWarning, match="a step was skipped"):
        make(name, nonfinite="skip")(select_two)(theta).backward(dy)
    assert torch.equal(theta.grad, torch.zeros(3, 5))


# Calls of the solver


@pytest.mark.parametrize(("nb_samples", "nb_marginal_samples"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("name", FAMILY)
def test_every_call_of_the_solver_sees_the_rows_of_the_batch(name, nb_samples, nb_marginal_samples):
    rows = []

    def solver(theta):
        rows.append(theta.shape[0])
        return select_two(theta)

    marginals = {} if name == "sfe" else {"nb_marginal_samples": nb_marginal_samples}
    run(make(name, nb_samples=nb_samples, **marginals)(solver), torch.randn(4, 5), nb_samples=nb_samples)
    unit = 4 * nb_samples * marginals.get("nb_marginal_samples", 1)
    assert rows == [unit] * CALLS[name]


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_forward_differences_solve_the_base_again_only_where_it_differs(alpha):
    rows = []

    def solver(theta):
        rows.append(theta.shape[0])
        return select_two(theta)

    target = AdaptiveTargetDistribution(initial_alpha=alpha)
    run(aimle(target_distribution=target)(solver), torch.randn(4, 5))
    assert rows == [4] * (2 if alpha == 1 else 3)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host waits for a number"
        assert function is not torch.ops.aten.nonzero.default, "the host waits for a shape"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FAMILY)
def test_nothing_on_the_way_waits_for_the_host(name, no_waiting):
    no_waiting()
    layer = make(name, nb_samples=3)(lambda theta: theta.sign())
    theta = torch.randn(4, 5)
    with NoWaiting():
        _, gradient = run(layer, theta, nb_samples=3)
    assert gradient.abs().sum() > 0
    with pytest.raises(AssertionError, match="waits for a number"), NoWaiting():
        theta.sum().item()


# Randomness


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_runs_are_reproducible_under_manual_seed(name, spelling):
    theta = torch.randn(20, 5)
    results = {}
    for repeat, seed in enumerate((1, 1, 2)):
        torch.manual_seed(seed)
        results[repeat] = run(spell(spelling, select_two, make(name, nb_samples=3)), theta, nb_samples=3)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("name", FAMILY)
def test_runs_are_reproducible_under_a_generator(name):
    theta = torch.randn(20, 5)
    results = []
    state = torch.get_rng_state()
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        results.append(run(make(name, generator=generator)(select_two), theta))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("name", FAMILY)
def test_backward_passes_draw_no_noise_of_their_own(name):
    theta = torch.randn(3, 5, requires_grad=True)
    output = make(name)(select_two)(theta)
    state = torch.get_rng_state()
    backward(output, torch.linspace(-1, 1, 5))
    assert torch.equal(torch.get_rng_state(), state)


class ForeignNoise:
    """Only `sample(shape)`, of another dtype, and the score that `sfe` asks for."""

    def __init__(self):
        self.shapes = []

    def sample(self, shape):
        self.shapes.append(tuple(shape))
        return torch.randn(shape, dtype=torch.float64)

    def log_prob(self, value):
        return -value.square() / 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILY)
def test_a_noise_of_ones_own_needs_only_sample(name, dtype):
    noise = ForeignNoise()
    z, gradient = run(make(name, noise_distribution=noise, nb_samples=2)(select_two), torch.randn(3, 5, dtype=dtype))
    assert noise.shapes == [(3, 2, 5)]
    assert z.dtype == gradient.dtype == dtype
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", FAMILY)
def test_a_distribution_of_torch_serves_as_noise(name):
    noise = torch.distributions.Gumbel(0.0, 1.0)
    z, _ = run(make(name, noise_distribution=noise)(select_two), torch.ones(200, 5))
    assert z.unique(dim=0).shape[0] == 10


def test_noise_derived_from_the_base_class_with_sample_alone_is_accepted():
    class Shift(BaseNoiseDistribution):
        def sample(self, shape):
            return torch.tensor([0.0, 0.0, 9.0, 9.0]).expand(shape)

    z, _ = run(make("imle", noise_distribution=Shift())(select_two), torch.zeros(3, 4))
    assert torch.equal(z, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 4))


@pytest.mark.parametrize("name", sorted({*WITH_DY} - {*PERTURBED}))
def test_without_noise_the_forward_pass_is_the_solver(name):
    theta = torch.randn(3, 5)
    z, _ = run(make(name, noise_distribution=None)(select_two), theta)
    assert torch.equal(z, select_two(theta))


def test_a_temperature_of_zero_perturbs_only_the_other_pass():
    seen = []

    def solver(theta):
        seen.append(theta.clone())
        return select_two(theta)

    theta = torch.randn(3, 5)
    noise = GumbelNoiseDistribution()
    for temperatures in ((0.0, 1.0), (1.0, 0.0)):
        seen.clear()
        options = dict(zip(("theta_noise_temperature", "target_noise_temperature"), temperatures))
        target = AdaptiveTargetDistribution(initial_beta=0.0)
        run(aimle(target_distribution=target, noise_distribution=noise, **options)(solver), theta)
        assert torch.equal(seen[0], theta) == (temperatures[0] == 0)
        assert torch.equal(seen[1], theta) == torch.equal(seen[2], theta) == (temperatures[1] == 0)


# Copies


def test_a_layer_whose_parts_are_replaced_works_with_what_its_state_shows():
    layer = MAPLayer(select_two, aimle())
    theta = torch.randn(4, 5)
    for replace_part in (
        lambda target: setattr(layer, "target_distribution", target),
        lambda target: setattr(layer, "estimator", aimle(target_distribution=target)),
    ):
        replace_part(AdaptiveTargetDistribution(initial_beta=0.9))
        assert layer.estimator.target is layer.target_distribution
        assert layer.state_dict()["target_distribution._state"][0].item() == 0.9
        layer(theta.clone().requires_grad_()).sum().backward()
        assert layer.state_dict()["target_distribution._state"][0].item() != 0.9
    layer.estimator = ste()
    assert layer.target_distribution is None and not layer.state_dict()


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", FAMILY)
def test_a_copy_of_a_layer_behaves_the_same_and_apart(name, copier):
    layer = MAPLayer(select_two, make(name, generator=torch.Generator().manual_seed(3)))
    theta = torch.randn(3, 5)
    run(layer, theta)
    twin = copier(layer)
    for _ in range(2):
        (z, gradient), (twin_z, twin_gradient) = run(layer, theta), run(twin, theta)
        assert torch.equal(z, twin_z)
        assert torch.equal(gradient, twin_gradient)
    assert twin.estimator.target_distribution is twin.target_distribution if name in WITH_TARGET else True
    if name.startswith("aimle"):
        beta = twin.target_distribution.beta
        run(layer, theta)
        assert twin.target_distribution.beta == beta != layer.target_distribution.beta


def gradient_of(layer, theta):
    torch.manual_seed(1)
    return run(layer, theta)


@aimle(noise_distribution=GumbelNoiseDistribution())
def module_level_solver(theta):
    return select_two(theta)


def test_layers_and_decorated_solvers_travel_to_other_processes():
    layers = [MAPLayer(select_two, make(name)) for name in FAMILY] + [module_level_solver]
    here = copy.deepcopy(layers)  # torch shares the memory of the tensors that it sends: beta moves on both sides
    theta = torch.randn(3, 5)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(gradient_of, layers, [theta] * len(layers)))
    for layer, (z, gradient) in zip(here, there):
        here_z, here_gradient = gradient_of(layer, theta)
        assert torch.equal(z, here_z)
        assert torch.equal(gradient, here_gradient)


@pytest.mark.parametrize("name", ["aimle central", "sfe"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_around_it_changes_nothing(name, backend):
    def solver(theta):
        assert not torch.compiler.is_compiling()
        return select_two(theta).numpy()

    layer = MAPLayer(solver, make(name))
    weight = torch.randn(5, 5)

    def network(x):
        return layer((x @ weight).relu())

    compiled = torch.compile(network, backend=backend)
    x = torch.randn(3, 5)
    results = []
    for function in (network, compiled):
        torch.manual_seed(1)
        if name.startswith("aimle"):
            layer.load_state_dict(MAPLayer(select_two, make(name)).state_dict())
        results.append(run(function, x))
    torch._dynamo.reset()
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1])
    assert results[0][1].abs().sum() > 0


# What the estimators return


@pytest.mark.parametrize("nb_samples", [1, 2, 3])
def test_straight_through_is_the_identity_averaged_over_samples(nb_samples):
    theta = torch.randn(4, 5, requires_grad=True)
    dy = torch.randn(4 * nb_samples, 5)
    make("ste", nb_samples=nb_samples)(select_two)(theta).backward(dy)
    assert torch.allclose(theta.grad, dy.view(4, nb_samples, 5).mean(dim=1))


@pytest.mark.parametrize("nb_samples", [2, 3])
@pytest.mark.parametrize("name", WITH_TARGET)
def test_gradients_are_averaged_over_samples(name, nb_samples):
    """S samples of one instance weigh as much together as the mean of S instances of one sample each."""
    theta, dy = torch.randn(4, 5), torch.randn(4 * nb_samples, 5)
    eps = torch.randn(4, nb_samples, 5)

    class Fixed:
        def sample(self, shape):
            return eps.view(shape)

    options = {"target_distribution": None, "noise_distribution": Fixed()}
    if name.startswith("aimle"):
        options["target_distribution"] = TargetDistribution(beta=3.0)
        options["symmetric_perturbation"] = name == "aimle central"
        options["target_noise_temperature"] = 0.5 if name == "aimle other base" else 1.0
    maker = functools.partial(aimle if name.startswith("aimle") else imle, **options)
    together = theta.clone().requires_grad_()
    maker(nb_samples=nb_samples)(select_two)(together).backward(dy)
    apart = theta.repeat_interleave(nb_samples, dim=0).requires_grad_()
    maker()(select_two)(apart).backward(dy)
    assert together.grad.abs().sum() > 0
    assert torch.allclose(together.grad, apart.grad.view(4, nb_samples, 5).mean(dim=1))


@pytest.mark.parametrize("name", WITH_DY)
def test_a_zero_gradient_stays_zero(name):
    theta = torch.randn(3, 5, requires_grad=True)
    layer = make(name, nb_samples=3)(select_two)
    layer(theta).backward(torch.zeros(9, 5))
    assert torch.equal(theta.grad, torch.zeros(3, 5))

"""Where estimators used to be wrong without a word: masks, broken rows, second runs of a pass, Jacobians, signs."""

import functools
import inspect
import math

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from imle.aimle import AIMLE, aimle
from imle.blackbox import BlackboxDifferentiation, blackbox
from imle.fenchel_young import FenchelYoungLoss
from imle.finite_difference import walls
from imle.identity import IdentityWithProjection, identity
from imle.imle import IMLE, imle
from imle.layers import MAPLayer
from imle.lpgd import LPGD, lpgd
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.perturbed import PerturbedOptimiser, perturbed
from imle.sfe import SFE, score_function_loss, sfe
from imle.solver import shared
from imle.solvers import batched, select_k, shortest_path
from imle.spo_plus import SPOPlusLoss
from imle.ste import STE, ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution
from tests.imle.test_estimators import (
    CALLS,
    FAMILY,
    PERTURBED,
    WITH_DY,
    WITH_TARGET,
    backward,
    make,
    run,
    select_two,
    solutions,
)

GOAL = torch.linspace(0, 1, 6)


def without_walls(theta, sign):
    """Return theta with 0 in place of its walls."""
    walled = walls(theta, sign)
    return theta if walled is None else theta.masked_fill(walled, 0.0)


def state(estimator):
    target = getattr(estimator, "target_distribution", None)
    return {} if target is None else {name: value.tolist() for name, value in target.state_dict().items()}


# Masks


WALLS = [-math.inf, -1e8, -1e9, torch.finfo(torch.float32).min]


def masked_gradient(wall, theta, minimise=False, dtype=torch.float32, **options):
    """The gradient of six scores of which the last two are masked; a minimiser sees all with the other sign."""
    theta = theta.to(dtype, copy=True).requires_grad_()
    sign = -1 if minimise else 1
    estimator = aimle(
        target_distribution=AdaptiveTargetDistribution(initial_beta=0.5), _is_minimization=minimise, **options
    )
    z = estimator(lambda x: select_k(sign * x, 2))((sign * theta).masked_fill(torch.arange(6) > 3, sign * wall))
    (z - GOAL).square().sum().backward()
    return theta.grad


@pytest.mark.parametrize("minimise", [False, True], ids=["maximise", "minimise"])
@pytest.mark.parametrize("options", [{}, {"symmetric_perturbation": True}, {"nb_samples": 3}], ids=str)
@pytest.mark.parametrize("wall", WALLS[1:])
def test_a_mask_of_any_size_gives_the_gradient_of_minus_infinity(wall, options, minimise):
    theta = torch.randn(8, 6)
    expected = masked_gradient(-math.inf, theta, **options)
    found = masked_gradient(wall, theta, minimise, **options)
    assert expected.norm() > 1
    assert not expected[:, 4:].any()
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_masks_of_half_precision_count_for_nothing(dtype):
    theta = torch.randn(8, 6)
    expected = masked_gradient(-math.inf, theta, dtype=dtype)
    for wall in (-1e8 if dtype == torch.bfloat16 else -4e4, torch.finfo(dtype).min):
        assert torch.allclose(masked_gradient(wall, theta, dtype=dtype), expected, rtol=1e-2)


def test_padding_may_be_the_larger_part_and_a_row_may_be_all_mask():
    theta = torch.randn(9, 6)
    expected = masked_gradient(-math.inf, theta)
    walls = torch.full((9, 200), -1e9)
    leaf = theta.clone().requires_grad_()
    estimator = aimle(target_distribution=AdaptiveTargetDistribution(initial_beta=0.5))
    wide = torch.cat([leaf.masked_fill(torch.arange(6) > 3, -1e9), walls], dim=1)
    (estimator(lambda x: select_k(x, 2))(wide)[:, :6] - GOAL).square().sum().backward()
    assert torch.allclose(leaf.grad, expected, rtol=1e-5)
    for rows in (slice(4, 5), slice(2, 9)):  # most of the batch too
        for wall in (-1e8, -1e9, -math.inf):
            padded = theta.masked_fill(torch.arange(6) > 3, wall)
            padded[rows] = wall
            assert torch.equal(without_walls(padded, 1), padded.masked_fill(padded < -1e7, 0.0))
            assert torch.equal(without_walls(-padded, -1), -padded.masked_fill(padded < -1e7, 0.0))


@pytest.mark.parametrize(
    "theta",
    [
        torch.randn(8, 20),
        1e6 * torch.randn(8, 20),
        -1e7 * torch.rand(8, 20),
        torch.empty(8, 20).uniform_(-5000, -1),  # costs of roads, as scores
        1e-20 * torch.randn(8, 20),
        torch.linspace(0, 6, 80).view(4, 20).neg().exp().mul(-(10.0**6)),  # all sizes between
    ],
    ids=["ordinary", "1e6", "negative", "roads", "tiny", "all sizes"],
)
def test_large_scores_are_no_walls(theta):
    assert torch.equal(without_walls(theta, 1), theta)
    assert torch.equal(without_walls(-theta, -1), -theta)


def test_walls_are_the_same_on_an_accelerator(no_waiting):
    theta = torch.randn(8, 6).masked_fill(torch.arange(6) > 3, -1e9)
    expected = without_walls(theta, 1)
    ordinary = torch.randn(8, 6)
    no_waiting()
    assert torch.equal(without_walls(theta, 1), expected)
    assert torch.equal(expected == 0, theta == -1e9)
    assert torch.equal(without_walls(ordinary, 1), ordinary)


def test_only_the_side_that_a_solver_avoids_is_a_wall():
    theta = torch.tensor([[1.0, 2.0, 1e9, 3.0]])
    assert torch.equal(without_walls(theta, 1), theta)
    assert torch.equal(without_walls(theta, -1), torch.tensor([[1.0, 2.0, 0.0, 3.0]]))


@pytest.mark.parametrize("wall", WALLS)
def test_the_score_of_a_masked_entry_says_nothing_about_the_others(wall):
    theta = torch.randn(8, 6)
    found = {}
    for value in (-20.0, wall):
        torch.manual_seed(1)
        leaf = theta.clone().requires_grad_()
        z, log_prob = sfe(nb_samples=3)(select_two)(leaf.masked_fill(torch.arange(6) > 3, value))
        score_function_loss(z @ GOAL, log_prob, nb_samples=3).sum().backward()
        found[value] = leaf.grad
        assert log_prob.isfinite().all()
    assert found[wall].norm() > 1
    assert torch.allclose(found[-20.0], found[wall], atol=1e-4)


# Broken rows


BROKEN = {"NaN": math.nan, "inf": math.inf}


@pytest.mark.parametrize("bad", BROKEN)
@pytest.mark.parametrize("name", FAMILY)
def test_a_broken_row_of_theta_is_an_error_that_names_it(name, bad):
    theta = torch.randn(4, 5)
    theta[2, 3] = BROKEN[bad]
    layer = MAPLayer(select_two, make(name))
    if name == "sfe" and bad == "inf":  # it does not know which side the solver likes
        assert layer(theta)[1].isfinite().all()
        return
    before = state(layer.estimator)
    for mode in (layer.train, layer.eval):
        with pytest.raises(FloatingPointError, match="in row 2: look for overflow"):
            mode()(theta)
    theta[0] = BROKEN[bad]
    with pytest.raises(FloatingPointError, match="in rows 0, 2: "):
        layer(theta)
    assert state(layer.estimator) == before


def test_the_infinity_of_a_minimiser_is_the_other_one():
    theta = torch.tensor([[1.0, 2.0, math.inf], [1.0, math.inf, 3.0]])
    layer = imle(noise_distribution=None, _is_minimization=True)(lambda costs: select_k(-costs, 1))
    assert torch.equal(layer(theta), torch.tensor([[1.0, 0.0, 0.0]] * 2))
    with pytest.raises(FloatingPointError, match=r"in rows 0, 1: .* a mask is [+]inf"):
        layer(-theta)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("name", FAMILY)
def test_a_broken_row_of_an_answer_is_an_error_that_names_it(name, call, bad):
    calls = []

    def solver(theta):
        calls.append(1)
        z = select_two(theta)
        if len(calls) == call:
            z[3, 1] = bad
        return z

    estimator = make(name)
    before = state(estimator)
    if call > CALLS[name]:
        run(estimator(solver), torch.randn(4, 5))
        assert len(calls) == 1
        return
    with pytest.raises(FloatingPointError, match="the solver's answer is not finite in row 3"):
        run(estimator(solver), torch.randn(4, 5))
    assert state(estimator) == before


def test_large_finite_answers_are_answers():
    z = make("imle")(lambda theta: 3e38 * select_two(theta))(torch.randn(2, 5))
    assert z.max() == 3e38 and not z.sum().isfinite()


@pytest.mark.parametrize("bad", BROKEN)
@pytest.mark.parametrize("name", WITH_DY)
def test_on_an_accelerator_a_broken_row_has_a_gradient_of_nan_and_no_other_row_does(name, bad, no_waiting):
    """A loss that is linear in z: the broken row's answer reaches no other row."""
    theta = torch.randn(4, 5)
    estimator = make(name, nb_samples=2, noise_distribution=None)
    dy = torch.randn(8, 5)
    without = theta.clone().index_fill(0, torch.tensor([2]), 0.0).requires_grad_()
    torch.manual_seed(1)  # some cannot do without noise
    estimator(select_two)(without).backward(dy.index_fill(0, torch.tensor([4, 5]), 0.0))
    estimator = make(name, nb_samples=2, noise_distribution=None)
    before = state(estimator)
    no_waiting()
    theta[2, 1] = BROKEN[bad]
    theta.requires_grad_()
    torch.manual_seed(1)
    estimator(lambda x: select_two(x).nan_to_num())(theta).backward(dy)
    assert theta.grad[2].isnan().all()
    rest = torch.tensor([0, 1, 3])
    assert without.grad[rest].abs().sum() > 0
    assert torch.allclose(theta.grad[rest], without.grad[rest])
    assert state(estimator) == before


# A dy of zero


@pytest.mark.parametrize("function", [imle, aimle])
@pytest.mark.parametrize("options", [{"theta_noise_temperature": 0.0}, {"target_noise_temperature": 10.0}], ids=str)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_row_without_dy_has_no_gradient_even_where_the_passes_differ(function, options, alpha):
    layer = function(
        target_distribution=TargetDistribution(alpha=alpha, beta=10.0),
        noise_distribution=GumbelNoiseDistribution(),
        nb_samples=3,
        nb_marginal_samples=2,
        **options,
    )(select_two)
    theta = torch.randn(4, 6, requires_grad=True)
    dy = torch.randn(4, 6, 6)
    dy[1] = 0
    layer(theta).backward(dy.flatten(0, 1))
    assert not theta.grad[1].any()
    assert (theta.grad != 0).any(dim=1).tolist() == [True, False, True, True]
    theta.grad = None
    layer(theta).backward(torch.zeros(24, 6))
    assert not theta.grad.any()


# Signs


@pytest.mark.parametrize("name", FAMILY)
def test_every_estimator_trains_a_minimiser_downhill(name):
    # multiplicative noise needs signs to keep, and theta of the scale of a projection less noise
    costs = (0.1 * torch.randn(16, 6) + 2.0 * (name == "multiplicative")).requires_grad_()
    signs = {"_is_minimization": True}
    signs |= {"noise_temperature": 0.3} if name in ("identity", "multiplicative") else {}
    layer = make(name, nb_samples=4, **signs)(lambda x: select_k(-x, 2))
    optimiser = torch.optim.Adam([costs], lr=0.1)
    losses = []
    for _ in range(60):
        output = layer(costs)
        losses.append((solutions(output) * (GOAL - 0.5)).sum().item())
        optimiser.zero_grad()
        loss = (solutions(output) * (GOAL - 0.5)).sum(dim=1)
        (score_function_loss(loss, output[1], 4, "leave_one_out") if name == "sfe" else loss).sum().backward()
        optimiser.step()
    assert sum(losses[-10:]) / 10 < sum(losses[:3]) / 3 - 20


def undecided_minimiser(costs):
    return select_k(-costs, 2)


def minimiser(costs, least=True):
    return select_k(-costs if least else costs, 2)


minimiser.minimises = lambda least=True: least


@pytest.mark.parametrize("name", FAMILY)
def test_an_estimator_asks_the_solver_whether_it_minimises(name):
    """Of a minimiser that says so, solutions and gradients are those of one of which it is said."""
    costs = torch.rand(4, 6) + 1.0
    runs = []
    for solver, options in (
        (undecided_minimiser, {"_is_minimization": True}),
        (minimiser, {}),
        (functools.partial(minimiser, least=True), {}),
        (batched(lambda row: undecided_minimiser(row[None])[0], instance="torch", minimises=True), {}),
    ):
        torch.manual_seed(3)
        leaf = costs.clone().requires_grad_()
        output = make(name, **options)(solver)(leaf)
        loss = (solutions(output) * (GOAL - 0.5)).sum(dim=1)
        (score_function_loss(loss, output[1]) if name == "sfe" else loss).sum().backward()
        runs.append((solutions(output).detach(), leaf.grad))
    assert runs[0][1].any()
    for z, g in runs[1:]:
        assert torch.equal(z, runs[0][0]) and torch.equal(g, runs[0][1])


@pytest.mark.parametrize("solver", [shortest_path, functools.partial(shortest_path, neighbours=4)], ids=["", "partial"])
def test_straight_through_the_shortest_path_has_the_sign_of_costs(solver):
    """A step against the gradient makes the cells of a wanted path cheaper."""
    costs = torch.rand(2, 3, 3, requires_grad=True)
    (-(ste(solver)(costs) * torch.eye(3)).sum()).backward()
    assert (costs.grad * torch.eye(3)).sum() > 0


@pytest.mark.parametrize("told", [True, False])
def test_a_solver_and_an_option_that_contradict_each_other_are_an_error(told):
    solver = functools.partial(minimiser, least=not told)
    for call in (
        lambda: aimle(_is_minimization=told)(solver)(torch.rand(2, 6)),
        lambda: MAPLayer(solver, ste(_is_minimization=told)).eval()(torch.rand(2, 6)),
        lambda: SPOPlusLoss(solver, _is_minimization=told)(torch.rand(2, 6), torch.rand(2, 6)),
        lambda: FenchelYoungLoss(solver, perturbed(_is_minimization=told))(torch.rand(2, 6), torch.rand(2, 6)),
    ):
        with pytest.raises(ValueError, match=f"_is_minimization={told} contradicts the solver"):
            call()
    aimle(_is_minimization=not told)(solver)(torch.rand(2, 6))


@pytest.mark.parametrize("options", [{"_is_minimization": "yes"}, {"sample_reduction": "median"}], ids=str)
def test_an_answer_that_there_is_not_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        aimle(**options)


# A pass that runs twice


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_checkpointing_repeats_the_draws_of_torchs_own_generator(name, use_reentrant):
    theta, gradients = torch.randn(4, 6), []
    for checkpointed in (False, True):
        layer, leaf = make(name, nb_samples=2)(select_two), theta.clone().requires_grad_()

        def block(x, layer=layer):
            output = layer(x)
            score = output[1].sum() if isinstance(output, tuple) else 0
            return (solutions(output) * x.repeat_interleave(2, dim=0)).square().mean(dim=1).sum() + score

        torch.manual_seed(3)
        value = checkpoint(block, leaf, use_reentrant=use_reentrant) if checkpointed else block(leaf)
        value.backward()
        gradients.append(leaf.grad)
    assert gradients[0].any() and torch.equal(*gradients)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_checkpointing_cannot_repeat_a_draw_of_ones_own_generator_and_says_so(name, use_reentrant):
    generator = torch.Generator().manual_seed(7)
    layer = make(name, generator=generator)(select_two)
    theta, state = torch.randn(4, 6, requires_grad=True), torch.get_rng_state()
    z = checkpoint(lambda x: solutions(layer(x)) * x, theta, use_reentrant=use_reentrant)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="draw from torch's own there, generator=None"):
        z.sum().backward()


# Gradients of gradients


@pytest.mark.parametrize("name", WITH_DY)
@pytest.mark.parametrize("loss", ["linear", "square"])
@pytest.mark.parametrize("ask", ["grad", "backward"])
def test_a_gradient_of_the_gradient_is_one_clear_error(name, loss, ask):
    """Through dy (a loss whose dy depends on z) and through theta itself (one whose dy is constant)."""
    theta = torch.randn(3, 6, requires_grad=True)
    z = make(name)(select_two)(theta)
    value = (z * GOAL).sum() if loss == "linear" else (z - GOAL).square().sum()
    if ask == "grad":
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        with pytest.raises(RuntimeError, match="has no gradient of its own"):
            torch.autograd.grad(gradient.sum(), theta, allow_unused=True)
    else:
        value.backward(create_graph=True)
        with pytest.raises(RuntimeError, match="has no gradient of its own"):
            theta.grad.sum().backward()
        theta.grad = None


def test_a_graph_of_gradients_may_pass_beside_the_solver():
    theta, weight = torch.randn(3, 6, requires_grad=True), torch.ones(6, requires_grad=True)
    z = make("aimle forward")(select_two)(theta)
    value = (z.detach() * weight.square()).sum() + (z * GOAL).sum()
    (gradient,) = torch.autograd.grad(value, weight, create_graph=True)
    gradient.sum().backward()
    assert torch.equal(weight.grad, 2 * z.detach().sum(dim=0))


# Jacobians


@pytest.mark.parametrize("name", [name for name in WITH_TARGET if name.startswith("aimle")])
def test_jacobians_read_the_adaptive_state_and_move_it_once_at_most(name):
    estimator = make(name, noise_distribution=None)
    layer, theta = estimator(select_two), torch.randn(3, 6)

    def f(x):
        return (layer(x) * GOAL).sum(dim=1).sin()

    rows = []
    for i in range(3):
        leaf = theta.clone().requires_grad_()
        made_anew = make(name, noise_distribution=None)(select_two)
        (made_anew(leaf) * GOAL).sum(dim=1).sin()[i].backward()
        rows.append(leaf.grad)
    before = state(estimator)
    assert torch.allclose(torch.func.jacrev(f)(theta), torch.stack(rows))
    jacobian = torch.autograd.functional.jacobian(f, theta)
    assert torch.allclose(jacobian, torch.stack(rows))
    assert jacobian.abs().sum() > 0
    with pytest.raises(RuntimeError, match=r"use torch\.func\.jacrev"):
        torch.autograd.functional.jacobian(f, theta, vectorize=True)
    assert state(estimator)["_state"][0] == pytest.approx(before["_state"][0], abs=1.01e-4)  # moved once, not by rows
    moved = state(estimator)
    torch.func.jacrev(f)(theta)
    assert state(estimator) == moved != before


class SameEachTime(torch.distributions.Normal):
    def sample(self, shape):
        return torch.linspace(-1, 1, math.prod(shape)).view(shape)


@pytest.mark.parametrize("name", FAMILY)
def test_function_transforms_agree_with_plain_autograd(name):
    options = {} if name == "sfe" else {"noise_distribution": SameEachTime(0, 1) if name in PERTURBED else None}
    thetas = torch.randn(5, 3, 6)
    numpy_solver = lambda x: select_two(x).numpy()  # noqa: E731  needs memory behind its tensors

    def loss(x):
        output = make(name, **options)(numpy_solver)(x)
        losses = (solutions(output) - GOAL).square().sum(dim=1)
        return (score_function_loss(losses, output[1]) if name == "sfe" else losses).sum()

    torch.manual_seed(1)
    expected = []
    for theta in thetas:
        leaf = theta.clone().requires_grad_()
        loss(leaf).backward()
        expected.append(leaf.grad)
    torch.manual_seed(1)
    assert torch.allclose(torch.func.grad(loss)(thetas[0]), expected[0])
    if name != "sfe":  # its noise would be drawn in another order
        mapped = torch.func.vmap(torch.func.grad(loss))(thetas)
        assert torch.allclose(mapped, torch.stack(expected))


# Deferred initialisation


def test_the_adaptive_state_comes_to_life_at_its_start():
    target = {"initial_beta": 0.5, "initial_grad_norm": 0.25}
    with torch.device("meta"):
        layer = MAPLayer(select_two, aimle(target_distribution=AdaptiveTargetDistribution(**target)))
    assert layer.target_distribution._state.is_meta
    assert "beta=?" in repr(layer)
    layer.to_empty(device="cpu")
    assert (layer.target_distribution.beta, layer.target_distribution.grad_norm) == (0.5, 0.25)
    run(layer, torch.randn(3, 6))
    assert layer.target_distribution.beta != 0.5
    layer.target_distribution.reset_parameters()
    assert (layer.target_distribution.beta, layer.target_distribution.grad_norm) == (0.5, 0.25)
    assert layer.target_distribution.previous_beta_update == 0


# Large steps, empty batches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_lambda_may_be_larger_than_the_dtype_of_dy(dtype):
    """1e5 is infinite in float16; 1e5 times a dy of 1e-4 is a step of 10, and of 1 the largest step there is."""
    target = TargetDistribution(beta=1e5)
    assert target.perturbation_size(torch.zeros(1, 2), torch.zeros(1, 1, 2, dtype=dtype)).item() == 1e5
    for scale in (1e-4, 1.0):
        seen = []

        def solver(theta, seen=seen):
            seen.append(theta.clone())
            return select_k(theta, 1)

        theta = torch.tensor([[5.0, 1.0, 0.0]], dtype=dtype, requires_grad=True)
        dy = torch.tensor([[scale, 0.0, 0.0]], dtype=dtype)
        imle(target_distribution=target)(solver)(theta).backward(dy)
        assert theta.grad.tolist() == [[1.0, -1.0, 0.0]]
        assert seen[1].isfinite().all()


@pytest.mark.parametrize("name", FAMILY)
def test_an_empty_batch_leaves_the_adaptive_state_alone(name):
    estimator = make(name, nb_samples=2)
    before = state(estimator)
    theta = torch.zeros(0, 4, requires_grad=True)
    backward(estimator(select_two)(theta), torch.zeros(4), nb_samples=2)
    assert theta.grad.shape == (0, 4)
    assert state(estimator) == before


def test_sum_of_gamma_works_at_the_least_k_that_it_documents():
    noise = SumOfGammaNoiseDistribution(k=0.01)
    eps = noise.sample((200_000,), dtype=torch.float64)
    assert eps.isfinite().all()
    assert abs(eps.mean() - noise.mean) < 5 * math.sqrt(noise.variance / len(eps))
    with pytest.raises(ValueError, match=r"at least 0\.01"):
        SumOfGammaNoiseDistribution(k=0.0099)


# Side data, solver objects, spellings


def test_a_solver_may_close_over_the_offsets_of_a_ragged_batch():
    sizes = [3, 1, 4, 2]

    @make("aimle central", nb_samples=1)
    def solver(theta):
        parts = torch.split(theta, sizes)  # an error for any other number of rows
        return torch.cat([(part == part.max()).to(part) for part in parts])

    theta = torch.randn(10, 1, requires_grad=True)
    z = solver(theta)
    assert z.sum() == 4
    z.backward(torch.randn(10, 1))
    assert theta.grad.abs().sum() > 0


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("nb_samples", [1, 3])
def test_a_solver_that_writes_on_its_side_data_writes_on_a_copy(name, nb_samples):
    def solver(theta, tensor, array, whole, table):
        z = select_k(theta + tensor + torch.from_numpy(array) + whole.sum() + table.sum(), 2)
        for data in (tensor, array, whole, table):
            data *= 0
        return z

    data = (torch.randn(4, 6), np.random.default_rng(0).normal(size=(4, 6)), torch.ones(3), np.ones(2))
    before = [value.copy() if isinstance(value, np.ndarray) else value.clone() for value in data]
    layer = MAPLayer(solver, make(name, nb_samples=nb_samples))
    given = (*data[:2], *map(shared, data[2:]))
    run(layer, torch.randn(4, 6), *given, nb_samples=nb_samples)
    layer.eval()(torch.randn(4, 6), *given)
    for value, expected in zip(data, before):
        assert (value == expected).all()


def test_a_solver_object_may_have_any_attributes():
    class Sampler:
        sample = "a method of its own"

        def __call__(self, theta):
            return select_two(theta)

    assert aimle(Sampler())(torch.randn(3, 5)).sum() == 6
    with pytest.raises(TypeError, match="give options by name"):
        aimle(torch.distributions.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (aimle, AIMLE),
        (imle, IMLE),
        (ste, STE),
        (sfe, SFE),
        (blackbox, BlackboxDifferentiation),
        (identity, IdentityWithProjection),
        (perturbed, PerturbedOptimiser),
        (lpgd, LPGD),
    ],
)
def test_a_decorator_shows_every_option_of_its_estimator_once(function, kind):
    options = list(inspect.signature(function).parameters)[1:]
    assert options == list(inspect.signature(kind).parameters)
    documentation = inspect.getdoc(function)
    assert all(documentation.count(f"\n    {option}: ") == 1 for option in options)


def test_defaults_are_those_of_the_published_library():
    assert (ste().tau, sfe().tau, imle().tau, imle().target_noise_temperature) == (1.0, 1.0, 1.0, 1.0)
    target = imle(target_distribution=None).target_distribution
    assert target.beta == target.alpha == 1.0
    target = aimle(target_distribution=None).target_distribution
    assert (target.beta, target.alpha, target.grad_norm, target.target_norm) == (1.0, 1.0, 1.0, 1.0)
    assert (target.beta_update_step, target.beta_update_momentum, target.grad_norm_decay_rate) == (1e-4, 0.0, 0.9)
    for function in (aimle, imle, ste):
        assert (function().nb_samples, function().nb_marginal_samples) == (1, 1)
    assert ste().noise_distribution is None


def test_a_decorated_solver_shows_its_parts():
    estimator = make("aimle forward")
    layer = estimator(select_two)
    assert layer.estimator is estimator
    assert layer.solver is select_two
    assert layer.target_distribution is estimator.target_distribution


def test_a_call_may_have_a_generator_of_its_own():
    layer, theta = MAPLayer(select_two, make("imle")), torch.randn(20, 6)
    first, second, other = (layer.sample(theta, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)

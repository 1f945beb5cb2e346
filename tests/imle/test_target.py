"""The target distributions: the adaptive rule step by step, its state, and gradients at the edge of arithmetic."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from imle._numerics import row_norms, safe_norm
from imle.aimle import aimle
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import GumbelNoiseDistribution
from imle.solvers import select_k
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, BaseTargetDistribution, TargetDistribution


def select_two(theta):
    return select_k(theta, 2)


def step(target, nonzero, dy=None, batch=4, samples=1, width=10):
    """One backward pass of the target alone, with the given number of non-zero entries in its difference."""
    gradient = torch.zeros(batch * samples * width)
    gradient[:nonzero] = 1.0
    gradient = gradient[torch.randperm(len(gradient))].view(batch, samples, width)
    dy = torch.ones(batch, samples, width) if dy is None else dy
    theta = torch.ones(batch, width)
    scaled = target.scale(gradient, theta, dy, target.perturbation_size(theta, dy))
    target.update(gradient, dy)
    return scaled


class NoFloat64(TorchDispatchMode):
    """What an accelerator without float64 does with it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            assert not (isinstance(x, torch.Tensor) and x.dtype == torch.float64), function
        return result


@pytest.fixture(params=["float64", "float32"])
def precision(request, monkeypatch):
    """Run a test twice: as it is, and on a device that has no float64. Returns the relative error to allow."""
    if request.param == "float64":
        yield 1e-9
    else:
        monkeypatch.setattr("imle._numerics.lacks_float64", lambda device: True)
        with NoFloat64():
            yield 1e-5


# The rule


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.9, 0.5])
@pytest.mark.parametrize("samples", [1, 3])
def test_beta_follows_the_rule_step_by_step(samples, decay, momentum, precision):
    target = AdaptiveTargetDistribution(
        initial_beta=0.02,
        initial_grad_norm=1.5,
        beta_update_step=1e-3,
        beta_update_momentum=momentum,
        grad_norm_decay_rate=decay,
        target_norm=2.0,
    )
    beta, mean, update = 0.02, 1.5, 0.0
    rises = falls = floors = 0
    sparse, dense = [0] * 25, [30 * samples] * 50
    for nonzero in sparse + dense + sparse + [7, 8 * samples, 9 * samples, 40 * samples] * 5:
        step(target, nonzero, samples=samples)
        mean = decay * mean + (1 - decay) * nonzero / (4 * samples)
        change = 1e-3 if mean < 2.0 else -1e-3
        update = momentum * update + change
        rises, falls, floors = rises + (change > 0), falls + (change < 0), floors + (beta + update <= 0)
        beta = max(beta + update, 0.0)
        assert target.grad_norm == pytest.approx(mean, rel=precision)
        assert target.beta == pytest.approx(beta, rel=precision, abs=precision * 1e-3)
    assert min(rises, falls, floors) > 0


def test_beta_rises_when_gradients_are_sparse_and_falls_when_they_are_dense(precision):
    sparse, dense = AdaptiveTargetDistribution(), AdaptiveTargetDistribution()
    for _ in range(20):
        step(sparse, nonzero=0)
        step(dense, nonzero=40)
    assert sparse.beta == pytest.approx(1 + 20e-4)
    assert dense.beta == pytest.approx(1 - 20e-4)


def test_the_count_at_the_target_norm_lowers_beta(precision):
    target = AdaptiveTargetDistribution(initial_grad_norm=1.0, target_norm=1.0, grad_norm_decay_rate=1.0)
    step(target, nonzero=0)
    assert target.beta == pytest.approx(1 - 1e-4)


def test_beta_stops_at_zero_and_rises_again():
    target = AdaptiveTargetDistribution(initial_beta=0.0015, beta_update_step=1e-3, grad_norm_decay_rate=0.0)
    seen = []
    for nonzero in (40, 40, 40, 0, 0):
        step(target, nonzero)
        seen.append(target.beta)
    assert seen == pytest.approx([0.0005, 0.0, 0.0, 0.001, 0.002])


def test_entries_are_counted_per_solution_before_the_division_by_lambda(precision):
    """Half a unit in a central difference is one entry; tiny or huge lambdas change no count."""
    for beta in (1e-6, 1e6):
        target = AdaptiveTargetDistribution(initial_beta=beta, grad_norm_decay_rate=0.0)
        layer = aimle(target_distribution=target, symmetric_perturbation=True)(lambda x: (x > 0).to(x))
        theta = torch.tensor([[1e-9, 1.0], [-1e-9, 1.0], [-1e-9, 1.0]], requires_grad=True)
        layer(theta).backward(torch.tensor([[1.0, 0.0]] * 3))
        assert target.grad_norm == pytest.approx(1.0)


def test_lambda_is_the_step_relative_to_theta_over_the_whole_batch(precision):
    target = AdaptiveTargetDistribution(initial_beta=0.5)
    theta, dy = torch.randn(3, 4), torch.randn(3, 1, 4)
    expected = 0.5 * math.sqrt(sum(x**2 for x in theta.flatten().tolist()))
    expected /= math.sqrt(sum(x**2 for x in dy.flatten().tolist()))
    assert target.perturbation_size(theta, dy).item() == pytest.approx(expected, rel=1e-6)
    three = dy.expand(3, 3, 4)  # as much larger as theta repeated three times: the same lambda
    assert target.perturbation_size(theta, three).item() == pytest.approx(expected, rel=1e-6)


def test_g_is_divided_by_the_lambda_of_the_step_before_the_update(precision):
    target = AdaptiveTargetDistribution(initial_beta=0.001, beta_update_step=1.0, target_norm=5.0)
    scaled = step(target, nonzero=4)  # ||theta|| = ||dy||: lambda = beta
    assert scaled.max().item() == pytest.approx(1000.0)
    assert target.beta > 1


def test_a_sequence_of_passes_through_a_solver_moves_beta_as_the_rule_says():
    target = AdaptiveTargetDistribution(initial_beta=0.0, beta_update_step=0.05, target_norm=1.0)
    layer = aimle(target_distribution=target, noise_distribution=GumbelNoiseDistribution(), nb_samples=2)(select_two)
    theta = torch.randn(3, 6, requires_grad=True)
    beta, mean = 0.0, 1.0
    nonzero_seen = 0
    for _ in range(60):
        state = torch.get_rng_state()
        z = layer(theta)
        dy = torch.randn(6, 6)
        size = beta * math.sqrt(2) * theta.detach().double().norm() / dy.double().norm()
        z.backward(dy)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        eps = GumbelNoiseDistribution().sample((3, 2, 6))
        torch.set_rng_state(after)
        moved = select_two(theta.detach()[:, None] + eps - size.float() * dy.view(3, 2, 6))
        nonzero = (z.detach().view(3, 2, 6) != moved).sum().item()
        nonzero_seen += nonzero
        mean = 0.9 * mean + 0.1 * nonzero / 6
        beta = max(beta + (0.05 if mean < 1.0 else -0.05), 0.0)
        assert target.beta == pytest.approx(beta, abs=1e-12)
    assert nonzero_seen > 20


# A zero, tiny, huge or broken dy


def informative(dy_scale, **options):
    """Return the gradient and the target after one pass whose dy has the given scale."""
    target = AdaptiveTargetDistribution(initial_beta=1.0)
    layer = aimle(target_distribution=target, **options)(select_two)
    theta = torch.tensor([[0.5, 0.4, 0.3, 0.2]] * 2, requires_grad=True)
    layer(theta).backward(dy_scale * torch.tensor([[1.0, 0.0, 0.0, -1.0]] * 2))
    return theta.grad, target


def state(target):
    return {name: value.tolist() for name, value in target.state_dict().items()}


def test_a_zero_dy_leaves_the_state_alone(precision):
    gradient, target = informative(0.0)
    assert torch.equal(gradient, torch.zeros(2, 4))
    assert state(target) == state(AdaptiveTargetDistribution(initial_beta=1.0))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-3, 1e3, 1e20, 1e30, 1e38])
@pytest.mark.parametrize("symmetric", [False, True])
def test_tiny_and_huge_dy_give_gradients_of_their_own_scale(scale, symmetric, precision):
    expected, ordinary = informative(1.0, symmetric_perturbation=symmetric)
    gradient, target = informative(scale, symmetric_perturbation=symmetric)
    assert expected.abs().sum() > 0
    assert torch.allclose(gradient / scale, expected, rtol=1e-4)
    assert target.beta == ordinary.beta


@pytest.mark.parametrize("beta", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("scale", [1e-45, 1e-40, 3e38])
def test_at_the_limits_of_float32_nothing_turns_into_nan(scale, beta, precision):
    def solver(theta):
        assert not theta.isnan().any()
        return select_two(theta)

    target = AdaptiveTargetDistribution(initial_beta=beta)
    theta = torch.tensor([[0.5, 0.4, 0.3, 0.2]], requires_grad=True)
    aimle(target_distribution=target)(solver)(theta).backward(torch.tensor([[scale, 0.0, 0.0, -scale]]))
    assert theta.grad.isfinite().all()
    assert math.isfinite(target.beta)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_dy_that_is_not_finite_raises_and_leaves_the_state_alone(bad):
    target = AdaptiveTargetDistribution(initial_beta=1.0)
    layer = aimle(target_distribution=target)(select_two)
    theta = torch.randn(2, 4, requires_grad=True)
    before = state(target)
    with pytest.raises(FloatingPointError, match='pass nonfinite="skip"'):
        layer(theta).backward(torch.tensor([[bad, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
    assert theta.grad is None
    assert state(target) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_skipped_step_warns_and_leaves_the_state_alone(bad):
    target = AdaptiveTargetDistribution(initial_beta=1.0)
    layer = aimle(target_distribution=target, nonfinite="skip")(select_two)
    theta = torch.randn(2, 4, requires_grad=True)
    before = state(target)
    with pytest.warns(UserWarning, match="not finite"):
        layer(theta).backward(torch.tensor([[bad, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
    assert torch.equal(theta.grad, torch.zeros(2, 4))
    assert state(target) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("function", [aimle, imle, ste])
def test_on_an_accelerator_a_broken_dy_gives_nan_or_a_silent_zero(function, nonfinite, bad, no_waiting, precision):
    no_waiting()
    target = AdaptiveTargetDistribution(initial_beta=1.0)
    targets = {} if function is ste else {"target_distribution": target}
    layer = function(nonfinite=nonfinite, nb_samples=2, **targets)(select_two)
    theta = torch.randn(2, 4, requires_grad=True)
    before = state(target)
    dy = torch.ones(4, 4)
    dy[1, 2] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(theta).backward(dy)
    assert theta.grad.isnan().all() if nonfinite == "raise" else torch.equal(theta.grad, torch.zeros(2, 4))
    assert state(target) == before


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_on_an_accelerator_a_finite_dy_is_treated_as_on_the_cpu(scale, no_waiting, precision):
    expected, ordinary = informative(scale)
    no_waiting()
    gradient, target = informative(scale)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=0)
    assert state(target) == state(ordinary)


def test_training_goes_on_after_a_skipped_step():
    target = AdaptiveTargetDistribution(initial_beta=1.0)
    layer = aimle(target_distribution=target, nonfinite="skip")(select_two)
    theta = torch.randn(2, 4, requires_grad=True)
    with pytest.warns(UserWarning):
        layer(theta).backward(torch.full((2, 4), math.nan))
    layer(theta).backward(torch.randn(2, 4))
    assert theta.grad.isfinite().all() and theta.grad.abs().sum() > 0
    assert target.beta != 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_norms_survive_squares_that_do_not(scale, dtype):
    x = torch.tensor([3.0, 4.0], dtype=dtype) * scale
    assert safe_norm(x).dtype == torch.float64
    assert safe_norm(x).item() == pytest.approx(5 * scale, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_norms_of_float64_survive_the_squares_of_float64():
    assert safe_norm(torch.tensor([3e200, 4e200], dtype=torch.float64)).item() == pytest.approx(5e200)
    assert safe_norm(torch.tensor([3e-200, 4e-200], dtype=torch.float64)).item() == pytest.approx(5e-200)
    assert safe_norm(torch.zeros(3, dtype=torch.float64)).item() == 0
    assert safe_norm(torch.zeros(0, dtype=torch.float64)).item() == 0


def test_norms_of_rows_are_the_norms_of_each():
    x = torch.randn(4, 3, 5) * torch.tensor([0.0, 1e-30, 1.0, 1e30]).view(4, 1, 1)
    assert row_norms(x).dtype == torch.float64
    assert torch.allclose(row_norms(x), x.double().flatten(1).norm(dim=1), rtol=1e-6)
    assert row_norms(torch.zeros(0, 3)).shape == (0,)
    assert torch.equal(row_norms(torch.zeros(2, 0)), torch.zeros(2, dtype=torch.float64))


def test_a_device_without_float64_gets_none_from_any_target(monkeypatch, no_waiting):
    """Masks, rows of their own lambda, a fixed target, and a module that is moved there and back."""
    target = AdaptiveTargetDistribution(initial_beta=1.0001, initial_grad_norm=1 / 3)
    for lacking in (True, False):
        monkeypatch.setattr("imle._numerics.lacks_float64", lambda device, lacking=lacking: lacking)
        moved = []
        target._apply(lambda x, moved=moved: moved.append(x.dtype) or x.clone())  # as .to() does
        assert target._state.dtype == (torch.float32 if lacking else torch.float64)
        assert torch.float64 not in moved or not lacking
        assert target.beta == pytest.approx(1.0001, rel=1e-7)
    monkeypatch.setattr("imle._numerics.lacks_float64", lambda device: True)
    no_waiting()
    theta = torch.randn(3, 6).masked_fill(torch.arange(6) == 2, -1e9)
    with NoFloat64():
        fixed, rows = TargetDistribution(beta=1e39), AdaptiveTargetDistribution(per_instance=True)
        for function, each in ((aimle, target.to("cpu")), (aimle, rows), (imle, fixed)):
            leaf = theta.clone().requires_grad_()
            function(target_distribution=each, noise_distribution=GumbelNoiseDistribution())(select_two)(
                leaf
            ).square().sum().backward()
            assert leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0


# Rows with a lambda of their own


@pytest.mark.parametrize("exact_scaling", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_with_per_instance_each_row_is_treated_as_a_batch_of_its_own(samples, exact_scaling, precision):
    theta, dy, difference = torch.randn(4, 6), torch.randn(4, samples, 6), torch.randn(4, samples, 6)
    options = {"initial_beta": 0.7, "exact_scaling": exact_scaling}
    rows = AdaptiveTargetDistribution(per_instance=True, **options)
    size = rows.perturbation_size(theta, dy)
    assert size.shape == (4, 1, 1)
    g = rows.scale(difference, theta, dy, size)
    for b in range(4):
        alone = AdaptiveTargetDistribution(**options)
        row = slice(b, b + 1)
        expected = alone.perturbation_size(theta[row], dy[row])
        assert size[b].item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(g[row], alone.scale(difference[row], theta[row], dy[row], expected), rtol=1e-5)


@pytest.mark.parametrize("which", ["theta", "dy"])
def test_with_per_instance_a_row_a_million_times_larger_leaves_the_others_their_gradient(which, precision):
    factor = torch.tensor([1e6, 1.0, 1.0])[:, None]
    theta, dy = torch.tensor([[3.0, 2.0, 1.0, 0.5]]).repeat(3, 1), torch.tensor([[1.0, 0.0, -1.0, 0.0]]).repeat(3, 1)
    theta, dy = (theta * factor, dy) if which == "theta" else (theta, dy * factor)
    changed = {}
    for per_instance in (False, True):
        seen = []

        def solver(x, seen=seen):
            seen.append(x.clone())
            return select_two(x)

        target = AdaptiveTargetDistribution(initial_beta=0.5, per_instance=per_instance)
        leaf = theta.clone().requires_grad_()
        aimle(target_distribution=target)(solver)(leaf).backward(dy)
        steps = (seen[0] - seen[1])[1:].norm(dim=1) / theta[1:].norm(dim=1)
        changed[per_instance] = steps
        if per_instance:
            assert (leaf.grad != 0).any(dim=1).all()
    # a step of a row is beta times its theta; with one lambda for all it is next to nothing, or all there is
    assert torch.allclose(changed[True], torch.full((2,), 0.5), rtol=1e-5)
    assert ((changed[False] < 1e-5) | (changed[False] > 1e5)).all()


def test_with_per_instance_a_row_without_dy_has_no_gradient_and_moves_nobody(precision):
    target = AdaptiveTargetDistribution(per_instance=True)
    layer = aimle(target_distribution=target, theta_noise_temperature=0.0, noise_distribution=GumbelNoiseDistribution())
    theta = torch.randn(3, 6, requires_grad=True)
    dy = torch.randn(3, 6)
    dy[1] = 0
    layer(select_two)(theta).backward(dy)
    assert (theta.grad != 0).any(dim=1).tolist() == [True, False, True]


def test_with_per_instance_beta_and_the_count_are_shared():
    one, rows = AdaptiveTargetDistribution(), AdaptiveTargetDistribution(per_instance=True)
    for nonzero in (0, 40, 7):
        for target in (one, rows):
            step(target, nonzero)
        assert (rows.beta, rows.grad_norm) == (one.beta, one.grad_norm)


# The state


def layer_and_optimiser():
    torch.manual_seed(5)
    target = AdaptiveTargetDistribution(initial_beta=0.0, beta_update_step=0.01, beta_update_momentum=0.5)
    layer = MAPLayer(select_two, aimle(target_distribution=target, noise_distribution=GumbelNoiseDistribution()))
    theta = torch.nn.Parameter(torch.randn(4, 8))
    return torch.nn.ParameterDict({"theta": theta}), layer, torch.optim.Adam([theta], lr=0.05)


def train(parameters, layer, optimiser, steps):
    history = []
    for _ in range(steps):
        loss = (layer(parameters["theta"]) - torch.linspace(0, 1, 8)).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append((loss.item(), layer.target_distribution.beta, layer.target_distribution.grad_norm))
    return history


def test_a_run_resumed_midway_goes_on_as_if_uninterrupted(tmp_path):
    run = layer_and_optimiser()
    train(*run, steps=20)
    everything = {"modules": [module.state_dict() for module in run], "random": torch.get_rng_state()}
    torch.save(everything, tmp_path / "checkpoint.pt")
    expected = train(*run, steps=20)

    resumed = layer_and_optimiser()
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for module, module_state in zip(resumed, checkpoint["modules"]):
        module.load_state_dict(module_state)
    torch.set_rng_state(checkpoint["random"])
    assert train(*resumed, steps=20) == expected
    assert len({beta for _, beta, _ in expected}) > 5


def test_the_state_of_a_layer_is_in_its_state_dict():
    _, layer, _ = layer_and_optimiser()
    assert set(layer.state_dict()) == {"target_distribution._state"}
    target = AdaptiveTargetDistribution(initial_beta=0.3)
    step(target, nonzero=0)
    twin = AdaptiveTargetDistribution()
    twin.load_state_dict(target.state_dict())
    assert (twin.beta, twin.grad_norm) == (target.beta, target.grad_norm)
    step(twin, nonzero=0)
    assert twin.beta != target.beta


def test_the_estimator_inside_a_layer_uses_the_state_that_is_loaded():
    _, layer, _ = layer_and_optimiser()
    loaded = {name: torch.full_like(value, 7.0) for name, value in layer.state_dict().items()}
    layer.load_state_dict(loaded)
    assert layer.estimator.target_distribution.beta == 7.0


# What a user may do to a module's state: the table of docs/questions.md


def state_of(beta):
    return AdaptiveTargetDistribution(initial_beta=beta).state_dict()


def averaged(use_buffers):
    def average(layer):
        mean = AveragedModel(layer, use_buffers=use_buffers)
        layer.target_distribution.beta = 0.9
        mean.update_parameters(layer)  # the first one copies
        layer.target_distribution.beta = 0.3001
        return mean.module

    return average


def from_meta(layer):
    with torch.device("meta"):
        layer = MAPLayer(select_two, aimle(target_distribution=AdaptiveTargetDistribution(initial_beta=0.3001)))
    return layer.to_empty(device="cpu")


def old_names(layer):
    numbers = {"_beta": 0.3001, "_grad_norm": 1.0, "_beta_update": 0.0}
    layer.load_state_dict(
        {f"target_distribution.{name}": torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}
    )
    return layer


TREATMENTS = {  # what is done to a layer whose beta is .3001 -> the layer that goes on, and its beta
    "deepcopy": (copy.deepcopy, 0.3001),
    "pickle": (lambda layer: pickle.loads(pickle.dumps(layer)), 0.3001),
    ".half()": (lambda layer: layer.half(), 0.3001),
    ".to(bfloat16)": (lambda layer: layer.to(torch.bfloat16), 0.3001),
    ".double()": (lambda layer: layer.double(), 0.3001),
    "load_state_dict": (lambda layer: loaded(layer, state_of(0.5001)), 0.5001),
    "assign=True": (lambda layer: loaded(layer, state_of(0.5001), assign=True), 0.5001),
    "assign=True, of half precision": (lambda layer: loaded(layer, state_of(0.5), torch.half, assign=True), 0.5),
    "three names, of version 0.1": (old_names, 0.3001),
    "to_empty from meta": (from_meta, 0.3001),
    "share_memory": (lambda layer: layer.share_memory(), 0.3001),
    "AveragedModel": (averaged(False), 0.9),
    "AveragedModel with use_buffers": (averaged(True), 0.9),
}


def loaded(layer, state, dtype=torch.float64, **options):
    layer.load_state_dict({f"target_distribution.{k}": v.to(dtype) for k, v in state.items()}, **options)
    return layer


@pytest.mark.parametrize("name", TREATMENTS)
def test_whatever_is_done_to_a_layer_its_state_is_exact_and_goes_on(name):
    treat, beta = TREATMENTS[name]
    layer = treat(MAPLayer(select_two, aimle(target_distribution=AdaptiveTargetDistribution(initial_beta=0.3001))))
    target = layer.estimator.target_distribution
    assert target is layer.target_distribution and target.beta == beta
    assert target._state.dtype == torch.float64 and target._state.is_shared() == (name == "share_memory")
    for _ in range(3):
        step(target, nonzero=0)
    assert target.beta == pytest.approx(beta + 3e-4, rel=1e-12)
    assert layer.state_dict()["target_distribution._state"][0].item() == target.beta


def test_functional_call_reads_and_moves_the_state_that_it_is_given():
    layer = MAPLayer(select_two, aimle(target_distribution=AdaptiveTargetDistribution(initial_beta=0.5)))
    theta, dy = torch.randn(40, 6), torch.randn(40, 6)
    plain = theta.clone().requires_grad_()
    aimle(select_two, target_distribution=AdaptiveTargetDistribution(initial_beta=0.9))(plain).backward(dy)
    given = {"target_distribution._state": torch.tensor([0.9, 1.0, 0.0], dtype=torch.float64)}
    leaf = theta.clone().requires_grad_()
    torch.func.functional_call(layer, given, (leaf,)).backward(dy)
    assert torch.equal(leaf.grad, plain.grad) and plain.grad.any()
    assert abs(given["target_distribution._state"][0].item() - 0.9) == pytest.approx(1e-4)
    assert layer.target_distribution.beta == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.float32])
def test_a_state_that_would_lose_small_steps_is_refused(dtype):
    layer = MAPLayer(select_two, aimle(target_distribution=AdaptiveTargetDistribution(initial_beta=0.5)))
    given = {name: tensor.to(dtype) for name, tensor in layer.state_dict().items()}
    with pytest.raises(TypeError, match=f"the adaptive state became {dtype}.* keep it torch.float64"):
        torch.func.functional_call(layer, given, (torch.randn(3, 6, requires_grad=True),)).sum().backward()
    for buffer in layer.buffers():  # as FSDP1 does with a buffer_dtype
        buffer.data = buffer.to(dtype)
    assert "beta=0.5," in repr(layer)
    layer.load_state_dict(MAPLayer(select_two, aimle(target_distribution=AdaptiveTargetDistribution())).state_dict())
    with pytest.raises(TypeError, match="FSDP's buffer_dtype: ignored_modules"):
        layer.target_distribution.beta  # noqa: B018


def test_members_of_an_ensemble_have_each_their_own_state_and_are_warned_of():
    layers = [
        MAPLayer(select_two, aimle(target_distribution=AdaptiveTargetDistribution(initial_beta=b))) for b in (0, 3)
    ]
    theta = torch.randn(40, 6)
    _, states = torch.func.stack_module_state(layers)
    one = copy.deepcopy(layers[0]).to("meta")

    def loss(theta, state):
        return torch.func.functional_call(one, state, (theta,)).square().sum()

    with pytest.warns(UserWarning, match="beta is 0"):
        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(theta, states)
    for gradient, layer in zip(found, layers, strict=True):
        leaf = theta.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        assert torch.equal(gradient, leaf.grad) and leaf.grad.any() == (layer is layers[1])


class Counted(AdaptiveTargetDistribution):
    """One that keeps more than its base, and binds a buffer anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.part = torch.nn.Linear(2, 2)

    def update(self, difference, dy):
        self.passes = self.passes + 1
        super().update(difference, dy)


def test_what_a_subclass_keeps_is_no_part_of_the_state():
    layer = MAPLayer(select_two, aimle(target_distribution=Counted()))
    theta = torch.randn(3, 6, requires_grad=True)
    for z in [layer(theta) for _ in range(3)]:  # several forward passes before any backward pass
        z.sum().backward()
    target = layer.half().target_distribution
    assert (target.passes, target.passes.dtype, target.part.weight.dtype) == (3, torch.half, torch.half)
    assert target._state.dtype == torch.float64 and target.previous_beta_update != 0
    assert {tensor.device.type for tensor in layer.to("meta").state_dict().values()} == {"meta"}


def test_a_theta_without_numbers_leaves_the_state_alone():
    target = AdaptiveTargetDistribution(initial_beta=0.3)
    layer = aimle(select_two, target_distribution=target)
    layer(torch.randn(3, 6, device="meta", requires_grad=True)).sum().backward()
    assert state(target) == state(AdaptiveTargetDistribution(initial_beta=0.3))


def test_evaluation_moves_nothing():
    layer = MAPLayer(select_two, aimle(target_distribution=AdaptiveTargetDistribution(initial_beta=1.0)))
    before = layer.target_distribution.beta
    theta = torch.randn(3, 6, requires_grad=True)
    layer.eval().sample(theta).sum().backward()
    assert layer.target_distribution.beta == before
    layer.train().sample(theta).sum().backward()
    assert layer.target_distribution.beta != before


def test_a_gradient_by_function_transforms_from_beta_zero_is_warned_of_once():
    for beta, warned in ((0.0, 1), (0.5, 0)):
        solver = aimle(select_two, target_distribution=AdaptiveTargetDistribution(initial_beta=beta))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                torch.func.grad(lambda theta, solver=solver: solver(theta).square().sum())(torch.randn(3, 6))
        assert ["take gradients by .backward()" in str(it.message) for it in caught] == [True] * warned


def test_the_state_may_be_set_and_read_by_hand():
    target = AdaptiveTargetDistribution(beta_update_momentum=0.5, target_norm=3.0)
    target.beta, target.grad_norm = 0.5, 2.0
    assert (target.beta, target.grad_norm, target.previous_beta_update) == (0.5, 2.0, 0.0)
    assert (target.state_dict()["_state"][0].item(), target.initial_beta) == (0.5, 1.0)
    step(target, nonzero=0)
    step(target, nonzero=0)
    assert target.grad_norm == pytest.approx(2.0 * 0.81)
    assert target.previous_beta_update == pytest.approx(1.5e-4)
    assert target.beta == pytest.approx(0.5 + 2.5e-4)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_beta_set_out_of_range_is_refused_and_changes_nothing(value):
    target = AdaptiveTargetDistribution()
    with pytest.raises(ValueError, match="beta must be"):
        target.beta = value
    with pytest.raises(ValueError, match="grad_norm must be"):
        target.grad_norm = math.nan
    assert (target.beta, target.grad_norm) == (1.0, 1.0)


def test_the_state_is_no_parameter_and_needs_no_gradient():
    target = AdaptiveTargetDistribution()
    assert not list(target.parameters())
    assert not any(buffer.requires_grad for buffer in target.buffers())


def test_beta_prints_as_a_number():
    target = AdaptiveTargetDistribution(initial_beta=0.25)
    assert isinstance(target.beta, float)
    assert f"{target.beta:.5f}" == "0.25000"
    assert "beta=0.25" in repr(target)
    assert "beta=2.0" in repr(TargetDistribution(beta=2.0))


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_beta": -1.0}, "initial_beta must be at least 0"),
        ({"initial_beta": math.nan}, "initial_beta must be a finite number"),
        ({"initial_alpha": math.inf}, "initial_alpha must be a finite number"),
        ({"grad_norm_decay_rate": 1.5}, "grad_norm_decay_rate must be between 0 and 1"),
        ({"target_norm": math.nan}, "target_norm must be a finite number"),
        ({"initial_grad_norm": math.nan}, "grad_norm must be a finite number"),
        ({"beta_update_step": math.inf}, "beta_update_step must be a finite number"),
        ({"beta_update_momentum": math.nan}, "beta_update_momentum must be a finite number"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveTargetDistribution(**options)


def test_a_fixed_target_refuses_numbers_that_are_none():
    with pytest.raises(ValueError, match="beta must be a finite number"):
        TargetDistribution(beta=math.nan)


def test_a_target_of_ones_own_needs_two_methods():
    class Doubling(BaseTargetDistribution):
        alpha = 1.0

        def perturbation_size(self, theta, dy):
            return dy.new_tensor(2.0)

        def scale(self, difference, theta, dy, perturbation_size):
            return difference * perturbation_size

    theta, dy = torch.randn(3, 5), torch.randn(3, 5)
    results = []
    for target in (Doubling(), TargetDistribution(beta=2.0)):
        leaf = theta.clone().requires_grad_()
        aimle(target_distribution=target)(select_two)(leaf).backward(dy)
        results.append(leaf.grad)
    assert results[1].abs().sum() > 0
    assert torch.equal(results[0], 2 * results[1])

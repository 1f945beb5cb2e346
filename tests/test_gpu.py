"""What needs a GPU to be seen: training steps that never wait for the host, and results that agree with the CPU's."""

import contextlib
import functools
import itertools
import logging

import pytest
import torch

from aaai23.dvae import cli as vae_cli
from aaai23.dvae import train as vae_train
from aaai23.harness.config import refuse
from aaai23.l2x import cli as l2x_cli
from aaai23.l2x import train as l2x_train
from aaai23.l2x.data import Reviews
from aaai23.methods import beta_of
from aaai23.nri import cli as nri_cli
from aaai23.nri import train as nri_train
from aaai23.nri.data import Layouts
from aaai23.speed.precision import accelerate
from imle.aimle import aimle
from imle.imle import imle
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.solvers import (
    arborescence,
    grid_arcs,
    knapsack,
    mathias_select_k,
    ranking,
    select_k,
    shortest_path,
    shortest_path_arcs,
    spanning_tree,
    spanning_tree_edges,
)
from imle.target import AdaptiveTargetDistribution

pytestmark = pytest.mark.gpu
CPU, GPU = torch.device("cpu"), torch.device("cuda")
METHODS = {
    "aimle": "--method aimle --aimle-target adaptive --imle-lambda 0.5 --imle-noise sog",
    "aimle, central": "--method aimle --aimle-symmetric --aimle-target adaptive --imle-lambda 0.5 --imle-noise gumbel",
    "imle": "--method imle --imle-lambda 10 --imle-noise sog",
    "ste": "--method ste",
}
LINES = {
    "l2x": [*METHODS.values(), "--method sst", "--method softsub", "--method l2x"],
    "vae": [*METHODS.values(), "--method gumbel-softmax --hard", "--method gumbel-softmax"],
    "nri": [METHODS["aimle, central"], "--method sst --hard True --st True", "--use_nvil True"],
}
MORE_LINES = {
    "l2x": [f"{METHODS['imle']} --mask-padding"],
    "nri": [
        METHODS["aimle"],
        METHODS["imle"],
        METHODS["ste"],
        f"{METHODS['imle']} --undirected-theta",
        f"{METHODS['imle']} --sst topk",
        "--method sst",
        "--method sst --sst topk",
        "--method sst --sst indep",
        "--use_reinforce True",
        "--use_reinforce True --reinforce_baseline batch",
        "--use_reinforce True --num_samples 2 --reinforce_baseline multi_sample",
    ],
}
TASKS = ("l2x", "vae", "nri")
BATCHES = 10  # more than twice those before a step is recorded
LOG = logging.getLogger("silent")


@pytest.fixture(autouse=True)
def _matrix_products_as_they_were():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@contextlib.contextmanager
def nothing_may_wait():
    """Make an error of every operation inside the block for which the host waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def configuration(cli, line):
    """Return what a command line asks for, and start from a seed."""
    config, _ = cli.parse_arguments(line.split())
    refuse(config)
    torch.manual_seed(0)
    return config


def l2x_epoch(device, line):
    """Return the networks, and a function that trains them on some batches and returns the losses."""
    config = configuration(l2x_cli, f"{line} --select-k 5 --imle-samples 2 --imle-input-temperature 1")
    embedding = torch.randn(50, 200)
    embedding[0] = 0
    model = l2x_train.build(config, embedding).to(device)
    accelerate((model.selector, model.predictor), config.precision, device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7, fused=True)
    tokens = torch.randint(1, 50, (8 * BATCHES - 3, 30))  # the last batch is a smaller one
    tokens[::2, :20] = 0
    reviews = Reviews(tokens.to(device), torch.rand(len(tokens)).to(device))
    batches = torch.arange(len(tokens)).to(device).split(8)
    return model, lambda: l2x_train.train_epoch(model, optimiser, reviews, batches, "Epoch", False, LOG)


def vae_epoch(device, line):
    """Return the networks, and a function that trains them on some batches and returns the losses."""
    small = "--input-dim 64 --code-m 4 --code-n 6 --select-k 3 --imle-samples 2 --imle-temperature 1"
    config = configuration(vae_cli, f"{line} {small}")
    model = vae_train.build(config).to(device)
    accelerate((model.encoder, model.decoder), config.precision, device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    images = torch.randint(256, (8 * BATCHES - 3, 64), dtype=torch.uint8).to(device)
    batches = torch.arange(len(images)).to(device).split(8)
    temperatures = [1.0 if index < BATCHES // 2 else 0.7 for index in range(BATCHES + 1)]
    return model, lambda: vae_train.train_epoch(model, optimiser, images, batches, temperatures, "Epoch")


def nri_epoch(device, line):
    """Return the networks, and a function that trains them on some further batches and returns the losses."""
    small = "--encoder_hidden 16 --decoder_hidden 16 --batch_size 8 --num_iterations 100 --prediction_steps 9"
    config = configuration(nri_cli, f"--imle-noise-temperature 1 {small} {line}")
    model = nri_train.build(config).to(device)
    accelerate((model.encoder, model.decoder), config.precision, device)
    optimiser = nri_train.optimiser_of(model, config)
    positions = torch.rand(800, config.num_vertices, config.timesteps, 2) * 2 - 1
    layouts = Layouts(positions, torch.zeros(800, 0)).to(device)  # training does not look at the true edges
    batches, start = nri_train.Batches(config, optimiser, layouts), itertools.count(0, BATCHES)

    def epoch():
        first = next(start)
        return nri_train.train_steps(model, optimiser, batches, first, first + BATCHES, config, LOG)

    return model, epoch


EPOCHS = {"l2x": l2x_epoch, "vae": vae_epoch, "nri": nri_epoch}


def spare_the_last_look(monkeypatch):
    """Leave the losses of an epoch on the device, where the scripts look at them once, at its end."""
    for task in ("l2x", "dvae", "nri"):
        monkeypatch.setattr(f"aaai23.{task}.train.loss_values", lambda losses, *_: losses)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_no_training_step_waits_for_the_gpu(monkeypatch, task, method, precision):
    spare_the_last_look(monkeypatch)
    model, epoch = EPOCHS[task](GPU, f"{METHODS[method]} --precision {precision}")
    model.train()
    epoch()  # tables of noise go to the device, libraries start
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with nothing_may_wait():
        losses = epoch()
    assert losses.shape == (BATCHES,) and losses.isfinite().all()
    assert any((a != b).any() for a, b in zip(before, model.parameters()))


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize(
    ("task", "line"), [(task, line) for lines in (LINES, MORE_LINES) for task in lines for line in lines[task]]
)
def test_a_step_that_is_replayed_computes_what_python_would(monkeypatch, task, line):
    found = []
    for warm_up in (1000, 1):
        monkeypatch.setattr("aaai23.speed.replay._WARM_UP", warm_up)
        model, epoch = EPOCHS[task](GPU, line)
        losses = torch.cat([torch.as_tensor(epoch()) for _ in range(2)])
        found.append((losses, [parameter.detach().cpu() for parameter in model.parameters()], beta_of(model.layer)))
    (losses, weights, beta), (replayed, weights_replayed, beta_replayed) = found
    torch.testing.assert_close(replayed, losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights_replayed, weights, rtol=1e-3, atol=1e-5)
    assert beta_replayed == beta


@pytest.mark.parametrize("task", TASKS)
def test_a_wait_is_noticed(task):
    _, epoch = EPOCHS[task](GPU, METHODS["imle"])
    epoch()
    with pytest.raises(RuntimeError, match="synchroniz"), nothing_may_wait():
        epoch()  # its last line looks at the losses


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("tf32", 1e-2), ("bf16", 5e-2)])
@pytest.mark.parametrize("task", TASKS)
def test_the_first_loss_agrees_with_that_of_the_cpu(monkeypatch, task, precision, tolerance):
    monkeypatch.setattr("imle.perturb_and_map.draw", draw_on_the_cpu)
    monkeypatch.setattr("aaai23.speed.replay._WARM_UP", BATCHES)  # numbers of the CPU cannot be recorded
    losses = []
    for device, line in ((CPU, "float32"), (GPU, precision)):
        model, epoch = EPOCHS[task](device, f"{METHODS['imle']} --precision {line}")
        if task == "l2x":
            model.selector.dropout.p = 0.0
        torch.manual_seed(1)
        losses.append(epoch()[0])
    # rounding may tip single choices of the solver, hence a relative bound on the whole loss
    assert abs(losses[1] / losses[0] - 1) < tolerance


def draw_on_the_cpu(noise, shape, like, generator=None):
    """Return the same numbers on every device, and in every call."""
    return noise.sample(shape, device="cpu", dtype=like.dtype, generator=torch.Generator().manual_seed(1)).to(like)


def symmetric(weights):
    return weights + weights.mT


SOLVERS = {
    "select_k": (functools.partial(select_k, k=10), lambda: torch.randn(2000, 20)),
    "select_k, wide": (functools.partial(select_k, k=10), lambda: torch.randn(40, 350)),
    "select_k, masked": (
        lambda theta: select_k(theta, 3, mask=torch.arange(20, device=theta.device) > 15),
        lambda: torch.randn(8, 20),
    ),
    "mathias_select_k": (functools.partial(mathias_select_k, k=10), lambda: torch.randn(40, 350)),
    "spanning_tree": (spanning_tree, lambda: symmetric(torch.randn(16, 10, 10))),
    "spanning_tree_edges": (spanning_tree_edges, lambda: torch.randn(128, 45)),
    "shortest_path": (shortest_path, lambda: torch.rand(16, 12, 12)),
    "shortest_path_arcs": (
        functools.partial(shortest_path_arcs, arcs=grid_arcs(5, 5), source=0, target=24),
        lambda: torch.randn(32, 40),
    ),
    "arborescence": (arborescence, lambda: torch.randn(16, 10, 10)),
    "knapsack": (
        functools.partial(knapsack, weights=torch.arange(1, 21), capacity=50),
        lambda: torch.randn(32, 20),
    ),
    "ranking": (ranking, lambda: torch.randn(128, 64)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_agree_with_the_cpu(name):
    solver, make = SOLVERS[name]
    theta = make()
    z = solver(theta.to(GPU))
    assert z.device.type == GPU.type and z.dtype == theta.dtype and z.any()
    assert torch.equal(z.cpu(), solver(theta))


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_do_not_wait(name):
    solver, make = SOLVERS[name]
    theta = make().to(GPU)
    solver(theta)
    with nothing_may_wait():
        solver(theta)


@pytest.mark.parametrize("symmetric_perturbation", [False, True])
def test_an_estimators_step_agrees_with_the_cpu(monkeypatch, symmetric_perturbation):
    monkeypatch.setattr("imle.perturb_and_map.draw", draw_on_the_cpu)
    found = []
    start, weights = torch.randn(50, 20), torch.randn(100, 20)
    for device in (CPU, GPU):
        torch.manual_seed(1)
        target = AdaptiveTargetDistribution(initial_beta=0.5, beta_update_step=0.1, target_norm=10.0)
        layer = aimle(
            target_distribution=target,
            noise_distribution=SumOfGammaNoiseDistribution(k=5),
            nb_samples=2,
            symmetric_perturbation=symmetric_perturbation,
        )(functools.partial(select_k, k=5))
        theta = start.to(device, copy=True).requires_grad_()
        z = layer(theta)
        (z * weights.to(device)).square().sum().backward()
        assert theta.grad.device.type == device.type and theta.grad.any()
        found.append((z.detach().cpu(), theta.grad.cpu(), target.beta, target.grad_norm))
    (z, gradient, *state), (z_gpu, gradient_gpu, *state_gpu) = found
    assert torch.equal(z, z_gpu)
    torch.testing.assert_close(gradient_gpu, gradient, rtol=1e-4, atol=1e-6)
    assert state_gpu == pytest.approx(state)


def test_a_gradient_that_is_not_finite_reaches_theta_as_nan_and_leaves_beta_alone():
    target = AdaptiveTargetDistribution(initial_beta=0.5)
    layer = aimle(target_distribution=target)(functools.partial(select_k, k=2))
    theta = torch.randn(3, 5, device=GPU, requires_grad=True)
    (layer(theta) * torch.inf).sum().backward()
    assert theta.grad.isnan().all() and target.beta == 0.5


@pytest.mark.parametrize("noise", [SumOfGammaNoiseDistribution(k=10), GumbelNoiseDistribution()])
def test_noise_on_the_gpu_has_the_moments_of_noise_on_the_cpu(noise):
    generator = torch.Generator(GPU).manual_seed(0)
    there = noise.sample((500_000,), device=GPU, generator=generator).double()
    here = noise.sample((500_000,), device=CPU, generator=torch.Generator().manual_seed(0)).double()
    spread = here.std().item()
    assert there.mean().item() == pytest.approx(here.mean().item(), abs=8 * spread / 500_000**0.5)
    assert there.std().item() == pytest.approx(spread, rel=0.02)


def test_each_precision_rounds_products_as_it_says():
    a = torch.randn(256, 256, dtype=torch.float64, device=GPU)
    errors = {}
    for precision in ("float32", "tf32", "bf16"):
        network = torch.nn.Linear(256, 256, bias=False).to(GPU)
        network.weight.data.copy_(a)
        accelerate([network], precision, GPU)
        y = network(a.float())
        assert y.dtype == torch.float32
        errors[precision] = ((y - a @ a.T).norm() / (a @ a.T).norm()).item()
    assert errors["float32"] < 1e-5 < errors["tf32"] < 2e-3 < errors["bf16"] < 2e-2


def test_an_estimator_without_noise_gives_the_same_on_both():
    theta = torch.randn(8, 45)
    gradients = []
    for device in (CPU, GPU):
        parameter = theta.to(device, copy=True).requires_grad_()
        layer = imle(theta_noise_temperature=0.0, target_noise_temperature=0.0)(spanning_tree_edges)
        layer(parameter).square().sum().backward()
        gradients.append(parameter.grad.cpu())
    here, there = gradients
    assert here.any() and torch.equal(there.sign(), here.sign())  # the same trees
    torch.testing.assert_close(there, here)  # divided by a lambda of sums, which devices round differently

"""Several processes with one batch among them: one lambda and one beta, as if one process had it all."""

import copy
import math
import pickle
import warnings
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed import fsdp
from torch.nn.parallel import DistributedDataParallel

from imle.aimle import aimle
from imle.layers import MAPLayer
from imle.solvers import select_k
from imle.target import AdaptiveTargetDistribution

fully_shard = getattr(fsdp, "fully_shard", None)  # from torch 2.6 on

FEATURES, WIDTH, SAMPLES = 5, 8, 2
SIZES = {2: [[6, 6], [6, 1], [3, 0]], 3: [[4, 4, 4], [1, 6, 2], [5, 0, 0]]}  # rows of each process, by turns
BROKEN = {10: math.nan, 20: 0.0}  # steps whose dy is no evidence: of the first process, and of all


class Rows:
    """Noise drawn for the joined batch, of which a process gets its rows."""

    def draw(self, step, rows, size):
        generator = torch.Generator().manual_seed(step)
        self.rows = torch.randn(size, SAMPLES, WIDTH, generator=generator, dtype=torch.float64)[rows]

    def sample(self, shape):
        assert self.rows.shape == shape
        return self.rows


def select_three(theta):
    return select_k(theta, 3)


def model_and_noise(process_group=None, per_instance=False):
    torch.manual_seed(3)
    noise = Rows()
    target = AdaptiveTargetDistribution(
        initial_beta=0.1,
        beta_update_step=0.01,
        beta_update_momentum=0.5,
        target_norm=2.0,
        process_group=process_group,
        per_instance=per_instance,
    )
    estimator = aimle(target_distribution=target, noise_distribution=noise, nb_samples=SAMPLES, nonfinite="skip")
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), MAPLayer(select_three, estimator)).double(), target, noise


def train(model, target, noise, sizes, steps, rank=None):
    """Return beta and N after each step, of one process, or of one without rank on the joined batches; the weights."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for step in range(steps):
        counts = sizes[step % len(sizes)]
        size, first = sum(counts), 0 if rank is None else sum(counts[:rank])
        rows = slice(0, size) if rank is None else slice(first, first + counts[rank])
        generator = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)
        x *= 10.0 ** (torch.arange(size, dtype=torch.float64)[:, None] / size)  # processes of different scale
        noise.draw(step, rows, size)
        error = (model(x[rows]) - torch.linspace(-1, 2, WIDTH, dtype=torch.float64).roll(step)).square()
        if step in BROKEN and (first == 0 or BROKEN[step] == 0):
            error = error * BROKEN[step]
        # DDP takes the mean over processes: each gives the sum over its rows, W / N of it
        loss = error.sum() / size * (1 if rank is None else len(counts))
        optimiser.zero_grad()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "a step was skipped")
            loss.backward()
        optimiser.step()
        seen.append((target.beta, target.grad_norm))
    return seen, [parameter.detach() for parameter in model.parameters()]


def in_process(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=3, timeout=timedelta(seconds=120)
    )
    pair = dist.new_group([0, 1])
    answers = {"apart": apart(rank), "pair": outside_the_pair(pair)}
    answers["torch.func"] = under_torch_func()
    answers["raised"] = with_a_nan(rank)
    model, target, noise = model_and_noise("world")
    answers["three"] = train(DistributedDataParallel(model), target, noise, SIZES[3], 200, rank)
    model, target, noise = model_and_noise("world", per_instance=True)
    answers["per instance"] = train(DistributedDataParallel(model), target, noise, SIZES[3], 30, rank)
    if fully_shard is not None:
        model, target, noise = model_and_noise("world")
        seen, parameters = train(fully_shard(model), target, noise, SIZES[3], 30, rank)
        answers["sharded"] = seen, [parameter.full_tensor() for parameter in parameters]
    dist.barrier()
    if rank < 2:
        model, target, noise = model_and_noise(pair)
        model = copy.deepcopy(model)
        target, noise = model[1].target_distribution, model[1].estimator.noise_distribution
        answers["two"] = train(DistributedDataParallel(model, process_group=pair), target, noise, SIZES[2], 200, rank)
        with pytest.raises(TypeError, match='process_group="world"'):
            pickle.dumps(target)
    dist.barrier()
    torch.save(answers, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def apart(rank):
    """Return the beta of a process without a group, and the warnings that were heard."""
    target = AdaptiveTargetDistribution(beta_update_step=0.1)
    theta = torch.tensor([[4.0, 3.0, 2.0, 1.0]], requires_grad=True)
    layer = aimle(target_distribution=target)(lambda x: select_k(x, 1))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(3):
            layer(theta).backward(rank * torch.tensor([[1.0, 0.0, 0.0, -1.0]]))
    return target.beta, [str(warning.message) for warning in heard]


def outside_the_pair(pair):
    try:
        AdaptiveTargetDistribution(process_group=pair)
    except TypeError as error:
        return str(error)


def under_torch_func():
    layer = aimle(target_distribution=AdaptiveTargetDistribution(process_group="world"))(select_three)
    try:
        torch.func.grad(lambda theta: layer(theta).square().sum())(torch.randn(2, 4))
    except RuntimeError as error:
        return str(error)


def with_a_nan(rank):
    """Return what a process says where another one's dy is NaN; the last one has no rows."""
    target = AdaptiveTargetDistribution(process_group="world")
    theta = torch.randn(2 if rank < 2 else 0, 4, requires_grad=True)
    dy = torch.full(theta.shape, math.nan if rank == 0 else 1.0)
    try:
        aimle(target_distribution=target)(select_three)(theta).backward(dy)
    except FloatingPointError as error:
        return str(error), target.beta


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(in_process, (folder / "store", folder), nprocs=3)
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("name", ["two", "three", "per instance", "sharded"])
def test_processes_learn_what_one_process_learns_from_the_joined_batch(answers, name):
    if name == "sharded" and fully_shard is None:
        pytest.skip("torch.distributed.fsdp.fully_shard is newer")
    answers = answers[:2] if name == "two" else answers
    steps = len(answers[0][name][0])
    seen, parameters = train(*model_and_noise(per_instance=name == "per instance"), SIZES[len(answers)], steps)
    assert len({beta for beta, _ in seen}) > 20
    for step in BROKEN:
        assert seen[step] == seen[step - 1] != seen[step + 1]
    for answer in answers:
        found, weights = answer[name]
        assert found == answers[0][name][0]
        assert torch.allclose(torch.tensor(found), torch.tensor(seen), rtol=1e-9)
        for one, joined in zip(weights, parameters):
            assert torch.allclose(one, joined, rtol=0, atol=1e-6)


def test_without_a_group_betas_differ_and_the_first_process_says_so_once(answers):
    betas, heard = zip(*(answer["apart"] for answer in answers))
    assert betas[0] == 1.0 != betas[1]
    assert [len(lines) for lines in heard] == [1, 0, 0]
    assert "process_group='world'" in heard[0][0]


def test_a_group_is_refused_where_the_process_is_not_in_it(answers):
    assert [answer["pair"] is None for answer in answers] == [True, True, False]
    assert "that this process is in" in answers[2]["pair"]


def test_all_processes_raise_where_one_has_a_broken_dy(answers):
    for answer in answers:
        message, beta = answer["raised"]
        assert "is not finite" in message and beta == 1.0


def test_torch_func_is_refused_among_processes_in_one_sentence(answers):
    assert all("torch.func cannot join the batches" in answer["torch.func"] for answer in answers)


# One process


@pytest.mark.parametrize(("group", "error"), [("all", ValueError), (3, TypeError)])
def test_a_group_that_is_none_is_refused(group, error):
    with pytest.raises(error, match="process_group must be 'world', a process group"):
        AdaptiveTargetDistribution(process_group=group)


def test_one_process_is_the_world_where_nothing_was_initialised():
    plain, world = AdaptiveTargetDistribution(), AdaptiveTargetDistribution(process_group="world")
    gradients = []
    for target in (plain, pickle.loads(pickle.dumps(world))):
        theta = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]], requires_grad=True)
        aimle(target_distribution=target)(select_three)(theta).square().sum().backward()
        gradients.append(theta.grad)
    assert torch.allclose(gradients[0], gradients[1]) and gradients[0].abs().sum() > 0


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_fsdp1_that_casts_buffers_is_refused_but_where_it_ignores_the_target(one_process):
    plain, target, noise = model_and_noise()
    expected = train(plain, target, noise, [[6], [3]], 8)[0]
    for ignored in (True, False):
        model, target, noise = model_and_noise()
        model = fsdp.FullyShardedDataParallel(
            model,
            mixed_precision=fsdp.MixedPrecision(buffer_dtype=torch.bfloat16),
            device_id=torch.device("cpu"),
            ignored_modules=[target] if ignored else None,
        )
        if ignored:
            assert train(model, target, noise, [[6], [3]], 8)[0] == expected
            saved = model.state_dict()["1.target_distribution._state"]
            assert saved.dtype == torch.float64 and saved[0].item() == target.beta == expected[-1][0]
        else:
            with pytest.raises(TypeError, match=r"ignored_modules=\[target\]"):
                train(model, target, noise, [[6], [3]], 8)

"""Precision: what it changes, what it leaves, and what each task makes of it."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from aaai23.dvae import cli as vae
from aaai23.errors import UsageError
from aaai23.harness.identity import identify
from aaai23.harness.record import read_record
from aaai23.l2x import cli as l2x
from aaai23.l2x.sample import write_sample
from aaai23.nri import cli as nri
from aaai23.nri.simulate import write
from aaai23.speed.precision import accelerate
from tests.reference.data import write_digits

CPU = torch.device("cpu")
AIMLE = "--method aimle --aimle-symmetric --aimle-target adaptive --imle-lambda 0.1 --device cpu"
SCRIPTS = {
    "l2x": (l2x, f"{AIMLE} -a 3 -e 1 -r 1 -m 60 -H 20 --imle-noise gumbel"),
    "vae": (vae, f"{AIMLE} -e 1 --input-dim 196 --code-m 4 --code-n 6 -K 3 --imle-samples 2 --imle-temperature 1"),
    "nri": (
        nri,
        f"{AIMLE} --encoder_hidden 16 --decoder_hidden 16 --num_iterations 3 --eval_every 3 --batch_size 16 "
        "--eval_batch_size 10 --experiments_folder trials --imle-noise-temperature 1",
    ),
}
LOSS = {"l2x": "loss_mean", "vae": "loss", "nri": "loss_mean"}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("acceleration")
    write_sample(folder / "l2x", 0, 80, 40, 10)
    write_digits(folder / "vae", 200, 50)
    (folder / "nri").mkdir()
    write(folder / "nri", 10, sizes=(40, 20, 10))
    return folder


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """Run a script in this process; returns the run's record."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aaai23.dvae.train.draw", lambda *_: None)
    monkeypatch.setattr("aaai23.nri.train.draw_pictures", lambda *_: None)

    def run_here(task, *flags, name=None):
        script, line = SCRIPTS[task]
        name = name or "run" + "".join(flags)
        places = f"--data-dir {data / task} --name {name}"
        if task == "nri":
            places += f" --experiment_name {name} --add_timestamp False"
        assert script.main([*line.split(), *places.split(), *flags]) == 0
        return read_record(Path("results", task, name, f"seed{42 if task == 'nri' else 0}.json"))

    return run_here


def networks():
    """Return two layers, the same ones each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_by_default_networks_are_left_as_they_are():
    network = networks()
    before = dict(vars(network))
    accelerate([network], "float32", CPU)
    assert vars(network) == before and "forward" not in before


def test_bf16_rounds_inside_and_returns_float32():
    exact, rounded, x = networks(), networks(), torch.randn(5, 8)
    accelerate([rounded], "bf16", CPU)
    seen = []
    rounded[2].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    y = rounded(x)
    assert seen == [torch.bfloat16] and y.dtype == torch.float32
    assert 0 < (y - exact(x)).abs().max() < 2**-6
    y.sum().backward()
    exact(x).sum().backward()
    for a, b in zip(rounded.parameters(), exact.parameters()):
        assert a.dtype == a.grad.dtype == torch.float32
        torch.testing.assert_close(a.grad, b.grad, atol=2**-6 * b.grad.abs().max().item(), rtol=2**-6)


def test_weights_keep_their_names_and_types():
    network = networks()
    names = list(network.state_dict())
    accelerate([network], "bf16", CPU)
    assert list(network.state_dict()) == names
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}


def test_tf32_is_refused_where_it_does_not_exist():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(UsageError, match="--precision tf32 exists on GPUs alone"):
        accelerate([networks()], "tf32", CPU)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("task", SCRIPTS)
def test_names_change_with_the_precision(data, task):
    def name(*flags):
        config, _ = SCRIPTS[task][0].parse_arguments(["--data-dir", str(data / task), *flags])
        return identify(task, config, config.files()).name

    assert name() == name("--precision", "float32")
    assert name() != name("--precision", "bf16")


@pytest.mark.parametrize("task", SCRIPTS)
def test_an_epoch_in_bf16_has_nearly_the_loss_of_one_in_float32(run, task):
    exact, rounded = run(task), run(task, "--precision", "bf16")
    assert exact.settings["precision"] == "float32" and rounded.settings["precision"] == "bf16"
    assert rounded.status == "finished"
    a, b = (record.history[-1][LOSS[task]] for record in (exact, rounded))
    assert a != b and math.isclose(a, b, rel_tol=0.05)


@pytest.mark.parametrize("task", SCRIPTS)
def test_a_run_in_another_precision_is_not_taken_for_its_continuation(run, task):
    run(task, name="same")
    with pytest.raises(UsageError, match="precision 'float32' \\(now 'bf16'\\)"):
        run(task, "--precision", "bf16", "--resume", name="same")


@pytest.mark.parametrize("task", SCRIPTS)
def test_tf32_on_a_cpu_is_refused_before_a_record_is_written(run, task):
    with pytest.raises(UsageError, match="tf32"):
        run(task, "--precision", "tf32")
    assert not Path("results").exists()

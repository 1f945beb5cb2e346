"""The script of the discrete VAE, from its flags to its record, on sample data."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aaai23 import methods
from aaai23.dvae import cli, train
from aaai23.dvae.config import VAEConfig
from aaai23.dvae.data import intensities, load
from aaai23.dvae.model import losses, nelbo, published_test_loss
from aaai23.dvae.plots import random_codes, write_images
from aaai23.dvae.sample import write_sample
from aaai23.harness.config import declared, refuse
from imle.solvers import select_k
from tests.aaai23 import scripts
from tests.aaai23.scripts import ROOT, send_at, start
from tests.reference.data import write_digits

MISSION = (
    "-e 100 -b 100 -K 10 --code-m 20 --code-n 20 -M aimle --imle-samples 10 --imle-noise sog --imle-temperature 1.0 "
    "--imle-lambda 0.0 --aimle-symmetric --aimle-target adaptive --ste-noise sog --ste-temperature 0.0 --seed 0 "
    "--init-temperature 0.0 --gradient-scaling --aimle-beta-update-momentum 0.0 --aimle-beta-update-step 0.001 "
    "--aimle-target-norm 10.0"
)
SMALL = (
    "-e 2 -b 100 --input-dim 196 --code-m 4 --code-n 6 -K 3 -M aimle --imle-samples 2 --imle-temperature 1 "
    "--imle-lambda 0.1 --aimle-symmetric --aimle-target adaptive --aimle-beta-update-step 0.01 --device cpu"
)
METHODS = {
    "aimle": [],
    "imle": ["--aimle-target", "standard", "--imle-lambda", "10"],
    "ste": ["--ste-temperature", "1"],
    "gumbel-softmax": ["--init-temperature", "1"],
    "gumbel-softmax, hard": ["--init-temperature", "1", "--hard"],
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("dvae") / "digits", 450, 50)


def flags(digits, folder, *more):
    return [*SMALL.split(), "--data-dir", str(digits), "--results-dir", f"{folder}/results", *more]


@pytest.fixture
def run(script):
    """Run the script in this process: exit code, output, errors."""
    return lambda words: script(cli, words)


def untrained(digits, *more):
    """Return the untrained networks of a command line, and the data."""
    config, _ = cli.parse_arguments(flags(digits, "unused", *more))
    return train.build(config), load(digits)


def find(folder, name):
    return scripts.path_of(folder, "vae", name)


def record(folder):
    return scripts.record(folder, "vae")


def test_the_missions_command_is_accepted_and_means_what_it_says():
    config, unread = cli.parse_arguments(MISSION.split())
    refuse(config)
    assert (config.method, config.epochs, config.select_k, config.nb_samples, config.seed) == ("aimle", 100, 10, 10, 0)
    assert config.gradient_scaling and config.symmetric_perturbation and config.target == "adaptive"
    assert (config.perturbation_size, config.init_temperature, config.target_norm) == (0, 0, 10)
    assert {"--ste-noise", "--ste-temperature", "--init-temperature"} <= set(unread)


def test_defaults_are_those_of_the_released_script():
    config, unread = cli.parse_arguments([])
    expected = {
        **{"batch_size": 100, "input_dim": 784, "epochs": 100, "select_k": 10, "code_m": 20, "code_n": 20},
        **{"method": "imle", "anneal_rate": 3e-5, "init_temperature": 1.0, "min_temperature": 0.5, "hard": False},
        **{"symmetric_perturbation": False, "target": "standard", "beta_update_step": 1e-4},
        **{"beta_update_momentum": 0.0, "target_norm": 1.0, "noise": "sog", "nb_samples": 1},
        **{"theta_noise_temperature": 10.0, "target_noise_temperature": 10.0, "perturbation_size": 10.0},
        **{"ste_noise": "sog", "ste_noise_temperature": 0.0},
        **{"gradient_scaling": False, "seed": 0, "data_dir": Path("data"), "max_iterations": None},
    }
    assert {key: getattr(config, key) for key in expected} == expected and unread == []


def test_choices_of_the_command_line_are_those_of_the_registry():
    choices = {name: it.argparse.get("choices") for name, it in declared(VAEConfig).items()}
    assert set(choices["method"]) <= set(methods.METHODS)
    assert set(choices["noise"]) == set(choices["ste_noise"]) == set(methods.NOISES)
    assert set(choices["target"]) == set(methods.TARGETS)


def test_output_is_the_missions(digits, tmp_path, run):
    code, out, err = run(flags(digits, tmp_path))
    assert code == 0, err
    begin, number = r"INFO:torch-vae-cli\.py:", r"\d+\.\d{%d}"
    expected = [rf"{begin}.* holds sample data, a stand-in for MNIST: .*"]
    for epoch in (1, 2):
        loss = rf"Training Loss: {number % 4} ± {number % 4}"
        rest = rf"Temperature: 1\.00000\tBeta: {number % 5}"
        expected += [rf"{begin}Epoch {epoch}/2\t{loss}\t{rest}", rf"{begin}Average Test Loss: {number % 5}"]
    expected.append(rf"{begin}Experiment completed\.")
    lines = out.splitlines()
    assert len(lines) == len(expected), out
    for pattern, line in zip(expected, lines):
        assert re.fullmatch(pattern, line), line


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_and_leaves_its_figures_in_the_record(method, digits, tmp_path, run):
    arguments = ["-M", method.split(",")[0], *METHODS[method], "-e", "8"]
    code, out, err = run(flags(digits, tmp_path, *arguments))
    assert code == 0, err
    found = record(tmp_path)
    first, last = found["history"][0], found["history"][-1]
    assert set(first) == {"epoch", "loss", "loss_std", "tau", "beta", "test_loss", "test_nelbo"}
    assert found["final"] == {key: last[key] for key in ("loss", "test_loss", "test_nelbo", "beta")}
    assert (found["task"], found["status"], found["sample_data"], len(found["history"])) == ("vae", "finished", True, 8)
    assert last["loss"] < 0.6 * first["loss"] and last["test_nelbo"] < 0.9 * first["test_nelbo"]
    # with S = 2 the published test loss counts the KL by half
    assert last["test_loss"] < last["test_nelbo"] < 2 * last["test_loss"]
    assert ("Beta" in out) == (last["beta"] is not None) == (method in ("aimle", "imle"))


def test_pictures_lie_beside_the_record(digits, tmp_path, run):
    assert run(flags(digits, tmp_path, "-e", "1", "--seed", "3"))[0] == 0
    for name in ("seed3-images.png", "seed3-curves.png"):
        assert find(tmp_path, name).read_bytes().startswith(b"\x89PNG")
        assert find(tmp_path, name).parent == find(tmp_path, "seed3.json").parent


def test_pictures_show_images_reconstructions_samples_and_curves_and_say_sample_data(
    digits, tmp_path, run, monkeypatch
):
    drawn, curves = [], []
    monkeypatch.setattr("aaai23.dvae.train.write_images", lambda *arguments: drawn.append(arguments))
    monkeypatch.setattr("aaai23.dvae.train.write_curves", lambda *arguments: curves.append(arguments))
    assert run(flags(digits, tmp_path, "-M", "gumbel-softmax"))[0] == 0
    ((_, rows, size, title),) = drawn
    originals, reconstructions, samples = rows.values()
    assert originals.shape == reconstructions.shape == samples.shape == (12, 196) and size == (14, 14)
    assert torch.equal(originals, intensities(load(digits).test[:12]))
    assert samples.min() > 0 and samples.max() < 1 and not torch.equal(samples, reconstructions)
    ((_, history, also),) = curves
    assert history == record(tmp_path)["history"] and "sample data" in title == also


def test_a_reconstruction_is_what_the_decoder_makes_of_the_images_code(digits):
    model, data = untrained(digits, "-M", "imle", "--imle-noise", "none", "--imle-samples", "3")
    images = data.test[:5]
    with torch.no_grad():
        theta = model.encoder(intensities(images)).view(-1, 6)
        code = select_k(theta, 3).view(5, 4 * 6)
        expected = model.decoder(code).sigmoid()
    torch.testing.assert_close(train.reconstruct(model, images, seed=0), expected)


def test_images_of_a_picture_stand_in_rows_with_ink_where_they_are_bright(tmp_path):
    from matplotlib.image import imread

    bright, empty = torch.ones(12, 16), torch.zeros(12, 16)
    write_images(tmp_path / "p.png", {"": bright, " ": empty}, (4, 4), "")
    grey = imread(tmp_path / "p.png")[..., :3].mean(-1)
    upper, lower = grey[: len(grey) // 2], grey[len(grey) // 2 :]
    assert (upper < 0.1).mean() > 0.4 and (lower < 0.1).mean() < 0.01


@pytest.mark.parametrize("method", ["aimle", pytest.param("gumbel-softmax", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_figures_of_an_uninterrupted_one(method, digits, tmp_path, run):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ("-e", "12", "-M", method)
    assert run(flags(digits, whole, *arguments))[0] == 0
    assert send_at(start(cli, flags(digits, killed, *arguments)), "Epoch 3/12", signal.SIGKILL) == -signal.SIGKILL
    assert record(killed)["status"] == "running"
    code, out, err = run(flags(digits, killed, *arguments, "--resume"))
    assert code == 0, err
    assert "Epoch 2/12" not in out and "Epoch 12/12" in out
    assert record(killed)["history"] == record(whole)["history"]
    assert record(killed)["final"] == record(whole)["final"]


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_is_not_trained_again_but_goes_on_to_more_epochs(digits, tmp_path, run):
    assert run(flags(digits, tmp_path))[0] == 0
    before = record(tmp_path)
    for resume in ((), ("--resume",)):
        code, out, _ = run(flags(digits, tmp_path, *resume))
        assert code == 0 and "Epoch" not in out and "completed" in out
        assert f"Average Test Loss: {before['final']['test_loss']:.5f}" in out
        assert record(tmp_path) == before
    code, out, _ = run(flags(digits, tmp_path, "--resume", "-e", "3"))
    assert code == 0 and "Epoch 2/3" not in out and "Epoch 3/3" in out
    assert record(tmp_path)["history"][:2] == before["history"]


@pytest.mark.usefixtures("no_pictures")
def test_max_iterations_counts_the_steps_of_the_whole_run(digits, tmp_path, run):
    assert run(flags(digits, tmp_path, "-e", "9", "--max-iterations", "7"))[0] == 0
    assert [entry["epoch"] for entry in record(tmp_path)["history"]] == [1, 2]  # 450 images: 5 steps, then 2
    optimiser = torch.load(find(tmp_path, "seed0.pt"), weights_only=True)["parts"]["optimiser"]
    assert {state["step"].item() for state in optimiser["state"].values()} == {7}


def test_measuring_does_not_change_how_training_goes_on(digits):
    model, data = untrained(digits)
    generator = torch.get_rng_state()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (train.evaluate(model, data.test, seed=0) for _ in range(2))
    assert first == second != train.evaluate(model, data.test, seed=1)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_measured_figures_are_means_over_images_however_these_are_split(digits):
    model, data = untrained(digits, "-M", "imle", "--imle-noise", "none")
    images = data.train[: train.EVALUATION_BATCH + 33]
    x = intensities(images)
    with torch.no_grad():
        pair = losses(*model(x), x)
    figures = train.evaluate(model, images, seed=0)
    assert figures["test_loss"] == pytest.approx(published_test_loss(*pair).mean().item(), rel=1e-6)
    assert figures["test_nelbo"] == pytest.approx(nelbo(*pair).mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-dir", "nowhere"], "get_data.sh"),
        (["-K", "7"], "--select-k"),
        (["-M", "gumbel-softmax", "--init-temperature", "0"], "--init-temperature"),
        (["--min-temperature", "0"], "--min-temperature"),
        (["--input-dim", "784"], "--input-dim 196"),
        (["-M", "reinforce"], "--method"),
        (["--imle-samples", "0"], "--imle-samples"),
        (["--name", "a/b"], "--name"),
        (["--aimle-target", "standard", "--imle-lambda", "0"], "--imle-lambda 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(digits, tmp_path, run, arguments, message):
    code, out, err = run(flags(digits, tmp_path, *arguments))
    assert code == 2
    assert len(err.strip().splitlines()) == 1 and message in err, err
    assert "Traceback" not in out + err


@pytest.mark.usefixtures("no_pictures")
def test_an_epoch_that_was_cut_is_not_taken_for_a_whole_one(digits, tmp_path, run):
    assert run(flags(digits, tmp_path, "-e", "2", "--max-iterations", "2", "--name", "n"))[0] == 0
    for more in (["--max-iterations", "9"], []):
        code, _, err = run(flags(digits, tmp_path, "-e", "2", "--name", "n", "--resume", *more))
        assert code == 2 and "max_iterations 2" in err


@pytest.mark.usefixtures("no_pictures")
def test_a_run_of_other_settings_or_other_images_is_refused(digits, tmp_path, run):
    once = ("-e", "1", "--max-iterations", "1", "--name", "n")
    assert run(flags(digits, tmp_path, *once))[0] == 0
    for resume in ((), ("--resume",)):
        code, _, err = run(flags(digits, tmp_path, *once, *resume, "-K", "2"))
        assert code == 2 and "select_k 3 (now 2)" in err
        other = write_digits(tmp_path / f"inverted{len(resume)}", 450, 50, invert=True)
        code, _, err = run(flags(other, tmp_path, *once, *resume))
        assert code == 2 and re.search(r"other data: fingerprint \w{16}, now \w{16}", err)
    moved = write_digits(tmp_path / "moved", 450, 50)
    assert run(flags(moved, tmp_path, *once))[0] == 0


def test_random_codes_have_k_ones_in_every_row_at_uniform_places():
    rows = random_codes(500, code_m=4, code_n=5, k=2).view(-1, 5)
    assert torch.equal(rows.sum(1), torch.full((2000,), 2.0))
    torch.testing.assert_close(rows.mean(0), torch.full((5,), 0.4), atol=0.05, rtol=0)


def test_help_does_not_load_torch():
    code = "import sys\nfrom aaai23.dvae import cli\ntry: cli.main(['--help'])\n"
    code += "except SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
def test_the_whole_sample_data_teach_the_published_network(tmp_path, run):
    write_sample(tmp_path / "mnist")
    small = MISSION.replace("-e 100", "-e 2").replace("--imle-samples 10", "--imle-samples 2")
    code, out, err = run([*small.split(), "--data-dir", str(tmp_path), "--results-dir", f"{tmp_path}/results"])
    assert code == 0, err
    history = record(tmp_path)["history"]
    assert history[0]["beta"] == pytest.approx(0.06) and history[1]["loss"] < 0.7 * history[0]["loss"], out

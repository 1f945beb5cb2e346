"""The script of Learning to Explain, from its flags to its records, on sample data."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aaai23 import methods
from aaai23.harness.config import declared, refuse
from aaai23.l2x import cli
from aaai23.l2x.config import L2XConfig
from aaai23.l2x.sample import write_sample
from tests.aaai23 import scripts
from tests.aaai23.scripts import ROOT, send_at, start

MISSION = (
    "-a 3 -e 20 -b 40 -k 3 -H 250 -m 350 -K 10 -r 10 -M aimle -c models/beeradv_H=250_K=10_M=aimle_a=3_aisym=True_"
    "aitgt=adaptive_b=40_bm=0.0_bu=0.0001_e=20_ilmd=0.0_inoise=gumbel_ismp=1_itmp=1.0_k=3_m=350_r=10_scale=True_"
    "sst_temp=0.0_ssub_tmp=0.5_ste_noise=sog_ste_tmp=0.0_tn=1.0.pt --aimle-symmetric --aimle-target adaptive "
    "--imle-samples 1 --imle-noise gumbel --imle-input-temperature 1.0 --imle-output-temperature 1.0 --imle-lambda 0.0 "
    "--sst-temperature 0.0 --softsub-temperature 0.5 --ste-noise sog --ste-temperature 0.0 --gradient-scaling "
    "--aimle-beta-update-momentum 0.0 --aimle-beta-update-step 0.0001 --aimle-target-norm 1.0"
)


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("l2x") / "sample"
    write_sample(folder, 0, 160, 60, 20)
    return folder


def flags(sample, folder, *more):
    small = "-a 3 -e 2 -r 1 -m 60 -H 20 --aimle-symmetric --aimle-target adaptive --imle-noise gumbel --imle-lambda 0.1"
    places = f"--data-dir {sample} --results-dir {folder}/results -c {folder}/models/m.pt --device cpu"
    return [*small.split(), "-M", "aimle", *places.split(), *more]


@pytest.fixture
def run(script):
    """Run the script in this process: exit code, output, errors."""
    return lambda words: script(cli, words)


def record(folder, seed=0):
    return scripts.record(folder, "l2x", seed)


def test_the_missions_command_is_accepted_and_means_what_it_says():
    config, unread = cli.parse_arguments(MISSION.split())
    refuse(config)
    assert (config.method, config.aspect, config.select_k, config.reruns) == ("aimle", 3, 10, 10)
    assert config.gradient_scaling and config.symmetric_perturbation and config.target == "adaptive"
    assert unread == ["--sst-temperature", "--softsub-temperature", "--ste-noise", "--ste-temperature"]


def test_defaults_are_those_of_the_released_script():
    config, unread = cli.parse_arguments([])
    expected = {
        **{"aspect": 1, "epochs": 20, "batch_size": 40, "kernel_size": 3, "hidden_dims": 250, "max_len": 350},
        **{"select_k": 10, "reruns": 10, "seed": 0, "method": "imle", "data_dir": Path("data")},
        **{"symmetric_perturbation": False, "target": "standard", "beta_update_step": 1e-4},
        **{"beta_update_momentum": 0.0, "target_norm": 1.0, "noise": "sog", "nb_samples": 1},
        **{"theta_noise_temperature": 0.0, "target_noise_temperature": 10.0, "perturbation_size": 1000.0},
        **{"gradient_scaling": False, "ste_noise": "sog", "ste_noise_temperature": 0.0},
        **{"sst_temperature": 0.1, "softsub_temperature": 0.5, "max_iterations": None, "mask_padding": False},
    }
    assert {key: getattr(config, key) for key in expected} == expected and unread == []


def test_choices_of_the_command_line_are_those_of_the_registry():
    choices = {name: it.argparse.get("choices") for name, it in declared(L2XConfig).items()}
    assert set(choices["method"]) <= set(methods.METHODS)
    assert set(choices["noise"]) == set(choices["ste_noise"]) == set(methods.NOISES)
    assert set(choices["target"]) == set(methods.TARGETS)


def test_output_of_the_missions_command_has_its_lines(sample, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = f"-e 2 -r 2 -D -m 60 -H 20 --imle-lambda 0.1 --device cpu --data-dir {sample}"
    code, out, err = run([*MISSION.split(), *small.split()])
    assert code == 0, err
    lines = out.splitlines()
    number = r"\d+\.\d+"
    expected = [
        rf"INFO:l2x-cli\.py:Epoch 1/2\tIteration 1\tLoss value: {number}",
        rf"INFO:l2x-cli\.py:Epoch 2/2\tLoss {number} ± {number}",
        rf"INFO:l2x-cli\.py:\[1\] Validation MSE: {number}",
        rf"INFO:l2x-cli\.py:\[1\] Test MSE: {number}",
        rf"INFO:l2x-cli\.py:\[0\] Subset precision: {number}",
        rf"INFO:l2x-cli\.py:Final Subset Precision List: {number} ± {number}",
        rf"INFO:l2x-cli\.py:Final Validation MSE List: {number} ± {number}",
        rf"INFO:l2x-cli\.py:Final Test MSE List: {number} ± {number}",
    ]
    for pattern in expected:
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    assert lines[-1] == "INFO:l2x-cli.py:Experiment completed."
    unread = "not read by method aimle: --sst-temperature --softsub-temperature --ste-noise --ste-temperature"
    assert lines[0] == f"INFO:l2x-cli.py:{unread}" and "sample data" in lines[1]
    written = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert [re.fullmatch(r"beeradv_H=250_.*_tn=1\.0\.seed(.)\.pt", name)[1] for name in written] == ["0", "1"]
    assert record(tmp_path, 1)["sample_data"] is True


def test_one_rerun_writes_its_weights_to_the_very_file_that_is_named(sample, tmp_path, run):
    assert run(flags(sample, tmp_path, "--max-iterations", "1"))[0] == 0
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["m.pt"]


STOPS = {signal.SIGKILL: ("running", None), signal.SIGINT: ("failed", "interrupted")}


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_stopped_in_an_epoch_resumes_to_the_figures_of_an_uninterrupted_one(sample, tmp_path, run, number):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ("-e", "4", "-D", "--imle-samples", "2", "-m", "30")
    assert run(flags(sample, whole, *arguments))[0] == 0
    code = send_at(start(cli, flags(sample, stopped, *arguments)), "Epoch 3/4\tIteration 2", number)
    assert code == (130 if number == signal.SIGINT else -number)
    assert (record(stopped)["status"], record(stopped)["error"]) == STOPS[number]
    assert len(record(stopped)["history"]) == 2
    code, out, err = run(flags(sample, stopped, *arguments, "--resume"))
    assert code == 0, err
    assert "Epoch 2/4" not in out and "Epoch 3/4" in out
    assert record(stopped)["history"] == record(whole)["history"]
    assert record(stopped)["final"] == record(whole)["final"]


def test_a_finished_seed_is_not_trained_again(sample, tmp_path, run):
    assert run(flags(sample, tmp_path, "--max-iterations", "2"))[0] == 0
    before = record(tmp_path)
    for resume in ((), ("--resume",)):
        code, out, _ = run(flags(sample, tmp_path, "--max-iterations", "2", *resume))
        assert code == 0 and "Epoch" not in out and "[0] Test MSE" in out
        assert record(tmp_path) == before
    assert len(before["history"]) == 1


def test_an_epoch_that_was_cut_is_not_taken_for_a_whole_one(sample, tmp_path, run):
    assert run(flags(sample, tmp_path, "-e", "2", "--max-iterations", "2"))[0] == 0
    code, _, err = run(flags(sample, tmp_path, "-e", "2", "--resume"))
    assert code == 2 and "max_iterations 2 (now None)" in err


def test_only_the_reruns_that_are_missing_are_trained(sample, tmp_path, run):
    short = ("-e", "1", "--max-iterations", "2", "--seed", "1")
    assert run(flags(sample, tmp_path, *short))[0] == 0
    code, out, _ = run(flags(sample, tmp_path, *short, "--seed", "0", "-r", "3"))
    assert code == 0 and out.count("Epoch 1/1\tLoss") == 2
    means = [record(tmp_path, seed)["final"]["best_test_mse"] for seed in range(3)]
    assert f"Final Test MSE List: {sum(means) / 3:.5f} ±" in out


def test_a_finished_seed_goes_on_when_more_epochs_are_asked_for(sample, tmp_path, run):
    assert run(flags(sample, tmp_path, "-e", "1"))[0] == 0
    assert run(flags(sample, tmp_path, "-e", "2"))[0] == 2  # it might be a slip
    assert run(flags(sample, tmp_path, "-e", "2", "--resume"))[0] == 0
    assert [entry["epoch"] for entry in record(tmp_path)["history"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-dir", "nowhere"], "get_data.sh"),
        (["-K", "61"], "--select-k"),
        (["-M", "sst", "--sst-temperature", "0"], "--sst-temperature"),
        (["-M", "imle", "--aimle-target", "standard", "--imle-lambda", "0"], "--imle-lambda 0"),
        (["-M", "reinforce"], "--method"),
        (["-b", "0"], "--batch-size"),
        (["--device", "tpu"], "--device"),
        (["--name", "a/b"], "--name"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(sample, tmp_path, run, arguments, message):
    code, out, err = run(flags(sample, tmp_path, *arguments))
    assert code == 2
    assert len(err.strip().splitlines()) == 1 and message in err, err
    assert "Traceback" not in out + err


def test_a_run_of_other_settings_is_refused_and_so_are_its_weights(sample, tmp_path, run):
    short = ("-e", "1", "--max-iterations", "1")
    assert run(flags(sample, tmp_path, *short, "--name", "n"))[0] == 0
    for more in (("--name", "n"), ("--name", "n", "--resume"), ("--name", "other"), ("--name", "other", "--again")):
        code, _, err = run(flags(sample, tmp_path, *short, "-b", "20", *more))
        assert code == 2 and "batch_size 40 (now 20)" in err
        assert ("m.pt stay" in err) == ("other" in more)


def test_help_does_not_load_torch():
    code = "import sys\nfrom aaai23.l2x import cli\ntry: cli.main(['--help'])\n"
    code += "except SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_weights_that_are_asked_for_later_are_written_from_the_finished_run(run, sample, tmp_path):
    assert run(flags(sample, tmp_path))[0] == 0
    later = tmp_path / "later.pt"
    code, out, _ = run(flags(sample, tmp_path, "-c", later))
    assert code == 0 and "is finished" in out
    exported = torch.load(later, weights_only=True)
    kept = torch.load(scripts.path_of(tmp_path, "l2x", "seed0.pt"), weights_only=True)
    assert all(torch.equal(it, exported["model"][name]) for name, it in kept["parts"]["best"]["weights"].items())

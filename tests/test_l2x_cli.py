import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aaai23.l2x import cli
from aaai23.l2x.sample import write_sample
from aaai23.shell import run_cli

ROOT = Path(__file__).parent.parent
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


def start(arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "cli/l2x-cli.py"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def run(capsys):
    """Run the script in this process: exit code, output, errors."""

    def run_here(arguments):
        with pytest.raises(SystemExit) as stop:
            run_cli(lambda _: cli.main(arguments), cli.SCRIPT)
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run_here


def record(folder, seed=0):
    (path,) = Path(folder, "results", "l2x").glob(f"*/seed{seed}.json")
    return json.loads(path.read_text())


def test_the_missions_command_is_accepted_and_means_what_it_says():
    args = cli.parser().parse_args(MISSION.split())
    cli.check(args)
    assert (args.method, args.aspect, args.select_k, args.reruns) == ("aimle", 3, 10, 10)
    assert args.gradient_scaling and args.aimle_symmetric and args.aimle_target == "adaptive"


def test_defaults_are_those_of_the_released_script():
    args = vars(cli.parser().parse_args([]))
    expected = {
        **{"aspect": 1, "epochs": 20, "batch_size": 40, "kernel_size": 3, "hidden_dims": 250, "max_len": 350},
        **{"select_k": 10, "reruns": 10, "seed": 0, "method": "imle", "data_dir": Path("data")},
        **{"aimle_symmetric": False, "aimle_target": "standard", "aimle_beta_update_step": 1e-4},
        **{"aimle_beta_update_momentum": 0.0, "aimle_target_norm": 1.0, "imle_noise": "sog", "imle_samples": 1},
        **{"imle_input_temperature": 0.0, "imle_output_temperature": 10.0, "imle_lambda": 1000.0},
        **{"gradient_scaling": False, "ste_noise": "sog", "ste_temperature": 0.0},
        **{"sst_temperature": 0.1, "softsub_temperature": 0.5, "max_iterations": None, "mask_padding": False},
    }
    assert {key: args[key] for key in expected} == expected


def test_choices_of_the_command_line_are_those_of_the_registry():
    from aaai23.methods import NOISES, SUBSET_METHODS, TARGETS

    actions = {action.dest: action for action in cli.parser()._actions}
    assert set(actions["method"].choices) == set(SUBSET_METHODS)
    assert set(actions["imle_noise"].choices) == set(NOISES)
    assert set(actions["aimle_target"].choices) == set(TARGETS)


def test_output_has_the_missions_lines(sample, tmp_path, run):
    code, out, err = run(flags(sample, tmp_path, "-r", "2", "-D"))
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
    assert "sample data" in lines[0]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["m.seed0.pt", "m.seed1.pt"]
    assert record(tmp_path, 1)["sample_data"] is True


def test_a_killed_run_resumes_to_the_figures_of_an_uninterrupted_one(sample, tmp_path, run):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ("-e", "4", "-D", "--imle-samples", "2")
    assert run(flags(sample, whole, *arguments))[0] == 0
    process = start(flags(sample, killed, *arguments))
    for line in process.stdout:  # kill -9 in the middle of the third epoch
        if "Epoch 3/4\tIteration 2" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    process.stderr.close()
    assert record(killed)["status"] == "running"
    code, out, err = run(flags(sample, killed, *arguments, "--resume"))
    assert code == 0, err
    assert "Epoch 2/4" not in out and "Epoch 3/4" in out
    assert record(killed)["history"] == record(whole)["history"]
    assert record(killed)["final"] == record(whole)["final"]


def test_a_finished_seed_is_not_trained_again_on_resume(sample, tmp_path, run):
    assert run(flags(sample, tmp_path, "--max-iterations", "2"))[0] == 0
    before = record(tmp_path)
    code, out, _ = run(flags(sample, tmp_path, "--max-iterations", "2", "--resume"))
    assert code == 0 and "Epoch" not in out and "[0] Test MSE" in out
    assert record(tmp_path) == before
    assert len(before["history"]) == 1


def test_a_finished_seed_goes_on_when_more_epochs_are_asked_for(sample, tmp_path, run):
    name = ("--name", "longer")
    assert run(flags(sample, tmp_path, "-e", "1", *name))[0] == 0
    assert run(flags(sample, tmp_path, "-e", "2", *name, "--resume"))[0] == 0
    assert [entry["epoch"] for entry in record(tmp_path)["history"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-dir", "nowhere"], "get_data.sh"),
        (["-K", "61"], "--select-k"),
        (["-M", "sst", "--sst-temperature", "0"], "--sst-temperature"),
        (["-M", "softsub", "--imle-samples", "2"], "--imle-samples"),
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


def test_a_checkpoint_of_other_settings_is_refused(sample, tmp_path, run):
    assert run(flags(sample, tmp_path, "-e", "1"))[0] == 0
    code, _, err = run(flags(sample, tmp_path, "-e", "1", "-b", "20", "--resume"))
    assert code == 2 and "batch_size" in err


def test_ctrl_c_ends_in_order(sample, tmp_path):
    process = start(flags(sample, tmp_path, "-e", "500"))
    for line in process.stdout:
        if "Epoch 2/" in line:
            process.send_signal(signal.SIGINT)
            break
    started = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - started < 60
    assert record(tmp_path)["status"] == "failed" and record(tmp_path)["error"] == "interrupted"


def test_help_does_not_load_torch():
    code = "import sys; from aaai23.l2x import cli; cli.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aaai23.methods import METHODS, NOISES, TARGETS
from aaai23.nri import cli
from aaai23.nri.methods import BASELINES, STRUCTURES
from aaai23.nri.simulate import write
from aaai23.shell import run_cli

ROOT = Path(__file__).parent.parent
FOLDER = "../exp_nri/aimle_v3_T10_nosym_best_3"
MISSION = (
    "--suffix _novar_1skip_10t_1r_graph10 --timesteps 10 --prediction_steps 9 --sst tree --relaxation "
    "exp_family_entropy --max_range 15 --symmeterize_logits True --lr 0.0001 --temp 0.1 --eps_for_finitediff 1.0 "
    "--cuda True --experiments_folder ../exp_nri/nri_T=10_bu=0.001_eps=1.0_hard=True_imle_samples=1_lmbda=0.0_lr=0.0001"
    "_method=aimle_noise=sog_noise_temp=1.0_scaling=False_sst=tree_symmetric=False_target=adaptive_temp=0.1 "
    "--use_cpp_for_sampling True --method aimle --imle-lambda 0.0 --imle-lambda-update-step 0.001 --imle-noise sog "
    "--imle-noise-temperature 1.0 --aimle-target adaptive --imle-samples 1 --hard True --st True "
    f"--experiments_folder {FOLDER} --seed 3"
)
TRIAL = "lr0.0001_temp0.1_encwd0.0_decwd0.0_3"
SMALL = shlex.split(
    "--encoder_hidden 16 --decoder_hidden 16 --num_iterations 3 --eval_every 2 --batch_size 16 --eval_batch_size 10"
)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nri")
    write(folder, 10, sizes=(40, 20, 10))
    return folder


def invoke(data, arguments):
    """Run the script in this process; returns the exit code."""
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda _: cli.main(["--data-dir", str(data), *arguments]), cli.SCRIPT)
    return stop.value.code


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, data):
    """Run the script in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aaai23.nri.train.draw_pictures", lambda *_: None)

    def run_here(*arguments):
        code = invoke(data, arguments)
        return code, *capsys.readouterr()

    return run_here


@pytest.fixture(scope="session")
def once(tmp_path_factory, data):
    """A folder in which the mission's command, made small, has run; and what it printed."""
    folder, printed = tmp_path_factory.mktemp("trained"), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        assert invoke(data, [*MISSION.split(), *SMALL]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def trained(once, run, tmp_path):
    """What the mission's command printed; its files are in the working folder."""
    shutil.copytree(once[0], tmp_path, dirs_exist_ok=True)
    return once[1]


def test_the_missions_command_is_accepted_and_means_what_it_says():
    args = cli.parser().parse_args(MISSION.split())
    cli.check(args)
    assert args.experiments_folder == FOLDER
    assert (args.hard, args.st, args.max_range, args.temp, args.prediction_steps) == (True, True, 15, 0.1, 9)
    assert (args.method, args.aimle_target, args.imle_lambda_update_step) == ("aimle", "adaptive", 0.001)
    assert args.aimle_symmetric is False and args.gradient_scaling is False


def test_defaults_are_those_of_the_released_script():
    args = cli.parser().parse_args([])
    cli.check(args)
    assert (args.num_iterations, args.eval_every, args.batch_size, args.eval_batch_size) == (50000, 500, 128, 100)
    assert (args.lr, args.lr_decay, args.gamma, args.temp, args.var, args.seed) == (3e-4, 200, 0.5, 5.0, 5e-5, 42)
    assert (args.method, args.sst, args.max_range, args.prediction_steps) == ("sst", "tree", float("inf"), 10)


def test_choices_of_the_command_line_are_those_of_the_registries():
    choices = {action.dest: set(action.choices or ()) for action in cli.parser()._actions}
    assert choices["method"] == {"sst", *METHODS} - {"imletopk"}
    assert choices["imle_noise"] == set(NOISES) and choices["aimle_target"] == set(TARGETS)
    assert choices["sst"] == set(STRUCTURES) and choices["reinforce_baseline"] == set(BASELINES)


def test_each_truth_value_takes_true_and_false_and_nothing_else(capsys):
    flags = [
        action.option_strings[0]
        for action in cli.parser()._actions
        if isinstance(action.default, bool) and action.nargs != 0
    ]
    assert len(flags) == 19
    for flag in flags:
        for word in ("True", "False"):
            args = vars(cli.parser().parse_args([flag, word]))
            assert args[flag.strip("-").replace("-", "_")] is (word == "True")
        with pytest.raises(SystemExit, match="2"):
            cli.parser().parse_args([flag, "__import__('os')"])
    assert cli.parser().parse_args(["--aimle-symmetric"]).aimle_symmetric is True
    capsys.readouterr()


def test_help_needs_no_torch():
    code = "import sys, aaai23.nri.cli as cli; cli.parser().format_help(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_script_itself_runs(tmp_path, data):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "cli/torch-nri-cli.py"), "--suffix", "_nowhere", "--data-dir", str(data)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("torch-nri-cli.py: error: ") and done.stderr.count("\n") == 1
    assert "_nowhere" in done.stderr


def test_the_missions_command_trains(trained):
    begin = "Namespace(add_timestamp=True, again=False, aimle_symmetric=False"
    assert trained.index(begin) < trained.index("Using factor graph")
    for words in ("Using factor graph MLP encoder.", "Using learned interaction net decoder.", "Using Adam."):
        assert words in trained.splitlines()
    trial = Path("experiments") / FOLDER / TRIAL
    names = {path.name for path in trial.iterdir()}
    assert names == {
        "train_config.json",
        "encoder.pt",
        "decoder.pt",
        "checkpoint.pt",
        "log.txt",
        "train_and_val_measurements.pkl",
    }
    assert json.loads((trial / "train_config.json").read_text())["imle_noise_temperature"] == 1.0
    lines = (trial / "log.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["Iteration", str(step)] for step in (0, 2, 3)]
    assert all(f"INFO:{cli.SCRIPT}:{line}" in trained for line in lines)


def test_the_namespace_is_sorted_and_says_what_was_used(trained):
    line = next(line for line in trained.splitlines() if line.startswith("Namespace("))
    keys = re.findall(r"(\w+)=", line.replace("T=", ""))
    assert len(keys) > 60 and keys == sorted(keys)


def test_flags_without_effect_say_so_once(trained):
    for flag in ("--use_cpp_for_sampling", "--eps_for_finitediff"):
        assert trained.count(f"{flag}:") == 1
    assert "--use_cpp_for_edge_metric:" not in trained


def test_evaluation_prints_the_missions_lines_in_order(run, trained):
    code, out, _ = run(*MISSION.split(), *SMALL, "--mode", "eval")
    assert code == 0
    place = re.escape(f"experiments/{FOLDER}/{TRIAL}")
    array = r"array\(\[-?[\d.]+\]%s\)"
    figures = "{'elbo': %s, 'acc': %s, 'precision': %s, 'recall': %s}" % (  # noqa: UP031
        array % "",
        *[array % ", dtype=float32"] * 3,
    )
    expected = [
        r"Namespace\(add_timestamp=True, .* mode='eval', .*\)",
        r"Using factor graph MLP encoder\.",
        r"Using learned interaction net decoder\.",
        r"Using Adam\.",
        f"trial_path 1 {place} True",
        rf"trial_path 2 {place}/train_and_val_measurements\.pkl True",
        r"encoder MLPEncoder\(",
        r"    \(fc1\): Linear\(in_features=20, out_features=16, bias=True\)",
        r"  \(fc_out\): Linear\(in_features=16, out_features=1, bias=True\)",
        r"decoder MLPDecoder\(",
        r"  \(out_fc3\): Linear\(in_features=16, out_features=2, bias=True\)",
        rf"valid trial 0 for {re.escape(FOLDER)} took [\d.e-]+s\.",
        rf"test trial 0 for {re.escape(FOLDER)} took [\d.e-]+s\.",
        f"all_measurements {{'valid': {figures}, 'test': {figures}}}",
        r"Saving data\.",
    ]
    lines = iter(out.splitlines())
    for pattern in expected:
        assert any(re.fullmatch(pattern, line) for line in lines), pattern


def test_evaluation_finds_the_figures_that_training_ended_with(run, trained):
    code, _, _ = run(*MISSION.split(), *SMALL, "--mode", "eval")
    assert code == 0
    (record,) = Path("results/nri").glob("*/seed3.json")
    (measured,) = Path("results/nri-eval").glob("*/seed3.json")
    final = json.loads(record.read_text())["final"]
    evaluated = json.loads(measured.read_text())["final"]
    assert len(final) == 17 and final.pop("edge_reading") in ("as_is", "flipped")
    assert {key.replace("val_", "valid_"): value for key, value in final.items()} == evaluated
    saved = json.loads((Path("experiments") / FOLDER / "all_measurements.json").read_text())
    assert saved[TRIAL]["test_elbo"] == final["test_elbo"]


def test_evaluation_walks_all_trials(run, trained):
    code, _, _ = run(*MISSION.split(), *SMALL, "--seed", "4")
    assert code == 0
    code, out, _ = run(*MISSION.split(), *SMALL, "--mode", "eval")
    assert code == 0
    assert out.count("trial_path 1") == 2 and "test trial 1 for" in out
    assert re.search(r"'elbo': array\(\[\s*-[\d.]+\s*,\s*-[\d.]+\s*\]\)", out)


@pytest.mark.parametrize("name", ["encoder.pt", "decoder.pt"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_weights_that_cannot_be_used_are_an_error_without_figures(run, trained, name, damage):
    path = Path("experiments") / FOLDER / TRIAL / name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        torch.save({"weight": torch.ones(2)}, path)
    code, out, err = run(*MISSION.split(), *SMALL, "--mode", "eval")
    assert code == 2
    assert err.count("\n") == 1 and name in err
    assert "took" not in out and "all_measurements" not in out


def test_a_trial_of_other_settings_is_not_measured(run, trained):
    code, out, err = run(*MISSION.split(), *SMALL, "--encoder_hidden", "8", "--mode", "eval")
    assert code == 2 and "encoder_hidden 16 (now 8)" in err and "all_measurements" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--suffix _nowhere", "_nowhere"),
        ("--timesteps 12", "12"),
        ("--num_vertices 9", "9"),
        ("--dims 3", "3"),
        ("--mode eval --experiments_folder nothing_here", "no trial"),
        ("--relaxation binary_entropy", "exp_family_entropy"),
        ("--edge_types 3", "--edge_types 3"),
        ("--num_rounds 2", "--num_rounds 2"),
        ("--timesteps 5 --prediction_steps 6", "--prediction_steps 6"),
        ("--hard True", "--st True"),
        ("--symmeterize_logits False", "--symmeterize_logits True"),
        ("--use_gumbels_for_kl False", "--sst indep"),
        ("--use_nvil True --use_reinforce True", "choose one"),
        ("--use_nvil True --method aimle --aimle-target adaptive", "choose one"),
        ("--num_samples 2", "--imle-samples"),
        ("--use_reinforce True --reinforce_baseline multi_sample", "--num_samples"),
        ("--method imle", "--imle-lambda 0"),
        ("--undirected-theta --method ste", "--undirected-theta"),
        ("--undirected-theta --use_nvil True", "--undirected-theta"),
        ("--undirected-theta --sst topk --method aimle --aimle-target adaptive", "--undirected-theta"),
        ("--name a/b", "--name"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, words):
    code, out, err = run("--num_iterations", "1", "--eval_batch_size", "10", *shlex.split(arguments))
    assert code == 2
    assert err.count("\n") == 1 and words in err
    assert "Iteration" not in out and "all_measurements" not in out


@pytest.mark.parametrize(
    ("arguments", "gpu", "device", "warned"),
    [
        ("", True, "cpu", False),
        ("--cuda True", True, "cuda", False),
        ("--cuda True", False, "cpu", True),
        ("--cuda True --device cpu", True, "cpu", False),
        ("--device cuda", True, "cuda", False),
        ("--device auto", False, "cpu", False),
    ],
)
def test_device_goes_before_cuda_and_cuda_before_the_cpu(monkeypatch, capsys, arguments, gpu, device, warned):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    args = cli.parser().parse_args(arguments.split())
    assert cli.choose_device(args, cli.configure_logging(cli.SCRIPT)).type == device
    assert args.cuda == (device == "cuda")
    assert ("WARNING" in capsys.readouterr().out) == warned


def test_the_default_name_tells_settings_apart_and_not_places():
    def name(text):
        args = cli.parser().parse_args(text.split())
        return cli.default_name(vars(args), cli.label(args), cli.NOT_IN_NAME)

    assert name("--seed 1 --mode eval --experiments_folder x --use_cpp_for_sampling True") == name("--seed 2")
    assert name("--lr 0.1") != name("--lr 0.2")
    assert name("--use_nvil True").startswith("nvil_T10_tree-")


def test_a_finished_run_is_not_trained_again_on_resuming(run, trained):
    code, out, _ = run(*MISSION.split(), *SMALL, "--resume")
    assert code == 0
    assert "Iteration" not in out and "Experiment completed." in out
    figures = [line for line in trained.splitlines() if ":Test elbo" in line]
    assert len(figures) == 1 and figures[0] in out


def test_a_finished_run_goes_on_when_more_iterations_are_asked_for(run, trained):
    code, out, _ = run(*MISSION.split(), *SMALL, "--num_iterations", "5", "--resume")
    assert code == 0
    assert re.findall(r"Iteration (\d+)", out) == ["4", "5"]


def test_sample_data_are_called_so(run, data, tmp_path):
    folder = tmp_path / "sample"
    write(folder, 10, sizes=(20, 10, 10))
    (folder / "SAMPLE_DATA.txt").write_text("made by a program")
    code, out, _ = run(*MISSION.split(), *SMALL, "--data-dir", str(folder))
    assert code == 0 and "holds sample data" in out
    (record,) = Path("results/nri").glob("*/seed3.json")
    assert json.loads(record.read_text())["sample_data"] is True

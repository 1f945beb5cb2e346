import contextlib
import io
import json
import math
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aaai23.harness.config import declared, defaults, refuse
from aaai23.harness.identity import identify
from aaai23.harness.record import read_record
from aaai23.methods import METHODS, NOISES, TARGETS
from aaai23.nri import cli
from aaai23.nri.config import NRIConfig
from aaai23.nri.model import STRUCTURES
from aaai23.nri.score import BASELINES
from aaai23.nri.simulate import write
from tests.aaai23.scripts import ROOT, exit_code, path_of

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
UNREAD = "--relaxation --max_range --temp --hard --st --eps_for_finitediff --use_cpp_for_sampling"
"""Flags of the mission's command that AIMLE does not read."""
TRIAL = "lr0.0001_temp0.1_encwd0.0_decwd0.0_3"
SMALL = shlex.split(
    "--encoder_hidden 16 --decoder_hidden 16 --num_iterations 3 --eval_every 2 --batch_size 16 --eval_batch_size 10"
)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nri")
    write(folder, 10, sizes=(40, 20, 10))
    return folder


@pytest.fixture
def run(script, monkeypatch, tmp_path, data):
    """Run the script in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: script(cli, ["--data-dir", data, *words])


def record(task):
    """Return the one record of a task."""
    return read_record(path_of(".", task, "seed3.json"))


@pytest.fixture(scope="session")
def once(tmp_path_factory, data):
    """A folder in which the mission's command, made small, has run; and what it printed."""
    folder, printed = tmp_path_factory.mktemp("trained"), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        assert exit_code(cli, ["--data-dir", data, *MISSION.split(), *SMALL]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def trained(once, run, tmp_path):
    """What the mission's command printed; its files are in the working folder."""
    shutil.copytree(once[0], tmp_path, dirs_exist_ok=True)
    return once[1]


def parse(text):
    config, unread = cli.parse_arguments(text.split())
    refuse(config)
    return config, unread


def test_the_missions_command_is_accepted_and_means_what_it_says():
    config, unread = parse(MISSION)
    assert config.experiments_folder == FOLDER
    assert (config.temp, config.prediction_steps, config.lr, config.seed) == (0.1, 9, 0.0001, 3)
    assert (config.method, config.target, config.beta_update_step) == ("aimle", "adaptive", 0.001)
    assert (config.noise, config.theta_noise_temperature, config.target_noise_temperature) == ("sog", 1.0, 1.0)
    assert (config.nb_samples, config.perturbation_size, config.gradient_scaling) == (1, 0.0, False)
    assert config.symmetric_perturbation is False
    assert set(unread) == set(UNREAD.split())


def test_defaults_are_those_of_the_released_script():
    config, _ = parse("")
    assert (config.num_iterations, config.eval_every, config.batch_size) == (50000, 500, 128)
    assert (config.lr, config.lr_decay, config.gamma, config.temp, config.var) == (3e-4, 200, 0.5, 5.0, 5e-5)
    assert (config.method, config.sst, config.max_range, config.prediction_steps) == ("sst", "tree", math.inf, 10)
    assert (config.seed, config.eval_batch_size, config.num_samples, config.imle_samples) == (42, 100, 1, 1)


def test_choices_of_the_command_line_are_those_of_the_registries():
    choices = {name: set(it.argparse.get("choices", ())) for name, it in declared(NRIConfig).items()}
    assert choices["method"] == {"sst", "imle", "aimle", "ste"} < set(METHODS)
    assert choices["noise"] == set(NOISES) and choices["target"] == set(TARGETS)
    assert choices["sst"] == set(STRUCTURES) and choices["reinforce_baseline"] == set(BASELINES)


def test_each_truth_value_takes_true_and_false_and_nothing_else(capsys):
    names = [name for name, it in defaults(NRIConfig).items() if isinstance(it, bool)]
    for name in set(names) - {"resume", "again"}:
        flag = declared(NRIConfig)[name].flags[0]
        for word in ("True", "False"):
            assert getattr(cli.parse_arguments([flag, word])[0], name) is (word == "True")
        with pytest.raises(SystemExit, match="2"):
            cli.parse_arguments([flag, "__import__('os')"])
    for name in ("symmetric_perturbation", "undirected_theta", "gradient_scaling"):
        assert name in names
        assert getattr(cli.parse_arguments([declared(NRIConfig)[name].flags[0]])[0], name) is True
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "method", "samples", "directed"),
    [
        ("", "sst", 1, False),
        ("--imle-samples 3 --num_samples 2", "sst", 1, False),
        ("--method ste --imle-samples 3 --num_samples 2", "ste", 3, False),
        ("--method aimle --aimle-target adaptive --imle-samples 3", "aimle", 3, True),
        ("--method imle --imle-lambda 1 --sst topk", "imle", 1, False),
        ("--method imle --imle-lambda 1 --undirected-theta", "imle", 1, False),
        ("--use_nvil True --imle-samples 3 --num_samples 2", "nvil", 2, False),
        ("--use_reinforce True --num_samples 2", "reinforce", 2, False),
    ],
)
def test_the_flags_choose_a_method_its_samples_and_what_it_sees(flags, method, samples, directed):
    config, _ = parse(flags)
    assert (config.chosen_method, config.nb_samples, config.directed_theta) == (method, samples, directed)


def test_help_needs_no_torch():
    code = """
import sys, aaai23.nri.cli as cli
try:
    cli.main(["--help"])
except SystemExit:
    sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


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
    assert names == {"train_config.json", "encoder.pt", "decoder.pt", "log.txt", "train_and_val_measurements.pkl"}
    config = json.loads((trial / "train_config.json").read_text())
    assert config["seed"] == 3 and config["settings"]["theta_noise_temperature"] == 1.0
    steps = [entry["iteration"] for entry in pickle.loads((trial / "train_and_val_measurements.pkl").read_bytes())]
    assert steps == [0, 2, 3]
    (folder,) = Path("results/nri").iterdir()
    ours = {"seed3.json", "seed3.pt", "seed3_graphs.png", "seed3_curves.png"}
    assert {path.name for path in folder.iterdir()} == ours
    lines = (trial / "log.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["Iteration", str(step)] for step in (0, 2, 3)]
    assert all(f"INFO:{cli.SCRIPT}:{line}" in trained for line in lines)


def test_the_namespace_is_sorted_and_says_what_was_used(trained):
    line = next(line for line in trained.splitlines() if line.startswith("Namespace("))
    keys = re.findall(r"(\w+)=", line.replace("T=", ""))
    assert len(keys) > 60 and keys == sorted(keys)


def test_flags_that_the_method_does_not_read_are_named_in_one_line(trained):
    (line,) = [line for line in trained.splitlines() if "not read by method" in line]
    assert line.startswith(f"INFO:{cli.SCRIPT}:not read by method aimle: ")
    assert sorted(line.partition("aimle: ")[2].split()) == sorted(UNREAD.split())


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
    final, evaluated = record("nri").final, record("nri-eval").final
    assert final.pop("edge_reading") in ("as_is", "flipped") and final["test_elbo"] < 0
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


def test_an_evaluation_given_twice_prints_its_metrics_again(run, trained):
    _, first, _ = run(*MISSION.split(), *SMALL, "--mode", "eval")
    code, second, _ = run(*MISSION.split(), *SMALL, "--mode", "eval")
    assert code == 0 and " took " in first and " took " not in second
    assert "is finished, with 1 entries" in second
    assert first[first.index("all_measurements") :] == second[second.index("all_measurements") :]


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
        ("--use_reinforce True --reinforce_baseline multi_sample", "--num_samples"),
        ("--method imle", "--imle-lambda 0"),
        ("--undirected-theta --method ste", "--undirected-theta"),
        ("--undirected-theta --use_nvil True", "--undirected-theta"),
        ("--undirected-theta --sst topk --method aimle --aimle-target adaptive", "--undirected-theta"),
        ("--name a/b", "--name"),
        ("--resume --again", "--resume goes on"),
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
    config, _ = parse(arguments)
    assert cli.choose_device(config, cli.configure_logging(cli.SCRIPT)).type == device
    assert ("WARNING" in capsys.readouterr().out) == warned


def test_the_default_name_tells_settings_apart_but_not_places_lengths_and_what_is_not_read(data):
    def name(text):
        config, _ = cli.parse_arguments(["--data-dir", str(data), *text.split()])
        return identify("nri", config, config.files()).name

    same = ("--seed 1 --mode eval --experiments_folder x --verbose True", "--num_iterations 7 --max-steps 2")
    for text in (*same, "--use_cpp_for_sampling True --eps_for_finitediff 3 --imle-samples 7", "--lr 0.0003"):
        assert name(text) == name("--seed 2")
    assert name("--lr 0.1") != name("--lr 0.2")
    assert name("--temp 0.1") != name("") and name("--method ste --temp 0.1") == name("--method ste")
    assert name("--use_nvil True").startswith("nvil_T10_tree-")


@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_a_finished_run_is_not_trained_again(run, trained, flags):
    code, out, _ = run(*MISSION.split(), *SMALL, *flags)
    assert code == 0
    assert "Iteration" not in out and "Experiment completed." in out
    figures = [line for line in trained.splitlines() if ":Test elbo" in line]
    assert len(figures) == 1 and figures[0] in out


def test_a_finished_run_goes_on_when_more_iterations_are_asked_for(run, trained):
    code, out, err = run(*MISSION.split(), *SMALL, "--num_iterations", "5")
    assert code == 2 and "--resume goes on from there" in err and "Iteration" not in out
    assert record("nri").status == "finished"
    code, out, _ = run(*MISSION.split(), *SMALL, "--num_iterations", "5", "--resume")
    assert code == 0
    assert re.findall(r"Iteration (\d+)", out) == ["4", "5"]


def test_sample_data_are_called_so(run, data, tmp_path):
    folder = tmp_path / "sample"
    write(folder, 10, sizes=(20, 10, 10))
    (folder / "SAMPLE_DATA.txt").write_text("made by a program")
    code, out, _ = run(*MISSION.split(), *SMALL, "--data-dir", str(folder))
    assert code == 0 and "holds sample data" in out
    assert record("nri").sample_data is True

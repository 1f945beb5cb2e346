"""Sweeps: every printed line means what was published, and survives the shell."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aaai23.harness.identity import identify
from tests.experiments.lines import (
    FOLDER,
    GENERATORS,
    PUBLISHED,
    ROOT,
    cli_of,
    configured,
    fill,
    printed_by,
    split,
    sweep,
    vae,
)
from tests.reference.data import write_digits

PUBLISHED_NRI = {  # (T, symmetric): (learning rate, noise temperature)
    (10, True): (5e-4, 0.1),
    (10, False): (1e-4, 1.0),
    (20, True): (5e-4, 1.0),
    (20, False): (5e-4, 0.1),
}


@pytest.fixture
def printed(capsys):
    """Run a generator in this process; returns the lines that it prints."""
    return lambda task, *words: printed_by(capsys, task, *words)[0]


@pytest.fixture
def refused(capsys):
    """Run a generator that leaves with exit code 2; returns its one line."""

    def run(task, *words):
        with pytest.raises(SystemExit) as stop:
            GENERATORS[task].main(list(words))
        out, err = capsys.readouterr()
        assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)
        return err

    return run


# the published settings


def test_nri_prints_forty_lines_of_the_four_published_settings_with_ten_seeds_each(printed):
    found = {}
    for line in printed("nri"):
        config = configured("nri", line)
        key = (config.timesteps, config.symmetric_perturbation)
        assert (config.lr, config.theta_noise_temperature) == PUBLISHED_NRI[key]
        found.setdefault(key, []).append(config.seed)
    assert found == {key: list(range(10)) for key in PUBLISHED_NRI}


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("nri", ["--timesteps", "10"]),
        ("l2x", ["--aspects", "3", "--methods", "aimle"]),
        ("vae", ["--methods", "aimle"]),
    ],
)
def test_a_line_computes_what_the_published_command_computes(task, words, printed):
    wanted, _ = cli_of(task).parse_arguments(PUBLISHED[task].split())
    found = [configured(task, line) for line in printed(task, *words, "--seeds", "4")]
    (config,) = [it for it in found if it.settings() == wanted.settings() and it.seed == wanted.seed]
    assert [getattr(it, "cuda", None) for it in (config, wanted)] == [True if task == "nri" else None] * 2
    assert config.device == wanted.device
    assert getattr(config, "reruns", 1) == 1  # one seed a line


def test_nri_at_twenty_frames_reads_the_longer_files_and_predicts_ten_steps(printed):
    for line in printed("nri", "--timesteps", "20", "--seeds", "1"):
        config = configured("nri", line)
        assert (config.suffix, config.prediction_steps) == ("_novar_1skip_20t_1r_graph10", 10)


def test_l2x_covers_four_aspects_and_every_method_and_three_sizes_for_aroma(printed):
    from aaai23.l2x.config import METHODS

    found = [configured("l2x", line) for line in printed("l2x", "--seeds", "1")]
    assert {config.method for config in found} == set(METHODS)
    sizes = {(config.aspect, config.select_k) for config in found}
    assert sizes == {(0, 10), (1, 5), (1, 10), (1, 15), (2, 10), (3, 10)}
    assert len(found) == len(sizes) * len(METHODS)
    imle = {(it.noise, it.perturbation_size, it.gradient_scaling) for it in found if it.method == "imle"}
    assert imle == {("sog", 1000.0, False)}


def test_vae_covers_all_methods_with_ten_codes_an_image(printed):
    from aaai23.dvae.config import METHODS

    found = [configured("vae", line) for line in printed("vae", "--seeds", "1")]
    assert {config.method for config in found} == set(METHODS)
    assert {config.nb_samples for config in found} == {10}


# every line, whatever the generator is asked for


@pytest.mark.parametrize(
    "task, words",
    [
        ("l2x", []),
        ("l2x", ["--aspects", "0", "--select-k", "5", "15", "--epochs", "2", "--", "-m", "60", "--mask-padding"]),
        ("vae", ["--epochs", "3", "--", "--max-iterations", "5"]),
        ("nri", ["--baselines", "--iterations", "100"]),
        ("nri", ["--methods", "sst", "--", "--device", "cpu"]),
    ],
)
def test_every_line_is_accepted_by_its_scripts_parser_and_knows_its_record_and_log(task, words, printed):
    lines = printed(task, "--data-dir", "data/sample", *words)
    assert len(lines) >= 10
    places = set()
    for line in lines:
        config = configured(task, line)
        log = split(line)[2]
        assert config.resume and config.name and str(config.data_dir) == "data/sample"
        assert log == f"results/{task}/{config.name}/seed{config.seed}.log"
        places.add(log)
    assert len(places) == len(lines), "two runs share a record"


def test_two_lines_share_neither_records_nor_trials(printed):
    from aaai23.nri.trial import trial_folder

    for task in GENERATORS:
        configs = [configured(task, line) for line in printed(task)]
        identities = [identify(task, config, []) for config in configs]
        assert len({it.file(".pt") for it in identities}) == len(configs)
        assert all(getattr(config, "checkpoint", None) is None for config in configs)
        if task == "nri":
            assert len({trial_folder(config, it) for config, it in zip(configs, identities)}) == len(configs) == 40


def test_other_data_length_or_flags_have_another_name(printed):
    def names(*words):
        return {configured("l2x", line).name for line in printed("l2x", "--seeds", "1", *words)}

    variants = [names(*words) for words in ([], ["--data-dir", "data/sample"], ["--epochs", "3"], ["--", "-m", "60"])]
    assert len(set.union(*variants)) == sum(map(len, variants))
    assert names("--data-dir", "/elsewhere/data") == variants[0]


def test_grid_is_the_product_of_its_axes_with_the_last_one_fastest():
    points = list(sweep.grid(a=(1, 2), b="xy"))
    assert points == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]


def test_generators_use_the_standard_library_only():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import generate_l2x_aimle_cmd, generate_nri_aimle_cmd"
    code += ", generate_vae_aimle_cmd; print(*{name.split('.')[0] for name in sys.modules if '_cmd' not in name})"
    done = subprocess.run([sys.executable, "-SIc", code, str(FOLDER)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) <= {"sweep", "__main__", "aaai23"}


def test_what_is_pending_is_told_without_torch(digits, tmp_path):
    job = sweep.Job("vae", "torch-vae-cli.py", "ste", 0)
    fill(job)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import sweep, pathlib; root = pathlib.Path(sys.argv[2])"
    code += "; job = sweep.Job('vae', 'torch-vae-cli.py', 'ste', 0); print(len(sweep.pending([job], root)))"
    code += "; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-Ic", code, FOLDER, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    left, modules = done.stdout.splitlines()
    assert left == "0" and {"pydantic", "aaai23"} <= set(modules.split())
    assert {"torch", "numpy", "wandb"}.isdisjoint(modules.split())


def test_each_generator_runs_by_itself_from_any_folder(tmp_path):
    for task, count in (("nri", 40), ("l2x", 420), ("vae", 40)):
        script = FOLDER / f"generate_{task}_aimle_cmd.py"
        done = subprocess.run([script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", count)


# the shell


@pytest.fixture
def stub(tmp_path):
    """An interpreter that writes down its arguments, and fails for seed 1."""
    path = tmp_path / "a python's stub"
    path.write_text("""#!/bin/sh
printf '%s\\n' "$PYTHONPATH" "$WANDB_RUN_GROUP" "$@"
case "$*" in *"--seed 1 "*) exit 3;; esac
""")
    path.chmod(0o755)
    return path


def stubbed(stub, tmp_path, *words):
    results = tmp_path / "results; of 'mine' $HOME"
    command = [FOLDER / "generate_vae_aimle_cmd.py", "--methods", "ste", "--seeds", "3", "--python", stub]
    command += ["--results-dir", results, "--data-dir", "da ta", *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, results


@pytest.mark.parametrize("shell", [["sh"], ["xargs", "-d", "\\n", "-n", "1", "-P", "2", "sh", "-c"]])
def test_lines_survive_the_shell_and_append_to_the_log_that_they_name(shell, stub, tmp_path):
    lines, results = stubbed(stub, tmp_path)
    for _ in range(2):
        subprocess.run(shell, input=lines, cwd=ROOT, text=True, timeout=60)
    for line in lines.splitlines():
        script, arguments, log = split(line)
        assert Path(log).is_relative_to(results)
        assert Path(log).read_text().splitlines() == [".", "vae-sweep", script, *arguments] * 2


def test_a_line_has_the_exit_code_of_its_run(stub, tmp_path):
    lines, _ = stubbed(stub, tmp_path)
    codes = [subprocess.run(line, shell=True, cwd=ROOT, timeout=60).returncode for line in lines.splitlines()]
    assert codes == [0, 3, 0]


def test_the_slurm_script_runs_one_line_a_task_and_fails_with_it(stub, tmp_path):
    script, results = stubbed(stub, tmp_path, "--format", "slurm", "--max-parallel", "2", "--gpus", "1", "--mem", "8G")
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, flags=re.MULTILINE))
    assert directives["array"] == "0-2%2"
    assert (directives["gres"], directives["mem"], directives["requeue"]) == ("gpu:1", "8G", "")
    assert {"time", "partition"}.isdisjoint(directives)
    assert directives["output"] == f'"{results}/slurm/%x-%A_%a.out"' and (results / "slurm").is_dir()
    codes = []
    for task in range(3):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
        codes.append(subprocess.run(["bash"], input=script, env=environment, cwd="/", text=True, timeout=60).returncode)
        log = results / "vae" / "ste_da-ta" / f"seed{task}.log"
        assert log.read_text().splitlines()[-1] == str(results)
    assert codes == [0, 3, 0]


def test_a_name_that_breaks_the_line_is_refused(refused):
    assert "one line" in refused("vae", "--results-dir", "two\nlines")
    assert "line break" in refused("vae", "--", "two\nlines")


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--seeds", "0"], "from 1 to 10000"),
        (["--time", "4"], "--format slurm"),
        (["--format", "slurm", "--mem", "8G; rm"], "one word"),
        (["--aspects", "7"], "invalid choice"),
        (["stray"], "unrecognized"),
    ],
)
def test_bad_flags_are_refused_in_one_line(words, reason, refused):
    assert reason in refused("l2x", *words)


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{shlex.quote(str(FOLDER / 'generate_l2x_aimle_cmd.py'))} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)


# what is left to do


@pytest.fixture
def digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_digits(tmp_path / "data", 20, 10)


def test_pending_leaves_out_what_is_finished_and_nothing_else(digits, tmp_path):
    jobs = [sweep.Job("vae", "torch-vae-cli.py", "ste", seed) for seed in range(6)]
    for job, status in zip(jobs, ("finished", "failed", "running")):
        fill(job, status)
    Path(jobs[3].record).write_text('{"status": "finis')
    Path(jobs[4].record).write_text('["finished"]')
    assert [job.seed for job in sweep.pending(jobs, tmp_path)] == [1, 2, 3, 4, 5]


def test_pending_knows_settings_length_and_data(digits, tmp_path, capsys):
    jobs = [sweep.Job("vae", "torch-vae-cli.py", "ste", seed, {"-e": 3}) for seed in range(4)]
    for job, changes in zip(jobs, ({}, {"epochs": 2}, {"code_m": 5}, {"data": "0123456789abcdef"}), strict=True):
        fill(job, **changes)
    assert [job.seed for job in sweep.pending(jobs, tmp_path)] == [1, 2, 3]
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2
    assert "seed2.json stays: it has other settings: code_m 5 (now 20)" in err
    assert "seed3.json stays: it read other data: fingerprint 0123456789abcdef, now " in err
    for file in digits.glob("t10k-images*"):
        content, stat = bytearray(file.read_bytes()), file.stat()
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [job.seed for job in sweep.pending(jobs, tmp_path)] == [0, 1, 2, 3]


def test_pending_prints_nothing_when_all_is_done(digits, tmp_path, printed, capsys):
    words = ["--methods", "ste", "--seeds", "2", "--results-dir", str(tmp_path), "--data-dir", str(digits), "--pending"]
    lines = printed("vae", *words)
    assert len(lines) == 2
    for line in lines:
        config = configured("vae", line)
        flags = {**vae.flags_of("ste"), "--data-dir": digits}
        fill(sweep.Job("vae", "", config.name, config.seed, flags, str(tmp_path)))
    for form in ("lines", "slurm"):
        assert vae.main([*words, "--format", form]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == ("", "nothing to run\n")


def test_records_lie_where_runs_write_them(printed):
    for task in GENERATORS:
        for line in printed(task, "--seeds", "2"):
            config = configured(task, line)
            job = sweep.Job(task, "", config.name, config.seed)
            assert Path(job.record) == identify(task, config, []).file(".json")

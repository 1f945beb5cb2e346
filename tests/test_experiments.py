"""Sweeps: every printed line means what was published, and survives the shell."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments"
sys.path.insert(0, str(FOLDER))
import generate_l2x_aimle_cmd as l2x  # noqa: E402
import generate_nri_aimle_cmd as nri  # noqa: E402
import generate_vae_aimle_cmd as vae  # noqa: E402
import sweep  # noqa: E402

from aaai23.arguments import config_of  # noqa: E402
from aaai23.fingerprint import fingerprint  # noqa: E402
from aaai23.record import write_record  # noqa: E402
from tests.test_dvae_cli import write_digits  # noqa: E402

GENERATORS = {"l2x": l2x, "vae": vae, "nri": nri}
CLIS = {"l2x": "aaai23.l2x.cli", "vae": "aaai23.dvae.cli", "nri": "aaai23.nri.cli"}
PUBLISHED_NRI = {  # (T, symmetric): (learning rate, noise temperature)
    (10, True): (5e-4, 0.1),
    (10, False): (1e-4, 1.0),
    (20, True): (5e-4, 1.0),
    (20, False): (5e-4, 0.1),
}


@pytest.fixture
def printed(capsys):
    """Run a generator in this process; returns the lines that it prints."""

    def run(task, *words):
        assert GENERATORS[task].main(list(words)) == 0
        return capsys.readouterr().out.splitlines()

    return run


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


def collect_lines(capsys, task, words):
    """Return the lines that a generator prints, and what it says beside them."""
    assert GENERATORS[task].main(list(map(str, words))) == 0
    out, err = capsys.readouterr()
    return out.splitlines(), err


def split(line):
    """Return (script, arguments, log) of a printed line."""
    words = shlex.split(line)
    begin = next(n for n, word in enumerate(words) if word.startswith("./cli/"))
    end = words.index(">>")
    assert words[begin - 2] == "PYTHONPATH=." and words[end + 2 :] == ["2>&1"]
    return words[begin], words[begin + 1 : end], words[end + 1]


def parsed(task, line):
    """Return what the script's own parser and checks make of a line."""
    cli = importlib.import_module(CLIS[task])
    script, arguments, _ = split(line)
    assert script == f"./cli/{cli.SCRIPT}" and (ROOT / script).exists()
    args = cli.parser().parse_args(arguments)
    cli.check(args)
    return args


def fill(job, status="finished", **changes):
    """Write the record that a job leaves: of its settings but for `changes`, and of the data that lie there now."""
    cli = importlib.import_module(CLIS[job.task])
    args = cli.parser().parse_args(job.arguments())
    args.data = fingerprint(cli.data_files(args))
    fields = {"format": 1, "task": job.task, "name": job.name, "seed": job.seed, "status": status}
    write_record(cli.record_of(args), {**fields, "config": {**config_of(args), **changes}, "history": [], "final": {}})


# the published settings


def test_nri_prints_forty_lines_of_the_four_published_settings_with_ten_seeds_each(printed):
    found = {}
    for line in printed("nri"):
        args = parsed("nri", line)
        key = (args.timesteps, args.aimle_symmetric)
        assert (args.lr, args.imle_noise_temperature) == PUBLISHED_NRI[key]
        found.setdefault(key, []).append(args.seed)
    assert found == {key: list(range(10)) for key in PUBLISHED_NRI}


def test_nri_settings_are_those_of_the_published_command(printed):
    published = (
        "--suffix _novar_1skip_10t_1r_graph10 --timesteps 10 --prediction_steps 9 --sst tree --relaxation "
        "exp_family_entropy --max_range 15 --symmeterize_logits True --lr 0.0001 --temp 0.1 --eps_for_finitediff 1.0 "
        "--cuda True --use_cpp_for_sampling True --method aimle --imle-lambda 0.0 --imle-lambda-update-step 0.001 "
        "--imle-noise sog --imle-noise-temperature 1.0 --aimle-target adaptive --imle-samples 1 --hard True --st True "
        "--experiments_folder ../exp_nri/aimle_v3_T10_nosym_best_3 --seed 3"
    )
    wanted = vars(importlib.import_module(CLIS["nri"]).parser().parse_args(published.split()))
    (line,) = [line for line in printed("nri") if "T10_aimle_forward --seed 3 " in line]
    found = vars(parsed("nri", line))
    assert {key for key in wanted if wanted[key] != found[key]} == {"name", "resume", "experiments_folder"}


def test_nri_at_twenty_frames_reads_the_longer_files_and_predicts_ten_steps(printed):
    for line in printed("nri", "--timesteps", "20", "--seeds", "1"):
        args = parsed("nri", line)
        assert (args.suffix, args.prediction_steps) == ("_novar_1skip_20t_1r_graph10", 10)


def test_l2x_aimle_has_the_settings_of_the_published_command(printed):
    published = (
        "-a 3 -e 20 -b 40 -k 3 -H 250 -m 350 -K 10 -r 10 -M aimle --aimle-symmetric --aimle-target adaptive "
        "--imle-samples 1 --imle-noise gumbel --imle-input-temperature 1.0 --imle-output-temperature 1.0 --imle-lambda "
        "0.0 --sst-temperature 0.0 --softsub-temperature 0.5 --ste-noise sog --ste-temperature 0.0 "
        "--gradient-scaling "
        "--aimle-beta-update-momentum 0.0 --aimle-beta-update-step 0.0001 --aimle-target-norm 1.0"
    )
    wanted = vars(importlib.import_module(CLIS["l2x"]).parser().parse_args(published.split()))
    (line,) = printed("l2x", "--aspects", "3", "--methods", "aimle", "--seeds", "1")
    found = vars(parsed("l2x", line))
    places = {"name", "resume", "reruns", "checkpoint"}
    of_another_method = {"sst_temperature"}
    assert {key for key in wanted if wanted[key] != found[key]} == places | of_another_method
    assert found["reruns"] == 1


def test_l2x_covers_four_aspects_and_every_method_and_three_sizes_for_aroma(printed):
    from aaai23.l2x.cli import METHOD_NAMES

    found = [parsed("l2x", line) for line in printed("l2x", "--seeds", "1")]
    assert {args.method for args in found} == set(METHOD_NAMES)
    sizes = {(args.aspect, args.select_k) for args in found}
    assert sizes == {(0, 10), (1, 5), (1, 10), (1, 15), (2, 10), (3, 10)}
    assert len(found) == len(sizes) * len(METHOD_NAMES)
    imle = {(args.imle_noise, args.imle_lambda, args.gradient_scaling) for args in found if args.method == "imle"}
    assert imle == {("sog", 1000.0, False)}


def test_vae_aimle_has_the_settings_of_the_published_command_and_all_methods_are_there(printed):
    published = (
        "-e 100 -b 100 -K 10 --code-m 20 --code-n 20 -M aimle --imle-samples 10 --imle-noise sog --imle-temperature "
        "1.0 --imle-lambda 0.0 --aimle-symmetric --aimle-target adaptive --ste-noise sog --ste-temperature 0.0 --seed "
        "0 --init-temperature 0.0 --gradient-scaling --aimle-beta-update-momentum 0.0 --aimle-beta-update-step 0.001 "
        "--aimle-target-norm 10.0"
    )
    cli = importlib.import_module(CLIS["vae"])
    wanted = vars(cli.parser().parse_args(published.split()))
    runs = {args.method: vars(args) for args in (parsed("vae", line) for line in printed("vae", "--seeds", "1"))}
    assert set(runs) == set(cli.METHOD_NAMES)
    differing = {key for key in wanted if wanted[key] != runs["aimle"][key]}
    assert differing == {"name", "resume"}
    assert {run["imle_samples"] for run in runs.values()} == {10}


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
        args = parsed(task, line)
        log = split(line)[2]
        assert args.resume and args.name and str(args.data_dir) == "data/sample"
        assert log == f"results/{task}/{args.name}/seed{args.seed}.log"
        places.add(log)
    assert len(places) == len(lines), "two runs share a record"


def test_methods_of_one_seed_never_share_a_checkpoint(printed):
    checkpoints = [parsed("l2x", line).checkpoint for line in printed("l2x")]
    assert len(set(checkpoints)) == len(checkpoints)
    trials = {(args.experiments_folder, args.seed) for args in (parsed("nri", line) for line in printed("nri"))}
    assert len(trials) == 40


def test_other_data_length_or_flags_have_another_name(printed):
    def names(*words):
        return {parsed("l2x", line).name for line in printed("l2x", "--seeds", "1", *words)}

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
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) <= {"sweep", "__main__"}


def test_what_is_pending_is_told_with_the_standard_library_and_without_torch(digits, tmp_path):
    job = sweep.Job("vae", "torch-vae-cli.py", "ste", 0)
    fill(job)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import sweep, pathlib; root = pathlib.Path(sys.argv[2])"
    code += "; job = sweep.Job('vae', 'torch-vae-cli.py', 'ste', 0); print(len(sweep.pending([job], root)))"
    code += "; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-SIc", code, FOLDER, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    left, modules = done.stdout.splitlines()
    assert left == "0" and set(modules.split()) - set(sys.stdlib_module_names) <= {"sweep", "__main__", "aaai23"}


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
        (["--seeds", "0"], "at least 1"),
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
    for job, changes in zip(jobs, ({}, {"epochs": 2}, {"code_m": 5}, {"data": "0123456789abcdef"})):
        fill(job, **changes)
    assert [job.seed for job in sweep.pending(jobs, tmp_path)] == [1, 2, 3]
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2
    assert "seed2.json has other settings: code_m 5 (now 20)" in err
    assert "seed3.json has other settings: data '0123456789abcdef' (now '" in err
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
        args = parsed("vae", line)
        flags = {"-e": 100, **vae.COMMON, "-M": "ste", **vae.METHODS["ste"], "--data-dir": digits}
        fill(sweep.Job("vae", "", args.name, args.seed, flags, str(tmp_path)))
    for form in ("lines", "slurm"):
        assert vae.main([*words, "--format", form]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == ("", "nothing to run\n")


def test_records_lie_where_runs_write_them(printed):
    from aaai23.record import record_path

    for task in GENERATORS:
        for line in printed(task, "--seeds", "2"):
            args = parsed(task, line)
            job = sweep.Job(task, "", args.name, args.seed)
            assert Path(job.record) == record_path(args.results_dir, task, args.name, args.seed)

"""What a start does with the work of an earlier one, in every task: goes on, says that it is done, or refuses."""

import contextlib
import io
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from aaai23.dvae import cli as vae
from aaai23.l2x import cli as l2x
from aaai23.l2x.sample import write_sample
from aaai23.nri import cli as nri
from aaai23.nri.simulate import write
from tests.experiments.lines import configured, printed_by, split, tables
from tests.reference.data import write_digits

AIMLE = "--method aimle --aimle-target adaptive --imle-lambda 0.1 --device cpu"
SCRIPTS = {
    "l2x": (l2x, f"{AIMLE} -a 3 -r 1 -m 60 -H 20 --imle-noise gumbel"),
    "vae": (vae, f"{AIMLE} --input-dim 196 --code-m 4 --code-n 6 -K 3"),
    "nri": (
        nri,
        f"{AIMLE} --encoder_hidden 8 --decoder_hidden 8 --batch_size 16 --eval_batch_size 10 --seed 0 --eval_every 2 "
        "--experiment_name trial --add_timestamp False --experiments_folder trials",
    ),
}
LENGTH = {"l2x": "-e", "vae": "-e", "nri": "--num_iterations"}
STEP = {"l2x": "Epoch 1/", "vae": "Epoch 1/", "nri": "Iteration 0"}
FINAL = {"l2x": "[0] Test MSE: ", "vae": "Average Test Loss: ", "nri": "Test elbo"}
TASKS = pytest.mark.parametrize("task", SCRIPTS)


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starting")
    write_sample(folder / "l2x", 0, 80, 40, 10)
    write_digits(folder / "vae", 200, 50)
    (folder / "nri").mkdir()
    write(folder / "nri", 10, sizes=(40, 20, 10))
    return folder


@pytest.fixture
def run(originals, tmp_path, monkeypatch, script, no_pictures):
    """Run a script in an empty folder, on its own copy of the data: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aaai23.nri.train.draw_pictures", lambda *_: None)

    def run_here(task, *flags, length=2):
        cli, line = SCRIPTS[task]
        if not Path(task).exists():
            shutil.copytree(originals / task, task)
        return script(cli, [*line.split(), LENGTH[task], length, "--data-dir", task, *flags])

    return run_here


def record(task, name="*", seed=0):
    (path,) = Path("results", task).glob(f"{name}/seed{seed}.json")
    return path


def checkpoint(task):
    return record(task).with_suffix(".pt")


def files():
    """Return every file that runs have written, with its content."""
    kept = [path for folder in ("results", "experiments", "models") for path in Path(folder).rglob("*")]
    return {path: path.read_bytes() for path in kept if path.is_file()}


def stop_early(task):
    """Make the record of a finished run that of one that was killed; its checkpoint lies there."""
    path = record(task)
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running", "final": None}))


OTHER_DATA = r"it read other data: fingerprint \w{16}, now \w{16}"
LAST_OF = {  # a file of the data; its last byte but one is a digit, a pixel, a part of a float
    "l2x": "review+wiki.filtered.200.txt",
    "vae": "t10k-images-idx3-ubyte",
    "nri": "data_test_novar_1skip_10t_1r_graph10.npy",
}


def correct_data(task):
    """Change one byte of the data, and leave the file's size and time."""
    path = Path(task, LAST_OF[task])
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


@TASKS
def test_a_finished_run_is_not_trained_again_unless_asked_for(task, run):
    code, first, err = run(task)
    assert code == 0, err
    before = files()
    code, out, _ = run(task)
    assert code == 0 and STEP[task] not in out
    assert f"{record(task)} is finished" in out and "--again" in out
    final = [line for line in first.splitlines() if FINAL[task] in line][-1]
    assert final in out.splitlines() and files() == before
    code, out, err = run(task, "--again")
    assert code == 0 and STEP[task] in out, err
    again = json.loads(record(task).read_text())
    assert again["history"] == json.loads(before[record(task)])["history"] and record(task).read_bytes() != before


@TASKS
def test_work_of_an_unfinished_run_is_not_lost_for_want_of_a_flag(task, run):
    assert run(task)[0] == 0
    whole = json.loads(record(task).read_text())
    stop_early(task)
    before = files()
    code, out, err = run(task)
    assert code == 2 and "--resume goes on from there, --again starts anew" in err and err.count("\n") == 1
    assert str(checkpoint(task)) in err and files() == before
    code, out, err = run(task, "--resume")
    assert code == 0 and STEP[task] not in out, err
    assert json.loads(record(task).read_text())["final"] == whole["final"]


@TASKS
def test_a_shorter_run_that_is_finished_is_not_replaced_by_a_longer_one_but_continued(task, run):
    assert run(task, "--name", "x")[0] == 0
    before = files()
    code, _, err = run(task, "--name", "x", length=4)
    assert code == 2 and "--resume" in err and files() == before
    code, out, err = run(task, "--name", "x", "--resume", length=4)
    assert code == 0 and STEP[task] not in out, err
    first = json.loads(before[record(task)])["history"]
    assert json.loads(record(task).read_text())["history"][: len(first)] == first


@TASKS
def test_a_corrected_file_makes_other_data_though_size_and_time_stay(task, run):
    assert run(task, "--name", "x")[0] == 0
    before = files()
    correct_data(task)
    for flags in ([], ["--resume"]):
        code, _, err = run(task, "--name", "x", *flags)
        assert code == 2 and re.search(OTHER_DATA, err) and err.count("\n") == 1, err
        assert files() == before


@TASKS
def test_one_command_on_two_data_sets_leaves_two_records(task, run):
    trial = lambda folder: ["--experiments_folder", folder] if task == "nri" else []  # noqa: E731
    assert run(task, *trial("first"))[0] == 0
    correct_data(task)
    assert run(task, *trial("second"))[0] == 0
    found = [json.loads(path.read_text()) for path in Path("results", task).glob("*/seed0.json")]
    assert len({entry["name"] for entry in found}) == len({entry["data"] for entry in found}) == 2


@pytest.mark.parametrize("again", [[], ["--again"]])
@pytest.mark.parametrize(
    ("other", "named"),
    [(["--seed", "1"], "it is of seed 0, not 1"), (["--lr", "0.1"], "lr 0.0003 (now 0.1)"), ([], "")],
)
def test_a_trial_of_another_run_is_refused_and_kept_with_every_record(run, other, named, again):
    assert run("nri", "--name", "x")[0] == 0
    if not other:
        correct_data("nri")
    place = [] if again else ["--name", "y"]  # else the same place, whose record --again would replace
    before = files()
    code, out, err = run("nri", "--name", "x", *other, *place, *again)
    assert code == 2 and "the trial experiments/trials/trial stays" in err and err.count("\n") == 1
    assert named in err if other else re.search(OTHER_DATA, err)
    assert files() == before and STEP["nri"] not in out


@pytest.mark.parametrize("again", [[], ["--again"]])
@pytest.mark.parametrize(
    ("other", "named"),
    [(["--seed", "1"], "it is of seed 0, not 1"), (["-b", "20"], "batch_size 40 (now 20)"), ([], "")],
)
def test_exported_weights_of_another_run_are_refused_and_kept_with_every_record(run, other, named, again):
    own = ["-c", "models/m.pt", "--name", "x"]
    assert run("l2x", *own)[0] == 0
    if not other:
        correct_data("l2x")
    place = [] if again else ["--name", "y"]
    before = files()
    code, out, err = run("l2x", *own, *other, *place, *again)
    assert code == 2 and "the weights models/m.pt stay" in err and err.count("\n") == 1
    assert named in err if other else re.search(OTHER_DATA, err)
    assert files() == before and STEP["l2x"] not in out


@TASKS
@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_a_checkpoint_of_another_seed_is_refused_and_kept(task, run, flags):
    assert run(task, "--name", "x", "--seed", "0")[0] == 0
    path = checkpoint(task)
    shutil.copy(path, path.with_name("seed1.pt"))
    before = files()
    folder = ["--experiments_folder", "second"] if task == "nri" else []
    code, _, err = run(task, "--name", "x", "--seed", "1", *folder, *flags)
    assert code == 2 and "it is of seed 0, not 1" in err and "seed1.pt" in err and err.count("\n") == 1
    assert files() == before


@TASKS
def test_a_record_of_an_earlier_version_is_refused_in_one_line_and_kept(task, run):
    assert run(task, "--name", "x")[0] == 0
    record(task).write_text(json.dumps({"format": 1, "task": task}))
    before = files()
    for flags in ([], ["--resume"]):
        code, _, err = run(task, "--name", "x", *flags)
        assert code == 2 and "of an earlier version of this project" in err and err.count("\n") == 1
        assert files() == before
    assert run(task, "--name", "x", "--again")[0] == 0
    assert json.loads(record(task).read_text())["status"] == "finished"


def test_by_default_each_run_of_l2x_has_its_own_checkpoint_beside_its_record(run):
    assert run("l2x", "-r", "2", length=1)[0] == 0
    assert run("l2x", "-b", "20", length=1)[0] == 0
    records = sorted(Path("results/l2x").glob("*/seed*.json"))
    assert len(records) == 3
    assert sorted(Path().rglob("*.pt")) == sorted(
        [*(path.with_suffix(".pt") for path in records), *Path("l2x/.cache").glob("*.pt")]
    )


@TASKS
def test_a_folder_where_the_checkpoint_should_be_is_named_before_any_work(task, run):
    assert run(task)[0] == 0
    path = checkpoint(task)
    record(task).unlink()
    path.unlink()
    path.mkdir()
    code, out, err = run(task)
    assert code == 2 and str(path) in err and err.count("\n") == 1 and STEP[task] not in out


@TASKS
def test_resuming_without_the_checkpoint_is_said(task, run):
    assert run(task, "--name", "x")[0] == 0
    stop_early(task)
    path, whole = checkpoint(task), json.loads(record(task).read_text())
    path.unlink()
    code, out, err = run(task, "--name", "x", "--resume")
    assert code == 0 and f"there is no checkpoint {path}: starting from the beginning" in out, err
    assert json.loads(record(task).read_text())["history"] == whole["history"]
    path.unlink()
    before = files()
    code, _, err = run(task, "--name", "x", "--resume", length=4)  # the record is a finished one: worth more
    assert code == 2 and str(path) in err and "--again" in err and files() == before


@TASKS
def test_a_loss_that_is_not_finite_names_flags_that_the_script_has(task, run, monkeypatch):
    module = {"l2x": "l2x", "vae": "dvae", "nri": "nri"}[task]
    monkeypatch.setattr(f"aaai23.{module}.train.loss_values", not_finite(module))
    code, _, err = run(task)
    flags = re.findall(r"--[\w-]+", err)
    known = help_of(task)
    assert code == 1 and flags and all(f"{flag} " in known for flag in flags), err


NOT_MEASURED = {
    "l2x": ("l2x.train.mean_squared_error", math.nan, "the validation error is not finite in epoch 1"),
    "nri": ("nri.train.evaluate", {"val_elbo": math.inf}, "the validation bound is not finite at iteration 0"),
    "vae": ("dvae.train.evaluate", {"test_loss": math.nan, "test_nelbo": math.inf}, None),  # nothing rests on it
}


@TASKS
def test_a_validation_metric_that_is_not_finite_ends_a_run_in_one_line_where_weights_are_chosen_by_it(
    task, run, monkeypatch
):
    place, value, said = NOT_MEASURED[task]
    monkeypatch.setattr(f"aaai23.{place}", lambda *_: value)
    code, out, err = run(task)
    assert (code, err.count("\n")) == ((0, 0) if said is None else (1, 1)), err
    assert said in err if said else "Average Test Loss: nan" in out


def help_of(task):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        SCRIPTS[task][0].parse_arguments(["--help"])
    return text.getvalue()


def not_finite(module):
    from aaai23.harness.loop import loss_values

    return lambda losses, *told: loss_values(torch.full_like(losses, torch.nan), *told)


def test_what_tables_and_plots_show_is_what_runs_write(run):
    for task in SCRIPTS:
        assert run(task, length=1)[0] == 0
    assert run("nri", "--mode", "eval", length=1)[0] == 0
    for task, shown in tables.TASKS.items():
        written = json.loads(record(task).read_text())
        assert {metric.key for metric in shown.metrics} <= set(written["final"])
        assert set(shown.curves) <= set(written["history"][-1])
        assert set(shown.settings.values()) - {"method"} <= set(written["settings"])


def test_reading_word_vectors_is_said_in_the_scripts_own_lines(run):
    _, out, _ = run("l2x", length=1)
    assert "\nINFO:l2x-cli.py:Reading word vectors from l2x/review+wiki" in out
    assert re.search(r"\nINFO:l2x-cli.py:[\d.]+% of the words in reviews.aspect3.train.txt have a vector", out)


def test_an_evaluation_of_other_weights_does_not_replace_an_earlier_one_unless_asked_for(run):
    assert run("nri")[0] == 0
    measure = ["--mode", "eval", "--name", "measured"]
    assert run("nri", *measure)[0] == 0
    earlier = record("nri-eval").read_bytes()
    code, out, _ = run("nri", *measure)  # of the same weights
    assert code == 0 and "is finished" in out and record("nri-eval").read_bytes() == earlier
    assert run("nri", "--resume", length=4)[0] == 0
    code, _, err = run("nri", *measure)
    assert code == 2 and re.search(OTHER_DATA, err) and record("nri-eval").read_bytes() == earlier
    assert run("nri", *measure, "--again")[0] == 0
    assert json.loads(record("nri-eval").read_text())["data"] != json.loads(earlier)["data"]


def test_a_trial_that_is_measured_on_other_data_than_it_was_trained_on_says_so(run):
    assert run("nri")[0] == 0
    _, out, _ = run("nri", "--mode", "eval", "--name", "own")
    assert "other data" not in out
    correct_data("nri")
    code, out, _ = run("nri", "--mode", "eval", "--name", "other")
    assert code == 0 and "was trained on other data than it is measured on" in out


def test_two_folders_of_one_name_do_not_report_each_others_metrics(originals, tmp_path, run, script, capsys):
    """The lines of a sweep name their runs before the data are known."""
    for place, half in (("A", slice(20)), ("B", slice(-20, None))):
        shutil.copytree(originals / "l2x", tmp_path / place / "beer", ignore=shutil.ignore_patterns(".cache"))
        for path in (tmp_path / place / "beer").glob("reviews.*"):
            path.write_text("".join(path.read_text().splitlines(keepends=True)[half]))

    def sweep(place, *words):
        flags = ["--aspects", "3", "--select-k", "5", "--methods", "ste", "--seeds", "1", "--epochs", "1"]
        return printed_by(capsys, "l2x", *flags, "--data-dir", f"{tmp_path / place}/beer", *words)

    def follow(line):
        return script(l2x, [*split(line)[1], "--device", "cpu"])

    here = ["--results-dir", f"{tmp_path}/results"]
    (line,) = sweep("A", *here)[0]
    assert follow(line)[0] == 0
    kept = files()
    assert sweep("A", *here, "--pending") == ([], "nothing to run\n")
    (of_b,), told = sweep("B", *here, "--pending")
    assert configured("l2x", of_b).name == configured("l2x", line).name and re.search(OTHER_DATA, told)
    code, out, err = follow(of_b)
    assert code == 2 and "Test MSE" not in out and re.search(OTHER_DATA, err)
    assert files() == kept
    (elsewhere,) = sweep("B", "--results-dir", f"{tmp_path}/elsewhere")[0]
    assert follow(elsewhere)[0] == 0
    metrics = [json.loads(path.read_text())["final"]["best_test_mse"] for path in tmp_path.rglob("seed0.json")]
    assert len(metrics) == len(set(metrics)) == 2


def test_the_demo_can_be_shown_twice(tmp_path, monkeypatch, capsys):
    from aaai23.l2x import demo

    monkeypatch.chdir(tmp_path)
    write_sample(Path("data/sample"), 0, 80, 40, 10)
    monkeypatch.setattr(demo, "COMMAND", demo.COMMAND.replace("-e 6", "-e 1"))
    Path("results/l2x/demo").mkdir(parents=True)
    Path("results/l2x/demo/seed0.json").write_text("of an older version")
    printed = []
    for _ in range(2):
        assert demo.main() == 0
        printed.append(capsys.readouterr().out)
    assert "Epoch 1/1" in printed[1] and "subset precision" in printed[1]

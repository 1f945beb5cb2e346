"""Tables and plots: computed from records, beside what was published, mixing nothing that differs."""

import csv
import io
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from aaai23.harness.identity import identify
from aaai23.harness.record import Record, plain
from tests.experiments.lines import FOLDER, GENERATORS, PUBLISHED, cli_of, configured, printed_by

import collect_results as collect  # isort: skip  # experiments/ is no package: `lines` has put it on the path
import published  # isort: skip
import records  # isort: skip
import sweep  # isort: skip
import tables  # isort: skip


SETTINGS = {"method": "aimle", "aspect": 3, "select_k": 10, "epochs": 20}
MSES = [2.4, 2.5, 2.3, 2.9, 2.6]


def make(task, name, seed, final=None, settings=SETTINGS, status="finished", history=(), environment=None, **more):
    """Return a record; where and how a run was started differs from seed to seed."""
    fields = {
        "task": task,
        "name": name,
        "seed": seed,
        "method": settings["method"],
        "status": status,
        "sample_data": False,
        "settings": settings,
        "data": "0123456789abcdef",
        "launch": {
            "data_dir": f"data{seed}",
            "device": f"cuda:{seed}",
            "environment": environment or {"commit": "abc", "torch": "2"},
        },
        "timing": {"updated": "2026-01-02T03:04:05+00:00"},
        "history": list(history),
        "final": final,
    }
    return Record(**{**fields, **more})


@pytest.mark.parametrize("flag", [[], ["--csv"]])
def test_a_reader_that_leaves_early_is_no_error(write, tmp_path, flag):
    for seed in range(2):
        write("l2x", "x", seed, mse(2.0))
    command = [sys.executable, str(FOLDER / "collect_results.py"), *flag, str(tmp_path)]
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(written)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Error" not in done.stderr, done.stderr


def mse(value):
    return {"best_test_mse": value, "best_val_mse": value + 0.1, "best_subset_prec": 50 + value}


@pytest.fixture
def write(tmp_path):
    """Write a record where a run would."""

    def put(task, name, seed, *args, **options):
        path = tmp_path / "results" / task / name / f"seed{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(task, name, seed, *args, **options).model_dump_json())
        return path

    return put


@pytest.fixture
def show(tmp_path, capsys):
    """Run the script on the records that were written; returns what it prints and what it says beside it."""

    def run(*words):
        assert collect.main([str(tmp_path / "results"), *words]) == 0
        return capsys.readouterr()

    return run


def rows(text):
    """Return the rows of Markdown tables as dicts."""
    found, titles = [], None
    for line in text.splitlines():
        if not line.startswith("|"):
            titles = None
        elif titles is None:
            titles = [word.strip() for word in line.strip("|").split(" | ")]
        elif "---" not in line:
            found.append(dict(zip(titles, [word.strip() for word in line.strip("|").split(" | ")], strict=True)))
    return found


# numbers


def test_a_row_is_mean_and_deviation_over_seeds_with_the_interval_of_scipy(write, show):
    from scipy.stats import bootstrap

    for seed, value in enumerate(MSES):
        write("l2x", "run", seed, mse(value))
    (row,) = rows(show().out)
    low, high = bootstrap((MSES,), statistics.fmean, vectorized=False, n_resamples=4000, rng=1).confidence_interval
    mean, rest = row["test MSE × 100"].split(" ± ")
    deviation, interval = rest.split(" [")
    assert (float(mean), float(deviation)) == (2.54, round(statistics.stdev(MSES), 3))
    assert [float(word) for word in interval.strip("]").split(", ")] == pytest.approx([low, high], abs=0.03)
    assert row["seeds"] == "5" and row["method"] == "aimle" and row["K"] == "10"


@pytest.mark.parametrize(
    "values, wanted",
    [
        ([], tables.Summary(0)),
        ([2.0], tables.Summary(1, 2.0)),
        ([2.0, 2.0, 2.0], tables.Summary(3, 2.0, 0.0, 2.0, 2.0)),
    ],
)
def test_values_without_a_bootstrap_have_what_they_allow(values, wanted):
    assert tables.summarise(values) == wanted


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 1.0, 1.0, 5.0], [1e-12, 2e-12, 3.5e-12]])
def test_intervals_hold_the_mean_and_are_the_same_each_time(values):
    first, second = tables.summarise(values), tables.summarise(values)
    assert first == second
    least, most = (pytest.approx(limit) for limit in (min(values), max(values)))
    assert (first.low >= min(values) or first.low == least) and (first.high <= max(values) or first.high == most)
    assert first.low <= first.mean <= first.high


def test_bootstrap_falls_back_on_percentiles_where_bca_does_not_exist(monkeypatch):
    import scipy.stats

    real, asked = scipy.stats.bootstrap, []

    def without_bca(data, statistic, *, method, **options):
        asked.append(method)
        result = real(data, statistic, method="percentile", **options)
        if method == "BCa":
            result.confidence_interval = result.confidence_interval._replace(low=math.nan)
        return result

    monkeypatch.setattr(scipy.stats, "bootstrap", without_bca)
    found = tables.summarise(MSES)
    assert asked == ["BCa", "percentile"]
    assert math.isfinite(found.low) and found.low < found.mean < found.high


def test_a_metric_that_some_seeds_lack_says_how_many_have_it(write, show):
    for seed, value in enumerate([2.0, 3.0, None]):
        write("l2x", "run", seed, {"best_test_mse": value, "best_val_mse": 1.0})
    (row,) = rows(show().out)
    assert row["seeds"] == "3"
    assert row["test MSE × 100"].startswith("2.500 ± 0.707") and row["test MSE × 100"].endswith("(n = 2)")
    assert row["subset precision × 100"] == "–"


def test_csv_has_a_line_for_each_group_and_metric_and_notes_go_elsewhere(write, show):
    for seed, value in enumerate(MSES):
        write("l2x", "run", seed, mse(value))
    write("l2x", "run", 5, status="failed", error="ValueError: no")
    found = show("--csv")
    lines = list(csv.DictReader(io.StringIO(found.out)))
    assert [line["metric"] for line in lines] == [metric.key for metric in tables.TASKS["l2x"].metrics]
    assert float(lines[0]["mean"]) == pytest.approx(2.54) and float(lines[0]["ci95_low"]) < 2.54
    assert (lines[0]["seeds"], lines[0]["failed"], lines[0]["running"]) == ("5", "1", "0")
    assert lines[0]["settings"] == "aspect=3 K=10" and lines[0]["method"] == "aimle"
    assert "ValueError: no" in found.err


# what is left out, and says so


def test_failed_and_running_runs_are_named_and_never_averaged(write, show):
    write("l2x", "run", 0, mse(2.0))
    write("l2x", "run", 1, mse(9.0), status="failed", error="FloatingPointError: the loss is not finite")
    write("l2x", "run", 2, status="running", history=[{"epoch": 1}])
    text = show().out
    (row,) = rows(text)
    assert row["seeds"] == "1, failed: 1, running: 2" and row["test MSE × 100"] == "2.000"
    assert "- failed: l2x/run seed 1: FloatingPointError: the loss is not finite" in text
    assert "- running: l2x/run seed 2: 1 entries, last written 2026-01-02T03:04:05+00:00; it may have been" in text


def test_runs_whose_edges_were_read_the_other_way_round_are_named(write, show):
    settings = {"method": "aimle", "timesteps": 10}
    for seed, reading in enumerate(["as_is", "flipped", "as_is"]):
        write("nri", "trees", seed, {"test_precision": 0.2, "edge_reading": reading}, settings)
    history = [{"iteration": step, "edge_reading": reading} for step, reading in [(0, "as_is"), (500, "flipped")]]
    write("nri", "trees", 3, None, settings, status="running", history=history)
    write("nri", "others", 1, {"test_precision": 0.2, "edge_reading": "as_is"}, settings, history=history)  # best model
    trials = [{"trial": trial, "edge_reading": reading} for trial, reading in enumerate(["flipped", "as_is"])]
    write("nri-eval", "again", 0, {"test_precision": 0.2}, settings, history=trials)
    told = [line.partition(' "no')[0] for line in show().out.splitlines() if '"no edge"' in line]
    assert told == ["- nri/trees: with seed 1 3", "- nri-eval/again: with seed 0"]


def test_sample_data_have_tables_of_their_own_that_say_so(write, show):
    write("l2x", "real", 0, mse(2.0))
    write("l2x", "stand-in", 0, mse(0.5), sample_data=True)
    text = show().out
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## Learning to explain (l2x)", "## Learning to explain (l2x), sample data"]
    first, second = text.split(titles[1])
    assert [row["name"] for row in rows(first)] == ["real"] and "sample" not in first
    assert [row["name"] for row in rows(second)] == ["stand-in"] and "no published value" in second


def test_runs_of_one_name_with_other_settings_or_data_are_kept_apart_and_named(write, show):
    write("l2x", "run", 0, mse(2.0))
    write("l2x", "run", 1, mse(3.0), settings={**SETTINGS, "epochs": 5})
    write("l2x", "run", 2, mse(4.0), sample_data=True)
    text = show().out
    assert sorted(row["test MSE × 100"] for row in rows(text)) == ["2.000", "3.000", "4.000"]
    (note,) = [line for line in text.splitlines() if "kept apart" in line]
    assert "l2x/run" in note and "epochs 20, 5" in note and "sample_data false, true" in note


def test_runs_of_one_name_on_other_data_are_kept_apart_and_named(write, show):
    write("l2x", "run", 0, mse(2.0), data="aaaa")
    write("l2x", "run", 1, mse(4.0), data="bbbb")
    text = show().out
    assert sorted(row["test MSE × 100"] for row in rows(text)) == ["2.000", "4.000"]
    assert 'l2x/run holds runs of different settings, kept apart: data "aaaa", "bbbb"' in text


def test_folders_devices_and_seeds_are_no_settings(write, show):
    launches = [json.loads(write("l2x", "run", seed, mse(2.0)).read_text())["launch"] for seed in range(5)]
    assert len({json.dumps(launch) for launch in launches}) == 5
    assert len(rows(show().out)) == 1


def test_json_that_holds_no_record_is_named_and_skipped(write, show, tmp_path):
    whole = write("l2x", "run", 0, mse(2.0))
    folder = whole.parent
    (folder / "seed1.json").write_text(whole.read_text()[:200])
    (folder / "notes.json").write_text('{"format": 2, "task": "l2x"}')
    (folder / "old.json").write_text('{"format": 1, "task": "l2x"}')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "seed2.json").write_bytes(b"\xff\xfe\x00")
    broken = whole.read_text().replace('"seed":0', '"seed":3').replace('"best_test_mse":2.0', '"best_test_mse":[]')
    (folder / "seed3.json").write_text(broken)
    (folder / "train_config.json").write_text("{}")
    text = show().out
    (row,) = rows(text)
    assert row["seeds"] == "1"
    notes = [line for line in text.splitlines() if line.startswith("- skipped")]
    assert [note.split("/")[-1].split(" is ")[0] for note in notes] == [
        "list.json",
        "notes.json",
        "old.json",
        "seed1.json",
        "seed2.json",
        "seed3.json",
    ]
    assert "is a record of an earlier version of this project" in notes[2]
    assert "not whole JSON" in notes[3] and "no run record: final.best_test_mse." in notes[5]


def test_nvil_and_reinforce_are_called_so_in_tables_csv_and_plots(write, show):
    from plots import labels_of

    methods = {"nvil": ["--use_nvil", "True"], "reinforce": ["--use_reinforce", "True"], "sst": []}
    found = []
    for method, flags in methods.items():
        identity = identify("nri", sweep.config_of("nri", flags), [])
        path = write("nri", f"run_{method}", 0, {"test_elbo": -1.0}, identity.settings, method=identity.method)
        found.append((path, records.read_record(path)))
    assert [row["method"] for row in rows(show().out)] == list(methods)
    lines = csv.DictReader(io.StringIO(show("--csv").out))
    assert {(line["name"], line["method"]) for line in lines} == {(f"run_{method}", method) for method in methods}
    (table,) = tables.tables_of(records.group(found)[0])
    assert labels_of(table.rows) == list(methods)


def test_a_seed_that_is_there_twice_counts_once(write, show, tmp_path, capsys):
    path = write("l2x", "run", 0, mse(2.0))
    copy = tmp_path / "copy" / "seed0.json"
    copy.parent.mkdir()
    copy.write_text(path.read_text())
    text = show(str(copy.parent), str(path)).out
    (row,) = rows(text)
    assert row["seeds"] == "1" and f"skipped {copy}: seed 0 of l2x/run is there already" in text


def test_runs_of_several_commits_are_pointed_out(write, show):
    write("l2x", "run", 0, mse(2.0))
    write("l2x", "run", 1, mse(2.1), environment={"commit": "def", "torch": "2"})
    assert "l2x/run is of several commits: abc, def" in show().out


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_places_without_records_are_refused_in_one_line(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        collect.main([place])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)


# published values


def test_a_published_value_stands_beside_its_settings_with_its_caveat(write, show):
    softsub = {**SETTINGS, "method": "softsub", "softsub_temperature": 0.5}
    write("l2x", "softsub", 0, mse(2.0), softsub)
    write("l2x", "narrow", 0, mse(2.0), {**softsub, "hidden_dims": 20})
    write("l2x", "short", 0, mse(2.0), {**SETTINGS, "method": "l2x", "epochs": 3})
    write("l2x", "ours", 0, mse(2.0))
    text = show().out
    told = {row["name"]: row["published (BeerAdvocate)"] for row in rows(text)}
    assert told == {"softsub": "test MSE × 100 2.18 [1]", "narrow": "–", "short": "–", "ours": "–"}
    assert "[1] mean only, from a secondary source" in text


def test_no_published_value_stands_beside_sample_data(write, show):
    settings = {**SETTINGS, "method": "l2x"}
    write("l2x", "run", 0, mse(2.0), settings, sample_data=True)
    assert published.published_value("l2x", "best_test_mse", settings).value == 6.92
    text = show().out
    assert not any("published" in title for title in rows(text)[0]) and "6.92" not in text


def values_beside(task, config):
    """Return the published values beside a run of a configuration, by metric."""
    settings = plain(config.settings())
    found = {metric.key: published.published_value(task, metric.key, settings) for metric in tables.TASKS[task].metrics}
    return {key: value.value for key, value in found.items() if value}


def test_published_values_are_those_of_the_paper_and_stand_beside_what_generators_print(capsys):
    found = {}
    for task in GENERATORS:
        lines, _ = printed_by(capsys, task, "--seeds", 1)
        found[task] = [(config, values_beside(task, config)) for config in (configured(task, line) for line in lines)]
    test_mse = {"l2x": {}, "softsub": {}, "imle": {}, "imletopk": {}}
    for config, values in found["l2x"]:
        if values:
            test_mse[config.method][config.aspect] = values.pop("best_test_mse")
            assert not values and config.select_k == 10
    assert test_mse["l2x"] == {0: 10.7, 1: 5.75, 2: 6.7, 3: 6.92}
    assert test_mse["softsub"] == {0: 2.48, 1: 2.52, 2: 2.94, 3: 2.18}
    assert test_mse["imle"] == test_mse["imletopk"] == {0: 2.51, 1: 2.62, 2: 2.96, 3: 2.38}
    assert [(config.method, values) for config, values in found["vae"] if values] == [
        ("aimle", {"loss": 593.5313, "test_loss": 60.20955})
    ]
    (only,) = [(config, values) for config, values in found["nri"] if values]
    assert (only[0].timesteps, only[0].symmetric_perturbation, only[0].lr) == (10, False, 1e-4)
    assert only[1] == {
        "val_elbo": -1660.797,
        "test_elbo": -1659.316,
        "test_acc": 0.8547,
        "test_precision": 0.63674,
        "test_recall": 0.63674,
    }


@pytest.mark.parametrize(("task", "count"), [("l2x", 0), ("vae", 2), ("nri", 5)])
def test_the_papers_own_commands_have_the_published_values_beside_them(task, count):
    """For AIMLE on BeerAdvocate the paper's numbers are in no source at hand."""
    config, _ = cli_of(task).parse_arguments(PUBLISHED[task].split())
    assert len(values_beside(task, config)) == count
    for change in ({"precision": "bf16"}, {"batch_size": 7}):
        assert values_beside(task, replace(config, **change)) == {}


def test_a_setting_that_a_record_lacks_counts_as_its_default():
    config, _ = cli_of("vae").parse_arguments(PUBLISHED["vae"].split())
    settings = plain(config.settings())
    for lacking, value in (("batch_size", 593.5313), ("nb_samples", None)):  # by default 100, as published, and 1
        left = {key: it for key, it in settings.items() if key != lacking}
        assert getattr(published.published_value("vae", "loss", left), "value", None) == value


@pytest.mark.parametrize("task", ["vae", "nri"])
def test_published_curves_stand_beside_runs_of_any_length_and_of_no_other_settings(task):
    from plots import _curves

    keys = {"vae": ("loss", "test_loss", "beta"), "nri": ("val_elbo", "val_precision")}[task]
    length = {"vae": "epochs", "nri": "num_iterations"}[task]
    config, _ = cli_of(task).parse_arguments(PUBLISHED[task].split())

    def crosses(config, sample_data=False):
        history = [{"epoch": 1, **dict.fromkeys(keys, 1.0)}]
        record = SimpleNamespace(history=history)
        group = SimpleNamespace(
            task=task,
            settings=plain(config.settings()),
            sample_data=sample_data,
            finished=[record],
            records=[record],
            method=config.method,
            name="run",
        )
        table = SimpleNamespace(task=tables.TASKS[task], title=task)
        figure = _curves(table, [SimpleNamespace(group=group)])
        lines = [line for axis in figure.axes for line in axis.lines if line.get_marker() == "x"]
        return [list(zip(*line.get_data())) for line in lines]

    known = [list(published.published_points(task, key, plain(config.settings()))) for key in keys]
    assert all(known) and crosses(config) == crosses(replace(config, **{length: 7})) == known
    assert crosses(replace(config, batch_size=7)) == crosses(config, sample_data=True) == []
    last = {"vae": [593.5313, 60.20955, 0.27], "nri": [-1660.797, 0.6375]}[task]
    assert [points[-1][1] for points in known] == last


# where runs come from


def test_runs_are_told_with_hours_and_origin_and_those_of_another_commit_apart(write, show, tmp_path):
    for seed, (commit, status, seconds) in enumerate(
        [("a" * 40, "finished", 3600), ("a" * 40, "failed", 1800), ("b" * 40, "finished", None)]
    ):
        environment = {"commit": commit, "dirty": commit[0] == "b", "device": "a processor", "torch": "2.13.0"}
        path = write("l2x", "run", seed, mse(2.0), status=status, environment=environment)
        record = json.loads(path.read_text())
        record["timing"] = {} if seconds is None else {"seconds": seconds}
        path.write_text(json.dumps(record))
    found = show("--runs").out
    assert "| run | 0, 1 (failed) | 1.00, 0.50 | aaaaaaa | a processor | 2.13.0 |  |" in found
    assert "| run | 2 | ? | bbbbbbb, changed | a processor | 2.13.0 |  |" in found
    assert "hours" not in show().out


def test_a_run_of_several_machines_names_them_in_order(write, show):
    steps = [{"epoch": epoch} for epoch in range(1, 6)]
    path = write("l2x", "run", 0, mse(2.0), history=steps, environment={"commit": "b" * 40, "device": "a GPU"})
    record = json.loads(path.read_text())
    for epoch, device in ((2, "a processor"), (3, "a GPU")):
        start = {"until": epoch, "environment": {"commit": "a" * 40, "device": device, "torch": "2"}}
        record["launch"].setdefault("earlier", []).append(start)
    path.write_text(json.dumps(record))
    assert "| aaaaaaa, then bbbbbbb | a processor, then a GPU | 2, then ? |  |" in show("--runs").out
    assert "l2x/run is of several commits: aaaaaaaaaaaa, bbbbbbbbbbbb" in show().out


@pytest.mark.parametrize("flag", [["--runs"], ["--at", "1"]])
def test_flags_of_markdown_are_refused_beside_csv(write, show, flag, capsys):
    write("l2x", "run", 0, mse(2.0))
    with pytest.raises(SystemExit) as ended:
        show("--csv", *flag)
    assert ended.value.code == 2 and "leave --csv out" in capsys.readouterr().err


# plots, size, other tasks


def test_plots_are_drawn_as_png_and_svg_with_curves_and_comparison(write, show, tmp_path):
    for name, shift in (("a", 0.0), ("b", 0.5)):
        for seed in range(3):
            history = [{"epoch": n, "loss_mean": 1 / n + shift, "val_mse": n * seed, "test_mse": 1.0} for n in (1, 2)]
            settings = {**SETTINGS, "method": name}
            write("l2x", name, seed, mse(2 + seed / 10 + shift), settings, sample_data=True, history=history)
    write("vae", "only", 0, {"loss": 3.0}, {"method": "ste"}, status="running")
    prefix = tmp_path / "pictures" / "all"
    found = show("--plots", str(prefix))
    names = sorted(path.name for path in prefix.parent.iterdir())
    kinds = ("comparison", "curves")
    assert names == [f"all_l2x_sample_{kind}.{ending}" for kind in kinds for ending in ("png", "svg")]
    assert all(str(prefix.parent / name) in found.err for name in names)
    svg = (prefix.parent / "all_l2x_sample_curves.svg").read_text()
    assert "sample data" in svg and "<svg" in svg
    assert all((prefix.parent / name).stat().st_size > 5000 for name in names)


def test_a_run_that_is_not_finished_has_a_curve_that_says_so_and_no_place_in_a_comparison(write, show, tmp_path):
    write("vae", "only", 0, {}, {"method": "ste"}, status="running", history=[{"epoch": 1, "loss": 3.0}])
    write("vae", "begun", 0, {}, {"method": "aimle"}, status="running")
    show("--plots", str(tmp_path / "p"))
    names = sorted(path.name for path in tmp_path.glob("p_*"))
    assert names == ["p_vae_curves.png", "p_vae_curves.svg"]


def test_a_finished_run_of_a_group_keeps_the_others_out_of_its_curve():
    from matplotlib.figure import Figure
    from plots import _curve

    states = {"finished": 1.0, "running": 9.0}
    runs = [
        make("l2x", "run", seed, status=status, history=[{"epoch": 1, "x": x}])
        for seed, (status, x) in enumerate(states.items())
    ]
    drawn = {}
    for count in (2, 1):
        axis = Figure().subplots()
        group = records.Group("l2x", "run", "aimle", False, "", SETTINGS, runs[-count:])
        _curve(axis, SimpleNamespace(group=group), "x", "run", "C0")
        (line,) = axis.lines
        drawn[line.get_label()] = list(zip(*line.get_data()))
    assert drawn == {"run": [(1, 1.0)], "run (unfinished)": [(1, 9.0)]}


def test_plots_without_matplotlib_are_a_one_line_error(write, show, tmp_path, capsys, monkeypatch):
    write("l2x", "run", 0, mse(2.0))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as ended:
        show("--plots", str(tmp_path / "p"))
    assert ended.value.code == 2 and "error: --plots needs matplotlib" in capsys.readouterr().err


def test_a_curve_is_mean_and_deviation_where_every_run_has_a_value():
    from matplotlib.figure import Figure
    from plots import _curve

    runs = [
        make("l2x", "run", seed, history=[{"epoch": n, "x": value} for n, value in enumerate(values, start=1)])
        for seed, values in enumerate([(1.0, 4.0, None), (3.0, 4.0, 1.0, 1.0)])
    ]
    group = records.Group("l2x", "run", "aimle", False, "", SETTINGS, runs)
    axis = Figure().subplots()
    _curve(axis, SimpleNamespace(group=group), "x", "run", "C0")
    _curve(axis, SimpleNamespace(group=group), "beta", "run", "C0")
    assert [list(zip(*line.get_data())) for line in axis.lines] == [[(1, 2.0), (2, 4.0)]]
    band = axis.collections[0].get_paths()[0].vertices.tolist()
    assert [1, pytest.approx(2 - math.sqrt(2))] in band and [1, pytest.approx(2 + math.sqrt(2))] in band


def test_what_was_logged_at_chosen_steps_stands_beside_what_is_published_of_them(write, show):
    settings = plain(cli_of("vae").parse_arguments(PUBLISHED["vae"].split())[0].settings())
    for seed, losses in enumerate([(1100.0, 760.0, 700.0), (1102.0, 762.0)]):
        history = [{"epoch": n, "loss": loss, "test_loss": 80.5} for n, loss in enumerate(losses, start=1)]
        write("vae", "aimle", seed, None, settings, history=history, status=("running", "failed")[seed])
    write("l2x", "other", 0, mse(2.0), history=[{"epoch": 4, "val_mse": 1.5}])
    text = show("--at", "1", "3", "4", "98", "99").out
    _, _, *found = rows(text)
    shown = [[*row.values()] for row in found]
    assert [*found[0]] == ["epoch", "seeds", "training loss", "validation MSE × 100", "test MSE × 100"]
    assert shown[0] == ["4", "1", "", "1.5", ""]
    published = [line for line in text.splitlines() if line.startswith(("| 1 |", "| 3 |", "| 4 |", "| 98 |", "| 99 |"))]
    assert published[1:] == [
        "| 1 | 2 | 1101 ± 1.4 | 1102.39 | 80.5 ± 0 | 79.8561 |  | 0.6 |",
        "| 3 | 1 | 700 | 720.944 | 80.5 | 70.7989 |  | 1.056 |",
        "| 4 | 0 |  | 699.943 |  |  |  | 1.064 |",
        "| 99 | 0 |  | 593.742 |  | 60.4411 |  | 0.298 |",
    ]


def test_an_evaluation_of_trials_has_a_row_and_a_comparison_but_no_curves(write, show, tmp_path):
    final = {"valid_elbo": -1670.25, "valid_mse": 0.1, "test_elbo": -1659.5, "test_acc": 0.85, "test_precision": 0.6375}
    write("nri-eval", "run", 3, final, {"method": "aimle", "timesteps": 10}, history=[{"trial": 0, "test_elbo": 1.0}])
    found = show("--plots", str(tmp_path / "plots" / "all"))
    (row,) = rows(found.out)
    assert (row["T"], row["method"], row["seeds"]) == ("10", "aimle", "1")
    assert (row["validation ELBO"], row["test ELBO"], row["test precision"]) == ("-1670.2", "-1659.5", "0.6375")
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["all_nri-eval_comparison.png", "all_nri-eval_comparison.svg"]


def test_tasks_that_are_not_known_show_all_their_metrics(write, show):
    write("ising", "run", 0, {"cosine": 0.5, "note": "text"}, {"method": "ste"})
    (row,) = rows(show().out)
    assert row == {"name": "run", "method": "ste", "seeds": "1", "cosine": "0.5000"}


def test_two_hundred_runs_of_every_task_fit_in_one_table_each(write, show):
    finals = {"l2x": mse(2.0), "vae": {"loss": 600.0, "test_loss": 60.0}, "nri": {"test_elbo": -1660.0}}
    for task, final in finals.items():
        for number in range(20):
            for seed in range(10):
                write(task, f"{number:02}", seed, final, {"method": "aimle", "n": number})
    found = rows(show().out)
    assert len(found) == 60 and {row["seeds"] for row in found} == {"10"}


def test_the_script_runs_by_itself(write, tmp_path):
    write("l2x", "run", 0, mse(2.0))
    command = [sys.executable, FOLDER / "collect_results.py", tmp_path / "results"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and len(rows(done.stdout)) == 1


SETTINGS_OF_A_USER = {
    "a notebook's shell": ("MPLBACKEND", "module://matplotlib_inline.backend_inline"),
    "a matplotlibrc": ("MATPLOTLIBRC", "text.usetex: True\nfont.family: Nosuch\n"),
}


@pytest.mark.parametrize("name", SETTINGS_OF_A_USER)
def test_pictures_are_drawn_whatever_a_users_settings_are(name, tmp_path):
    variable, value = SETTINGS_OF_A_USER[name]
    if variable == "MATPLOTLIBRC":
        (tmp_path / "matplotlibrc").write_text(value)
        value = str(tmp_path)
    script = [sys.executable, "experiments/collect_results.py", "docs/records/vae", "--plots", str(tmp_path / "p")]
    found = subprocess.run(
        script, cwd=FOLDER.parent, env=os.environ | {variable: value}, capture_output=True, text=True
    )
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    assert (tmp_path / "p_vae_curves.png").stat().st_size > 5000

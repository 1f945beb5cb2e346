"""Tables and figures: computed from records, beside what was published, mixing nothing that differs."""

import csv
import io
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments"
sys.path.insert(0, str(FOLDER))
import collect_results as collect  # noqa: E402
import published  # noqa: E402
import records  # noqa: E402
import tables  # noqa: E402

from tests.test_experiments import parsed  # noqa: E402

CONFIG = {"method": "aimle", "aspect": 3, "select_k": 10, "epochs": 20, "max_iterations": None, "mask_padding": False}
MSES = [2.4, 2.5, 2.3, 2.9, 2.6]


def make(task, name, seed, final=None, config=CONFIG, status="finished", sample_data=False, history=(), **more):
    return {
        "format": 1,
        "task": task,
        "name": name,
        "seed": seed,
        "status": status,
        "error": None,
        "sample_data": sample_data,
        "command": "",
        "config": {**config, "seed": seed, "name": name, "data_dir": f"data{seed}", "checkpoint": f"{seed}.pt"},
        "environment": {"commit": "abc", "torch": "2"},
        "timing": {"updated": "2026-01-02T03:04:05+00:00"},
        "history": list(history),
        "final": final,
        **more,
    }


def mse(value):
    return {"best_test_mse": value, "best_val_mse": value + 0.1, "best_subset_prec": 50 + value}


@pytest.fixture
def write(tmp_path):
    """Write a record where a run would."""

    def put(task, name, seed, *args, **options):
        path = tmp_path / "results" / task / name / f"seed{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make(task, name, seed, *args, **options)))
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


def test_a_figure_that_some_seeds_lack_says_how_many_have_it(write, show):
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


def test_sample_data_have_tables_of_their_own_that_say_so(write, show):
    write("l2x", "real", 0, mse(2.0))
    write("l2x", "stand-in", 0, mse(0.5), sample_data=True)
    text = show().out
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## Learning to explain (l2x)", "## Learning to explain (l2x), sample data"]
    first, second = text.split(titles[1])
    assert [row["name"] for row in rows(first)] == ["real"] and "sample" not in first
    assert [row["name"] for row in rows(second)] == ["stand-in"] and "no published figure" in second


def test_runs_of_one_name_with_other_settings_or_data_are_kept_apart_and_named(write, show):
    write("l2x", "run", 0, mse(2.0))
    write("l2x", "run", 1, mse(3.0), config={**CONFIG, "epochs": 5})
    write("l2x", "run", 2, mse(4.0), sample_data=True)
    text = show().out
    assert sorted(row["test MSE × 100"] for row in rows(text)) == ["2.000", "3.000", "4.000"]
    (note,) = [line for line in text.splitlines() if "kept apart" in line]
    assert "l2x/run" in note and "epochs 20, 5" in note and "sample_data false, true" in note


def test_runs_of_one_name_on_other_data_are_kept_apart_and_named(write, show):
    write("l2x", "run", 0, mse(2.0), config={**CONFIG, "data": "aaaa"})
    write("l2x", "run", 1, mse(4.0), config={**CONFIG, "data": "bbbb"})
    text = show().out
    assert sorted(row["test MSE × 100"] for row in rows(text)) == ["2.000", "4.000"]
    assert 'l2x/run holds runs of different settings, kept apart: data "aaaa", "bbbb"' in text


def test_folders_devices_and_seeds_are_no_settings(write, show):
    for seed, value in enumerate(MSES):
        write("l2x", "run", seed, mse(value), config={**CONFIG, "device": f"cuda:{seed}", "results_dir": str(seed)})
    assert len(rows(show().out)) == 1


def test_flags_that_tasks_do_not_compare_when_they_resume_are_not_compared_here():
    from aaai23.l2x.train import NOT_COMPARED as l2x
    from aaai23.nri.settings import NOT_COMPARED as nri

    how_long = {"epochs", "num_iterations", "max_steps"}
    assert (set(l2x) | set(nri)) - how_long == set(records.NOT_SETTINGS)


def test_json_that_holds_no_record_is_named_and_skipped(write, show, tmp_path):
    whole = write("l2x", "run", 0, mse(2.0))
    folder = whole.parent
    (folder / "seed1.json").write_text(whole.read_text()[:200])
    (folder / "notes.json").write_text('{"format": 1, "task": "l2x"}')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "seed2.json").write_bytes(b"\xff\xfe\x00")
    (folder / "seed3.json").write_text(json.dumps(make("l2x", "run", 3, final="none")))
    (folder / "train_config.json").write_text("{}")
    text = show().out
    (row,) = rows(text)
    assert row["seeds"] == "1"
    notes = [line for line in text.splitlines() if line.startswith("- skipped")]
    assert [note.split("/")[-1].split(":")[0] for note in notes] == [
        "list.json",
        "notes.json",
        "seed1.json",
        "seed2.json",
        "seed3.json",
    ]
    assert "not whole JSON" in notes[2] and "field final" in notes[4]


def test_nvil_and_reinforce_are_called_so_in_tables_csv_and_plots(write, show):
    from figures import labels_of

    methods = {"nvil": {"use_nvil": True}, "reinforce": {"use_reinforce": True}, "sst": {}}
    found = []
    for method, flags in methods.items():
        config = {"method": "sst", "timesteps": 10, "use_nvil": False, "use_reinforce": False, **flags}
        path = write("nri", f"run_{method}", 0, {"test_elbo": -1.0}, config=config)
        found.append((path, json.loads(path.read_text())))
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


# published figures


def test_a_published_figure_stands_beside_its_settings_with_its_caveat(write, show):
    write("l2x", "softsub", 0, mse(2.0), config={**CONFIG, "method": "softsub", "softsub_temperature": 0.5})
    write("l2x", "short", 0, mse(2.0), config={**CONFIG, "method": "l2x", "epochs": 3})
    write("l2x", "ours", 0, mse(2.0))
    text = show().out
    told = {row["name"]: row["published"] for row in rows(text)}
    assert told == {"softsub": "test MSE × 100 2.18 [1]", "short": "–", "ours": "–"}
    assert "[1] BeerAdvocate, mean only, from a secondary source" in text


def test_no_published_figure_stands_beside_sample_data(write, show):
    config = {**CONFIG, "method": "l2x"}
    write("l2x", "run", 0, mse(2.0), config=config, sample_data=True)
    assert published.published_figure("l2x", "best_test_mse", config).value == 6.92
    text = show().out
    assert "published" not in rows(text)[0] and "6.92" not in text


def test_published_figures_are_those_of_the_paper_and_match_what_generators_print():
    import generate_l2x_aimle_cmd
    import generate_nri_aimle_cmd
    import generate_vae_aimle_cmd

    found = {}
    for task, generator in (
        ("l2x", generate_l2x_aimle_cmd),
        ("vae", generate_vae_aimle_cmd),
        ("nri", generate_nri_aimle_cmd),
    ):
        for args in _configs(task, generator):
            for metric in tables.TASKS[task].metrics:
                figure = published.published_figure(task, metric.key, args)
                if figure:
                    found[task, args["method"], args.get("aspect", args.get("timesteps")), metric.key] = figure.value
    assert found["nri", "aimle", 10, "test_elbo"] == -1659.316
    assert found["nri", "aimle", 10, "test_precision"] == 0.63674
    assert ("nri", "aimle", 20, "test_elbo") not in found
    assert (found["vae", "aimle", None, "loss"], found["vae", "aimle", None, "test_loss"]) == (593.5313, 60.20955)
    l2x = {method: [found["l2x", method, aspect, "best_test_mse"] for aspect in (0, 2, 3, 1)] for method in METHODS}
    assert l2x == METHODS
    assert ("l2x", "aimle", 3, "best_test_mse") not in found


METHODS = {
    "l2x": [10.7, 6.7, 6.92, 5.75],
    "softsub": [2.48, 2.94, 2.18, 2.52],
    "imle": [2.51, 2.96, 2.38, 2.62],
    "imletopk": [2.51, 2.96, 2.38, 2.62],
}


def _configs(task, generator):
    command = [sys.executable, generator.__file__, "--seeds", "1"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return [vars(parsed(task, line)) for line in lines.splitlines()]


# pictures, size, other tasks


def test_figures_are_drawn_as_png_and_svg_with_curves_and_comparison(write, show, tmp_path):
    for name, shift in (("a", 0.0), ("b", 0.5)):
        for seed in range(3):
            history = [{"epoch": n, "loss_mean": 1 / n + shift, "val_mse": n * seed, "test_mse": 1.0} for n in (1, 2)]
            config = {**CONFIG, "method": name}
            write("l2x", name, seed, mse(2 + seed / 10 + shift), config=config, sample_data=True, history=history)
    write("vae", "only", 0, {"loss": 3.0}, config={"method": "ste"}, status="running")
    prefix = tmp_path / "pictures" / "all"
    found = show("--figure", str(prefix))
    names = sorted(path.name for path in prefix.parent.iterdir())
    kinds = ("comparison", "curves")
    assert names == [f"all_l2x_sample_{kind}.{ending}" for kind in kinds for ending in ("png", "svg")]
    assert all(str(prefix.parent / name) in found.err for name in names)
    svg = (prefix.parent / "all_l2x_sample_curves.svg").read_text()
    assert "sample data" in svg and "<svg" in svg
    assert all((prefix.parent / name).stat().st_size > 5000 for name in names)


def test_a_curve_is_mean_and_deviation_where_every_run_has_a_value():
    from figures import curve

    runs = [
        {"history": [{"epoch": 1, "x": 1.0}, {"epoch": 2, "x": 4.0}, {"epoch": 3, "x": None}]},
        {"history": [{"epoch": 1, "x": 3.0}, {"epoch": 2, "x": 4.0}, {"epoch": 3, "x": 1.0}, {"epoch": 4, "x": 1.0}]},
    ]
    assert list(curve(runs, "x", "epoch")) == [(1, 2.0, pytest.approx(math.sqrt(2))), (2, 4.0, 0.0)]
    assert list(curve(runs, "beta", "epoch")) == []


def test_tasks_that_are_not_known_show_all_their_figures(write, show):
    write("synth", "run", 0, {"cosine": 0.5, "note": "text"}, config={"method": "ste"})
    (row,) = rows(show().out)
    assert row == {"name": "run", "method": "ste", "seeds": "1", "cosine": "0.5000"}


def test_two_hundred_runs_of_every_task_fit_in_one_table_each(write, show):
    finals = {"l2x": mse(2.0), "vae": {"loss": 600.0, "test_loss": 60.0}, "nri": {"test_elbo": -1660.0}}
    for task, final in finals.items():
        for number in range(20):
            for seed in range(10):
                write(task, f"{number:02}", seed, final, config={"method": "aimle", "n": number})
    found = rows(show().out)
    assert len(found) == 60 and {row["seeds"] for row in found} == {"10"}


def test_the_script_runs_by_itself(write, tmp_path):
    write("l2x", "run", 0, mse(2.0))
    command = [sys.executable, FOLDER / "collect_results.py", tmp_path / "results"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and len(rows(done.stdout)) == 1


def test_the_names_of_figures_and_curves_are_those_that_the_tasks_write():
    for task, folder in {"l2x": "l2x", "vae": "dvae", "nri": "nri"}.items():
        source = "".join(path.read_text() for path in (ROOT / "aaai23" / folder).glob("*.py"))
        written = set(re.findall(r'"([a-z_]+)"', source)) | set(re.findall(r"\b(acc|precision|recall)\b", source))
        if task == "nri":
            written |= {f"{split}_{word}" for split in ("val", "test") for word in written}
        keys = [*(metric.key for metric in tables.TASKS[task].metrics), *tables.TASKS[task].curves]
        assert set(keys) - written == set()

"""The command line of the measures: what it leaves, and what it refuses."""

import json

import pytest

from aaai23.harness.record import read_record
from aaai23.synth import cli
from tests.aaai23.scripts import exit_code, path_of

SMALL = ("--quick", "--device", "cpu", "--seeds", 3, "-n", 5, "-k", 2, "--settle", 5, "--repeats", 4)
OF = {
    "lambda": ("--only", "aimle central c=1", "--repeats", 1),
    "samples": ("--max-samples", 3, "--only", "simple"),
    "bias-variance": ("--only", "ste", "--reference-draws", 100),
    "optimise": ("--steps", 3, "--only", "imle", "simple"),
    "adapt": ("--steps", 3),
    "noise": ("--reference-draws", 100),
}


@pytest.mark.parametrize("measure", OF)
def test_a_measure_leaves_a_record_and_two_pictures(measure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_code(cli, (measure, *SMALL, *OF[measure])) == 0
    path = path_of(tmp_path, "synth")
    record = read_record(path)
    assert record.status == "finished" and record.method == measure and len(record.history) >= 2
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG" and "<svg" in path.with_suffix(".svg").read_text()


def test_a_finished_measure_is_not_taken_again_unless_asked_for_and_then_says_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("optimise", *SMALL, *OF["optimise"])
    assert exit_code(cli, command) == 0
    path = path_of(tmp_path, "synth")
    record, written = read_record(path), path.stat().st_mtime_ns
    assert exit_code(cli, command) == 0 and path.stat().st_mtime_ns == written
    assert exit_code(cli, (*command, "--again")) == 0
    assert read_record(path).compared() == record.compared() and path.stat().st_mtime_ns != written


def test_quick_gives_way_to_what_is_given():
    config, unread = cli.parse_arguments(["samples", "--quick", "--seeds", "7", "--steps", "3"])
    assert (config.method, config.seeds, config.max_samples, unread) == ("samples", 7, 100, ["--steps"])
    assert cli.parse_arguments(["noise"])[0].seeds == 128


@pytest.mark.parametrize(
    "words",
    [
        *("speed", "lambda -k 10", "lambda --structure trees -n 9", "samples --resume", "samples --only sgd"),
        *("noise -n 1", "adapt --precision bf16", "noise --reference-draws 5", "lambda --seeds 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_code(cli, words.split()) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "results").exists()


def test_a_failed_measure_says_so_in_its_record(tmp_path, monkeypatch):
    def broken(bench):
        yield {"estimator": "ste", "error": 0.5}
        raise FloatingPointError("a number went wrong")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aaai23.synth.measures.MEASURES", {"noise": broken})
    assert exit_code(cli, ("noise", *SMALL)) == 1
    record = json.loads(path_of(tmp_path, "synth").read_text())
    assert (record["status"], record["error"]) == ("failed", "FloatingPointError: a number went wrong")
    assert len(record["history"]) == 1

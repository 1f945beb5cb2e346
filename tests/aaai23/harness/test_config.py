"""Settings that are declared once: the command line that is made of them, and what they count for."""

import argparse
import math
from pathlib import Path

import pytest

from aaai23.harness import config
from tests.aaai23.harness.runs import Task


def parse(line, presets=None):
    return config.parse(Task, "l2x-cli.py", "A task.", line.split(), presets or {})


def test_flags_have_their_defaults_and_are_read():
    found, unread = parse("")
    assert (found, unread) == (Task(), [])
    assert (found.data_dir, found.results_dir, found.seed, found.name) == (Path("data"), Path("results"), 0, None)
    assert (found.device, found.precision, found.resume, found.again) == ("auto", "float32", False, False)
    text = "-e 2 --lr 0.5 --data-dir d --seed 7 --name n --resume --device cpu --results-dir r"
    found, unread = parse(text)
    assert (found.epochs, found.lr, found.data_dir, found.seed, found.name) == (2, 0.5, Path("d"), 7, "n")
    assert (found.resume, found.device, found.results_dir) == (True, "cpu", Path("r"))
    assert unread == []


def test_a_flag_that_the_method_does_not_read_is_named_and_counts_for_nothing():
    found, unread = parse("--max-range 3")
    assert unread == ["--max-range"]
    assert "max_range" not in found.settings()
    assert parse("--max-range 3 --method ste")[1] == []
    assert parse("--max-range 3 --method ste")[0].settings()["max_range"] == 3.0


def test_a_preset_is_a_methods_own_defaults_which_flags_still_change():
    presets = {"ste": {"lr": 0.25, "max_range": 9.0}}
    assert parse("--method ste", presets)[0] == Task(method="ste", lr=0.25, max_range=9.0)
    assert parse("--method ste --lr 1", presets)[0] == Task(method="ste", lr=1.0, max_range=9.0)
    assert parse("", presets)[0] == Task()


def test_settings_lengths_and_launch_are_kept_apart():
    found = Task(method="ste")
    assert found.settings() == {"precision": "float32", "method": "ste", "lr": 1e-3, "max_range": 1.0, "epochs": 20}
    assert set(found.launch()) == {"data_dir", "seed", "name", "resume", "again", "device", "results_dir"}


@pytest.mark.parametrize(
    "line", ["-e 0", "-e x", "--epoch 3", "--device tpu", "--seed -1", "--nonsense", "-e", "--resume --again"]
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(capsys, line):
    with pytest.raises(SystemExit) as caught:
        parse(line)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert err.startswith("l2x-cli.py: error: ") and err.endswith("(see --help)\n")
    assert err.count("\n") == 1 and out == ""


def test_help_names_defaults_but_not_empty_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "passes over the data (default: 20)" in text
    assert "(default: data)" in text
    assert "None" not in text and "False" not in text and "SUPPRESS" not in text


def test_true_and_false_are_read_in_every_spelling_and_nothing_else():
    for text in ("True", "true", "YES", "1"):
        assert config.true_or_false(text) is True
    for text in ("False", "false", "No", "0"):
        assert config.true_or_false(text) is False
    for text in ("", "2", "maybe", "__import__('os')", "None"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected True or False"):
            config.true_or_false(text)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (config.positive_int, {"1": 1, "40": 40}, ["0", "-1", "1.5", "x", ""]),
        (config.seed_number, {"0": 0, "4294967295": 2**32 - 1}, ["-1", "4294967296"]),
        (config.positive_float, {"1e-9": 1e-9}, ["0", "-0.1", "nan", "inf"]),
        (config.non_negative_float, {"0": 0.0, "0.5": 0.5}, ["-0.1", "nan", "inf"]),
        (config.positive_or_infinite, {"inf": math.inf, "2": 2.0}, ["0", "-inf", "nan"]),
        (config.probability, {"0": 0.0, "1": 1.0}, ["1.01", "-0.01", "nan"]),
    ],
)
def test_numbers_keep_to_their_range(kind, good, bad):
    for text, value in good.items():
        assert kind(text) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"expected .*, got '{text}'"):
            kind(text)

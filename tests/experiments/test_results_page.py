"""The tables of docs/results.md are those that its commands print from the records of the repository."""

import shlex

import pytest

from tests.experiments.lines import FOLDER

import collect_results as collect  # isort: skip

ROOT = FOLDER.parent
PAGE = (ROOT / "docs" / "results.md").read_text()
PROGRAM = "./experiments/collect_results.py "
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.strip().startswith(PROGRAM)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_table_is_what_its_command_prints(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert collect.main(shlex.split(command.removeprefix(PROGRAM))) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    missing = set(printed) - set(PAGE.splitlines())
    assert len(printed) > 2 and not missing, "\n".join(missing)


def test_what_the_readme_shows_of_results_stands_on_the_page():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ") and " ± " in line]
    assert rows and set(rows) <= set(PAGE.splitlines())


def test_all_records_of_the_tasks_are_on_the_page():
    named = {word for command in COMMANDS for word in shlex.split(command)}
    assert named >= {f"docs/records/{task}" for task in ("l2x", "vae", "nri")}

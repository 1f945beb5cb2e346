"""Tables of the measures of gradients, and the page that rests on them."""

import json
import re

import pytest

from aaai23.harness.record import read_record
from tests.experiments.lines import FOLDER

import collect_results as collect  # isort: skip  # experiments/ is no package: `lines` has put it on the path

DOCS = FOLDER.parent / "docs"
RECORDS = sorted((DOCS / "records" / "synth").glob("*/seed0.json"))


@pytest.fixture(scope="module")
def printed():
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert collect.main([str(DOCS / "records" / "synth")]) == 0
    return out.getvalue()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_samples_and_calls_stand_in_one_table_under_the_problems_that_they_are_of(printed):
    lines = printed.split("## Samples / calls")[1].split("\n\n")[2].splitlines()
    titles, rows = cells(lines[0]), {cells(line)[0]: cells(line)[1:] for line in lines[2:]}
    samples = [record for record in map(read_record, RECORDS) if record.method == "samples"]
    assert len(titles) == len(samples) + 1 == 8
    for place, record in enumerate(samples):
        assert record.settings["structure"] in titles[place + 1]
        last = {entry["estimator"]: entry["error"] for entry in record.history}
        assert {name for name, row in rows.items() if row[place]} == set(last)
        for name, error in last.items():
            needed = [record.final[f"{name}: {column}"] for column in ("samples", "calls")]
            expected = f"- ({error:.3f})" if None in needed else f"{needed[0]:.0f} / {needed[1]:.0f}"
            assert rows[name][place] == expected


def test_every_record_has_its_table_with_its_command(printed):
    for record in map(read_record, RECORDS):
        assert f"- `{record.launch['command']}`, " in printed
        assert record.status == "finished" and record.launch["environment"]["dirty"] is False
    tables = re.findall(r"^## (\S+), (.*) \(synth\)$", printed, re.MULTILINE)
    assert len(tables) == sum(record.method != "samples" for record in map(read_record, RECORDS))


def test_a_line_of_a_curve_is_its_end(printed):
    (record,) = [record for record in map(read_record, RECORDS) if record.method == "optimise"]
    table = printed.split("## optimise")[1].split("\n## ")[0]
    for entry in record.history:
        if entry["step"] == record.settings["steps"]:
            row = [entry["optimiser"], entry["estimator"], f"{entry['rate']:.3f}", str(entry["samples"])]
            (line,) = [line for line in table.splitlines() if cells(line)[:4] == row]
            assert float(cells(line)[4].split()[0]) == pytest.approx(entry["regret"], rel=0.01, abs=0.001)


def test_the_page_has_the_table_of_samples_that_the_records_give(printed):
    page = (DOCS / "gradients.md").read_text()
    for line in printed.split("## Samples / calls")[1].split("\n\n")[2].splitlines():
        assert line in page


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("method",), "guess"),
        (("settings",), {}),
        (("settings", "structure"), "stars"),
        (("history",), [{"samples": 1}]),
        (("history", 0), 3),
        (("launch",), {}),
        (("timing",), {"seconds": "long"}),
        (("final",), [1]),
    ],
)
@pytest.mark.parametrize("measure", ["samples", "bias-variance"])
def test_a_record_written_by_hand_is_named_and_left_out(measure, place, value, tmp_path, capsys):
    whole = next(path for path in RECORDS if path.parent.name.startswith(measure))
    record = json.loads(whole.read_text())
    if place[0] == "final" and measure != "samples":
        pytest.skip("no table of this measure shows a final metric")
    at = record
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    (tmp_path / "seed0.json").write_text(json.dumps(record))
    try:
        assert collect.main([str(tmp_path)]) == 0
    except SystemExit as refused:
        assert refused.code == 2
    out, error = capsys.readouterr()
    assert "skipped" in out + error and "| aimle" not in out

"""Tables from the records of `cli/synth-cli.py`: a record is a table of its own, but for measures of samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # beside this file, wherever else it is installed
from records import Group
from tables import markdown_line

from aaai23.harness.record import Record
from aaai23.synth.config import SynthConfig

Entry = Mapping[str, Any]
TASK = "synth"

# measure -> what names a row, and the columns; of a row that was logged more than once the last entry counts
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bias-variance": (("estimator", "samples"), ("calls", "bias", "bias_sampled", "variance", "error", "nonzero")),
    "lambda": (("estimator", "lambda"), ("bias", "variance", "error", "nonzero")),
    "optimise": (("optimiser", "estimator", "rate", "samples"), ("regret",)),
    "adapt": (("start",), ("beta", "nonzero")),
    "noise": (("estimator",), ("total_variation", "floor", "gradient_distance")),
}


def markdown(groups: Sequence[Group]) -> Iterator[str]:
    """Yield the lines of all tables: one for each record, and one for all measures of samples together."""
    records = [record for group in groups for record in group.finished]
    whole: list[Record] = []
    others: list[Record] = []
    for record in records:
        (whole if _is_whole(record) else others).append(record)
    samples = [record for record in whole if record.method == "samples"]
    if samples:
        yield from _by_samples(samples)
    for record in whole:
        if record.method != "samples":
            yield from _by_entry(record)
    yield from (f"- skipped {record.name}: it lacks what synth-cli.py writes" for record in others)


def _is_whole(record: Record) -> bool:
    """Return whether a table can be made of a record: somebody may have written it by hand."""
    try:
        return bool([*_by_samples([record])] if record.method == "samples" else [*_by_entry(record)])
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return False


def _by_samples(records: Sequence[Record]) -> Iterator[str]:
    yield "## Samples / calls for a cosine of 0.9 (synth)"
    yield ""
    yield from (f"- {_words(record)}" for record in records)
    yield ""
    titles = [f"{_problem(record)}, to {record.settings['max_samples']}" for record in records]
    yield markdown_line(["estimator", *titles])
    yield markdown_line(["---"] * (len(records) + 1))
    for name in dict.fromkeys(str(entry["estimator"]) for record in records for entry in record.history):
        yield markdown_line([name, *(_needed(record, name) for record in records)])
    yield ""
    yield "In brackets: the error that the most samples leave."
    yield ""


def _needed(record: Record, name: str) -> str:
    errors = [entry["error"] for entry in record.history if entry["estimator"] == name]
    if not errors:
        return ""
    samples, calls = ((record.final or {}).get(f"{name}: {column}") for column in ("samples", "calls"))
    return f"- ({errors[-1]:.3f})" if samples is None or calls is None else f"{samples:.0f} / {calls:.0f}"


def _by_entry(record: Record) -> Iterator[str]:
    names, columns = COLUMNS[record.method]
    rows = {tuple(entry[name] for name in names): entry for entry in record.history}
    shown = [column for column in columns if any(column in entry for entry in record.history)]
    yield f"## {record.method}, {_problem(record)} (synth)"
    yield ""
    yield f"- {_words(record)}"
    yield ""
    yield markdown_line([*names, *shown])
    yield markdown_line(["---"] * (len(names) + len(shown)))
    for row, entry in rows.items():
        yield markdown_line([*map(_number, row), *(_cell(entry, column) for column in shown)])
    yield ""


def _problem(record: Record) -> str:
    """Return which problems were measured, in a few words."""
    known = {field: record.settings[field] for field in ("structure", "n", "k", "loss", "noise", "seeds")}
    config = SynthConfig(method=record.method, **known)
    size = f"{config.size}/{config.k}" if config.structure == "subsets" else f"{config.size}"
    noise = "" if record.method == "noise" else f", {config.noise}"
    return f"{config.structure} {size}{noise}" + (", coupled" if config.loss == "coupled" else "")


def _words(record: Record) -> str:
    launch = record.launch
    return f"`{launch['command']}`, {record.timing['seconds']:.0f} s, commit {launch['environment']['commit']}"


def _cell(entry: Entry, column: str) -> str:
    value, error = entry.get(column), entry.get(f"{column}_se")
    return _number(value) + (f" ± {error:.3f}" if isinstance(error, float) and value is not None else "")


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"

"""Where runs come from: how long they took, at which commit, and on what."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from records import Group
from tables import markdown_line

from aaai23.harness.record import STEPS, Record

COLUMNS = {"commit": "commit", "device": "device", "torch": "torch", "python": "Python"}
LEGEND = (
    "Hours are those that the records count: what a killed process did after its last checkpoint is not among them."
)


def markdown(groups: Sequence[Group]) -> Iterator[str]:
    """Yield a table of all runs, finished or not; those of one name and one origin share a line."""
    yield from ("## Runs", "", markdown_line(["name", "seeds", "hours", *COLUMNS.values()]))
    yield markdown_line(["---"] * (3 + len(COLUMNS)))
    for group in groups:
        of_origin: dict[tuple[str, ...], list[Record]] = {}
        for record in sorted(group.records, key=lambda record: record.seed):
            of_origin.setdefault(tuple(_shown(record, key) for key in COLUMNS), []).append(record)
        for told, runs in of_origin.items():
            seeds = ", ".join(f"{run.seed}{_unless_finished(run)}" for run in runs)
            yield markdown_line([group.name, seeds, ", ".join(map(_hours, runs)), *told])
    yield from ("", LEGEND, "")


def _unless_finished(run: Record) -> str:
    return "" if run.status == "finished" else f" ({run.status})"


def several(groups: Sequence[Group]) -> list[str]:
    """Return a line for each group whose runs come from several versions of the code or of torch."""
    lines = []
    for found in groups:
        for key, word in (("commit", "commits"), ("torch", "versions of torch")):
            values = {str(origin.get(key))[:12] for record in found.finished for origin in _origins(record)}
            if len(values) > 1:
                lines.append(f"{found.task}/{found.name} is of several {word}: {', '.join(sorted(values))}")
    return lines


def _origins(record: Record) -> list[Mapping[str, Any]]:
    """Return what a run's starts ran on, in order."""
    last = next((record.history[-1][step] for step in STEPS if record.history and step in record.history[-1]), 0)
    return [start["environment"] for start in record.starts(int(last or 0))]


def _shown(record: Record, key: str) -> str:
    values = [value for value, _ in itertools.groupby(_value(origin, key) for origin in _origins(record))]
    return values[0] if len(values) == 1 else ", then ".join(value or "?" for value in values)


def _value(origin: Mapping[str, Any], key: str) -> str:
    value = origin.get(key)
    if key == "commit" and value is not None:
        return str(value)[:7] + (", changed" if origin.get("dirty") else "")
    return "" if value is None else str(value)


def _hours(record: Record) -> str:
    seconds = record.timing.get("seconds")
    return f"{seconds / 3600:.2f}" if isinstance(seconds, int | float) else "?"

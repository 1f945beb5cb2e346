"""What runs logged while they trained, over their seeds, and what is published of it."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from published import published_points
from records import Group
from tables import Row, Table, markdown_line

from aaai23.harness.record import STEPS, Record


def step_name(runs: Sequence[Record]) -> str:
    """Return what the runs count: epochs, iterations, or the entries themselves where they name neither."""
    first: Mapping[str, Any] = next((run.history[0] for run in runs if run.history), {})
    return next((step for step in STEPS if step in first), "entry")


def values_by_step(runs: Sequence[Record], key: str) -> dict[float, list[float]]:
    """Return what each run logged under a key, by step; a value that is not finite counts as none."""
    name, found = step_name(runs), dict[float, list[float]]()
    for run in runs:
        entries = {entry.get(name, number): entry.get(key) for number, entry in enumerate(run.history, start=1)}
        for step, value in entries.items():
            if isinstance(step, int | float) and isinstance(value, int | float):
                found.setdefault(step, []).append(value)
    return dict(sorted(found.items()))


def points(group: Group, key: str) -> tuple[tuple[int, float], ...]:
    """Return what is published of a curve; nothing beside sample data."""
    return () if group.sample_data else published_points(group.task, key, group.settings)


def markdown(tables: Sequence[Table], steps: Sequence[int]) -> Iterator[str]:
    """Yield a table for each group, with a line for each step at which something was logged or published."""
    for table in tables:
        for row in table.rows:
            lines = list(_lines(table, row, steps))
            if len(lines) > 2:
                yield from (f"## {row.group.name} while it trained ({table.name})", "", *lines, "")


def _lines(table: Table, row: Row, steps: Sequence[int]) -> Iterator[str]:
    runs, curves = row.group.records, table.task.curves
    logged = {key: values_by_step(runs, key) for key in curves}
    told = {key: points(row.group, key) for key in curves}
    titles = [column for key, title in curves.items() for column in [title] + ["published"] * bool(told[key])]
    yield markdown_line([step_name(runs), "seeds", *titles])
    yield markdown_line(["---"] * (len(titles) + 2))
    for step in steps:
        seeds, cells = 0, []
        for key in curves:
            values = logged[key].get(step, [])
            seeds = max(seeds, len(values))
            cells.append(_cell(values))
            if told[key]:
                cells.append(" / ".join(f"{value:.6g}" for at, value in told[key] if at == step))
        if any(cells):
            yield markdown_line([step, seeds, *cells])


def _cell(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation of several."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.6g}{deviation}"

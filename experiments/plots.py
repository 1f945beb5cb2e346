"""Pictures of tables: learning curves with bands, and a comparison of methods for each metric."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curves import points, step_name, values_by_step

from aaai23.plots import our_way

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from tables import Metric, Row, Table

    from aaai23.harness.record import Record

DOTS_PER_INCH = 110


@our_way()
def draw(tables: Sequence[Table], prefix: Path) -> list[Path]:
    """Write `PREFIX_TASK_curves` and `PREFIX_TASK_comparison` as PNG and SVG; returns their paths.

    A comparison is of finished runs, and so is a curve; where there is none, a curve is of the others, and its label
    says so. What has neither is left out, and so are curves of a task that trains nothing. Names and titles say where
    data are sample data.

    Raises:
        OSError: a file cannot be written.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for table in tables:
        begun = [row for row in table.rows if any(run.history for run in _curve_runs(row))]
        finished = [row for row in table.rows if row.group.finished]
        name = f"{prefix.name}_{table.name}" + ("_sample" if table.sample_data else "")
        drawn = {"curves": _curves(table, begun)} if begun and table.task.curves else {}
        drawn |= {"comparison": _comparison(table, finished)} if finished else {}
        for kind, figure in drawn.items():
            for ending in ("png", "svg"):
                paths.append(prefix.with_name(f"{name}_{kind}.{ending}"))
                figure.savefig(paths[-1], dpi=DOTS_PER_INCH, bbox_inches="tight")
    return paths


def _curve_runs(row: Row) -> list[Record]:
    """Return the runs that a row's curve is of."""
    return row.group.finished or row.group.records


def panel_of(row: Row) -> str:
    """Return the title of the panels that a row is drawn in: runs of one panel solve the same problem."""
    settings = row.group.settings
    if row.group.task == "l2x":
        return f"aspect {settings.get('aspect')}, K = {settings.get('select_k')}"
    return f"T = {settings.get('timesteps')}" if "timesteps" in settings else ""


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Return the rows' methods as labels; those that two rows of a panel share are their names instead."""
    methods = [row.group.method or row.group.name for row in rows]
    places = [(panel_of(row), method) for row, method in zip(rows, methods)]
    return [method if places.count(place) == 1 else row.group.name for row, method, place in zip(rows, methods, places)]


def _panels(rows: Sequence[Row]) -> dict[str, list[tuple[str, Row, str]]]:
    """Return panel -> (label, row, colour) of each of its rows; a label has one colour in all panels."""
    labels = labels_of(rows)
    colours = {label: f"C{number % 10}" for number, label in enumerate(dict.fromkeys(labels))}
    panels: dict[str, list[tuple[str, Row, str]]] = {}
    for label, row in zip(labels, rows):
        panels.setdefault(panel_of(row), []).append((label, row, colours[label]))
    return panels


def _axes(table: Table, kind: str, height: int, width: int, inches: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(4.2 * width, 0.6 + inches * height), layout=ConstrainedLayoutEngine(w_pad=0.12))
    figure.suptitle(f"{table.title}\n{kind}")
    return figure, figure.subplots(height, width, squeeze=False)


def _curves(table: Table, rows: Sequence[Row]) -> Figure:
    """Draw what was logged, a row of axes for each panel, mean ± standard deviation over seeds."""
    panels = _panels(rows)
    height = max(2.9, *(0.6 + 0.22 * len(members) for members in panels.values()))
    kind = "mean ± standard deviation over seeds"
    if any(points(row.group, key) for row in rows for key in table.task.curves):
        kind += f", {table.task.published}: crosses"
    figure, axes = _axes(table, kind, len(panels), len(table.task.curves), height)
    for line, (panel, members) in zip(axes, panels.items()):
        for axis, (key, title) in zip(line, table.task.curves.items()):
            for label, row, colour in members:
                _curve(axis, row, key, label, colour)
            axis.set_ylabel(title)
            axis.set_xlabel(step_name(_curve_runs(members[0][1])))
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_title(panel, fontsize="medium")
        curves = {label: drawn for axis in line for drawn, label in zip(*axis.get_legend_handles_labels())}
        if curves:
            place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            line[-1].legend(curves.values(), curves.keys(), fontsize="small", **place)
    return figure


def _curve(axis: Axes, row: Row, key: str, label: str, colour: str) -> None:
    """Draw one method's curve, with a band where there are several seeds."""
    runs = _curve_runs(row)
    logged = {step: found for step, found in values_by_step(runs, key).items() if len(found) == len(runs)}
    if not logged:
        return
    steps, means = list(logged), [statistics.fmean(found) for found in logged.values()]
    deviations = [statistics.stdev(found) if len(found) > 1 else 0.0 for found in logged.values()]
    label += "" if row.group.finished else " (unfinished)"
    axis.plot(steps, means, label=label, color=colour, marker="." if len(steps) < 20 else "")
    low, high = ([mean + sign * d for mean, d in zip(means, deviations)] for sign in (-1, 1))
    axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    if published := points(row.group, key):
        axis.plot(*zip(*published), "x", color="black")


def _comparison(table: Table, rows: Sequence[Row]) -> Figure:
    """Draw final metrics: a dot for each seed, the mean with its interval, and what was published."""
    panels = _panels(rows)
    most = max(len(members) for members in panels.values())
    kind = "seeds (dots), mean with 95% interval"
    if any(row.published for row in rows):
        kind += f", {table.task.published}: crosses"
    metrics = [metric for metric in table.task.metrics if metric.compared]
    figure, axes = _axes(table, kind, len(panels), len(metrics), 0.8 + 0.33 * most)
    for line, (panel, members) in zip(axes, panels.items()):
        for axis, metric in zip(line, metrics):
            for place, (_, row, colour) in enumerate(members):
                _compare(axis, row, metric, place, colour)
            axis.set_yticks(range(len(members)), [label for label, _, _ in members])
            axis.set_ylim(len(members) - 0.5, -0.5)
            axis.set_xlabel(metric.title)
            axis.set_title(panel, fontsize="medium")
            axis.grid(axis="x", alpha=0.3)
    return figure


def _compare(axis: Axes, row: Row, metric: Metric, place: int, colour: str) -> None:
    """Draw one method's dots, mean, interval and published value."""
    values, summary = row.group.values(metric.key), row.summaries[metric]
    axis.plot(values, [place] * len(values), ".", color=colour, alpha=0.4)
    if summary.mean is not None:
        axis.plot([summary.mean], [place], "o", color=colour)
    if summary.low is not None and summary.high is not None:
        axis.plot([summary.low, summary.high], [place, place], "|-", color=colour)
    if metric in row.published:
        axis.plot([row.published[metric].value], [place], "x", color="black")

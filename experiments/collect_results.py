#!/usr/bin/env python3
"""Print tables of finished runs, mean ± standard deviation over seeds, beside the published values.

./experiments/collect_results.py
./experiments/collect_results.py results --csv > results.csv
./experiments/collect_results.py results --plots results/plots/all
./experiments/collect_results.py results/vae --at 1 2 3 4 99 100 --runs
"""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import curves
import measures
import origins
import records
import sweep
from records import Group
from sweep import ArgumentParser, say
from tables import TASKS, Metric, Row, Summary, Table, markdown_line, tables_of

LEGEND = (
    "Mean ± standard deviation over seeds (n - 1 in the denominator; the log lines of a run have n) [95% bootstrap "
    "interval of the mean: BCa, and too narrow for few seeds]. Computed from the records of finished runs."
)


CSV_COLUMNS = (
    *("task", "name", "sample_data", "method", "settings"),
    *("metric", "seeds", "mean", "std", "ci95_low", "ci95_high"),
    *("failed", "running", "published", "caveat"),
)


def cell(summary: Summary, digits: int, seeds: int) -> str:
    """Return a metric as one cell; one that some seeds lack says how many have it."""
    if summary.mean is None:
        return "–"
    text = f"{summary.mean:.{digits}f}"
    if summary.deviation is not None:
        text += f" ± {summary.deviation:.{digits}f}"
    if summary.low != summary.high:
        text += f" [{summary.low:.{digits}f}, {summary.high:.{digits}f}]"
    return text if summary.n == seeds else f"{text} (n = {summary.n})"


def seeds_cell(found: Group) -> str:
    """Return the number of finished seeds, and which ones failed or run."""
    text = str(len(found.finished))
    for status in ("failed", "running"):
        seeds = [str(record.seed) for record in found.records if record.status == status]
        text += f", {status}: {' '.join(seeds)}" if seeds else ""
    return text


def markdown(table: Table) -> Iterator[str]:
    """Yield the lines of a table, with the caveats of its published values."""
    caveats = list(dict.fromkeys(it.caveat for row in table.rows for it in row.published.values()))
    titles = ["name", *table.task.settings, "seeds", *(metric.title for metric in table.task.metrics)]
    yield f"## {table.title}"
    yield ""
    yield markdown_line([*titles, *([table.task.published] if caveats else [])])
    yield markdown_line(["---"] * (len(titles) + bool(caveats)))
    for row in table.rows:
        seeds = len(row.group.finished)
        cells = [cell(summary, metric.digits, seeds) for metric, summary in row.summaries.items()]
        told = [f"{metric.title} {it.value} [{caveats.index(it.caveat) + 1}]" for metric, it in row.published.items()]
        line = [row.group.name, *row.settings.values(), seeds_cell(row.group), *cells]
        yield markdown_line([*line, *(["; ".join(told) or "–"] if caveats else [])])
    yield ""
    for number, caveat in enumerate(caveats, start=1):
        yield f"[{number}] {caveat}.  "
    if table.sample_data and table.name in TASKS:
        yield "Sample data are a stand-in: no published value may be compared with these.  "
    yield LEGEND
    yield ""


def write_csv(tables: Sequence[Table], file: TextIO) -> None:
    """Write a line for each group and metric."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            writer.writerows(_csv_line(table, row, metric) for metric in table.task.metrics)


def _csv_line(table: Table, row: Row, metric: Metric) -> list[Any]:
    summary, published = row.summaries[metric], row.published.get(metric)
    statuses = [record.status for record in row.group.records]
    settings = " ".join(f"{title}={value}" for title, value in row.settings.items() if title != "method")
    return [
        *(table.name, row.group.name, table.sample_data, row.group.method, settings),
        *(metric.key, summary.n, summary.mean, summary.deviation, summary.low, summary.high),
        *(statuses.count("failed"), statuses.count("running")),
        *((published.value, published.caveat) if published else ("", "")),
    ]


def parser() -> ArgumentParser:
    """Return the parser of the script's flags."""
    result = ArgumentParser(description="Tables and plots from the records of runs.", allow_abbrev=False)
    add = result.add_argument
    add("places", nargs="*", type=Path, default=[Path("results")], help="folders or records (default results)")
    add("--csv", action="store_true", help="print CSV in place of Markdown")
    add(
        "--at",
        nargs="+",
        type=sweep.number(int, 0, 10**9),
        metavar="STEP",
        default=[],
        help="print what was logged at these epochs or iterations, by unfinished runs too",
    )
    add("--runs", action="store_true", help="print how long each run took, and at which commit and on what it ran")
    add("--plots", type=Path, metavar="PREFIX", help="draw PREFIX_TASK_curves and _comparison, PNG and SVG")
    return result


def main(argv: list[str] | None = None) -> int:
    """Print the tables, draw the plots."""
    flags = parser()
    args = flags.parse_args(argv)
    if args.csv and (args.at or args.runs):
        flags.error("--at and --runs print Markdown: leave --csv out, or run the script twice")
    try:
        found, skipped = records.find(args.places)
    except FileNotFoundError as error:
        flags.error(f"{error} does not exist; name a folder of records")
    groups, notes = records.group(found)
    if not groups:
        flags.error(f"no record in {', '.join(map(str, args.places))}{''.join(f'; {line}' for line in skipped)}")
    measured = [found for found in groups if found.task == measures.TASK]
    tables = tables_of([found for found in groups if found.task != measures.TASK])
    notes = [*notes, *skipped, *records.unfinished(groups), *records.flipped(groups), *origins.several(groups)]
    if args.csv:
        text = io.StringIO()
        write_csv(tables, text)
        say(text.getvalue().rstrip("\n"))
        print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    else:
        trained = [row.group for table in tables for row in table.rows]
        lines = [*(line for table in tables for line in markdown(table)), *curves.markdown(tables, args.at)]
        lines += origins.markdown(trained) if args.runs else []
        lines += measures.markdown(measured)
        say("\n".join([*lines, *(f"- {note}" for note in notes)]))
    if args.plots:
        from plots import draw

        try:
            paths = draw(tables, args.plots)
        except ModuleNotFoundError as error:
            flags.error(f"--plots needs {error.name}, which this Python has not: use that of .venv, or install it")
        except OSError as error:
            flags.error(f"cannot write the plots: {error.strerror}: {error.filename}; choose another PREFIX")
        print(*(f"plot: {path}" for path in paths), sep="\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

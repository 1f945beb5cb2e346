"""Pictures of what was measured, from a record: lines with bands of two standard errors to either side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aaai23.harness.identity import Identity
from aaai23.harness.record import Record
from aaai23.plots import picture

History = Sequence[Mapping[str, Any]]

TITLES = {
    "error": "error: mean 1 - cos(gradient, exact)",
    "bias": "bias: 1 - cos(mean gradient, exact)",
    "variance": "variance of cos(gradient, mean gradient)",
    "nonzero": "non-zero entries",
    "regret": "E f(z) - min f",
    "total_variation": "total variation to the exponential family",
    "gradient_distance": "1 - cos(gradient of E f, that of the exponential family)",
    "calls": "calls of the solver",
    "samples": "samples S",
}
STYLES = ("-", "--", ":", "-.", (0, (1, 3)))
MARKS = "osD^v"
COLOURS = (*(f"C{n}" for n in range(10)), "black", "gold", "navy")


def draw(identity: Identity, record: Record) -> list[Path]:
    """Draw a finished record beside it, as PNG and SVG; returns the paths."""
    panels = PANELS[record.method](record.history)
    paths = [identity.file(".png"), identity.file(".svg")]
    with picture(*paths, figsize=(4.6 * len(panels) + 2.2, 4.4), dpi=80, layout="constrained") as figure:
        figure.suptitle(f"{record.name}, {record.settings['seeds']} problems", fontsize=10)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes)
            axes.grid(alpha=0.3)
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)
    return paths


def lines(
    history: History, x: str, y: str, by: str = "estimator", where: Mapping[str, Any] = {}, **scales: str
) -> Callable[[Any], None]:
    """Return what draws y against x, a line for each value of `by`; a value with one entry is a mark."""

    def panel(axes: Any) -> None:
        entries = [entry for entry in history if all(entry[key] == value for key, value in where.items())]
        for name in dict.fromkeys(entry[by] for entry in entries):
            curve = [entry for entry in entries if entry[by] == name and entry.get(y) is not None]
            at, value = ([entry[key] for entry in curve] for key in (x, y))
            error = [2 * (entry.get(f"{y}_se") or 0.0) for entry in curve]
            style = _style(str(name), [str(entry[by]) for entry in history])
            mark = style.pop("marker")
            if len(curve) == 1:
                axes.errorbar(at, value, error, fmt=mark, color=style["color"], label=str(name))
                continue
            axes.plot(at, value, label=str(name) if by == "estimator" else f"{by} {name:g}", linewidth=1.3, **style)
            low, high = ([v + sign * e for v, e in zip(value, error)] for sign in (-1, 1))
            axes.fill_between(at, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axes.set(xlabel=TITLES.get(x, x), title=", ".join([TITLES.get(y, y), *where.values()]), **scales)
        axes.title.set_fontsize(9)

    return panel


def dots(history: History, y: str) -> Callable[[Any], None]:
    """Return what draws y for each estimator and number of samples, one below the other."""

    def panel(axes: Any) -> None:
        known = [entry for entry in reversed(history) if entry.get(y) is not None]
        labels = [
            f"{entry['estimator']}, S={entry['samples']}" if "samples" in entry else entry["estimator"]
            for entry in known
        ]
        error = [2 * (entry[f"{y}_se"] or 0.0) for entry in known]
        axes.errorbar([entry[y] for entry in known], labels, xerr=error, fmt="o", markersize=3, color="#2b6cb0")
        axes.tick_params(axis="y", labelsize=5 if len(known) > 20 else 8)
        axes.set_title(TITLES[y], fontsize=9)

    return panel


def _style(name: str, names: Iterable[str]) -> dict[str, Any]:
    """Return the colour of a family, such as of all with `imle`, and a dash and a mark of each member's own."""
    members = [it for it in dict.fromkeys(names) if _family(it) == _family(name)]
    families, place = list(dict.fromkeys(map(_family, names))), members.index(name)
    dash, mark = STYLES[place % len(STYLES)], MARKS[place % len(MARKS)]
    return {"color": COLOURS[families.index(_family(name)) % len(COLOURS)], "linestyle": dash, "marker": mark}


def _family(name: str) -> str:
    return name.removeprefix("aimle ").split(" ")[0]


def _known(history: History, *names: str) -> list[str]:
    return [name for name in names if any(entry.get(name) for entry in history)]


PANELS: dict[str, Callable[[History], list[Callable[[Any], None]]]] = {
    "lambda": lambda history: [
        lines(history, "lambda", y, xscale="log") for y in _known(history, "error", "bias", "variance", "nonzero")
    ],
    "samples": lambda history: [
        *(
            lines([entry for entry in history if entry[x]], x, "error", xscale="log", yscale="log")
            for x in _known(history, "samples", "calls")
        ),
        lines(history, "samples", "nonzero", xscale="log"),
    ],
    "bias-variance": lambda history: [dots(history, y) for y in ("bias", "error")],
    "optimise": lambda history: [
        lines(history, "step", "regret", where={"optimiser": optimiser}, yscale="log") for optimiser in ("sgd", "adam")
    ],
    "adapt": lambda history: [lines(history, "step", y, by="start", yscale="symlog") for y in ("beta", "nonzero")],
    "noise": lambda history: [dots(history, y) for y in ("total_variation", "gradient_distance")],
}

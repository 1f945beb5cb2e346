"""What the pictures of all tasks share."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from aaai23.harness.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")


def our_way(draw: Callable[P, R]) -> Callable[P, R]:
    """Return a function that draws with matplotlib's defaults on the Agg canvas, whatever the user's settings are.

    A backend of a notebook in MPLBACKEND, or fonts and TeX of a matplotlibrc, are not there where a script runs.
    """

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        backend = os.environ.get("MPLBACKEND")
        if "matplotlib" not in sys.modules:  # which reads it as it is imported, and may not know it
            os.environ["MPLBACKEND"] = "agg"
        try:
            import matplotlib
        finally:
            os.environ.pop("MPLBACKEND", None) if backend is None else os.environ.update(MPLBACKEND=backend)
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            return draw(*args, **kwargs)

    return drawn


def save_png(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure as PNG, atomically.

    Raises:
        UsageError: the path cannot be written.
    """
    _save(figure, path, "png")


def save_svg(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure as SVG, atomically.

    Raises:
        UsageError: the path cannot be written.
    """
    _save(figure, path, "svg")


def _save(figure: Figure, path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    write_atomically(path, buffer.getvalue())

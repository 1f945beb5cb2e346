"""What the pictures of all tasks share."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aaai23.harness.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def our_way() -> Iterator[None]:
    """Draw with matplotlib's defaults on the Agg canvas, whatever the user's settings are; a decorator, too.

    A backend of a notebook in MPLBACKEND, or fonts and TeX of a matplotlibrc, are not there where a script runs.
    """
    backend = os.environ.get("MPLBACKEND")
    if "matplotlib" not in sys.modules:  # which reads it as it is imported, and may not know it
        os.environ["MPLBACKEND"] = "agg"
    try:
        import matplotlib
    finally:
        os.environ.pop("MPLBACKEND", None) if backend is None else os.environ.update(MPLBACKEND=backend)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@contextlib.contextmanager
def picture(*paths: Path, **options: Any) -> Iterator[Figure]:
    """Give a figure to draw on, and write it atomically, as PNG or SVG, as the paths end.

    Raises:
        UsageError: a path cannot be written.
    """
    with our_way():
        from matplotlib.figure import Figure

        figure = Figure(**options)
        yield figure
        for path in paths:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=path.suffix[1:])
            write_atomically(path, buffer.getvalue())

"""What the pictures of all tasks share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from aaai23.harness.record import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

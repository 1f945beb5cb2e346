"""Sample data are stand-ins for real data, made by a program; a marker file in their folder says so.

A loader asks `is_sample`, so that every record, table and picture can call the data by their name.
"""

from collections.abc import Iterable
from pathlib import Path

from aaai23.errors import UsageError
from aaai23.record import write_atomically

MARKER = "SAMPLE_DATA.txt"
TEXT = "The files in this folder are sample data: small stand-ins, made by a program, for trying things out.\n"


def is_sample(folder: Path | str) -> bool:
    """Return whether the folder says that it holds sample data."""
    return (Path(folder) / MARKER).exists()


def claim_folder(folder: Path | str, files: Iterable[str]) -> None:
    """Mark a folder as one of sample data, before the first of `files` is written into it.

    Raises:
        UsageError: one of the files is there already and is not sample data, or the folder cannot be written.
    """
    folder = Path(folder)
    if is_sample(folder):
        return
    for name in files:
        if (folder / name).exists():
            raise UsageError(f"{folder / name} is not sample data; name another folder with --output")
    write_atomically(folder / MARKER, TEXT.encode())

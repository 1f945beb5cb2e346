"""Files that others have made: opened only if they are files, and read no further than they can be right."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from aaai23.errors import UsageError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a write that failed because there is no room; no fault of the path."""
LARGEST = 2**32
"""Bytes of the largest file that is read: a hundred times the data of any task."""
LARGEST_UNPACKED = 2**30
"""Bytes that a packed file may hold."""
LARGEST_TEXT = 2**28
"""Bytes of the largest JSON file that is read."""


def check_regular(path: Path | str) -> None:
    """See that what lies at `path`, if anything, is a regular file: reading a pipe never ends, replacing it is loss.

    Raises:
        UsageError: it is a device, a pipe, a folder.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path} stays: it is a device, a pipe or a folder; name a file")


def open_regular(path: Path | str, largest: int = LARGEST) -> BufferedReader:
    """Open a file for reading.

    Raises:
        UsageError: there is none, or it is a device, a pipe or a folder, or of more than `largest` bytes.
    """
    try:
        found = os.stat(path)  # before it is opened: that waits for the writer of a pipe
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path} cannot be read: it is a device, a pipe or a folder")
        if found.st_size > largest:
            raise UsageError(f"{path} cannot be read: it has {found.st_size:,} bytes, more than {largest:,}")
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def read_text(path: Path | str) -> str:
    """Return the text of a JSON file.

    Raises:
        UsageError: see `open_regular`.
        ValueError: it is no UTF-8.
    """
    with open_regular(path, LARGEST_TEXT) as file:
        return file.read().decode()

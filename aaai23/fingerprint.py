"""What a run has read: a short hash of the contents of its data files.

Nothing here imports torch, so that whether a run is finished is known at once.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from aaai23.errors import UsageError


def digest(path: Path) -> str:
    """Return a hash of what a file holds, of a `.gz` that can be unpacked what it holds unpacked.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        if path.suffix == ".gz":
            try:
                with gzip.open(path) as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except (EOFError, zlib.error, gzip.BadGzipFile):
                pass  # who reads it will say so
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def fingerprint(files: Iterable[Path], digest: Callable[[Path], str] = digest) -> str:
    """Return 16 hex digits that the contents of the files and their order decide: not names, places, times or packing.

    Args:
        files: the files of a data set, in an order of their own.
        digest: of a file; another one may remember.

    Raises:
        UsageError: a file cannot be read.
    """
    return hashlib.sha256(" ".join(map(digest, files)).encode()).hexdigest()[:16]

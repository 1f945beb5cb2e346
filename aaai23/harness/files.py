"""Files: opened only if they are files, written whole or not at all, and known by their contents.

Nothing here imports torch.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import secrets
import stat
import zlib
from collections.abc import Callable, Iterable
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
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of file systems that cannot be told to write to the disk now."""
MARKER = "SAMPLE_DATA.txt"
"""A file of this name in a data folder says that it holds sample data, stand-ins made by a program."""


# ---- reading


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


# ---- writing


def write_atomically(path: Path | str, content: bytes) -> None:
    """Replace the file at `path` by `content`, so that a killed process leaves the old or the new file whole.

    Missing folders are made, and a link stays: its target is written. The content goes first to a hidden file with a
    short name in the same folder: the final name may be as long as the file system allows, and other jobs may write
    beside it. What a killed process leaves of that, `remove_remains` finds.

    Raises:
        UsageError: the path cannot be written, or holds no regular file.
        OSError: the disk is full.
    """
    check_regular(path)
    temporary = None
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{_temporary_prefix(target)}{secrets.token_hex(4)}.tmp")
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            _sync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            _remove(temporary)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        if error.errno in DISK_FULL:
            raise OSError(error.errno, reason, str(path)) from error  # a failed write does not know its file
        raise UsageError(f"cannot write {path}: {reason}; choose another place") from error


def check_writable(path: Path | str) -> None:
    """See that a file can be made at `path`, where there is none; none is left.

    Raises:
        UsageError: it cannot.
        OSError: the disk is full.
    """
    write_atomically(path, b"")
    Path(path).resolve().unlink()  # of a link, its target


def remove_remains(path: Path | str) -> None:
    """Remove what killed processes have left of writing `path`, which no other process may be writing now."""
    target = Path(os.path.realpath(path))
    for remains in target.parent.glob(f"{_temporary_prefix(target)}*.tmp"):
        _remove(remains)


def _temporary_prefix(path: Path) -> str:
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}."


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the folder is missing or read-only, so the file was never made


# ---- what a data set is known by


def digest_of(path: Path) -> str:
    """Return a hash of what a file holds, of a `.gz` that can be unpacked what it holds unpacked.

    Raises:
        UsageError: the file cannot be read, or unpacks to more than any data set holds.
    """
    with open_regular(path) as file:
        try:
            if path.suffix == ".gz":
                return _digest_unpacked(path, file)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            file.seek(0)  # who reads it will say so
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _digest_unpacked(path: Path, file: BufferedReader) -> str:
    digest, size = hashlib.sha256(), 0
    with gzip.open(file) as unpacked:
        while chunk := unpacked.read(2**20):
            digest.update(chunk)
            size += len(chunk)
            if size > LARGEST_UNPACKED:
                raise UsageError(f"{path} cannot be read: it unpacks to more than {LARGEST_UNPACKED:,} bytes")
    return digest.hexdigest()


def fingerprint(files: Iterable[Path], digest: Callable[[Path], str] | None = None) -> str:
    """Return 16 hex digits that the contents of the files and their order decide: not names, places, times or packing.

    Args:
        files: the files of a data set, in an order of their own.
        digest: of a file; `digest_of` if None.

    Raises:
        UsageError: a file cannot be read.
    """
    return hashlib.sha256(" ".join(map(digest or digest_of, files)).encode()).hexdigest()[:16]


def is_sample(folder: Path | str) -> bool:
    """Return whether a folder says that it holds sample data."""
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
    text = "The files in this folder are sample data: small stand-ins, made by a program, for trying things out.\n"
    write_atomically(folder / MARKER, text.encode())

"""Records: one JSON file per run, the only thing that tables and figures are computed from.

Nothing here imports torch, so that tools which read a thousand records start at once.
"""

import errno
import hashlib
import json
import math
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from aaai23.errors import UsageError

FORMAT = 1
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a write that failed because there is no room; no fault of the path."""
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of file systems that cannot be told to write to the disk now."""
_NOT_FINITE = ("inf", "-inf", "nan")
NOT_SETTINGS = ("seed", "name", "resume", "again", "device", "results_dir", "debug")
"""Flags that say how or where to run, not what is computed: no part of a run's default name."""
NOT_COMPARED = (*NOT_SETTINGS, "data_dir")
"""Flags that may differ between two starts of one run; the data may have moved in between."""
_VOLATILE = ("environment", "timing")


def record_path(results_dir: Path | str, task: str, name: str, seed: int) -> Path:
    """Return where the record of one run lies: `results_dir/task/name/seed<seed>.json`.

    Raises:
        UsageError: `name` is not a plain file name.
    """
    if name in ("", ".", "..") or Path(name).name != name or not name.isprintable() or len(name.encode()) > 255:
        raise UsageError(f"--name {name!r} is not a plain folder name; use a few letters, digits and .-_=")
    return Path(results_dir) / task / name / f"seed{seed}.json"


def write_atomically(path: Path | str, content: bytes) -> None:
    """Replace the file at `path` by `content`, so that a killed process leaves the old or the new file whole.

    Missing folders are made. The content goes first to a hidden file with a short random name in the same
    folder: the final name may be as long as the file system allows, and other jobs may write beside it.

    Raises:
        UsageError: the path cannot be written.
        OSError: the disk is full.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(4)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            _sync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        _remove(temporary)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        if error.errno in DISK_FULL:
            raise OSError(error.errno, reason, str(path)) from error  # a failed write does not know its file
        raise UsageError(f"cannot write {path}: {reason}; choose another place") from error


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


def plain(value: Any, words: bool = False) -> Any:
    """Return `value` as JSON holds it: numbers from tensors and numpy, lists from tuples, text from paths.

    Strict JSON has no word for NaN and the infinities: they become None (`null`), or with `words`, as settings want
    it, the texts "nan", "inf" and "-inf", which `read_settings` turns back.

    Raises:
        TypeError: JSON has no form for the value.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value)) if words else None
    if isinstance(value, Mapping):
        return {str(key): plain(item, words) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(item, words) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(item, words) for item in value]
    if hasattr(value, "tolist"):  # torch.Tensor, numpy.ndarray and numpy scalars
        return plain(value.tolist(), words)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "torch":  # torch.device, torch.dtype
        return str(value)
    raise TypeError(f"a record cannot hold {value!r} of type {type(value).__name__}")


def read_settings(value: Any) -> Any:
    """Return settings from a file as they were before `plain(..., words=True)`, NaN and the infinities as numbers."""
    if isinstance(value, dict):
        return {key: read_settings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [read_settings(item) for item in value]
    return float(value) if value in _NOT_FINITE else value


def write_record(path: Path | str, record: Mapping[str, Any]) -> None:
    """Write a record atomically as strict JSON.

    Raises:
        UsageError: the path cannot be written.
        OSError: the disk is full.
    """
    text = json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_record(path: Path | str) -> dict[str, Any]:
    """Return the record at `path`, its settings as they were given.

    Raises:
        UsageError: there is no such file, or it holds no record of this format.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not whole JSON"
        raise UsageError(f"{path} is no run record: {reason}; move it away or choose another --name") from error
    fields = {"task": str, "name": str, "seed": int, "status": str, "config": dict, "history": list}
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UsageError(f"{path} is no run record of format {FORMAT}; move it away or choose another --name")
    wrong = [key for key, kind in fields.items() if not isinstance(record.get(key), kind)]
    if wrong:
        raise UsageError(f"{path} is no run record: field {wrong[0]} is missing or wrong; move it away")
    return {**record, "config": read_settings(record["config"])}


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the same command and seed must reproduce: the record without environment and timing."""
    return {key: value for key, value in record.items() if key not in _VOLATILE}


def check_same_config(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    ignore: Iterable[str] = NOT_COMPARED,
    *,
    what: str = "the checkpoint",
    remedy: str = "give the same flags, or start without --resume",
) -> None:
    """Check that `saved` and `now` are the same settings, but for the keys in `ignore`.

    Args:
        saved: settings found in a checkpoint or a record.
        now: settings of this run.
        ignore: keys that may differ.
        what: whose settings `saved` are, for the message.
        remedy: what the user can do, for the message.

    Raises:
        UsageError: some differ; the message names the first five.
    """
    ignored = set(ignore)
    before, after = plain(saved, words=True), plain(now, words=True)
    keys = [key for key in dict.fromkeys((*before, *after)) if key not in ignored]
    differing = [
        f"{key} {before.get(key, 'absent')!r} (now {after.get(key, 'absent')!r})"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UsageError(f"{what} has other settings: {', '.join(differing[:5])}{more}; {remedy}")


def finished_record(
    path: Path | str, config: Mapping[str, Any], ignore: Iterable[str] = NOT_COMPARED
) -> dict[str, Any] | None:
    """Return the record at `path` if it says finished; None for another or none, and for a broken file.

    Args:
        path: of the record.
        config: the settings that it should have, its data's fingerprint among them.
        ignore: keys that may differ.

    Raises:
        UsageError: the finished run had other settings or read other data.
    """
    if not is_finished(path):
        return None
    record = read_record(path)
    remedy = "choose another --name or --results-dir"
    check_same_config(record["config"], config, ignore, what=f"the finished run {path}", remedy=remedy)
    return record


def finished_line(path: Path, record: Mapping[str, Any]) -> str:
    """Return what a script says in place of training a finished run again."""
    return f"{path} is finished, with {len(record['history'])} entries; --again trains it anew"


def is_finished(path: Path | str) -> bool:
    """Return whether the record at `path` says finished; a missing or broken file is not finished."""
    try:
        return read_record(path)["status"] == "finished"
    except UsageError:
        return False


def config_digest(config: Mapping[str, Any], ignore: Iterable[str] = NOT_SETTINGS) -> str:
    """Return a hash of the settings that does not depend on their order, the machine or the Python version."""
    settings = {key: value for key, value in plain(config, words=True).items() if key not in set(ignore)}
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception as `Type: first line of its message`; an interruption as what it was."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    message = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def environment() -> dict[str, Any]:
    """Return what a run ran on: source revision, versions, device, host, number of CPU cores."""
    commit, dirty = _git_revision()
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "device": device_name(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
    }


def device_name() -> str:
    """Return the GPU's name if this process has computed on one, else the processor's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    if package in sys.modules:
        return str(sys.modules[package].__version__)  # says +cpu or +cu130, which the metadata may not
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> tuple[str | None, bool | None]:
    """Return (commit, whether tracked files differ from it), or (None, None) outside the repository."""
    root = Path(__file__).resolve().parent.parent
    found = _git(root, "rev-parse", "--show-toplevel", "HEAD")
    if found is None or len(found.splitlines()) != 2:
        return None, None
    top, commit = found.splitlines()
    if Path(top) != root:  # installed into a folder of somebody else's repository
        return None, None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ("git", "-C", str(root), *arguments), capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

"""Records: one JSON file a run, the only thing that tables and pictures are computed from.

Nothing here imports torch, so that tools which read a thousand records start at once.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import math
import os
import platform
import secrets
import socket
import subprocess
import sys
import zlib
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from aaai23.errors import UsageError
from aaai23.harness.config import Config, declared, defaults, folder_name
from aaai23.harness.files import DISK_FULL, LARGEST_UNPACKED, check_regular, open_regular, read_text

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of file systems that cannot be told to write to the disk now."""
MARKER = "SAMPLE_DATA.txt"
"""A file of this name in a data folder says that it holds sample data, stand-ins made by a program."""


# ---- what a run is


@dataclass(frozen=True)
class Identity:
    """What makes a run this run and no other: two starts with one identity are one run.

    Args:
        task: folder of results.
        name: folder of the runs that differ in their seed only.
        seed: of this run.
        method: as tables call it.
        settings: what decides its metrics, with the lengths, as JSON holds them.
        defaults: of the settings; one that a record lacks counts as its default.
        lengths: which of the settings may grow on resuming.
        data: fingerprint of the files that it reads.
        sample_data: whether these are stand-ins.
        folder: of its files.
    """

    task: str
    name: str
    seed: int
    method: str
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    lengths: tuple[str, ...]
    data: str
    sample_data: bool
    folder: Path

    def file(self, ending: str) -> Path:
        """Return where a file of this run lies, such as `.json`, `.pt` or `_curves.png`."""
        return self.folder / f"seed{self.seed}{ending}"


def identify(task: str, config: Config, files: Iterable[Path], digest: Callable[[Path], str] | None = None) -> Identity:
    """Return who a run is, from its configuration and the data files that it reads.

    Without `--name` the name is the configuration's label and six digits that the settings which differ from their
    defaults, and the data, decide: a new flag changes no name.

    Raises:
        UsageError: a data file is missing, or the name is not a plain folder name.
    """
    files = list(files)
    data, sample_data = fingerprint(files, digest), any(is_sample(path.parent) for path in files)
    known, default = declared(type(config)), plain(defaults(type(config)))
    settings = plain(config.settings())
    lengths = tuple(name for name in settings if known[name].role == "length")
    changed = {key: it for key, it in settings.items() if key not in lengths and it != default[key]}
    hashed = hashlib.sha256(json.dumps([changed, data], sort_keys=True).encode()).hexdigest()
    name = config.name or f"{config.label}-{hashed[:6]}"
    try:
        folder_name(name)
    except ArgumentTypeError as error:
        raise UsageError(f"--name {error}") from None
    folder = Path(config.results_dir) / task / name
    return Identity(
        task, name, config.seed, config.chosen_method, settings, default, lengths, data, sample_data, folder
    )


def difference(saved: Record | Mapping[str, Any], now: Identity) -> str | None:
    """Return how a record or a checkpoint differs from a run that would go on from it, None if it does not.

    A setting that is absent counts as its default; lengths may differ.
    """
    get = saved.get if isinstance(saved, Mapping) else lambda key: getattr(saved, key)
    if get("seed") != now.seed:
        return f"it is of seed {get('seed')}, not {now.seed}"
    before = get("settings") or {}
    keys = [key for key in dict.fromkeys((*before, *now.settings)) if key not in now.lengths]
    pairs = [(key, *(it.get(key, now.defaults.get(key)) for it in (before, now.settings))) for key in keys]
    differing = [f"{key} {was!r} (now {it!r})" for key, was, it in pairs if was != it]
    lengths = {key: before.get(key, now.defaults.get(key)) for key in now.lengths}
    differing += [f"{key} {it!r}, no number" for key, it in lengths.items() if type(it) is not int and it is not None]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        return f"it has other settings: {', '.join(differing[:5])}{more}"
    if get("data") != now.data:
        return f"it read other data: fingerprint {get('data')}, now {now.data}"
    return None


# ---- the file


LARGEST_METRIC = 1e150
"""Beyond it a metric counts as infinite: the squares of larger ones are."""
STEPS = ("epoch", "iteration", "trial")
"""What histories call a step."""
Word = Annotated[str, Field(pattern=r"^[^/\\]+$")]
Metric = Annotated[float | int, Field(ge=-LARGEST_METRIC, le=LARGEST_METRIC)] | str | None


class Record(BaseModel):
    """A run's record. NaN and infinite metrics are null; an infinite setting is the text "inf"."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    format: Literal[2] = 2
    task: Word
    name: Word
    seed: int = Field(ge=0, lt=2**32)
    method: Word
    status: Literal["running", "finished", "failed"] = "running"
    error: str | None = None
    sample_data: bool
    settings: dict[str, Any]
    data: str
    launch: dict[str, Any] = {}
    timing: dict[str, Any] = {}
    history: list[dict[str, Metric]] = []
    final: dict[str, Metric] | None = None

    @field_validator("history")
    @classmethod
    def _check_steps(cls, history: list[dict[str, Metric]]) -> list[dict[str, Metric]]:
        for step in STEPS:
            for number in (entry[step] for entry in history if step in entry):
                if type(number) is not int or not 0 <= number <= 2**53:
                    raise ValueError(f"{step} {number!r} is no number of a step")
        return history

    @field_validator("timing")
    @classmethod
    def _check_seconds(cls, timing: dict[str, Any]) -> dict[str, Any]:
        seconds = timing.get("seconds", 0)
        if type(seconds) not in (int, float) or not 0 <= seconds <= LARGEST_METRIC:
            raise ValueError(f"{seconds!r} is no number of seconds")
        return timing

    def compared(self) -> dict[str, Any]:
        """Return what the same command and seed must reproduce: the record without launch and timing."""
        return self.model_dump(exclude={"launch", "timing"})

    def starts(self, until: int) -> list[dict[str, Any]]:
        """Return what this run ran on, start by start, up to step `until`.

        Each is `{"until": its last step, "environment": ...}`. A start that made no step, or ran on just what the one
        before ran on, is not told apart.
        """
        starts, environment = [], _flat(self.launch.get("environment"))
        earlier = self.launch.get("earlier")
        for start in earlier if isinstance(earlier, list) else []:
            if isinstance(start, dict):
                starts.append({**_flat(start), "environment": _flat(start.get("environment"))})
        if starts and starts[-1].get("until") == until:
            return starts
        if starts and starts[-1].get("environment") == environment:
            starts.pop()
        return [*starts, {"until": until, "environment": environment}]


def _flat(value: Any) -> dict[str, Any]:
    """Return the plain values of a dict; nothing of anything else: a record may be made by hand."""
    pairs = value.items() if isinstance(value, dict) else ()
    return {key: it for key, it in pairs if it is None or isinstance(it, str | int | float)}


def read_record(path: Path | str) -> Record:
    """Return the record at `path`.

    Raises:
        UsageError: there is no such file, or it holds no record of this format; the message says what is wrong.
    """
    remedy = "move it away, or choose another --name"
    try:
        content = json.loads(read_text(path))
        json.dumps(content, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no run record: not whole JSON; {remedy}") from error
    if isinstance(content, dict) and content.get("format") == 1:
        raise UsageError(f"{path} is a record of an earlier version of this project; {remedy}, or give --again")
    try:
        return Record.model_validate(content)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "too deep"}
        field = ".".join(map(str, first["loc"])) or "record"
        raise UsageError(f"{path} is no run record: {field}: {first['msg']}; {remedy}") from error


def write_record(path: Path | str, record: Record) -> None:
    """Write a record atomically as strict JSON.

    Raises:
        UsageError: the path cannot be written.
        OSError: the disk is full.
    """
    text = json.dumps(record.model_dump(), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def finished(run: Identity) -> Record | None:
    """Return the record of a run that is finished and as long as is asked for, None if there is work to do.

    Raises:
        UsageError: another run's finished record lies in its place, or one that could go on.
    """
    path = run.file(".json")
    try:
        record = read_record(path)
    except UsageError:
        return None
    if record.status != "finished":
        return None
    problem = difference(record, run)
    if problem:
        raise UsageError(f"the finished run {path} stays: {problem}; choose another --name, or --again to replace it")
    return None if longer(run, record.settings) else record


def longer(run: Identity, earlier: Mapping[str, Any]) -> bool:
    """Whether a run is to go on for longer than an earlier start was; None is no limit."""
    lengths = [(earlier.get(key), run.settings[key]) for key in run.lengths]
    return any(was is not None and (now is None or now > was) for was, now in lengths)


def figure(final: Mapping[str, Any] | None, metric: str) -> float:
    """Return a final metric; NaN where it was not finite, or is missing."""
    value = (final or {}).get(metric)
    return float(value) if isinstance(value, int | float) else math.nan


def finished_line(run: Identity, record: Record) -> str:
    """Return what a script says in place of training a finished run again."""
    return f"{run.file('.json')} is finished, with {len(record.history)} entries; --again trains it anew"


def plain(value: Any) -> Any:
    """Return `value` as JSON holds it: numbers from tensors and numpy, lists from tuples, text from paths.

    Infinities become text, "inf" and "-inf", and NaN None: strict JSON has no word for them.

    Raises:
        TypeError: JSON has no form for the value.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # of a path that is no UTF-8
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None if math.isnan(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # torch.Tensor, numpy.ndarray and numpy scalars
        return plain(value.tolist())
    if isinstance(value, os.PathLike):
        return plain(os.fspath(value))
    raise TypeError(f"a record cannot hold {value!r} of type {type(value).__name__}")


def metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics as a record holds them: numbers and text, None where one is not finite."""
    found = plain(dict(values))
    return {key: None if it in ("inf", "-inf") or _is_huge(it) else it for key, it in found.items()}


def _is_huge(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) > LARGEST_METRIC


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


# ---- data


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


# ---- what a run ran on


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
    root = Path(__file__).resolve().parents[2]
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

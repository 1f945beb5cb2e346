"""Records: one JSON file a run, the only thing that tables and pictures are computed from.

Nothing here imports torch, so that tools which read a thousand records start at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from aaai23.errors import UsageError
from aaai23.harness.files import read_text, write_atomically

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


def figure(final: Mapping[str, Any] | None, metric: str) -> float:
    """Return a final metric; NaN where it was not finite, or is missing."""
    value = (final or {}).get(metric)
    return float(value) if isinstance(value, int | float) else math.nan


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception as `Type: first line of its message`; an interruption as what it was."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    message = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."

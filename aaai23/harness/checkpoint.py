"""Checkpoints: whatever has a state, written whole, and the exports of weights for other programs."""

from __future__ import annotations

import hashlib
import io
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from aaai23.errors import UsageError
from aaai23.harness.files import check_regular, check_writable, write_atomically
from aaai23.harness.identity import Identity, difference

_SEAL = b"sha256 of all before: "
"""What stands between a checkpoint and its hash."""


class Stateful(Protocol):
    """What a checkpoint can keep: a module, an optimiser, `Best`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore the state."""
        ...


def save(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` atomically: a killed job leaves the old or the new checkpoint, whole.

    A hash of it follows, which `torch.load` in other programs passes over.

    Args:
        path: any name that the file system takes; missing folders are made.
        state: tensors, numbers, text and containers of them, state dicts included.

    Raises:
        UsageError: the path cannot be written.
        OSError: the disk is full.
    """
    buffer = io.BytesIO()  # torch reports a failed write to a file as a RuntimeError without its reason
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    write_atomically(path, content + _SEAL + hashlib.sha256(content).digest())


def load(path: Path | str, sealed: bool = False) -> dict[str, Any]:
    """Return the state saved at `path`, its tensors on the CPU; nothing in the file is executed.

    Args:
        path: of the file.
        sealed: whether it must have the hash that `save` adds; files of other programs have none.

    Raises:
        UsageError: there is no such file, or it is not a checkpoint, or not as it was written.
    """
    check_regular(path)
    try:
        content, seal, digest = Path(path).read_bytes().rpartition(_SEAL)
        if not seal and not sealed:
            content = digest
        elif hashlib.sha256(content).digest() != digest:
            raise ValueError("changed since it was written")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"there is no checkpoint {path}; start without --resume or check the path") from error
    except OSError as error:
        raise UsageError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # torch, pickle and zipfile each have their own for a broken file
        raise UsageError(f"{path} is not a whole checkpoint; delete it and start again") from error
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds a {type(state).__name__}, not a checkpoint; give another path")
    return state


def origin(identity: Identity) -> dict[str, Any]:
    """Return what a checkpoint keeps of who a run is, see `difference`."""
    return {"seed": identity.seed, "settings": dict(identity.settings), "data": identity.data}


def check_export(path: Path | None, identity: Identity) -> None:
    """See before hours of work that `export` can write to `path`, and replaces nothing but this run's own.

    Raises:
        UsageError: a file lies there that is not of this run, or the path cannot be written.
    """
    if path is None:
        return
    if os.path.exists(path):
        problem = difference(load(path), identity)
        if problem:
            raise UsageError(f"the weights {path} stay: {problem}; name another file")
    else:
        check_writable(path)


def export(path: Path | None, identity: Identity) -> None:
    """Write a run's best weights, which are in its checkpoint, to `path`, if any, for other programs.

    Raises:
        UsageError: see `check_export`; or the run has no checkpoint.
    """
    check_export(path, identity)
    if path is not None:
        save(path, {**origin(identity), "model": load(identity.file(".pt"))["parts"]["best"]["weights"]})


def random_state() -> dict[str, Any]:
    """Return the states of the global generators: Python's, numpy's if in use, torch's on the CPU and all GPUs."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": []}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        algorithm, keys, *rest = numpy.random.get_state()
        state["numpy"] = [algorithm, keys.tolist(), *rest]  # torch.load refuses arrays
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` returned, on as many GPUs as there are now."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, index)
    if "numpy" in state:
        import numpy

        algorithm, keys, *rest = state["numpy"]
        numpy.random.set_state((algorithm, numpy.asarray(keys, dtype=numpy.uint32), *rest))

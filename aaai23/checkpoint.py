"""Checkpoints: everything that a run needs to continue to the figures that it would have reached uninterrupted."""

import io
import random
import sys
from pathlib import Path
from typing import Any

import torch

from aaai23.errors import UsageError
from aaai23.record import write_atomically


def save_checkpoint(path: Path | str, state: dict[str, Any]) -> None:
    """Write `state` to `path` atomically: a killed job leaves the old or the new checkpoint, whole.

    Args:
        path: any name that the file system takes; missing folders are made.
        state: tensors, numbers, text and containers of them, state dicts included.

    Raises:
        UsageError: the path cannot be written.
        OSError: the disk is full.
    """
    buffer = io.BytesIO()  # torch reports a failed write to a file as a RuntimeError without its reason
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return the state saved at `path`, its tensors on the CPU; nothing in the file is executed.

    Raises:
        UsageError: there is no such file, or it is not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"there is no checkpoint {path}; start without --resume or check the path") from error
    except OSError as error:
        raise UsageError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # torch, pickle and zipfile each have their own for a broken file
        raise UsageError(f"{path} is not a whole checkpoint; delete it and start again") from error
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds a {type(state).__name__}, not a checkpoint; give another path")
    return state


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


def set_random_state(state: dict[str, Any]) -> None:
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

"""One seed, one run, one record: what all tasks share while they train.

The pieces live in `acceleration`, `record`, `checkpoint`, `tracking` and `shell`; a task imports them from here,
except for what must answer before torch is loaded (`aaai23.shell.run_cli`, `aaai23.arguments`).
"""

import hashlib
import logging
import math
import random
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from aaai23.acceleration import accelerate
from aaai23.checkpoint import (
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from aaai23.errors import UsageError
from aaai23.record import (
    FORMAT,
    NOT_COMPARED,
    check_same_config,
    comparable,
    config_digest,
    device_name,
    environment,
    is_finished,
    one_line,
    plain,
    read_record,
    record_path,
    write_record,
)
from aaai23.shell import configure_logging, progress, run_cli
from aaai23.tracking import Tracker

_LOGGER = logging.getLogger(__name__)

__all__ = [
    "Run",
    "accelerate",
    "check_same_config",
    "comparable",
    "configure_logging",
    "earlier_state",
    "epoch_order",
    "is_finished",
    "load_checkpoint",
    "loss_values",
    "progress",
    "random_state",
    "read_record",
    "record_path",
    "run_cli",
    "save_checkpoint",
    "seed_everything",
    "select_device",
    "set_random_state",
]


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, torch (CPU and GPUs) and, if it is in use, numpy."""
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def select_device(name: str) -> torch.device:
    """Return the device called "cpu" or "cuda"; for "auto" the GPU if there is one.

    Raises:
        UsageError: "cuda" on a machine without a usable GPU, or another name.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: choose auto, cpu or cuda")
    available = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch finds no usable GPU here; use --device cpu or auto")
    return torch.device("cuda" if available else "cpu")


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of 0..n-1, int64 [n], that depends on `seed` and `epoch` alone.

    No global generator is read or moved, so a resumed run sees the order that it would have seen.
    """
    mixed = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:7]))
    return torch.randperm(n, generator=generator)


def loss_values(losses: Iterable[Tensor], where: str, remedy: str) -> list[float]:
    """Return the losses of some steps as numbers, waiting for the device once.

    Args:
        losses: of one number each.
        where: in training they were found, for the message.
        remedy: what the user can do, for the message.

    Raises:
        FloatingPointError: one is NaN or infinite.
    """
    values = torch.stack(list(losses)).tolist()
    if not all(map(math.isfinite, values)):
        raise FloatingPointError(f"{where}: the loss is not finite; {remedy}")
    return values


def earlier_state(
    args: Namespace, record: Path, checkpoint: Path, config: Mapping[str, Any], ignore: Iterable[str]
) -> dict[str, Any] | None:
    """Return the checkpoint that a run goes on from, or None where it starts from the beginning.

    What an earlier start has done is not replaced unless the user says so.

    Args:
        args: `resume` and `again` of the command line.
        record: path of the run's record.
        checkpoint: path of its checkpoint.
        config: its settings, with its own seed.
        ignore: settings that may differ from those of an earlier start; the seed may not.

    Raises:
        UsageError: the checkpoint is of another seed, other settings or other data; or there is work of an earlier
            start, and neither --resume nor --again was given.
    """
    state = load_checkpoint(checkpoint) if checkpoint.exists() else None
    if state is not None:
        compared = [key for key in ignore if key != "seed"]
        remedy = "give the flags that it was made with, or another place for this run's"
        check_same_config(state.get("config", {}), config, compared, what=f"the checkpoint {checkpoint}", remedy=remedy)
    if args.again:
        return None
    earlier = read_record(record) if record.exists() else None
    steps = len(state["history"] if state is not None else earlier["history"] if earlier is not None else ())
    where = checkpoint if state is not None else record
    if steps and not args.resume:
        raise UsageError(
            f"{where} holds {steps} entries of an earlier start: --resume goes on from there, --again starts anew"
        )
    if steps and state is None:
        if earlier is not None and earlier["status"] == "finished":
            raise UsageError(f"there is no checkpoint {checkpoint} to go on from: --again starts anew")
        _LOGGER.warning("there is no checkpoint %s: starting from the beginning", checkpoint)
    return state


class Run:
    """One seed's run: keeps its record on disk up to date, and W&B beside it.

    The record, `results_dir/task/name/seed<seed>.json`, is whole at any moment. Its fields: `format`, `task`,
    `name`, `seed`, `status` (running, finished, failed), `error`, `sample_data`, `command`, `config`,
    `environment`, `timing` (ISO times and seconds of all starts together), `history`, `final`. What differs
    between two runs of one command is in `environment` and `timing` only. NaN and infinities are `null`, but in
    `config` the words that `read_record` reads.

    An exception inside the `with` block leaves the record with status failed, the error in one line, and the
    history; Ctrl-C reads "interrupted". It goes on to the caller.

    Example:
        with Run("l2x", "aimle-3f2a91", seed, config, wandb_project="beeradv-aaai23") as run:
            for epoch in range(1, epochs + 1):
                run.log(epoch, {"loss_mean": train_epoch()})
            run.finish({"best_val_mse": best})

    Args:
        task: l2x, vae, nri or another folder of results.
        name: folder of the runs that differ in their seed only; W&B's group.
        seed: this run's seed.
        config: the settings, as JSON can hold them.
        results_dir: where records go.
        sample_data: whether the data are the stand-ins.
        step_name: what `history` calls a step.
        history: what was logged before a resumed run's checkpoint.
        ignore: settings that may differ from those of an earlier start under this name.
        wandb_project: W&B's project; None for no W&B.
        wandb_name: W&B's name of the run, `name-seed` if not given.
        wandb_tags: W&B's tags.
    """

    def __init__(
        self,
        task: str,
        name: str,
        seed: int,
        config: Mapping[str, Any],
        *,
        results_dir: Path | str = Path("results"),
        sample_data: bool = False,
        step_name: str = "epoch",
        history: Iterable[Mapping[str, Any]] = (),
        ignore: Iterable[str] = NOT_COMPARED,
        wandb_project: str | None = None,
        wandb_name: str | None = None,
        wandb_tags: Sequence[str] = (),
    ) -> None:
        self.path = record_path(results_dir, task, name, seed)
        self.history: list[dict[str, Any]] = [plain(entry) for entry in history]
        self._step_name = step_name
        self._ignore = tuple(ignore)
        self._wandb: dict[str, Any] = {
            "project": wandb_project,
            "name": wandb_name or f"{name}-{seed}",
            "group": name,
            "tags": tuple(wandb_tags),
        }
        self._tracker = Tracker()
        self.record: dict[str, Any] = {
            "format": FORMAT,
            "task": task,
            "name": name,
            "seed": seed,
            "status": "running",
            "error": None,
            "sample_data": bool(sample_data),
            "command": shlex.join(sys.argv),
            "config": plain(config, words=True),
            "environment": {},
            "timing": {},
            "history": self.history,
            "final": None,
        }

    def __enter__(self) -> Self:
        """Write the first record, and open W&B's run.

        Raises:
            UsageError: the record of another configuration or of no run lies there, or nothing can be written.
        """
        earlier = read_record(self.path) if self.path.exists() else None
        if earlier is not None:
            self._refuse_another(earlier)
        self._start_clock(earlier if self.history else None)
        self.record["environment"] = environment()
        self._write()
        try:
            self._start_tracker()
        except BaseException:  # Ctrl-C while W&B waits for its server
            self.__exit__(*sys.exc_info())
            raise
        return self

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append `{step_name: step, **metrics}` to the history; metrics are numbers or tensors of one number.

        Raises:
            OSError: the disk is full.
        """
        self.history.append(plain({self._step_name: step, **metrics}))
        self._write()
        self._mirror(self.history[-1])

    def finish(self, final: Mapping[str, Any]) -> None:
        """Say that the run is finished, with its final figures."""
        self.record.update(status="finished", final=plain(final))
        self._write()
        self._tracker.summarise(self.record["final"])

    def fail(self, error: BaseException | None) -> None:
        """Say that the run has failed, and why; what was logged stays."""
        reason = "ended before its final figures" if error is None else one_line(error)
        self.record.update(status="failed", error=reason)
        self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how the run ended, and close W&B's run, which prints its summary."""
        try:
            if self.record["status"] == "running":
                self.fail(error)
        except (UsageError, OSError):
            if error is None:
                raise  # else the first error is the one to show
        finally:
            self._tracker.close(0 if self.record["status"] == "finished" else 1)

    def _refuse_another(self, earlier: Mapping[str, Any]) -> None:
        """Refuse to replace the record of another configuration, or one of real data by sample data."""
        check_same_config(
            {**earlier["config"], "sample_data": earlier.get("sample_data")},
            {**self.record["config"], "sample_data": self.record["sample_data"]},
            self._ignore,
            what=f"the run in {self.path}",
            remedy="choose another --name or --results-dir",
        )

    def _start_clock(self, earlier: Mapping[str, Any] | None) -> None:
        """Start the clock, or for a resumed run continue that of its record."""
        timing = earlier.get("timing", {}) if earlier is not None else {}
        self._clock = time.monotonic() - float(timing.get("seconds", 0.0))
        self.record["timing"]["started"] = timing.get("started", _now())

    def _write(self) -> None:
        seconds = round(time.monotonic() - self._clock, 3)
        self.record["timing"].update(updated=_now(), seconds=seconds)
        self.record["environment"]["device"] = device_name()  # the GPU shows once it is in use
        write_record(self.path, self.record)

    def _start_tracker(self) -> None:
        if self._wandb["project"] is None:
            return
        identity = f"{self.path.parent.name} {self.record['seed']} {config_digest(self.record['config'])}"
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        config = {**self.record["config"], "seed": self.record["seed"], "sample_data": self.record["sample_data"]}
        self._tracker.start(run_id=f"{self.record['task']}-{digest}", config=config, **self._wandb)
        for entry in self.history:
            self._mirror(entry)

    def _mirror(self, entry: Mapping[str, Any]) -> None:
        metrics = {key: value for key, value in entry.items() if key != self._step_name}
        self._tracker.log(entry[self._step_name], metrics)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

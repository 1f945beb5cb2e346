"""One seed, one run, one place: its steps, its log, its record, and how it goes on after a stop."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout
from pydantic import ValidationError

from aaai23.errors import UsageError
from aaai23.harness.checkpoint import Stateful, load, origin, random_state, save, set_random_state
from aaai23.harness.config import Config
from aaai23.harness.environment import device_name, environment
from aaai23.harness.files import read_text, remove_remains
from aaai23.harness.identity import Identity, difference
from aaai23.harness.record import Record, metrics, one_line, plain, read_record, write_record
from aaai23.harness.tracking import Tracker

_LOGGER = logging.getLogger(__name__)


class Run:
    """One seed's run: steps that are behind are not taken again, and what each step logs is kept at once.

        with Run(identity, config, project="beeradv-aaai23") as run:
            for epoch in run.steps(range(1, epochs + 1), model=model, optimiser=optimiser):
                run.log(loss_mean=train_epoch(model))
            run.finish(best_val_mse=0.9)

    After the body of a step, its metrics are in the record, W&B and the log, and the state is in the checkpoint. With
    `--resume` a run continues from there to the metrics of one that never stopped. An exception in the block leaves the
    record with status failed and the error in one line; Ctrl-C reads "interrupted". It goes on to the caller.

    Args:
        identity: who the run is.
        config: how it was started, and the defaults of its settings.
        project: W&B's project.
        step_name: what the history calls a step.
        describe: makes the lines of the log from an entry of the history.
        log: gets them.
        tags: W&B's, beside task and method.
    """

    def __init__(
        self,
        identity: Identity,
        config: Config,
        *,
        project: str,
        step_name: str = "epoch",
        describe: Callable[[Mapping[str, Any]], Iterable[str]] = lambda entry: (),
        log: logging.Logger = _LOGGER,
        tags: Sequence[str] = (),
    ) -> None:
        self.identity, self.config, self.step_name = identity, config, step_name
        self._describe, self._log = describe, log
        self._wandb: dict[str, Any] = {
            "project": project,
            "name": f"{config.chosen_method}-{identity.seed}",
            "group": identity.name,
            "tags": (identity.task, config.chosen_method, *tags),
        }
        self._tracker = Tracker()
        self._entry: dict[str, Any] | None = None
        self._lock = FileLock(identity.file(".lock"))
        self._checkpoint: dict[str, Any] | None = None
        self.record = Record(
            task=identity.task,
            name=identity.name,
            seed=identity.seed,
            method=identity.method,
            sample_data=identity.sample_data,
            settings=dict(identity.settings),
            data=identity.data,
        )

    @property
    def entry(self) -> dict[str, Any]:
        """What this step has logged so far."""
        return dict(self._entry or {})

    @property
    def final(self) -> dict[str, Any]:
        """The final metrics of a run that is finished."""
        return dict(self.record.final or {})

    @property
    def behind(self) -> int | None:
        """The last step that is behind, None if there is none."""
        return self.history[-1][self.step_name] if self.history else None

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, an entry a step."""
        return self.record.history

    # ---- start and end

    def __enter__(self) -> Self:
        """Take the run's place, read what an earlier start has left there, write the first record, open W&B's run.

        Raises:
            UsageError: another run lies there or is at work there, or an earlier start's work would be lost.
        """
        self._take_lock()
        try:
            for suffix in (".json", ".pt"):
                remove_remains(self.identity.file(suffix))
            earlier = self._earlier()
            self._start_clock(earlier if self._checkpoint else None)
            launch = {**self.config.launch(), "command": shlex.join(sys.argv), "environment": environment()}
            if earlier and self._checkpoint:
                launch["earlier"] = earlier.starts(self._checkpoint["step"])
            self.record.launch = plain(launch)
            self._write()
            self._start_tracker()
        except BaseException:  # Ctrl-C while W&B waits for its server
            if self.record.launch:
                self.__exit__(*sys.exc_info())
            else:
                self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how the run ended, and close W&B's run, which prints its summary."""
        try:
            if self.record.status == "running":
                reason = "ended before its final metrics" if error is None else one_line(error)
                self.record.status, self.record.error = "failed", reason
                try:
                    self._write()
                except KeyboardInterrupt:  # a second one comes a second later at the earliest, see shell
                    self._write()
                    raise
        except (UsageError, OSError):
            if error is None:
                raise  # else the first error is the one to show
        finally:
            self._tracker.close(0 if self.record.status == "finished" else 1)
            self._leave()

    def finish(self, **final: Any) -> None:
        """Say that the run is finished, with its final metrics."""
        self.record.status, self.record.final = "finished", metrics(final)
        try:
            self._write()
        except BaseException:  # the file says that it runs, and has to say that it failed
            self.record.status, self.record.final = "running", None
            raise
        self._tracker.summarise(self.record.final)

    # ---- steps

    def steps(self, steps: Iterable[int], **parts: Stateful) -> Iterator[int]:
        """Yield the steps that are not behind, in order; after each body keep what it logged, and the state.

        Args:
            steps: numbers that rise.
            parts: by name, what has a state: networks, optimisers, `Best`.

        Raises:
            UsageError: the checkpoint does not hold the state of these parts, or is of a step beyond the last.
            OSError: the disk is full.
        """
        behind, step = self._restore(parts), math.inf
        for step in steps:
            if behind is not None and step <= behind:
                continue
            self._entry = None
            yield step
            self.record.history.append({self.step_name: step, **(self._entry or {})})
            self._write()
            self._mirror(self.history[-1])
            for line in self._describe(self.history[-1]):
                self._log.info(line)
            self._keep(step, parts)
        if behind is not None and behind > step:
            raise UsageError(
                f"{self.identity.file('.pt')} is at {self.step_name} {behind}, beyond the last, {step}: "
                "train for longer, or --again starts anew"
            )

    def log(self, **values: Any) -> None:
        """Give metrics, numbers or tensors of one number, to the entry of this step."""
        self._entry = {**(self._entry or {}), **metrics(values)}

    def _keep(self, step: int, parts: Mapping[str, Stateful]) -> None:
        state = {
            "step": step,
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "history": self.history,
            "random": random_state(),
            **origin(self.identity),
        }
        save(self.identity.file(".pt"), state)

    def _restore(self, parts: Mapping[str, Stateful]) -> int | None:
        """Load the checkpoint that was found, and return the step after which it was made."""
        state, self._checkpoint = self._checkpoint, None
        if state is None:
            return None
        path = self.identity.file(".pt")
        try:
            for name, part in parts.items():
                part.load_state_dict(state["parts"][name])
            set_random_state(state["random"])
        except Exception as error:  # each part has its own for what is no state of its
            raise UsageError(
                f"{path} does not hold the state of this run: {one_line(error)}; --again starts anew"
            ) from error
        return self.behind

    # ---- what an earlier start has left

    def _take_lock(self) -> None:
        path = Path(self._lock.lock_file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            with suppress(OSError):  # the lock holds without it
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}")
        except Timeout:
            raise UsageError(
                f"another process is at work on {self.identity.file('.json')}{_holder(path)}: "
                "wait for it, or choose another --name"
            ) from None
        except OSError as error:
            raise UsageError(
                f"cannot write into {self.identity.folder}: {error.strerror}; choose another --results-dir"
            ) from error

    def _leave(self) -> None:
        with suppress(OSError):
            Path(self._lock.lock_file).unlink()  # before the release: who waits on this file sees that it has gone
        self._lock.release()

    def _earlier(self) -> Record | None:
        """Return the record of an earlier start, and note its checkpoint if the run is to go on from there."""
        path, checkpoint = self.identity.file(".json"), self.identity.file(".pt")
        if self.config.again:
            checkpoint.unlink(missing_ok=True)
            return None
        state = load(checkpoint, sealed=True) if checkpoint.exists() else None
        earlier = read_record(path) if path.exists() else None
        for found, where in ((earlier, path), (state, checkpoint)):
            problem = difference(found, self.identity) if found is not None else None
            if problem:
                raise UsageError(f"{where} stays: {problem}; choose another --name, or --again to replace it")
        if earlier is not None and earlier.sample_data != self.identity.sample_data:
            raise UsageError(f"{path} stays: it is of other data; choose another --name, or --again to replace it")
        entries = self._entries(state) if state is not None else earlier.history if earlier is not None else []
        if not entries:
            return earlier
        if not self.config.resume:
            raise UsageError(
                f"{checkpoint if state is not None else path} holds {len(entries)} entries of an earlier start: "
                "--resume goes on from there, --again starts anew"
            )
        if state is None:
            if earlier is not None and earlier.status == "finished":
                raise UsageError(f"there is no checkpoint {checkpoint} to go on from: --again starts anew")
            _LOGGER.warning("there is no checkpoint %s: starting from the beginning", checkpoint)
        else:
            self._checkpoint, self.record.history = state, list(entries)
        return earlier

    def _entries(self, state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the history that a checkpoint holds, whose last entry is of its step."""
        try:
            history = Record.model_validate({**self.record.model_dump(), "history": state.get("history")}).history
            if history and history[-1].get(self.step_name) != state.get("step"):
                raise ValueError("its history ends at another step")
        except ValueError as error:
            reason = "its history is none" if isinstance(error, ValidationError) else str(error)
            path = self.identity.file(".pt")
            raise UsageError(f"{path} does not hold the state of this run: {reason}; --again starts anew") from error
        return history

    # ---- record and W&B

    def _start_clock(self, earlier: Record | None) -> None:
        """Start the clock, or for a resumed run continue that of its record."""
        timing = earlier.timing if earlier is not None else {}
        self._clock = time.monotonic() - float(timing.get("seconds", 0.0))
        self.record.timing["started"] = timing.get("started", _now())

    def _write(self) -> None:
        seconds = round(time.monotonic() - self._clock, 3)
        self.record.timing.update(updated=_now(), seconds=seconds)
        self.record.launch["environment"]["device"] = device_name()  # the GPU shows once it is in use
        write_record(self.identity.file(".json"), self.record)

    def _start_tracker(self) -> None:
        who = self.identity
        fixed = {key: value for key, value in who.settings.items() if key not in who.lengths}
        digest = hashlib.sha256(json.dumps([who.name, who.seed, fixed, who.data]).encode()).hexdigest()[:12]
        config = {**who.settings, "seed": who.seed, "sample_data": who.sample_data}
        self._tracker.start(run_id=f"{who.task}-{digest}", config=config, **self._wandb)
        for entry in self.history:
            self._mirror(entry)

    def _mirror(self, entry: Mapping[str, Any]) -> None:
        values = {key: value for key, value in entry.items() if key != self.step_name}
        self._tracker.log(entry[self.step_name], values)


def _holder(lock: Path) -> str:
    """Return who holds a lock, as its file says; nothing where it does not."""
    try:
        found = read_text(lock)
    except (UsageError, ValueError):
        found = ""
    return f" ({found})" if re.fullmatch(r"process \d+ on \S+, since \S+", found) else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

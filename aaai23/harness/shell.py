"""What every script of this package does at the shell: exit codes, log lines, progress bars.

Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from aaai23.errors import UsageError
from aaai23.harness.files import DISK_FULL
from aaai23.speed.process import tune_process

if TYPE_CHECKING:
    from aaai23.harness.identity import Identity

_T = TypeVar("_T")
_ENDINGS: dict[int, str] = {signal.SIGHUP: "hung up", signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""Signals that end a run in order, and what its record says then."""
_GRACE = 1.0
"""Seconds after such a signal in which no other one cuts the orderly end short."""


def run_cli(main: Callable[[list[str] | None], int | None] | str, script: str) -> NoReturn:
    """Run `main(None)` and leave the process with the exit code that tells how it went.

    0: done, or what `main` returned. 1: the run failed; non-finite metrics and a full disk in one line, anything
    else with its traceback. 2: a UsageError, a missing package, a path that cannot be, or sizes that no memory holds,
    in one line. 128 + n: signal n, 130 for Ctrl-C.

    Args:
        main: the program, or the module that has it, which is then imported here; its argument is the command line,
            None for the process's own.
        script: the script's file name, which error lines begin with.
    """
    _open_streams()
    code = _exit_code(main, script)
    try:
        sys.stdout.flush()
    except OSError:  # the reader has gone, or the disk is full
        code = code or 1
        _silence_stdout()
    sys.exit(code)


def _exit_code(main: Callable[[list[str] | None], int | None] | str, script: str) -> int:
    def complain(message: object) -> None:
        with contextlib.suppress(OSError):
            print(f"{script}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)

    with _signals() as received:
        try:
            tune_process()
            program = importlib.import_module(main).main if isinstance(main, str) else main
            return program(None) or 0
        except SystemExit:
            raise
        except BaseException as error:
            if received:  # whatever the interruption became on its way
                complain(_ENDINGS[received[0]])
                return 128 + received[0]
            if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as `| head` does
                _silence_stdout()
                return 1
            if isinstance(error, KeyboardInterrupt):
                complain("interrupted")
                return 128 + signal.SIGINT
            code, told = _told(error)
            if told is None:
                traceback.print_exception(error)
            else:
                complain(f"error: {told}")
            return code


def _told(error: BaseException) -> tuple[int, str | None]:
    """Return the exit code of an error, and its line if it has one."""
    if isinstance(error, UsageError):
        return 2, str(error)
    if isinstance(error, FloatingPointError):
        return 1, str(error)
    if isinstance(error, ModuleNotFoundError):
        if (error.name or "").partition(".")[0] in ("aaai23", "imle", ""):
            return 1, None
        return 2, f"the package {error.name} is missing; `make test` once, then `. .venv/bin/activate`"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return 1, f"{error.strerror}{f': {error.filename}' if error.filename else ''}; free some space"
    if isinstance(error, OSError) and error.filename:
        return 2, f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError | RuntimeError | ValueError) and (size := _too_large(error)):
        return 2, f"there is no memory for these sizes: {size}; choose smaller ones"
    return 1, None


def _too_large(error: Exception) -> str | None:
    """Return what torch or numpy says of the memory that it was asked for and that is not there."""
    text = next(iter(str(error).splitlines()), "")
    said = re.search(
        r"(tried to allocate|Unable to allocate|Storage size calculation|numel: integer multiplication|"
        r"array is too big|Maximum allowed dimension|Overflow when unpacking|not enough memory).*",
        text,
        re.IGNORECASE,
    )
    if said:
        return said[0].partition(". Error code")[0].rstrip(".")
    return text or "out of memory" if isinstance(error, MemoryError) else None


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Turn the signals that end a run into KeyboardInterrupt; gives those that have arrived. Ignored ones stay so."""
    received: list[int] = []
    last = -_GRACE

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _GRACE:
            last = now
            received.append(signum)
            raise KeyboardInterrupt(_ENDINGS[signum])

    heard = [number for number in _ENDINGS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield received
    finally:
        if not received:  # else the process is ending, and a further one would show where
            for number, handler in before.items():
                signal.signal(number, handler)


# ---- standard output and error


def _open_streams() -> None:
    """Lose what goes to a stream that is closed, and spell letters that its encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence_stdout() -> None:
    """Send what is left in stdout's buffer nowhere, or the interpreter complains at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _StdoutHandler(logging.Handler):
    """Write each line to what is stdout at that moment, above any progress bar, at once."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            sys.stdout.write(line + "\n")
        else:
            tqdm.tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def configure_logging(script: str) -> logging.Logger:
    """Return the script's logger; its lines read `INFO:l2x-cli.py:message` and go to stdout.

    So do those of all modules of this package.

    Args:
        script: the script's file name, which is the logger's name.
    """
    handler = _StdoutHandler()
    handler.setFormatter(logging.Formatter(f"%(levelname)s:{script.replace('%', '%%')}:%(message)s"))
    package, logger = logging.getLogger("aaai23"), logging.getLogger(script)
    for each in (package, logger):
        each.handlers = [handler]  # calling twice must not write lines twice
        each.setLevel(logging.INFO)
    logger.propagate = False
    return logger


def progress(iterable: Iterable[_T], desc: str, total: int | None = None) -> Iterable[_T]:
    """Return `iterable` with a progress bar on stderr; silent when stderr is no terminal.

    Args:
        iterable: what to walk through.
        desc: text before the bar.
        total: number of items, where `len(iterable)` cannot tell.
    """
    from tqdm import tqdm

    return tqdm(iterable, desc=desc, total=total, disable=None, leave=False, dynamic_ncols=True)


def say_unread(log: logging.Logger, method: str, flags: Iterable[str]) -> None:
    """Name, in one line, flags that were given and that the chosen method does not read."""
    flags = list(flags)
    if flags:
        log.info(f"not read by method {method}: {' '.join(flags)}")


def say_sample_data(log: logging.Logger, run: Identity, folder: object, real: str) -> None:
    """Say that sample data are no real data, such as "BeerAdvocate"."""
    if run.sample_data:
        log.info(f"{folder} holds sample data, a stand-in for {real}: nothing below is a published result")

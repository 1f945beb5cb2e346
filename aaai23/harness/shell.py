"""What every script of this package does at the shell: exit codes, log lines, progress bars.

Nothing here imports torch, so that `--help` answers at once.
"""

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import NoReturn, TypeVar

from aaai23.errors import UsageError
from aaai23.harness.record import DISK_FULL, Identity
from aaai23.speed.process import tune_process

_T = TypeVar("_T")


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; like Ctrl-C, it ends a run in order."""


def run_cli(main: Callable[[list[str] | None], int | None], script: str) -> NoReturn:
    """Run `main(None)` and leave the process with the exit code that tells how it went.

    0: done, or what `main` returned. 1: the run failed; non-finite metrics and a full disk in one line, anything
    else with its traceback. 2: a UsageError or a missing package, in one line. 130: Ctrl-C. 143: SIGTERM.

    Args:
        main: the program; its argument is the command line, None for the process's own.
        script: the script's file name, which error lines begin with.
    """
    code = _exit_code(main, script)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 1
        _silence_stdout()
    sys.exit(code)


def _exit_code(main: Callable[[list[str] | None], int | None], script: str) -> int:
    def complain(message: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(f"{script}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)

    tune_process()
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return main(None) or 0
    except UsageError as error:
        complain(f"error: {error}")
        return 2
    except Terminated:
        complain("terminated")
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        complain("interrupted")
        return 128 + signal.SIGINT
    except FloatingPointError as error:
        complain(f"error: {error}")
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("aaai23", "imle", ""):
            raise
        complain(f"error: the package {error.name} is missing; `make test` once, then `. .venv/bin/activate`")
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        _silence_stdout()
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            complain(f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}; free some space")
        else:
            traceback.print_exc()
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the orderly end short
    raise Terminated("terminated")


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

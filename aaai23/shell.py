"""What every script of this package does at the shell: exit codes, log lines, progress bars.

Nothing here imports torch, so that `--help` answers at once.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import NoReturn, TypeVar

from aaai23.errors import UsageError
from aaai23.record import DISK_FULL

_T = TypeVar("_T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; like Ctrl-C, it ends a run in order."""


def run_cli(main: Callable[[list[str] | None], int | None], script: str) -> NoReturn:
    """Run `main(None)` and leave the process with the exit code that tells how it went.

    0: done, or what `main` returned. 1: the run failed; non-finite figures and a full disk in one line, anything
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


def tune_process() -> None:
    """Set how this process keeps memory and how its threads wait; before torch is loaded, which reads the latter.

    The variables of the environment that mean the same, where the user has set them, stay in force.
    """
    # Threads that wait for one another by spinning slow a shared machine down several times over, and those that go
    # to sleep at once cost a step a sixth of its speed on a quiet one. A short spin costs neither. (GNU's OpenMP, which
    # comes with torch from PyPI.)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # A step frees its large tensors and asks for the same ones in the next. By default the memory goes back to the
    # system in between, and is cleared and mapped page by page again: up to half of the time without gradients.
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only the GNU C library has this
        mallopt = ctypes.CDLL(None).mallopt
        asked = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ) or "_threshold" in tunables
        # older versions refuse more than 32 MB
        if not asked and (mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)):
            mallopt(_M_TRIM_THRESHOLD, -1)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the orderly end short
    raise Terminated("terminated")


def _silence_stdout() -> None:
    """Send what is left in stdout's buffer nowhere, or the interpreter complains at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _StdoutHandler(logging.Handler):
    """Write each line to what is stdout at that moment, above any progress bar, and flushes."""

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

"""Scripts in processes of their own that need no second start of Python: children of this one."""

import io
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from aaai23.harness.shell import run_cli


def fork(work, out="out.txt", err="err.txt", encoding="utf-8"):
    """Start a child that does `work`; returns its process id.

    Args:
        work: what the child does; its exit code is that of the SystemExit it ends in, else 0.
        out: the file that its standard output goes to; None closes it.
        err: the same for errors.
        encoding: of both.
    """
    child = os.fork()
    if child:
        return child
    code = 70  # a traceback
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, name, place in ((1, "stdout", out), (2, "stderr", err)):
            _redirect(number, name, place, encoding)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1  # text: what is wrong
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _redirect(number, name, place, encoding):
    stream = None
    if place is None:
        os.close(number)
    else:
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        stream = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding, write_through=True)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def wait(child, seconds=60):
    """Return the exit code of a child, minus the signal that ended it; fails it if it does not end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a child has not ended in {seconds} s")


def script(cli, words):
    """Return the work of a script."""
    return lambda: run_cli(lambda _: cli.main([str(word) for word in words]), cli.SCRIPT)


def die_at(number, deed=lambda: os.kill(os.getpid(), signal.SIGKILL)):
    """Make this process die before the fsync or replace of this number, counted from 0."""
    count = 0

    def counted(call):
        def counting(*words):
            nonlocal count
            if count == number:
                deed()
            count += 1
            return call(*words)

        return counting

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    return lambda: count


def text(name):
    """Return what a child has written, "" if nothing."""
    path = Path(name)
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

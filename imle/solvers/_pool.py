"""Where the instances of a batch are solved: here, in threads or in processes.

A place is made from `make`, which returns the function of a chunk, a list of instances, that answers with the index and
the outcome of each; every worker calls `make` once. `run(chunks, done)` calls `done(index, outcome)` for each instance;
what `done` raises ends the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import pickle
import signal
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, NamedTuple

import torch
from torch import Tensor

Chunk = list[tuple[int, tuple, dict[str, Any]]]
Outcomes = list[tuple[int, Any]]
Solve = Callable[[Chunk], Outcomes]
Done = Callable[[int, Any], None]


class Failure(NamedTuple):
    """Why an instance has no answer, in words, and the exception behind it, where there is one."""

    reason: str
    cause: Exception | None = None


class Here:
    """The calling thread."""

    def __init__(self, make: Callable[[], Solve]):
        self.solve = _made(make)

    def run(self, chunks: list[Chunk], done: Done) -> None:
        """Solve one chunk after the other."""
        for chunk in chunks:
            for index, outcome in self.solve(chunk):
                done(index, outcome)


class Threads:
    """Threads. After an error or Ctrl-C each ends with its chunk, nobody waits for it, and others are started."""

    def __init__(self, make: Any, workers: int):
        self.make, self.workers = make, workers
        self.making, self.turn = threading.Lock(), threading.RLock()
        self._start()

    def _start(self) -> None:
        self.executor, self.own = ThreadPoolExecutor(self.workers), threading.local()

    def _end(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)

    def run(self, chunks: list[Chunk], done: Done) -> None:
        """Solve the chunks and hand their outcomes over in order."""
        with self.turn:
            try:
                for chunk, future in [(chunk, self._submit(chunk)) for chunk in chunks]:
                    self._collect(chunk, future, done)
            except BaseException:
                self._end()
                self._start()
                raise

    def _submit(self, chunk: Chunk) -> Future:
        return self.executor.submit(self._solve, self.own, chunk)

    def _collect(self, chunk: Chunk, future: Future, done: Done) -> None:
        for index, outcome in future.result():
            done(index, outcome)

    def _solve(self, own: Any, chunk: Chunk) -> Outcomes:
        if not hasattr(own, "solve"):
            with self.making:
                own.solve = _made(self.make)
        return own.solve(chunk)


class Processes(Threads):
    """Processes, which end at once, and which pebble replaces where they crash or run over.

    Args:
        make: as above, pickled.
        workers: how many.
        timeout: seconds for a chunk, which is then of one instance.

    Raises:
        ImportError: pebble is not installed.
    """

    def __init__(self, make: bytes, workers: int, timeout: float | None):
        try:
            import pebble
        except ImportError as error:
            raise ImportError("executor='process' needs pebble: pip install \"adaptive-imle[solvers]\"") from error
        self.pebble, self.timeout = pebble, timeout
        super().__init__(make, workers)

    def _start(self) -> None:
        self.pool = self.pebble.ProcessPool(self.workers, 0, _begin, (self.make,), _Context())
        self.finish = weakref.finalize(self, _stop, self.pool, os.getpid())

    def _end(self) -> None:
        self.finish()

    def _submit(self, chunk: Chunk) -> Future:
        try:
            message = _dumps(chunk)
        except Exception as error:
            raise TypeError(
                f"executor='process' sends arguments to other processes, and one cannot be sent: {words(error)}"
            ) from error
        if not self.pool.active:  # a worker died while it was idle
            self._end()
            self._start()
        return self.pool.schedule(_serve, (message,), timeout=self.timeout)

    def _collect(self, chunk: Chunk, future: Future, done: Done) -> None:
        first = chunk[0][0]
        try:
            outcomes = pickle.loads(future.result())
        except TimeoutError:
            cause = TimeoutError(f"no answer within {self.timeout:g} s")
            outcomes = [(first, Failure(str(cause), cause))]
        except self.pebble.ProcessExpired as error:
            if len(chunk) > 1:  # which instance was it?
                return self.run([[instance] for instance in chunk], done)
            how = f"exit code {error.exitcode}" if error.exitcode >= 0 else signal.Signals(-error.exitcode).name
            reason = f"the worker process ended abruptly ({how}): out of memory, or a crash in the solver"
            outcomes = [(first, Failure(reason))]
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process did not start, or ended while it was idle: out of memory, or calls in the main "
                "script that are not under `if __name__ == '__main__':`"
            ) from error
        if isinstance(outcomes, Failure):
            raise RuntimeError(f"the solver could not be made in a process: {outcomes.reason}") from outcomes.cause
        for index, outcome in outcomes:
            done(index, outcome)


def words(error: BaseException) -> str:
    """Return the kind of an error and its message."""
    return f"{type(error).__name__}: {error}"


def _made(make: Callable[[], Solve]) -> Solve:
    try:
        return make()
    except Exception as error:
        raise RuntimeError(f"the solver could not be made: {words(error)}") from error


def _stop(pool: Any, owner: int) -> None:
    """End a pool's processes, but not from a fork, whose they are not."""
    if os.getpid() == owner:
        pool.stop()
        with contextlib.suppress(RuntimeError):  # in a thread of the pool's own, where it is collected there
            pool.join()


class _Process(SpawnProcess):
    def terminate(self) -> None:
        """End at once, with all that the solver has started."""
        with contextlib.suppress(OSError, AttributeError):
            os.killpg(self.pid or 0, signal.SIGKILL)
        self.kill()


class _Context(SpawnContext):
    """Never fork: the threads that torch starts do not survive it."""

    Process = _Process


# In a worker process

_solve: Solve | Failure


def _begin(make: bytes) -> None:
    """Make the solver; why there is none is the answer to every chunk."""
    global _solve
    with contextlib.suppress(AttributeError):
        os.setpgid(0, 0)  # what the solver starts is ended with it
    torch.set_num_threads(1)
    try:
        _solve = pickle.loads(make)()
    except Exception as error:
        _solve = Failure(words(error), error)


def _serve(message: bytes) -> bytes:
    """Solve a chunk. It comes and goes as bytes: what cannot be loaded would stop the pool."""
    try:
        outcomes = _solve if isinstance(_solve, Failure) else _solve(pickle.loads(message))
        print(end="", flush=True)  # what the solver has printed, for the process may be ended at any time
        return _dumps(outcomes)
    except BaseException:  # such as SystemExit
        traceback.print_exc()
        os._exit(1)


class _Pickler(pickle.Pickler):
    """Tensors by their bytes: no shared memory, no numpy, and ten times as fast. Exceptions by their words."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            return RuntimeError, ("in a worker process:\n" + "".join(traceback.format_exception(value)),)
        if type(value) is not Tensor or value.layout is not torch.strided or value.is_quantized:
            return NotImplemented
        value = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return _tensor, (bytearray(ctypes.string_at(value.data_ptr(), value.nbytes)), value.dtype, value.shape)


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _tensor(data: bytearray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)

"""Where the instances of a batch are solved: here, in threads or in processes.

A place is made from `make`, which returns the function of one instance, `solve(index, args, kwargs)`; each worker calls
it once. `run(chunks, done)` deals lists of instances out and calls `done(index, outcome)` with an answer or a
`Failure`, in any order; what `done` raises ends the run. A place that is `closed` serves no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copyreg import dispatch_table
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor

_PATIENCE = 0.5  # seconds between looks at what a waiting thread may have missed: Ctrl-C a moment before it slept

Instance = tuple[int, tuple, dict[str, Any]]
Solve = Callable[[int, tuple, dict[str, Any]], Any]
Done = Callable[[int, Any], None]


class Failure(NamedTuple):
    """Why an instance has no answer, in words, and the exception behind it, where there is one."""

    reason: str
    cause: Exception | None = None


class Here:
    """The calling thread."""

    closed = False

    def __init__(self, make: Callable[[], Solve]):
        self.solve = _made(make)

    def run(self, chunks: list[list[Instance]], done: Done) -> None:
        """Solve one instance after the other."""
        for chunk in chunks:
            for index, outcome in _solve_each(self.solve, chunk):
                done(index, outcome)


class Threads:
    """Daemon threads: neither a run that is given up nor the interpreter's end waits for what they solve."""

    def __init__(self, make: Callable[[], Solve], workers: int, all_or_none: bool):
        self.closed = False
        self.queue: SimpleQueue = SimpleQueue()
        args = (self.queue, make, threading.Lock(), all_or_none)
        threads = [threading.Thread(target=_serve_thread, args=args, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        self.close = weakref.finalize(self, _end_threads, self.queue, threads)

    def run(self, chunks: list[list[Instance]], done: Done) -> None:
        """Deal the chunks out; a run that is given up leaves its threads to finish the instances that they are at."""
        replies: SimpleQueue = SimpleQueue()
        given_up = threading.Event()
        for chunk in chunks:
            self.queue.put((chunk, replies, given_up))
        try:
            for _ in chunks:
                reply = _get(replies)
                if isinstance(reply, BaseException):
                    raise reply
                for index, outcome in reply:
                    done(index, outcome)
        except BaseException as error:
            given_up.set()
            if not isinstance(error, Exception):  # Ctrl-C
                self.closed = True
                self.close()
            raise


class Processes:
    """Processes of their own, each with a pipe and one chunk at a time.

    Args:
        make: pickled, for each process to load and call.
        workers: how many.
        timeout: seconds for a chunk, after which its process is ended and another takes its place.
        all_or_none: an instance without an answer spoils its run.
    """

    def __init__(self, make: bytes, workers: int, timeout: float | None, all_or_none: bool):
        self.closed = False
        self.make, self.timeout, self.all_or_none = make, timeout, all_or_none
        self.turn = threading.Lock()
        self.workers = [_Worker(make, all_or_none) for _ in range(workers)]
        # before multiprocessing waits for its children as the interpreter ends
        self.close = Finalize(self, _end_workers, args=(self.workers,), exitpriority=0)

    def run(self, chunks: list[list[Instance]], done: Done) -> None:
        """Deal the chunks out; an instance whose process dies or runs over fails, the others of its chunk are not lost.

        Raises:
            RuntimeError: a process did not start.
            TypeError: the arguments cannot be sent.
        """
        with self.turn:
            try:
                self._run(deque(chunks), done)
            except BaseException as error:
                for worker in self.workers:
                    worker.given_up = True
                if self.closed or not isinstance(error, Exception):  # Ctrl-C
                    self.closed = True
                    self.close()
                raise

    def _run(self, waiting: deque[list[Instance]], done: Done) -> None:
        while waiting or any(worker.chunk and not worker.given_up for worker in self.workers):
            for n, worker in enumerate(self.workers):
                if waiting and worker.ready and not worker.chunk:
                    try:
                        worker.send(waiting[0], self.timeout)
                        waiting.popleft()
                    except OSError:  # it died while it was idle
                        self._replace(n)
            busy = [worker for worker in self.workers if worker.chunk or not worker.ready]
            patience = min(_PATIENCE, *(max(0.0, worker.deadline - time.monotonic()) for worker in busy))
            speaking = wait([worker.connection for worker in busy], patience)
            for n, worker in enumerate(self.workers):
                if worker.connection in speaking:
                    try:
                        message = worker.connection.recv_bytes()
                    except (EOFError, OSError):
                        self._lost(n, waiting, done, worker.death())
                    else:
                        self._receive(worker, pickle.loads(message), done)
                elif worker.deadline <= time.monotonic():
                    cause = TimeoutError(f"no answer within {self.timeout:g} s")
                    self._lost(n, waiting, done, Failure(str(cause), cause))

    def _receive(self, worker: _Worker, reply: Any, done: Done) -> None:
        if not worker.ready:
            if reply is not None:
                self.closed = True
                raise RuntimeError(f"the solver could not be made in a process: {reply.reason}") from reply.cause
            worker.ready = True
            return
        given_up = worker.given_up
        worker.chunk, worker.deadline = [], float("inf")
        if not given_up:
            for index, outcome in reply:
                done(index, outcome)

    def _lost(self, n: int, waiting: deque[list[Instance]], done: Done, failure: Failure) -> None:
        """Replace a worker, blame the instance that it was at, and put the rest of its chunk back."""
        worker = self.workers[n]
        if not worker.ready:
            self.closed = True
            raise RuntimeError(
                f"a worker process did not start: {failure.reason}, or calls in the main script that are not under "
                f"`if __name__ == '__main__':`"
            )
        culprit, chunk, given_up = worker.at.value, worker.chunk, worker.given_up
        self._replace(n)
        if given_up:
            return
        rest = [instance for instance in chunk if instance[0] != culprit]
        if rest:
            waiting.append(rest)
        done(culprit, failure)

    def _replace(self, n: int) -> None:
        self.workers[n].end()
        self.workers[n] = _Worker(self.make, self.all_or_none)


class _Worker:
    """A process as seen from outside: idle, or at a chunk."""

    def __init__(self, make: bytes, all_or_none: bool):
        # Never fork, nor a server that has imported the main script: the threads that torch starts do not survive it.
        context = multiprocessing.get_context("spawn")
        self.at = context.RawValue(ctypes.c_long, -1)  # the instance that it solves
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve_process, args=(theirs, self.at, make, all_or_none))
        with _without_interrupts():
            self.process.start()
        theirs.close()
        self.ready, self.given_up, self.deadline = False, False, float("inf")
        self.chunk: list[Instance] = []

    def send(self, chunk: list[Instance], timeout: float | None) -> None:
        try:
            message = _dumps(chunk)
        except Exception as error:
            raise TypeError(
                f"executor='process' sends arguments to other processes, and one cannot be sent: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.at.value = chunk[0][0]
        self.connection.send_bytes(message)
        self.chunk, self.given_up = chunk, False
        self.deadline = float("inf") if timeout is None else time.monotonic() + timeout

    def death(self) -> Failure:
        """Return how the process ended."""
        self.process.join(1)
        code = self.process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return Failure(f"the worker process ended abruptly ({how}): out of memory, or a crash in the solver")

    def end(self) -> None:
        """End the process, with all that it has started."""
        self.connection.close()
        if self.process.pid and self.process.exitcode is None:
            with contextlib.suppress(OSError, AttributeError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join(1)


def _made(make: Callable[[], Solve]) -> Solve:
    try:
        return make()
    except Exception as error:
        raise RuntimeError(f"the solver could not be made: {type(error).__name__}: {error}") from error


def _solve_each(solve: Solve, chunk: list[Instance]) -> Iterator[tuple[int, Any]]:
    """Yield the index of each instance and its outcome."""
    for index, args, kwargs in chunk:
        outcome: Any
        try:
            outcome = solve(index, args, kwargs)
        except Exception as error:
            outcome = Failure(f"{type(error).__name__}: {error}", error)
        yield index, outcome


def _get(queue: SimpleQueue) -> Any:
    while True:
        with contextlib.suppress(Empty):
            return queue.get(timeout=_PATIENCE)


class _Ended(BaseException):
    """Raised in the midst of a solver whose answer nobody wants any more."""


def _serve_thread(queue: SimpleQueue, make: Callable[[], Solve], making: threading.Lock, all_or_none: bool) -> None:
    """Answer chunks until None comes."""
    solve: Solve | None = None
    with contextlib.suppress(_Ended):
        while (work := queue.get()) is not None:
            chunk, replies, given_up = work
            outcomes: Any = []
            try:
                if solve is None:
                    with making:
                        solve = _made(make)
                for index, outcome in _solve_each(solve, chunk):
                    outcomes.append((index, outcome))
                    if given_up.is_set() or (all_or_none and isinstance(outcome, Failure)):
                        break
            except _Ended:
                raise
            except BaseException as error:  # such as SystemExit
                outcomes = error
            replies.put(outcomes)
            del work, chunk, replies, outcomes  # what is answered is not kept alive while the thread waits


def _end_threads(queue: SimpleQueue, threads: list[threading.Thread]) -> None:
    """End what threads do at the next line of Python that they reach; let those be that reach none.

    A thread that is within torch as the interpreter ends aborts the process.
    """
    others = [thread for thread in threads if thread is not threading.current_thread()]
    for thread in others:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Ended))
        queue.put(None)
    _join(others)


def _join(workers: Iterable[Any]) -> None:
    """Wait for threads or processes to end, a moment for all of them."""
    latest = time.monotonic() + _PATIENCE
    for worker in workers:
        worker.join(max(0.0, latest - time.monotonic()))


def _serve_process(connection: Connection, at: Any, make: bytes, all_or_none: bool) -> None:
    """Answer chunks until the other end of the pipe is closed."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpgid(0, 0)  # a group of its own: Ctrl-C is the parent's, and what the solver starts can be ended with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    torch.set_num_threads(1)
    try:
        solve = pickle.loads(make)()
    except Exception as error:
        connection.send_bytes(pickle.dumps(_to_send(Failure(f"{type(error).__name__}: {error}", error))))
        return
    connection.send_bytes(pickle.dumps(None))

    def noted(index: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        at.value = index
        return solve(index, args, kwargs)

    with contextlib.suppress(EOFError, OSError):
        while True:
            outcomes = []
            for index, outcome in _solve_each(noted, pickle.loads(connection.recv_bytes())):
                failed = isinstance(outcome, Failure)
                outcomes.append((index, _to_send(outcome) if failed else outcome))
                if failed and all_or_none:
                    break
            connection.send_bytes(_dumps(outcomes))


def _to_send(failure: Failure) -> Failure:
    """Return a failure whose cause survives the journey: itself, or words; both with the traceback as a note."""
    cause = failure.cause
    assert cause is not None
    trace = "in a worker process:\n" + "".join(traceback.format_exception(cause))
    try:
        cause.add_note(trace)
        if type(cause).__module__ not in ("__main__", "__mp_main__"):
            pickle.loads(pickle.dumps(cause))
            return failure
    except Exception:  # any that a class of its own makes
        pass
    return Failure(failure.reason, RuntimeError(trace))


def _end_workers(workers: list[_Worker]) -> None:
    """End the busy ones, let the idle ones go home, and end those that do not."""
    idle = [worker for worker in workers if worker.ready and not worker.chunk]
    for worker in idle:
        worker.connection.close()
    for worker in workers:
        if worker not in idle:
            worker.end()
    _join(worker.process for worker in idle)
    for worker in idle:
        worker.end()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from processes started here until they say what it means to them: they would print tracebacks."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _dumps(value: Any) -> bytes:
    """Pickle, tensors by their bytes: no shared memory, no numpy, and ten times as fast as torch does it."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = dispatch_table | {Tensor: _reduce_tensor}
    pickler.dump(value)
    return file.getvalue()


def _reduce_tensor(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    data = bytearray(ctypes.string_at(tensor.data_ptr(), tensor.nbytes))
    return _tensor_from_bytes, (data, tensor.dtype, tensor.shape)


def _tensor_from_bytes(data: bytearray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)

"""Lift a solver of one instance to a solver of a batch."""

from __future__ import annotations

import functools
import importlib
import itertools
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Literal, overload

import torch
from torch import Tensor

_CHUNKS_PER_WORKER = 4  # enough to even out instances of unequal difficulty


class BatchedSolver:
    """A solver of a batch made from a solver of one instance; see `batched`."""

    def __init__(
        self,
        solver: Callable[..., Any],
        *,
        instance: Literal["numpy", "torch"],
        workers: int,
        executor: Literal["thread", "process"],
    ) -> None:
        if not callable(solver):
            raise TypeError(f"solver must be a function of one instance; it is {solver!r}")
        if instance not in ("numpy", "torch"):
            raise ValueError(f"instance must be 'numpy' or 'torch'; it is {instance!r}")
        if executor not in ("thread", "process"):
            raise ValueError(f"executor must be 'thread' or 'process'; it is {executor!r}")
        if workers < 0:
            raise ValueError(f"workers must be 0 (none) or a positive number; it is {workers}")
        # Not the attributes of a solver that is an object: they would stand before those of this class.
        functools.update_wrapper(self, solver, updated=())
        self.solver = solver
        self.instance = instance
        self.workers = workers
        self.executor = executor
        self._pool: Executor | None = None
        self._pool_owner = 0

    def __call__(self, theta: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Solve each instance of theta [B, ...] and return the stacked results [B, ...]."""
        if theta.dim() == 0:
            raise ValueError("theta needs a batch dimension, [B, ...]; it is a single number")
        if not theta.is_floating_point():
            raise TypeError(f"theta must be floating point, not {theta.dtype}; convert it first")
        if len(theta) == 0:
            return torch.zeros_like(theta)
        calls = self._split(theta, args, kwargs)
        results = self._solve_in_pool(calls) if self.workers else _solve_each(self, calls, 0, False)
        return _stack(results).to(device=theta.device, dtype=theta.dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As functions do: one that a module holds under its own name is pickled as that name. The solver under
        # the decorator could not be pickled at all, for its name now leads here, or to a decorator over this one.
        module, name = getattr(self, "__module__", ""), getattr(self, "__qualname__", "")
        for depth, found in enumerate(_wrappers(module, name)):
            if found is self:
                return _by_name, (module, name, depth)
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None}

    def _split(self, theta: Tensor, args: tuple, kwargs: dict[str, Any]) -> list[tuple[tuple, dict[str, Any]]]:
        """Return the positional and keyword arguments of the solver for each instance."""
        import numpy

        batch = len(theta)

        def per_instance(value: Any) -> Any:
            if isinstance(value, Tensor):
                value = value.detach()
            if not isinstance(value, Tensor | numpy.ndarray) or value.ndim == 0 or len(value) != batch:
                return [value] * batch
            return _to_numpy(value) if self.instance == "numpy" and isinstance(value, Tensor) else value

        rows = [per_instance(value) for value in (theta, *args)]
        named = {name: per_instance(value) for name, value in kwargs.items()}
        return [(tuple(row[i] for row in rows), {name: row[i] for name, row in named.items()}) for i in range(batch)]

    def _solve_in_pool(self, calls: list[tuple[tuple, dict[str, Any]]]) -> list[Any]:
        pool = self._started_pool()
        size = -(-len(calls) // (_CHUNKS_PER_WORKER * self.workers))
        apart = self.executor == "process"
        futures: list[Future] = []
        try:
            for first in range(0, len(calls), size):
                futures.append(pool.submit(_solve_each, self, calls[first : first + size], first, apart))
            return [result for future in futures for result in future.result()]
        except BrokenExecutor as error:
            self._pool = None
            raise RuntimeError(
                "a worker process ended abruptly: out of memory, a crash in the solver, or a main script whose "
                "calls are not under `if __name__ == '__main__':`"
            ) from error
        finally:
            for future in futures:
                future.cancel()

    def _started_pool(self) -> Executor:
        """Return the pool, started at the first call in this process."""
        if self._pool is None or self._pool_owner != os.getpid():
            self._pool = ThreadPoolExecutor(self.workers) if self.executor == "thread" else self._process_pool()
            self._pool_owner = os.getpid()
        return self._pool

    def _process_pool(self) -> Executor:
        try:
            pickle.dumps(self)
        except Exception as error:
            raise TypeError(
                f"executor='process' needs a solver that other processes can import: a function defined at the top "
                f"level of a module, not {self.solver!r}; or use executor='thread'"
            ) from error
        # Never fork: the threads that torch has started do not survive it.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))


@overload
def batched(solver: Callable[..., Any]) -> BatchedSolver: ...
@overload
def batched(
    solver: Callable[..., Any],
    *,
    instance: Literal["numpy", "torch"] = ...,
    workers: int = ...,
    executor: Literal["thread", "process"] = ...,
) -> BatchedSolver: ...
@overload
def batched(
    solver: None = None,
    *,
    instance: Literal["numpy", "torch"] = ...,
    workers: int = ...,
    executor: Literal["thread", "process"] = ...,
) -> Callable[[Callable[..., Any]], BatchedSolver]: ...
def batched(
    solver: Callable[..., Any] | None = None,
    *,
    instance: Literal["numpy", "torch"] = "numpy",
    workers: int = 0,
    executor: Literal["thread", "process"] = "thread",
) -> BatchedSolver | Callable[[Callable[..., Any]], BatchedSolver]:
    """Lift a solver of one instance to a solver of a batch.

    The result is called as `solver(theta, *args, **kwargs)` with theta [B, ...] and returns a tensor [B, ...] on
    theta's device, of its dtype. Tensors and arrays among the further arguments whose first dimension is B are
    dealt out one row to an instance; every other argument is passed as it is. Tensors and arrays are copied for each
    instance, also those in lists, tuples and dicts: a solver may write on them. The result can be copied and pickled
    wherever the solver can; pools stay behind.

    Args:
        solver: a function of one instance. It returns an array, a tensor or a list of numbers, of the same shape
            for every instance. Leave it out to use this as a decorator with options.
        instance: what the solver is given: "numpy" arrays on the host (float32 for bfloat16, which numpy lacks) or
            "torch" tensors on theta's device. With processes, tensors should be on the CPU.
        workers: 0 solves in the calling thread; more solve as many instances at a time, in a pool that starts at
            the first call and is used again by later ones.
        executor: kind of pool. "thread" suits solvers that release the interpreter lock (most compiled ones) or
            wait for something; "process" suits pure Python. Processes import the solver afresh, so it must be at the
            top level of a module, a script must keep its calls under `if __name__ == "__main__":`, and the first
            call waits for the imports.

    Raises:
        TypeError: solver is not callable; in a call: theta is not floating point, the solver returned no numbers, or
            processes cannot import it.
        ValueError: an option is none of the above; in a call: theta has no batch dimension, or results differ in
            shape.
        RuntimeError: in a call: the solver raised (the message names the instance, the cause is attached), or a
            worker process died.

    Example:
        >>> @batched
        ... def argmax(theta):
        ...     return [int(i == theta.argmax()) for i in range(len(theta))]
        >>> argmax(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.4, 0.3]]))
        tensor([[0., 1., 0.],
                [1., 0., 0.]])
    """
    lift = functools.partial(BatchedSolver, instance=instance, workers=workers, executor=executor)
    return lift if solver is None else lift(solver)


def _solve_each(lifted: BatchedSolver, calls: list[tuple[tuple, dict[str, Any]]], first: int, apart: bool) -> list[Any]:
    """Return the solver's results, as tensors or, from a process apart, in a form that travels by value."""
    results = []
    for i, (args, kwargs) in enumerate(calls, start=first):
        try:
            result = lifted.solver(*_own(args), **_own(kwargs))
        except Exception as error:
            message = f"the solver failed on instance {i}: {type(error).__name__}: {error}"
            raise RuntimeError(message) from error
        result = _to_tensor(result, i)
        results.append(_to_numpy(result) if apart else result)
    return results


def _own(value: Any) -> Any:
    """Return a value whose tensors and arrays, also within plain lists, tuples and dicts, are nobody else's."""
    import numpy

    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(value, numpy.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(_own(item) for item in value)
    if type(value) is dict:
        return {key: _own(item) for key, item in value.items()}
    return value


def _to_numpy(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _to_tensor(result: Any, i: int) -> Tensor:
    if isinstance(result, Tensor):
        return result.detach().clone()  # the solver may write its next result on the same memory
    import numpy

    try:
        return torch.from_numpy(numpy.array(result, order="C"))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the solver returned {type(result).__name__} for instance {i}; return an array, a tensor or a list of "
            f"numbers, all of one shape"
        ) from error


def _stack(results: list[Any]) -> Tensor:
    tensors = [result if isinstance(result, Tensor) else torch.from_numpy(result) for result in results]
    for i, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            raise ValueError(
                f"the solver returned shape {tuple(tensor.shape)} for instance {i} and {tuple(tensors[0].shape)} for "
                f"instance 0; all must be the same"
            )
    return torch.stack(tensors)


def _wrappers(module: str, name: str) -> Iterator[Any]:
    """Yield what a module holds under a name, and what that wraps, and so on."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    while found is not None:
        yield found
        found = getattr(found, "__wrapped__", None)


def _by_name(module: str, name: str, depth: int) -> Any:
    """Return what lies `depth` decorators below a module's name; what unpickling calls."""
    importlib.import_module(module)
    return next(itertools.islice(_wrappers(module, name), depth, None))

"""Lift a solver of one instance to a solver of a batch."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import math
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from imle._numerics import name_rows
from imle.solver import assign, own
from imle.solvers._checks import check_floating
from imle.solvers._pool import Failure, Here, Instance, Processes, Solve, Threads

_CHUNKS_PER_WORKER = 4  # enough to even out instances of unequal difficulty


class BatchedSolver:
    """A solver of a batch made from a solver of one instance; see `batched`."""

    takes_shared = True
    """What `imle.solver.shared` marks is unwrapped here, not by an estimator."""

    def __init__(
        self,
        solver: Callable[..., Any] | None,
        *,
        instance: Literal["numpy", "torch"] = "numpy",
        workers: int = 0,
        executor: Literal["thread", "process"] = "thread",
        factory: Callable[[], Callable[..., Any]] | None = None,
        timeout: float | None = None,
        on_error: Literal["raise", "skip", "previous"] = "raise",
        progress: bool = False,
    ) -> None:
        if factory is not None and solver is not None:
            raise TypeError("give a solver or a factory that makes one, not both")
        if factory is None and not callable(solver):
            raise TypeError(f"solver must be a function of one instance; it is {solver!r}")
        if factory is not None and not callable(factory):
            raise TypeError(f"factory must be a function that makes a solver; it is {factory!r}")
        if instance not in ("numpy", "torch"):
            raise ValueError(f"instance must be 'numpy' or 'torch'; it is {instance!r}")
        if executor not in ("thread", "process"):
            raise ValueError(f"executor must be 'thread' or 'process'; it is {executor!r}")
        if on_error not in ("raise", "skip", "previous"):
            raise ValueError(f"on_error must be 'raise', 'skip' or 'previous'; it is {on_error!r}")
        if workers < 0:
            raise ValueError(f"workers must be 0 (none) or a positive number; it is {workers}")
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds; it is {timeout}")
        if timeout is not None and not (workers and executor == "process"):
            raise ValueError(
                f"timeout needs processes, workers=1 or more and executor='process', not workers={workers} and "
                f"executor={executor!r}: a thread cannot be ended from outside; or give the solver its own time limit"
            )
        if progress:
            _tqdm()
        if solver is not None:
            # Not the attributes of a solver that is an object: they would stand before those of this class.
            functools.update_wrapper(self, solver, updated=())
        self.solver = solver
        self.factory = factory
        self.instance = instance
        self.workers = workers
        self.executor = executor
        self.timeout = timeout
        self.on_error = on_error
        self.progress = progress
        self.may_skip = on_error != "raise"
        """Whether rows of the answer may be NaN; an estimator gives them no gradient."""
        self.failed: Tensor | None = None
        """`[B]`, which instances of the last call had no answer of their own."""
        self._previous: dict[Hashable, Tensor] = {}
        self._pool: Here | Threads | Processes | None = None
        self._pool_owner = 0

    def __call__(self, theta: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Solve each instance of theta [B, ...] and return the stacked results [B, ...]."""
        if theta.dim() == 0:
            raise ValueError("theta needs a batch dimension, [B, ...]; it is a single number")
        check_floating("theta", theta)
        if len(theta) == 0:
            return torch.zeros_like(theta)
        if "instance_ids" in kwargs or self.on_error == "previous":
            kwargs["instance_ids"] = _ids(kwargs.get("instance_ids"), len(theta))
        outcomes = self._solve(self._split(theta, args, kwargs))
        if not self.may_skip:
            self.failed = torch.zeros(len(theta), dtype=torch.bool)
            return _stack(outcomes).to(device=theta.device, dtype=theta.dtype)
        return self._with_gaps(outcomes, theta, kwargs.get("instance_ids"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As functions do: one that a module holds under its own name is pickled as that name. The solver under
        # the decorator could not be pickled at all, for its name now leads here, or to a decorator over this one.
        module, name = getattr(self, "__module__", ""), getattr(self, "__qualname__", "")
        for depth, found in enumerate(_wrappers(module, name)):
            if found is self:
                return _by_name, (module, name, depth)
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "_previous": {}, "failed": None}

    def make(self) -> Solve:
        """Return the function of one instance that a worker calls; what a process is sent."""
        return self._recipe()()

    def _recipe(self) -> _Recipe:
        return _Recipe(self.solver, self.factory, self.may_skip, self.on_error == "previous")

    def _split(self, theta: Tensor, args: tuple, kwargs: dict[str, Any]) -> list[Instance]:
        """Return the index and the positional and named arguments of each instance."""
        batch = len(theta)
        as_given = _as_numpy if self.instance == "numpy" else _detached

        def columns(value: Any) -> Any:
            return assign(value, batch, as_given, lambda common: common)

        def row(value: Any, i: int) -> Any:
            return assign(value, batch, lambda column: column[i], lambda common: common)

        first = as_given(theta.contiguous())
        args, kwargs = tuple(columns(value) for value in args), {name: columns(v) for name, v in kwargs.items()}
        return [
            (i, (first[i], *(row(value, i) for value in args)), {name: row(v, i) for name, v in kwargs.items()})
            for i in range(batch)
        ]

    def _solve(self, instances: list[Instance]) -> list[Any]:
        """Return the outcome of each instance: a tensor or, unless that is an error, a failure."""
        outcomes: list[Any] = [None] * len(instances)
        size = 1 if self.timeout else -(-len(instances) // (_CHUNKS_PER_WORKER * max(1, self.workers)))
        chunks = [instances[first : first + size] for first in range(0, len(instances), size)]
        name = getattr(self, "__name__", None)
        bar: Any = contextlib.nullcontext()
        if self.progress:
            bar = _tqdm()(total=len(instances), desc=name, leave=False, disable=None)  # None: where there is a terminal
        with bar as bar:

            def done(i: int, outcome: Any) -> None:
                if isinstance(outcome, Failure):
                    if isinstance(outcome.cause, _NoNumbers):
                        raise TypeError(str(outcome.cause)) from outcome.cause.__cause__
                    if not self.may_skip:
                        raise RuntimeError(f"the solver failed on instance {i}: {outcome.reason}") from outcome.cause
                outcomes[i] = outcome
                if bar is not None:
                    bar.update()

            self._started_pool().run(chunks, done)
        return outcomes

    def _with_gaps(self, outcomes: list[Any], theta: Tensor, ids: list[Hashable] | None) -> Tensor:
        """Return the stacked results, with NaN or the previous solution for instances that have none."""
        solved = {i: outcome for i, outcome in enumerate(outcomes) if not isinstance(outcome, Failure)}
        shape = next(iter(solved.values())).shape if solved else theta.shape[1:]
        z = theta.new_full((len(theta), *shape), torch.nan)
        if solved:
            z[list(solved)] = _stack(outcomes).to(z)
        failed = ~z.flatten(1).isfinite().all(dim=1).cpu()
        self.failed = failed
        z[failed] = torch.nan
        if self.on_error == "previous" and ids is not None:
            for i, key in enumerate(ids):
                if not failed[i]:
                    self._previous[key] = z[i].clone()
                elif key in self._previous and self._previous[key].shape == shape:
                    z[i] = self._previous[key]
        if failed.any():
            i = int(failed.nonzero()[0])
            reason = outcomes[i].reason if isinstance(outcomes[i], Failure) else "its answer is not finite"
            remedy = "previous solutions stand for them" if self.on_error == "previous" else "they are left out"
            warnings.warn(
                f"the solver failed on {name_rows(failed[:, None])} of {len(theta)}, and {remedy}; instance {i}: "
                f"{reason}",
                stacklevel=3,
            )
        return z

    def _started_pool(self) -> Here | Threads | Processes:
        """Return the pool, started at the first call in this process."""
        if self._pool is None or self._pool.closed or self._pool_owner != os.getpid():
            if not self.workers:
                self._pool = Here(self._recipe())
            elif self.executor == "thread":
                self._pool = Threads(self._recipe(), self.workers, not self.may_skip)
            else:
                self._pool = Processes(self._pickled(), self.workers, self.timeout, not self.may_skip)
            self._pool_owner = os.getpid()
        return self._pool

    def _pickled(self) -> bytes:
        try:
            return pickle.dumps(self.make)  # with this object, which knows how to be pickled by name
        except Exception as error:
            raise TypeError(
                f"executor='process' needs a solver that other processes can import: a function defined at the top "
                f"level of a module, not {self.solver or self.factory!r}; a solver that is an object with a state is "
                f"made in each process by a function: batched(factory=make_solver, ...)"
            ) from error


class _Options(TypedDict, total=False):
    instance: Literal["numpy", "torch"]
    workers: int
    executor: Literal["thread", "process"]
    timeout: float | None
    on_error: Literal["raise", "skip", "previous"]
    progress: bool


@overload
def batched(solver: Callable[..., Any], **options: Unpack[_Options]) -> BatchedSolver: ...
@overload
def batched(
    solver: None = None, *, factory: Callable[[], Callable[..., Any]], **options: Unpack[_Options]
) -> BatchedSolver: ...
@overload
def batched(solver: None = None, **options: Unpack[_Options]) -> Callable[[Callable[..., Any]], BatchedSolver]: ...
def batched(
    solver: Callable[..., Any] | None = None,
    *,
    instance: Literal["numpy", "torch"] = "numpy",
    workers: int = 0,
    executor: Literal["thread", "process"] = "thread",
    factory: Callable[[], Callable[..., Any]] | None = None,
    timeout: float | None = None,
    on_error: Literal["raise", "skip", "previous"] = "raise",
    progress: bool = False,
) -> BatchedSolver | Callable[[Callable[..., Any]], BatchedSolver]:
    """Lift a solver of one instance to a solver of a batch.

    The result is called as `solver(theta, *args, **kwargs)` with theta [B, ...] and returns a tensor [B, ...] on
    theta's device, of its dtype. Each instance gets its own item of what holds B of them among the further arguments:
    tensors and arrays whose first dimension is B, lists and tuples of B objects, also within other lists, tuples and
    dicts. Everything else is passed as it is, and so is what `imle.solver.shared` marks. Tensors and arrays are copied
    for each instance: a solver may write on them. The result can be copied and pickled wherever the solver can; pools
    and previous solutions stay behind.

    Ctrl-C does not wait for solvers that are running. Processes are ended; threads end at the next line of Python that
    they reach, and one that reaches none, within compiled code, is left behind, where it does not hold up the
    interpreter's end. The next call starts a new pool.

    A warm start: the named argument `instance_ids`, a tensor or list of B numbers or words, reaches the solver as a
    plain number or word, by which it can keep and find what it knows about an instance. An estimator repeats them for
    its samples. In processes each worker has a cache of its own, and an instance comes to any of them.

    Args:
        solver: a function of one instance. It returns an array, a tensor or a list of numbers, of the same shape
            for every instance. Leave it out to use this as a decorator with options.
        instance: what the solver is given for theta and for the instances' own tensors: "numpy" arrays on the host
            (float32 for bfloat16, which numpy lacks) or "torch" tensors on theta's device, with processes on the CPU.
            "torch" does without numpy.
        workers: 0 solves in the calling thread; more solve as many instances at a time, in a pool that starts at
            the first call and is used again by later ones.
        executor: kind of pool. "thread" suits solvers that release the interpreter lock (most compiled ones) or
            wait for something; "process" suits pure Python. Processes import the solver afresh, so it must be at the
            top level of a module, a script must keep its calls under `if __name__ == "__main__":`, and the first
            call waits for the imports.
        factory: a function without arguments that makes a solver, in place of `solver`: for an object with a state,
            such as a model that is changed and solved again. Each worker calls it once, without workers the calling
            thread does, so that no two threads share a solver, and nothing but the factory is pickled.
        timeout: seconds for an instance. A process that runs over is ended, with the processes that it has started,
            and replaced, which costs the imports again. Threads cannot be ended: it needs executor="process".
        on_error: what becomes of an instance whose solver raises, returns None or a number that is not finite, runs
            over, or ends its process (which is replaced). "raise" raises an error that names it. "skip" answers NaN in
            its row, which an estimator takes for a gradient of zero, and warns once a call; `failed` [B] says which.
            "previous" answers the last solution of the instance with its id in `instance_ids`, and NaN where there is
            none; the ids are passed to solvers that take them.
        progress: show a bar of solved instances on a terminal; needs tqdm.

    Raises:
        ImportError: progress without tqdm; in a call: instances in numpy without numpy.
        TypeError: solver is not callable; in a call: theta is not floating point, the solver returned no numbers, or
            processes cannot import it.
        ValueError: an option is none of the above, or a timeout is asked of threads; in a call: theta has no batch
            dimension, results differ in shape, or `instance_ids` are missing or not B.
        RuntimeError: in a call: the solver failed (the message names the instance, the cause is attached), or it could
            not be made or a worker process not started.

    Example:
        >>> @batched
        ... def argmax(theta):
        ...     return [int(i == theta.argmax()) for i in range(len(theta))]
        >>> argmax(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.4, 0.3]]))
        tensor([[0., 1., 0.],
                [1., 0., 0.]])

        A solver with a state, one for each thread:

        >>> class Model:
        ...     def solve(self, theta):
        ...         self.costs = theta
        ...         return self.costs > 0
        >>> batched(factory=lambda: Model().solve, workers=2)(torch.tensor([[0.3, -0.1], [-0.4, 0.2]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    lift = functools.partial(
        BatchedSolver,
        instance=instance,
        workers=workers,
        executor=executor,
        factory=factory,
        timeout=timeout,
        on_error=on_error,
        progress=progress,
    )
    return lift if solver is None and factory is None else lift(solver)


@dataclass(frozen=True)
class _Recipe:
    """How a worker comes by its function of one instance."""

    solver: Callable[..., Any] | None
    factory: Callable[[], Callable[..., Any]] | None
    none_is_failure: bool
    ids_if_taken: bool

    def __call__(self) -> Solve:
        solver = self.solver if self.factory is None else self.factory()
        if not callable(solver):
            raise TypeError(f"factory must return a function of one instance; it returned {solver!r}")
        without_ids = self.ids_if_taken and not _takes_ids(solver)

        def solve(i: int, args: tuple, kwargs: dict[str, Any]) -> Tensor:
            args, kwargs = tuple(own(value) for value in args), {name: own(value) for name, value in kwargs.items()}
            if without_ids:
                del kwargs["instance_ids"]
            result = solver(*args, **kwargs)
            if result is None and self.none_is_failure:
                raise ValueError("the solver returned None")
            return _to_tensor(result, i)

        return solve


class _NoNumbers(TypeError):
    """A solver's answer is nothing that a tensor can be made of."""


def _takes_ids(solver: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(solver).parameters.values()
    except (TypeError, ValueError):  # compiled ones may have none
        return False
    return any(each.name == "instance_ids" or each.kind is each.VAR_KEYWORD for each in parameters)


def _ids(ids: Any, batch: int) -> list[Hashable]:
    """Return ids as plain numbers or words: tensors of equal numbers are not equal keys of a dict."""
    if ids is None:
        raise ValueError("on_error='previous' knows instances by their ids; call with instance_ids=, one for each row")
    ids = list(ids.tolist() if hasattr(ids, "tolist") and ids.ndim else ids)
    if len(ids) != batch:
        raise ValueError(f"there must be one of instance_ids for each row of theta; they are {len(ids)} for {batch}")
    return ids


def _detached(value: Any) -> Any:
    return value.detach().contiguous() if isinstance(value, Tensor) else value


def _as_numpy(value: Any) -> Any:
    """Return a tensor, or those in a list or tuple, as arrays on the host."""
    if type(value) in (list, tuple):
        return type(value)(_as_numpy(item) if isinstance(item, Tensor) else item for item in value)
    if not isinstance(value, Tensor):
        return value
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise ImportError("instances in numpy need numpy: install it, or use batched(..., instance='torch')") from error
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _to_tensor(result: Any, i: int) -> Tensor:
    """Return a solver's result in memory of its own: the solver may write its next result on the same."""
    if isinstance(result, Tensor):
        return result.detach().clone()
    try:
        try:
            import numpy
        except ImportError:
            return torch.tensor(result, dtype=torch.float64)
        return torch.from_numpy(numpy.array(result, order="C"))
    except (TypeError, ValueError) as error:
        raise _NoNumbers(
            f"the solver returned {type(result).__name__} for instance {i}; return an array, a tensor or a list of "
            f"numbers, all of one shape"
        ) from error


def _stack(outcomes: list[Any]) -> Tensor:
    """Return the results among the outcomes as one tensor."""
    results = [(i, outcome) for i, outcome in enumerate(outcomes) if not isinstance(outcome, Failure)]
    first, shape = results[0][0], results[0][1].shape
    for i, result in results:
        if result.shape != shape:
            raise ValueError(
                f"the solver returned shape {tuple(result.shape)} for instance {i} and {tuple(shape)} for instance "
                f"{first}; all must be the same"
            )
    return torch.stack([result for _, result in results])


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: install it, or leave progress out") from error
    return tqdm


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

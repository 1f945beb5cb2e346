"""Lift a solver of one instance to a solver of a batch."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from imle._numerics import name_rows
from imle.solver import assign, own
from imle.solvers._checks import check_floating
from imle.solvers._pool import Chunk, Failure, Here, Outcomes, Processes, Solve, Threads, words

_CHUNKS_PER_PROCESS = 4  # enough to even out instances of unequal difficulty


class BatchedSolver:
    """A solver of a batch made from a solver of one instance; see `batched`."""

    takes_shared = True
    """What `imle.solver.shared` marks is unwrapped here, not by an estimator."""

    def __init__(
        self,
        solver: Callable[..., Any] | None = None,
        *,
        instance: Literal["numpy", "torch"] = "numpy",
        workers: int = 0,
        executor: Literal["thread", "process"] = "thread",
        factory: Callable[[], Callable[..., Any]] | None = None,
        timeout: float | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool = False,
        minimises: bool | None = None,
    ) -> None:
        if factory is not None and solver is not None:
            raise TypeError("give a solver or a factory that makes one, not both")
        if factory is None and not callable(solver):
            raise TypeError(f"solver must be a function of one instance; it is {solver!r}")
        if factory is not None and not callable(factory):
            raise TypeError(f"factory must be a function that makes a solver; it is {factory!r}")
        for name, value, known in [
            ("instance", instance, ("numpy", "torch")),
            ("executor", executor, ("thread", "process")),
            ("on_error", on_error, ("raise", "skip")),
        ]:
            if value not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}; it is {value!r}")
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
        self.minimises = _direction(solver, minimises)
        """Whether the solver minimises; None: nobody says. Estimators read it."""
        self.may_skip = on_error == "skip"
        """Whether rows of the answer may be NaN; an estimator gives them no gradient."""
        self.failed: Tensor | None = None
        """`[B]`, which instances of the last call had no answer."""
        self._pool: Here | Threads | None = None
        self._pool_owner = 0

    def __call__(self, theta: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Solve each instance of theta [B, ...] and return the stacked results [B, ...]."""
        if theta.dim() == 0:
            raise ValueError("theta needs a batch dimension, [B, ...]; it is a single number")
        check_floating("theta", theta)
        if len(theta) == 0:
            return torch.zeros_like(theta)
        if kwargs.get("instance_ids") is not None:
            kwargs["instance_ids"] = _ids(kwargs["instance_ids"], len(theta))
        outcomes = self._solve(self._split(theta, args, kwargs))
        z = _stack(outcomes, theta)
        self.failed = torch.zeros(len(z), dtype=torch.bool)
        if self.may_skip:
            self._leave_out(z, outcomes)
        return z

    def __repr__(self) -> str:
        parts = [getattr(self.solver, "__name__", repr(self.solver))] if self.factory is None else []
        for name, option in inspect.signature(BatchedSolver).parameters.items():
            value = getattr(self, name)
            if name != "solver" and value != option.default:
                parts.append(f"{name}={getattr(value, '__name__', repr(value))}")
        return f"batched({', '.join(parts)})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As functions do: one that a module holds under its own name is pickled as that name. The solver under
        # the decorator could not be pickled at all, for its name now leads here, or to a decorator over this one.
        by_name = self.__module__, getattr(self, "__qualname__", "")
        named = self.__module__ in sys.modules and _by_name(*by_name) is self
        return (_by_name, by_name) if named else super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "failed": None}

    def make(self) -> Solve:
        """Return the function of a chunk that a worker calls; what a process is sent."""
        return _make(self.solver, self.factory, self.may_skip)

    def _split(self, theta: Tensor, args: tuple, kwargs: dict[str, Any]) -> Chunk:
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

    def _solve(self, instances: Chunk) -> list[Any]:
        """Return the outcome of each instance: a tensor or, unless that is an error, a failure."""
        outcomes: list[Any] = [None] * len(instances)
        in_chunks = self.workers and self.executor == "process" and not self.timeout
        size = -(-len(instances) // (_CHUNKS_PER_PROCESS * self.workers)) if in_chunks else 1
        bar: Any = contextlib.nullcontext()
        if self.progress:  # disable=None: where there is no terminal
            bar = _tqdm()(total=len(instances), desc=getattr(self, "__name__", None), leave=False, disable=None)
        with bar as bar:

            def done(i: int, outcome: Any) -> None:
                if isinstance(outcome, Failure) and not self.may_skip:
                    raise RuntimeError(f"the solver failed on instance {i}: {outcome.reason}") from outcome.cause
                outcomes[i] = outcome
                if bar is not None:
                    bar.update()

            self._started_pool().run([instances[i : i + size] for i in range(0, len(instances), size)], done)
        return outcomes

    def _leave_out(self, z: Tensor, outcomes: list[Any]) -> None:
        """Make rows that are not finite NaN, and warn of them."""
        self.failed = failed = ~z[:, None].flatten(1).isfinite().all(dim=1).cpu()
        if failed.any():
            z[failed] = torch.nan
            i = int(failed.nonzero()[0])
            reason = outcomes[i].reason if isinstance(outcomes[i], Failure) else "its answer is not finite"
            which = f"{name_rows(failed[:, None])} of {len(z)}"
            message = f"the solver failed on {which}, and they are left out; instance {i}: {reason}"
            warnings.warn(message, stacklevel=3)

    def _started_pool(self) -> Here | Threads:
        """Return the pool, started at the first call in this process."""
        if self._pool is None or self._pool_owner != os.getpid():
            if self.workers and self.executor == "process":
                self._pool = Processes(self._pickled(), self.workers, self.timeout)
            else:
                make = functools.partial(_make, self.solver, self.factory, self.may_skip)  # not self: the pool is its
                self._pool = Threads(make, self.workers) if self.workers else Here(make)
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
    on_error: Literal["raise", "skip"]
    progress: bool
    minimises: bool | None


@overload
def batched(solver: Callable[..., Any], **options: Unpack[_Options]) -> BatchedSolver: ...
@overload
def batched(
    solver: None = None, *, factory: Callable[[], Callable[..., Any]], **options: Unpack[_Options]
) -> BatchedSolver: ...
@overload
def batched(solver: None = None, **options: Unpack[_Options]) -> Callable[[Callable[..., Any]], BatchedSolver]: ...
def batched(solver: Any = None, **options: Any) -> Any:
    """Lift a solver of one instance to a solver of a batch.

    The result is called as `solver(theta, *args, **kwargs)` with theta [B, ...] and returns a tensor [B, ...] on
    theta's device, of its dtype. Each instance gets its own item of what holds B of them among the further arguments:
    tensors and arrays whose first dimension is B, lists and tuples of B objects, also within other lists, tuples and
    dicts. Everything else is passed as it is, and so is what `imle.solver.shared` marks. Tensors and arrays are copied
    for each instance: a solver may write on them. The result can be copied and pickled wherever the solver can; pools
    stay behind.

    A warm start: the named argument `instance_ids`, a tensor or list of B numbers or words, reaches the solver as a
    plain number or word, by which it can keep and find what it knows about an instance. An estimator repeats them for
    its samples. In processes each worker has a cache of its own, and an instance comes to any of them.

    After an error or Ctrl-C, which wait for no solver, the next call starts new workers. Processes are ended; threads
    end with the instance that they are at, and only the interpreter's end waits for them.

    Args:
        solver: a function of one instance. It returns an array, a tensor or a list of numbers, of the same shape
            for every instance. Leave it out to use this as a decorator with options.
        instance: what the solver is given for theta and for the instances' own tensors: "numpy" arrays on the host
            (float32 for bfloat16, which numpy lacks) or "torch" tensors on theta's device, with processes on the CPU.
            "torch" does without numpy.
        workers: 0 solves in the calling thread; more solve as many instances at a time, in a pool that starts at
            the first call and is used again by later ones.
        executor: kind of pool. "thread" suits solvers that release the interpreter lock (most compiled ones) or
            wait for something; "process" suits pure Python, and needs pebble. Processes import the solver afresh, so
            it must be at the top level of a module, a script must keep its calls under `if __name__ == "__main__":`,
            and the first call waits for the imports.
        factory: a function without arguments that makes a solver, in place of `solver`: for an object with a state,
            such as a model that is changed and solved again. Each worker calls it once, without workers the calling
            thread does, so that no two threads share a solver, and nothing but the factory is pickled.
        timeout: seconds for an instance, to a tenth. A process that runs over is ended, with the processes that it has
            started, and replaced, which costs the imports again. Threads cannot be ended: it needs executor="process".
        on_error: what becomes of an instance whose solver raises, returns no numbers, runs over, or ends its process
            (which is replaced; instances that it was sent with that one are solved again). "raise" raises an error
            that names it. "skip" answers NaN in its row, as in that of an answer that is not finite, which an estimator
            takes for a gradient of zero, and warns once a call; `failed` [B] says which.
        progress: show a bar of solved instances on a terminal; needs tqdm.
        minimises: whether the solver looks for the least, kept as an attribute. None: what its own attribute
            `minimises` says, if it has one.

    Raises:
        ImportError: progress without tqdm; in a call: processes without pebble, instances in numpy without numpy.
        TypeError: solver is not callable; in a call: theta is not floating point, or processes cannot import the
            solver or load an argument.
        ValueError: an option is none of the above, a timeout is asked of threads, or `minimises` contradicts the
            solver; in a call: theta has no batch dimension, results differ in shape, or `instance_ids` are not B.
        RuntimeError: in a call: the solver failed (the message names the instance; the cause is attached, from
            processes in words), or it could not be made or a worker process not started.

    Example:
        >>> @batched
        ... def argmax(theta):
        ...     return [int(i == theta.argmax()) for i in range(len(theta))]
        >>> argmax(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.4, 0.3]]))
        tensor([[0., 1., 0.],
                [1., 0., 0.]])
    """
    if solver is None and options.get("factory") is None:
        return functools.partial(BatchedSolver, **options)
    return BatchedSolver(solver, **options)


batched.__signature__ = inspect.signature(BatchedSolver)  # type: ignore[attr-defined]


def _make(solver: Any, factory: Callable[[], Any] | None, may_skip: bool) -> Solve:
    """Return the function of a chunk, which goes on after a failure where one may be skipped."""
    solver = solver if factory is None else factory()
    if not callable(solver):
        raise TypeError(f"factory must return a function of one instance; it returned {solver!r}")

    def solve(chunk: Chunk) -> Outcomes:
        outcomes: Outcomes = []
        for i, args, kwargs in chunk:
            try:
                result = solver(*map(own, args), **{name: own(value) for name, value in kwargs.items()})
                outcomes.append((i, _to_tensor(result)))
            except Exception as error:
                outcomes.append((i, Failure(words(error), error)))
                if not may_skip:
                    break
        return outcomes

    return solve


def _direction(solver: Any, minimises: bool | None) -> bool | None:
    """Return whether a solver minimises, by its own word or the option."""
    own_word = getattr(solver, "minimises", None)
    if minimises is None or own_word in (None, minimises):
        return own_word if minimises is None else minimises
    raise ValueError(f"minimises={minimises} contradicts the solver's own attribute, minimises={own_word}")


def _ids(ids: Any, batch: int) -> list[Hashable]:
    """Return ids as plain numbers or words: tensors of equal numbers are not equal keys of a dict."""
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


def _to_tensor(result: Any) -> Tensor:
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
        raise TypeError(
            f"it returned {type(result).__name__}; return an array, a tensor or a list of numbers, all of one shape"
        ) from error


def _stack(outcomes: list[Any], theta: Tensor) -> Tensor:
    """Return the results as one tensor like theta, NaN for instances that have none."""
    results = {i: outcome for i, outcome in enumerate(outcomes) if not isinstance(outcome, Failure)}
    first, like = next(iter(results.items()), (0, theta[0]))
    for i, result in results.items():
        if result.shape != like.shape:
            raise ValueError(
                f"the solver returned shape {tuple(result.shape)} for instance {i} and {tuple(like.shape)} for "
                f"instance {first}; all must be the same"
            )
    none = like.new_full(like.shape, torch.nan, dtype=theta.dtype)
    return torch.stack([results.get(i, none) for i in range(len(outcomes))]).to(device=theta.device, dtype=theta.dtype)


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: install it, or leave progress out") from error
    return tqdm


def _by_name(module: str, name: str) -> Any:
    """Return what was lifted under a name of a module, below the decorators over it; what unpickling calls."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    while found is not None and not isinstance(found, BatchedSolver):
        found = getattr(found, "__wrapped__", None)
    return found

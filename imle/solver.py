"""A solver with the arguments of one call: what passes its door, in both directions.

A solver is any function `solver(theta, *args, **kwargs)` of parameters `[rows, ...]` that returns solutions of the
same shape: a tensor, an array or lists of numbers.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from imle._numerics import host_may_wait, host_sees_finite, name_rows, rows_with

Arguments = ParamSpec("Arguments")
Output_co = TypeVar("Output_co", covariant=True)

Solver = Callable[..., Any]


class DifferentiableSolver(Protocol[Arguments, Output_co]):
    """A decorated solver: called as the solver was, and it shows its parts."""

    solver: Solver
    estimator: Any

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Output_co:
        """Return the solutions `[B*S*M, ...]` of theta `[B, ...]`; for `sfe` a pair."""
        ...


class Shared:
    """An argument that belongs to no instance, though its first dimension happens to be B; see `shared`."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value


def shared(value: Any) -> Any:
    """Mark an argument of a solver as one thing for all instances, so that it is neither repeated nor dealt out.

    What has a length above 1 that is not B must be marked; what happens to be of length B is not seen, so mark it, too.

    Args:
        value: anything. A list, a dict or an object reaches the solver as the very one, so that it may keep a cache in
            it; a tensor or array as a copy.

    Example:
        >>> from imle.noise import GumbelNoiseDistribution
        >>> from imle.ste import ste
        >>> @ste(nb_samples=2, noise_distribution=GumbelNoiseDistribution())
        ... def solver(theta, prices):
        ...     print(len(theta), len(prices))
        ...     return theta
        >>> theta, prices = torch.zeros(3, 5), torch.ones(3)
        >>> _ = solver(theta, prices), solver(theta, shared(prices))
        6 6
        6 3
    """
    return value if isinstance(value, Shared) else Shared(value)


def assign(
    value: Any,
    batch_size: int,
    each: Callable[[Any], Any],
    common: Callable[[Any], Any],
    name: str = "value",
    rows: int = 1,
) -> Any:
    """Return a solver's argument with `each` applied to what holds an item for each of B instances.

    What an argument is, its length says (of a tensor or array the first dimension):

    - A tensor, array, list or tuple of length B holds an item for each instance, and is dealt out as a whole.
    - One of length 0 or 1, or without a length, is one thing for all. So is what `shared` marks, and every object that
      is none of these four and no dict: numbers, strings, dataclasses, sets, subclasses of list.
    - Dicts and named tuples have no length here: each of their items is an argument of its own.
    - A list or tuple of another length is taken for such a record, too, if something in it is of length B or `shared`:
      `(offsets, lengths)`, a tensor `[B]` each.
    - All else is an error: what it holds belongs to another batch, or is `shared` and does not say so.

    Lengths cannot tell what is shared and happens to have B items: mark it, too, and give a record as a dict.

    Args:
        value: the argument.
        batch_size: B, at least 1.
        each: applied to what holds an item for each instance.
        common: applied to all else. A list or dict in which nothing changes stays the same object.
        name: of the argument, for the error.
        rows: R, where what comes out is dealt out once more, to B*R instances.

    Raises:
        ValueError: something is of another length, which is more than 1, and not marked; or a list or tuple that is a
            record for B instances would be dealt out to B*R.
    """
    length = _length(value)
    if length == batch_size:
        return each(value)
    if length is not None and length > 1 and (length == batch_size * rows or not _has_items(value, batch_size)):
        raise ValueError(
            f"the solver's argument {name} has length {length}, the batch {batch_size}: give an item for each "
            "instance, mark what is one for all with imle.solver.shared, or name the parts of a record in a dict"
        )
    at = ".{}" if hasattr(value, "_fields") else "[{!r}]"
    return _rebuilt(
        value, lambda key, item: assign(item, batch_size, each, common, name + at.format(key), rows), common
    )


def own(value: Any) -> Any:
    """Return a value of which tensors and arrays, also within lists, tuples and dicts, are nobody else's."""
    if isinstance(value, Shared):
        return own(value.value) if isinstance(value.value, Tensor) or _is_array(value.value) else value.value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if _is_array(value):
        return value.copy()
    return _rebuilt(value, lambda _, item: own(item), lambda item: item)


def _length(value: Any) -> int | None:
    """Return how many items a tensor, array, list or tuple has; None for all else, and for what has no dimension."""
    if isinstance(value, Tensor) or _is_array(value):
        return value.shape[0] if value.ndim else None
    return len(value) if type(value) in (list, tuple) else None


def _has_items(value: Any, batch_size: int) -> bool:
    """Say whether something in a value, or itself, is of length B or marked as shared."""
    if isinstance(value, Shared) or _length(value) == batch_size:
        return True
    return any(_has_items(item, batch_size) for _, item in _items(value))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return keys and items of a list, tuple, named tuple or dict; of all else none."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value)
    if type(value) in (list, tuple):
        return enumerate(value)
    return value.items() if type(value) in (dict, OrderedDict) else ()


def _rebuilt(value: Any, inside: Callable[[Any, Any], Any], leaf: Callable[[Any], Any]) -> Any:
    """Return a list, tuple or dict with `inside` of its keys and items, itself if they stay; of all else its `leaf`."""
    items = {key: inside(key, item) for key, item in _items(value)}
    if not items:
        return leaf(value)
    if all(items[key] is item for key, item in _items(value)):
        return value
    if isinstance(value, dict):
        return type(value)(items)
    return type(value)(*items.values()) if hasattr(value, "_fields") else type(value)(items.values())


def sign_of(solver: Solver, args: tuple, kwargs: dict, minimises: bool | None = None) -> int:
    """Return 1 for a solver that maximises <z, theta>, -1 for one that minimises it.

    A solver says so by an attribute `minimises`: True, False, or a function of the solver's further arguments that
    returns one of them. It is found through `functools.partial`. A solver that says nothing, and of which nothing is
    said, maximises.

    Args:
        solver: the solver.
        args: its further arguments.
        kwargs: the same, by name.
        minimises: what is said of it; None says nothing.

    Raises:
        ValueError: the solver says the contrary of what is said of it.
    """
    said = getattr(solver, "minimises", None)
    while said is None and isinstance(solver, functools.partial):
        args, kwargs, solver = (*solver.args, *args), {**solver.keywords, **kwargs}, solver.func
        said = getattr(solver, "minimises", None)
    if callable(said):
        said = said(*args, **kwargs)
    if minimises is not None and said is not None and bool(said) != minimises:
        wrong, right = ("minimises", "True") if said else ("maximises", "False")
        raise ValueError(
            f"_is_minimization={minimises} contradicts the solver, which says that it {wrong}: leave the option out, "
            f"or say {right}"
        )
    return -1 if (said if minimises is None else minimises) else 1


class BoundSolver:
    """A solver with its extra arguments bound, over R rows for each instance of one batch of B.

    Every call of the solver sees B*R rows, in the order of the batch. What holds an item for each instance among the
    arguments is repeated to match (see `assign`); no argument gets a gradient. The solver owns all memory that it is
    given: it may write on it.

    A solver with an attribute `may_skip` that is true may answer NaN for instances that it could not solve. The host
    waits for its answers, which such solvers make on the host.

    Args:
        solver: parameters `[B*R, ...]` -> solutions of the same shape.
        batch_size: B.
        rows: R.
        args: further positional arguments.
        kwargs: further named arguments.
        minimises: what the caller knows of the solver's sense; None asks the solver, see `sign_of`.
    """

    def __init__(
        self, solver: Solver, batch_size: int, rows: int, args: tuple, kwargs: dict, minimises: bool | None = None
    ):
        self.solver, self.batch_size, self.rows, self.args, self.kwargs = solver, batch_size, rows, args, kwargs
        self.sign = sign_of(solver, args, kwargs, minimises)
        self._skips: list[Tensor] = []

    @property
    def skipped(self) -> Tensor | None:
        """Which instances the solver could not solve in any call so far, `[B]`; None where it solved all of them."""
        return torch.stack(self._skips).any(dim=0) if self._skips else None

    def __call__(self, theta: Tensor) -> Tensor:
        """Solve `[B, R, ...]`; the answer has its shape, dtype and device."""
        if torch._C._are_functorch_transforms_active():
            return _Solve.apply(theta, self, *self.mapped())
        return self.call(theta)

    def mapped(self) -> tuple[Tensor, ...]:
        """Return the tensors among the arguments that a transform of `torch.func` must see, if there is one."""
        if not torch._C._are_functorch_transforms_active():
            return ()
        return tuple(leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor))

    def given(self, tensors: Sequence[Tensor]) -> BoundSolver:
        """Return the solver with tensors in place of those of `mapped`, as a transform of `torch.func` left them."""
        if not tensors:
            return self
        left = iter(tensors)
        args, kwargs = tree_map_only(Tensor, lambda _: next(left), (self.args, self.kwargs))
        bound = copy.copy(self)  # which shares the list of what was skipped
        bound.args, bound.kwargs = args, kwargs
        return bound

    def call(self, theta: Tensor) -> Tensor:
        """Solve tensors with memory behind them, as a solver expects.

        The solver may use the memory of its answer again in its next call.

        Raises:
            TypeError: the solver's answer is no tensor or array of numbers.
            ValueError: the solver's answer has another shape than its parameters, or an argument another length than
                the batch (see `assign`).
            FloatingPointError: the answer holds NaN or infinite numbers; on an accelerator, where nothing may wait
                for the host, they pass.
        """
        parameters = theta.flatten(0, 1).contiguous()
        if not parameters.shape[0]:
            return torch.zeros_like(theta)
        shape = tuple(parameters.shape)
        args = [self._argument(value, f"args[{i}]") for i, value in enumerate(self.args)]
        kwargs = {name: self._argument(value, name) for name, value in self.kwargs.items()}
        z = _as_tensor(self.solver(parameters, *args, **kwargs))
        if tuple(z.shape) != shape:
            raise ValueError(f"solver returned {tuple(z.shape)} for parameters {shape}")
        z = z.detach().to(theta)
        may_skip = getattr(self.solver, "may_skip", False)
        if (may_skip or host_may_wait(z)) and not host_sees_finite(z):
            if not may_skip:
                raise FloatingPointError(
                    f"the solver's answer is not finite in {name_rows(~z.isfinite())} of its batch"
                )
            z = self._without_skipped(z)
        return z.reshape(theta.shape)

    def _without_skipped(self, z: Tensor) -> Tensor:
        """Take note of rows that are not finite; return z `[B*R, ...]` with zeros in their place."""
        unsolved = rows_with(~z.isfinite())
        self._skips.append(unsolved.view(self.batch_size, -1).any(dim=1))
        return z.masked_fill(unsolved, 0.0)

    def _argument(self, value: Any, name: str) -> Any:
        """Return an argument as the solver gets it."""
        rows = self.rows if self._deals_out else 1
        return assign(value, self.batch_size, self._repeat, self._common, name, rows)

    @property
    def _deals_out(self) -> bool:
        """Whether the solver deals its arguments out to instances, and must be told what is shared, too."""
        return getattr(self.solver, "takes_shared", False)

    def _common(self, value: Any) -> Any:
        return value if isinstance(value, Shared) and self._deals_out else own(value)

    def _repeat(self, value: Any) -> Any:
        """Return what has B items with B*R, those of one instance side by side, in memory of their own."""
        if self.rows == 1:
            return own(value)
        if isinstance(value, Tensor):
            return value.detach().repeat_interleave(self.rows, dim=0)
        if _is_array(value):
            return value.repeat(self.rows, axis=0)
        return type(value)(own(item) for item in value for _ in range(self.rows))


class ReverseMode(torch.autograd.Function):
    """Base of functions that have no derivative in forward mode."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a solver has no derivative in forward mode, which jvp, jacfwd and hessian take: use reverse mode, as "
            "backward(), torch.func.grad, vjp and jacrev do"
        )


class _Solve(ReverseMode):
    """A call of a solver under the transforms of `torch.func`: it has no gradient, and one call a member of a vmap."""

    @staticmethod
    def forward(theta: Tensor, solver: BoundSolver, *tensors: Tensor) -> Tensor:
        solver = solver.given(tensors)
        try:
            z = solver.call(theta)
        except RuntimeError as error:
            if "escaped from inside a function being vmapped" not in str(error):
                raise
            raise RuntimeError(
                "the solver uses a tensor over which vmap maps, and was not given it: give it to the solver as an "
                "argument, solver(theta, tensor)"
            ) from error
        if solver.skipped is not None:
            raise RuntimeError("torch.func cannot leave out instances that the solver skipped: take .backward()")
        return z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, theta: Tensor, solver: BoundSolver, *tensors: Tensor) -> tuple[Tensor, int]:
        members = [
            [given] * info.batch_size if in_dim is None else given.unbind(in_dim)
            for given, in_dim in zip((theta, *tensors), (in_dims[0], *in_dims[2:]))
        ]
        return torch.stack([_Solve.apply(member, solver, *given) for member, *given in zip(*members)]), 0


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _as_tensor(answer: Any) -> Tensor:
    if isinstance(answer, Tensor):  # which torch.as_tensor would move to another default device
        return answer
    try:
        return torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"a solver must return a tensor or an array of numbers, not {type(answer).__name__}: {error}"
        raise TypeError(message) from error

"""A solver with the arguments of one call: what passes its door, in both directions.

A solver is any function `solver(theta, *args, **kwargs)` of parameters `[rows, ...]` that returns solutions of the
same shape: a tensor, an array or lists of numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from imle._numerics import host_may_wait, host_sees_finite, name_rows

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


class BoundSolver:
    """A solver with its extra arguments bound, over R rows for each instance of one batch of B.

    Every call of the solver sees B*R rows, in the order of the batch. Tensors and arrays among the arguments whose
    first dimension is B are repeated to match; none of them gets a gradient. The solver owns all memory that it is
    given: it may write on it.

    Args:
        solver: parameters `[B*R, ...]` -> solutions of the same shape.
        batch_size: B.
        rows: R.
        args: further positional arguments.
        kwargs: further named arguments.
    """

    def __init__(self, solver: Solver, batch_size: int, rows: int, args: tuple, kwargs: dict):
        self.solver, self.batch_size, self.rows, self.args, self.kwargs = solver, batch_size, rows, args, kwargs

    def __call__(self, theta: Tensor) -> Tensor:
        """Solve `[B, R, ...]`; the answer has its shape, dtype and device."""
        if torch._C._are_functorch_transforms_active():
            return _Solve.apply(theta, self)
        return self.call(theta)

    def call(self, theta: Tensor) -> Tensor:
        """Solve tensors with memory behind them, as a solver expects.

        The solver may use the memory of its answer again in its next call.

        Raises:
            TypeError: the solver's answer is no tensor or array of numbers.
            ValueError: the solver's answer has another shape than its parameters.
            FloatingPointError: the answer holds NaN or infinite numbers; on an accelerator, where nothing may wait
                for the host, they pass.
        """
        parameters = theta.flatten(0, 1).contiguous()
        if not parameters.shape[0]:
            return torch.zeros_like(theta)
        shape = tuple(parameters.shape)
        args = [self._own(value) for value in self.args]
        kwargs = {name: self._own(value) for name, value in self.kwargs.items()}
        z = _as_tensor(self.solver(parameters, *args, **kwargs))
        if tuple(z.shape) != shape:
            raise ValueError(f"solver returned {tuple(z.shape)} for parameters {shape}")
        z = z.detach().to(theta)
        if host_may_wait(z) and not host_sees_finite(z):
            raise FloatingPointError(f"the solver's answer is not finite in {name_rows(~z.isfinite())} of its batch")
        return z.reshape(theta.shape)

    def _own(self, value: Any) -> Any:
        """Return an argument as the solver gets it.

        A tensor or array has memory of its own, and is repeated if it is one of the instances'; the rest is as it is.
        """
        if not isinstance(value, Tensor) and not _is_array(value):
            return value
        repeated = value.ndim > 0 and value.shape[0] == self.batch_size and self.rows > 1
        if isinstance(value, Tensor):
            value = value.detach()
            return value.repeat_interleave(self.rows, dim=0) if repeated else value.clone()
        return value.repeat(self.rows, axis=0) if repeated else value.copy()


class _Solve(torch.autograd.Function):
    """A call of a solver under the transforms of `torch.func`: it has no gradient, and one call a member of a vmap."""

    @staticmethod
    def forward(theta: Tensor, solver: BoundSolver) -> Tensor:
        return solver.call(theta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, theta: Tensor, solver: BoundSolver) -> tuple[Tensor, int]:
        return torch.stack([_Solve.apply(member, solver) for member in theta.unbind(in_dims[0])]), 0


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _as_tensor(answer: Any) -> Tensor:
    try:
        return torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"a solver must return a tensor or an array of numbers, not {type(answer).__name__}: {error}"
        raise TypeError(message) from error

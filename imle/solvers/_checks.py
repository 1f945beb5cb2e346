"""What the solvers share at their doors: which parameters they refuse, and how they say that there is no solution."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor

# As a module, so that whoever replaces `host_may_wait` there replaces it here as well.
from imle import _numerics

Solver = TypeVar("Solver", bound=Callable[..., Tensor])


def minimiser(minimises: bool | Callable[..., bool]) -> Callable[[Solver], Solver]:
    """Give a solver the attribute by which estimators know its sense; see `imle.solver.sign_of`."""

    def mark(solver: Solver) -> Solver:
        solver.minimises = minimises  # type: ignore[attr-defined]
        return solver

    return mark


def check_floating(name: str, parameters: Tensor) -> None:
    """Refuse parameters that are not floating point with a TypeError."""
    if not parameters.is_floating_point():
        raise TypeError(f"{name} must be floating point, not {parameters.dtype}; convert them first")


def sum_dtype(parameters: Tensor) -> torch.dtype:
    """Return the dtype that sums of parameters are taken in: float64 for float64, else float32."""
    return torch.promote_types(parameters.dtype, torch.float32)


def whole_numbers(name: str, numbers: Any, shapes: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return whole numbers of at least 0 as int64, of one of the shapes.

    Raises:
        ValueError: they have another shape, or one is negative or beyond int64.
        TypeError: they are no whole numbers.
    """
    try:
        whole = isinstance(numbers, Integral) and not isinstance(numbers, bool)  # numpy's among them
        if not isinstance(numbers, Tensor):  # on the host, whatever the default device is
            numbers = torch.as_tensor(int(numbers) if whole else numbers, device="cpu")
    except (OverflowError, RuntimeError, ValueError) as error:  # Python's numbers have no end
        raise ValueError(f"{name} must be an array of numbers up to 2^63 - 1: {error}") from error
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(
            f"{name} must be whole numbers, not {numbers.dtype}; multiply decimal weights and the capacity by a power "
            "of ten and round them"
        )
    numbers = numbers.detach().long()  # what of uint64 is beyond it comes out negative
    if tuple(numbers.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name} must be {expected}; its shape is {list(numbers.shape)}")
    if _numerics.host_may_wait(numbers) and (numbers < 0).any():
        per_row = len(shapes) > 1 and numbers.dim() == len(shapes[-1])
        where = f" in {_numerics.name_rows((numbers < 0).view(len(numbers), -1))}" if per_row else ""
        raise ValueError(f"{name} must be from 0 to 2^63 - 1{where}; the least is {int(numbers.min())}")
    return numbers


def broken_rows(name: str, parameters: Tensor, liked: float) -> Tensor | None:
    """Return which rows of parameters `[B, ...]` no solver can answer, `[B]`: NaN, or the infinity that it likes.

    Raises:
        FloatingPointError: there is one. On an accelerator nothing may wait for the host, and they are returned.
    """
    if _numerics.host_may_wait(parameters) and _numerics.host_sees_finite(parameters):
        return None
    broken = (parameters.isnan() | (parameters == liked)).flatten(1).any(dim=1)
    if not _numerics.host_may_wait(parameters):
        return broken
    if broken.any():
        raise FloatingPointError(
            f"{name} must not be NaN or {liked}: so it is in {_numerics.name_rows(broken[:, None])}"
        )
    return None


def answer(z: Tensor, without: Tensor, reason: str) -> Tensor:
    """Return solutions z `[B, ...]`, of which some rows `[B]` have none.

    Raises:
        ValueError: a row has none. On an accelerator nothing may wait for the host, and such a row is NaN.
    """
    if not _numerics.host_may_wait(without):
        return nan_in(z, without)
    if without.any():
        raise ValueError(f"{reason} in {_numerics.name_rows(without[:, None])}")
    return z


def nan_in(z: Tensor, rows: Tensor | None) -> Tensor:
    """Return z `[B, ...]` with NaN in some rows `[B]`."""
    return z if rows is None else z.masked_fill(_numerics.beside(rows, z), torch.nan)


def scipy_optimize(solver: str) -> Any:
    """Return the module `scipy.optimize`, which torch does not bring along.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        import scipy.optimize
    except ImportError as error:
        raise ImportError(f"{solver} needs scipy: pip install scipy") from error
    return scipy.optimize


def in_range(x: Tensor, terms: int, dim: int) -> Tensor:
    """Return numbers of which no sum of so many is infinite: along `dim`, all are made smaller where they would be.

    Infinities stay, and no two numbers become one, as they would by a limit.
    """
    limit = torch.finfo(x.dtype).max / (2 * terms)
    if not x.numel() or (_numerics.host_may_wait(x) and max(abs(end.item()) for end in torch.aminmax(x)) <= limit):
        return x  # as it nearly always is, at the cost of a glance
    largest = x.abs().masked_fill(x.isinf(), 0.0).amax(dim, keepdim=True)
    return x * torch.where(largest > limit, 0.25 / terms, 1.0)

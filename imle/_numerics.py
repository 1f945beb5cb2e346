"""Norms, counts and products that survive numbers from 1e-38 to 1e38, and do not make the host wait for a device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.compiler import is_compiling


def host_may_wait(x: Tensor) -> bool:
    """Whether looking at the numbers of x is free: on the CPU it is, elsewhere the host would wait for the device.

    Under `torch.func.vmap` there are many numbers where there seems to be one, and none may be looked at; in
    `torch.export`, `make_fx` or a fake mode there are none.
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return False
        x = torch._C._functorch.get_unwrapped(x)
    return x.device.type == "cpu" and not is_compiling() and not traces()


def traces() -> bool:
    """Whether a mode of torch's is on that writes down what is done, or stands in for numbers."""
    modes = torch._C._TorchDispatchModeKey
    return torch._C._len_torch_dispatch_stack() > 0 and any(
        torch._C._get_dispatch_mode(mode) is not None for mode in (modes.FAKE, modes.PROXY)
    )


def lacks_float64(device: torch.device) -> bool:
    """Whether a device computes in float32 at most, as Apple's do."""
    return device.type == "mps"


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that lacks it."""
    return torch.float32 if lacks_float64(device) else torch.float64


def exact(x: Tensor) -> Tensor:
    """Return x in the exact dtype of its device."""
    return x.float() if lacks_float64(x.device) else x.double()


_LEAST_NORM, _LARGEST_NORM = 1e-10, 1e18  # of norms whose squares float32 holds


def safe_norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of all entries, 0-dimensional: squares of 1e-30 or 1e30 are no trouble.

    It is of the exact dtype of x's device, as is that of `row_norms`.
    """
    if x.numel() and host_may_wait(x):
        norm = exact(torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)))
        # what underflows in the squares is then too small to count
        if _LEAST_NORM < norm < _LARGEST_NORM:
            return norm
    return _scaled_norm(x.flatten())


def row_norms(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each of B rows, `[B, ...]` -> `[B]`; see `safe_norm`."""
    x = x.flatten(1)
    if x.numel() and host_may_wait(x):
        norms = exact(torch.linalg.vector_norm(x, dim=1, dtype=torch.promote_types(x.dtype, torch.float32)))
        sound = (norms > _LEAST_NORM) & (norms < _LARGEST_NORM)
        # no row's rounding depends on the others
        return norms if sound.all() else torch.where(sound, norms, _scaled_norm(x))
    return _scaled_norm(x)


def _scaled_norm(x: Tensor) -> Tensor:
    """Return the norms over the last dimension, of entries brought to [-1, 1] first."""
    if not x.shape[-1]:
        return x.new_zeros(x.shape[:-1], dtype=exact_dtype(x.device))
    # cheaper than to sum in float64
    smallest, largest = torch.aminmax(x, dim=-1, keepdim=True)
    scale = torch.maximum(smallest.abs(), largest.abs()).reciprocal().clamp(max=torch.finfo(x.dtype).max)
    norm = torch.linalg.vector_norm(x * scale, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
    norm = exact(norm) / exact(scale.squeeze(-1))
    return norm.clamp(max=torch.finfo(norm.dtype).max) if lacks_float64(x.device) else norm


def is_finite(x: Tensor) -> Tensor:
    """Return whether all entries are finite, 0-dimensional, in one pass."""
    if not x.numel():
        return torch.ones((), dtype=torch.bool, device=x.device)
    smallest, largest = torch.aminmax(x)
    return torch.isfinite(smallest) & torch.isfinite(largest)


def host_sees_finite(x: Tensor) -> bool:
    """Return whether all entries are finite, where the host may wait for the answer."""
    # the cheapest pass there is; the sum of finite numbers may overflow, and is then looked at again
    return math.isfinite(x.detach().sum().item()) or bool(is_finite(x))


def evidence(dy: Tensor) -> Tensor:
    """Return 1 if dy is finite and not all zero, 0 if it is all zero, NaN if it is not finite, 0-dimensional."""
    if not dy.numel():
        return dy.new_zeros(())
    smallest, largest = torch.aminmax(dy)
    magnitude = torch.maximum(smallest.abs(), largest.abs())
    return magnitude.sign() + magnitude * 0.0


def count_nonzero(x: Tensor) -> Tensor:
    """Return the number of entries that are not 0, 0-dimensional; NaN where one is NaN."""
    # torch.count_nonzero branches on every entry, which on a CPU costs ten times as much where some are zero
    return x.sign().abs_().sum(dtype=torch.promote_types(x.dtype, torch.float32))


def times(x: Tensor, factor: Tensor) -> Tensor:
    """Return x times a factor, one number or `[B, 1, ...]`, in the dtype of x, at the ends of its range if beyond."""
    dtype = torch.promote_types(x.dtype, torch.float32)  # half precision has no room for a large factor
    product = x.to(dtype) * factor.to(dtype)
    if dtype != x.dtype:
        limits = torch.finfo(x.dtype)
        product = product.clamp(limits.min, limits.max)
    return product.to(x.dtype)


def quotient(numerator: Tensor | float, denominator: Tensor, most: float) -> Tensor:
    """Return numerator / denominator, neither below 0, but `most` where it is more; 0 where the denominator is 0."""
    # cheaper than torch.where
    return (numerator / denominator).nan_to_num(nan=0.0).clamp(max=most) * denominator.sign()


def largest_factor(x: Tensor) -> float:
    """Return the largest number to multiply x by: as infinity, it would turn the zeros of x into NaN."""
    return torch.finfo(torch.promote_types(x.dtype, torch.float32)).max


def beside(numbers: Tensor, x: Tensor) -> Tensor:
    """Return numbers `[B]` as `[B, 1, ...]`, with as many dimensions as x `[B, ...]`."""
    return numbers.view(-1, *[1] * (x.dim() - 1))


def rows_with(condition: Tensor) -> Tensor:
    """Return which of the B rows of a condition `[B, ...]` hold anywhere, `[B, 1, ...]`."""
    return beside(condition.flatten(1).any(dim=1), condition)


def name_rows(condition: Tensor) -> str:
    """Return the rows of a condition `[B, ...]` that hold anywhere, as words: "row 3", "rows 0, 4, 5, ... (12)"."""
    rows = rows_with(condition).flatten().nonzero().flatten().tolist()
    if len(rows) == 1:
        return f"row {rows[0]}"
    return f"rows {', '.join(map(str, rows[:3]))}" + (f", ... ({len(rows)} in all)" if len(rows) > 3 else "")


def finite_number(name: str, value: float) -> float:
    """Return an option as a number.

    Raises:
        ValueError: it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    return float(value)


def inner(x: Tensor, z: Tensor) -> Tensor:
    """Return <x, z> of each instance `[B]`, for `[B, ...]`; where z is 0 an infinite entry of x counts for nothing."""
    return torch.where((z == 0) & x.isinf(), 0.0, x * z).flatten(1).sum(dim=1)

"""The items that are worth most within a limit of weight, many instances at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imle import _numerics
from imle.solvers._checks import broken_rows, check_floating, in_range, nan_in, sum_dtype, whole_numbers

_CELLS_AT_ONCE = 2**24  # of the table, a byte each
_MOST_CELLS = 2**31  # of a row of it


def knapsack(values: Tensor, weights: Any, capacity: Any) -> Tensor:
    """Return the items of greatest total value whose total weight is at most the capacity.

    This solver maximises <z, values>. An item of value 0 or less, or -inf, is never taken; one that weighs nothing and
    is worth something always is. On ties it is one of the best selections, the same at every call: an item is taken
    only if the items before it cannot do as well without it.

    The dynamic programme over capacities (R. Bellman, Dynamic programming, 1957), N steps for the whole batch at a
    time; work and memory grow as B N capacity. For weights of several dimensions see `binary_programme`.

    Under an estimator bind weights that all instances share first, by a closure or `functools.partial`.

    Args:
        values: value of each item, floating point, [B, N]. Sums are taken in float64 for float64, else in float32.
        weights: whole numbers of at least 0, [N], or [B, N] for weights of each instance: a list, array or tensor.
        capacity: a whole number of at least 0, or [B] of them. With values on an accelerator, a capacity there makes
            the host wait for the largest; one on the CPU does not.

    Returns:
        z of the shape, dtype and device of values: 1 for an item that is taken, else 0.

    Raises:
        ValueError: shapes disagree, or a weight or a capacity is negative; the message names the row.
        TypeError: values are not floating point, or weights or capacity no whole numbers.
        FloatingPointError: a value is NaN or +inf; on an accelerator the answer to that row is NaN.

    Example:
        >>> knapsack(torch.tensor([[6.0, 10.0, 12.0], [6.0, 10.0, -1.0]]), weights=[1, 2, 3], capacity=5)
        tensor([[0., 1., 1.],
                [1., 1., 0.]])
    """
    check_floating("values", values)
    if values.dim() != 2:
        raise ValueError(f"values must be [B, N]; their shape is {tuple(values.shape)}")
    values = values.detach()
    batch, length = values.shape
    weights = whole_numbers("weights", weights, ((length,), (batch, length)))
    capacity = whole_numbers("capacity", capacity.cpu() if isinstance(capacity, Tensor) else capacity, ((), (batch,)))
    broken = broken_rows("values", values, torch.inf)

    largest = int(capacity.max()) if capacity.numel() else 0
    host_knows = _numerics.host_may_wait(weights)
    if host_knows and weights.numel():
        # what weighs more is never taken; sums in float64, which does not turn round at the end of int64
        fits = weights <= capacity.unsqueeze(-1)
        largest = min(largest, int(weights.where(fits, 0).double().sum(dim=-1).max()) if len(fits) else 0)
    if largest >= _MOST_CELLS:
        raise ValueError(
            f"a table for capacities up to {largest} is too large: divide weights and capacity by a common factor, or "
            "take binary_programme"
        )
    size = 1 + largest
    weights = weights.clamp(max=size)  # none of which fits
    shared = weights.tolist() if weights.dim() == 1 and host_knows else None
    on_cuda = values.device.type == "cuda"  # elsewhere a copy that is not waited for may be read, or freed, too early
    weights, capacity = (x.to(values.device, non_blocking=on_cuda) for x in (weights, capacity))
    weights, capacity = weights.expand(batch, length), capacity.expand(batch).clamp(max=size - 1)
    parts = []
    rows = max(1, _CELLS_AT_ONCE // max(1, length * size))
    for worth, heavy, rest in zip(values.split(rows), weights.split(rows), capacity.split(rows)):
        worth = worth.to(sum_dtype(values))
        worth = in_range(worth, length + 1, dim=1)
        taken = _fill(worth, heavy, size) if shared is None else _fill_shared(worth, shared, size)
        parts.append(_read_back(taken, heavy, shared, rest))
    z = torch.cat(parts).to(values)
    return nan_in(z if host_knows else nan_in(z, (weights < 0).any(dim=1)), broken)


def _fill(values: Tensor, weights: Tensor, size: int) -> Tensor:
    """Return whether each item is taken within each capacity below `size`, given the items before it, [N, B, size].

    best[b, c] is the greatest value of the items so far within capacity c. It never falls as c grows, not even by
    rounding, hence an item of no value is never strictly better.
    """
    best = values.new_zeros(len(values), size)
    capacities = torch.arange(size, device=values.device)
    taken = torch.empty(values.shape[1], *best.shape, dtype=torch.bool, device=values.device)
    for value, weight, chosen in zip(_columns(values), _columns(weights), taken.unbind(0)):
        rest = capacities - weight
        candidate = best.gather(1, rest.clamp(0, size - 1)).add_(value).masked_fill_(rest < 0, -torch.inf)
        torch.gt(candidate, best, out=chosen)
        torch.maximum(candidate, best, out=best)
    return taken


def _fill_shared(values: Tensor, weights: list[int], size: int) -> Tensor:
    """Return the same for weights that all rows share, several times sooner."""
    best = values.new_zeros(len(values), size)
    taken = torch.zeros(values.shape[1], *best.shape, dtype=torch.bool, device=values.device)
    for value, weight, chosen in zip(_columns(values), weights, taken.unbind(0)):
        if weight < size:
            without = best[:, weight:]
            candidate = best[:, : size - weight] + value
            torch.gt(candidate, without, out=chosen[:, weight:])
            torch.maximum(candidate, without, out=without)
    return taken


def _read_back(taken: Tensor, weights: Tensor, shared: list[int] | None, capacity: Tensor) -> Tensor:
    """Return the best selection within the capacity [B] as bool [B, N], found from the last item back."""
    rest, selection = capacity[:, None].clone(), []
    heavy: Sequence[Any] = shared or _columns(weights)
    for chosen, weight in zip(reversed(taken.unbind(0)), reversed(heavy)):
        selection.append(chosen.gather(1, rest))
        rest = rest.add_(selection[-1], alpha=-weight) if shared else rest - selection[-1] * weight
    return torch.cat(selection[::-1], dim=1) if selection else weights.bool()


def _columns(matrix: Tensor) -> tuple[Tensor, ...]:
    return matrix.unsqueeze(-1).unbind(1)

"""Choose the k largest entries of each row."""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor

from imle.solvers._checks import check_floating

# Short rows in great number (a VAE asks for 40,000 rows of 20) are where `torch.topk` is slow on a CPU: it
# sorts one row at a time. A sorting network works on all rows at once, with vector instructions. The limits are
# where it wins by a tenth or more; with fewer rows, the cost of starting so many operations is more than it saves.
_NETWORK_WIDTHS = range(8, 33)
_NETWORK_MIN_ROWS = 2000
_NETWORK_MIN_ROWS_PER_ENTRY = 100
_NETWORK_ROWS_AT_ONCE = 65536  # 5 MB for rows of 20


def select_k(theta: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """Return the 0/1 indicator of the k largest entries along the last dimension of theta.

    Exactly k ones per row, whatever the input: among equal entries some are chosen, and NaN counts as the
    largest number. This is MAP(theta) over the k-subsets, a maximiser of <z, theta>.

    Args:
        theta: scores, floating point, [B, ..., N].
        k: number of entries to choose, 0 <= k <= N.
        mask: bool, broadcastable to [B, ..., N]; True where an entry may be chosen. A row with fewer than k such
            entries gets all of them and no other.

    Returns:
        z of theta's shape, dtype and device: 1 where chosen, else 0.

    Raises:
        ValueError: k is outside 0..N, theta has no dimension, or mask does not broadcast to theta.
        TypeError: theta is not floating point, or mask is not bool.

    Example:
        >>> select_k(torch.tensor([[0.3, 2.0, 2.0, -1.0]]), k=2)
        tensor([[0., 1., 1., 0.]])
        >>> select_k(torch.zeros(1, 4), k=3, mask=torch.tensor([[True, False, False, True]]))
        tensor([[1., 0., 0., 1.]])
    """
    k = _check(theta, k, smallest_k=0)
    theta = theta.detach()
    if mask is not None:
        theta = _forbid(theta, mask)
    z = _select_exactly(theta, k)
    return z if mask is None else z.mul_(mask)


def mathias_select_k(theta: Tensor, k: int) -> Tensor:
    """Return the 0/1 indicator of the entries that reach the k-th largest along the last dimension of theta.

    On ties this chooses more than k entries. It is kept for agreement with results obtained under this rule;
    `select_k` chooses exactly k.

    Args:
        theta: scores, floating point, [B, ..., N].
        k: rank of the threshold, 1 <= k <= N.

    Returns:
        z of theta's shape, dtype and device: 1 where theta is at least the k-th largest entry of its row, else 0.

    Raises:
        ValueError: k is outside 1..N, or theta has no dimension.
        TypeError: theta is not floating point.

    Example:
        >>> mathias_select_k(torch.tensor([[0.3, 2.0, 2.0, -1.0]]), k=1)
        tensor([[0., 1., 1., 0.]])
    """
    k = _check(theta, k, smallest_k=1)
    theta = theta.detach()
    threshold = theta.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    return (theta >= threshold).to(theta.dtype)


def _check(theta: Tensor, k: int, smallest_k: int) -> int:
    """Return k as Python's own number, of whatever kind it is: a tensor is no key and no member of a set."""
    if theta.dim() == 0:
        raise ValueError("theta needs at least one dimension, [B, ..., N]; it is a single number")
    check_floating("theta", theta)
    k = operator.index(k)
    if not smallest_k <= k <= theta.shape[-1]:
        raise ValueError(f"k must be between {smallest_k} and {theta.shape[-1]}, the entries of a row; it is {k}")
    return k


def _forbid(theta: Tensor, mask: Tensor) -> Tensor:
    """Return theta with -inf where mask is False, and only there."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True: may be chosen), not {mask.dtype}")
    try:
        mask = mask.expand_as(theta)
    except RuntimeError:
        shapes = f"{tuple(mask.shape)} for parameters {tuple(theta.shape)}"
        raise ValueError(f"mask {shapes} cannot be broadcast; their last dimensions must agree") from None
    # An allowed -inf still comes before every forbidden entry, and after every allowed number.
    lowest = torch.finfo(theta.dtype).min
    least = torch.where(theta == lowest, lowest * (1 - torch.finfo(theta.dtype).eps), theta)
    return least.clamp_(min=lowest).masked_fill_(~mask, -torch.inf)


def _select_exactly(theta: Tensor, k: int) -> Tensor:
    width = theta.shape[-1]
    if k in (0, width):
        return torch.full_like(theta, float(k > 0), memory_format=torch.contiguous_format)
    min_rows = max(_NETWORK_MIN_ROWS, _NETWORK_MIN_ROWS_PER_ENTRY * width)
    many_short_rows = width in _NETWORK_WIDTHS and theta.numel() >= min_rows * width
    if many_short_rows and theta.device.type == "cpu" and not torch.compiler.is_compiling():
        return _select_by_network(theta.reshape(-1, width), k).view(theta.shape)
    return _select_by_topk(theta, k)


def _select_by_topk(theta: Tensor, k: int) -> Tensor:
    chosen = theta.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(theta, memory_format=torch.contiguous_format).scatter_(-1, chosen, 1.0)


def _select_by_network(theta: Tensor, k: int) -> Tensor:
    """Select by comparison with the k-th largest entry of each row of theta [rows, N]."""
    z = torch.empty_like(theta, memory_format=torch.contiguous_format)
    pieces = -(-theta.shape[0] // _NETWORK_ROWS_AT_ONCE)
    for scores, chosen in zip(theta.tensor_split(pieces), z.tensor_split(pieces)):
        threshold, runner_up = _kth_and_next(scores, k)
        torch.ge(scores, threshold[:, None], out=chosen)
        # The comparison is exact only where one entry is strictly the k-th: not on ties, nor with NaN, which
        # a network spreads to both outputs of every comparator it meets.
        undecided = (~(threshold > runner_up)).nonzero().squeeze(1)
        if len(undecided):
            chosen[undecided] = _select_by_topk(scores[undecided], k)
    return z


def _kth_and_next(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k-th and the (k+1)-th largest entry of each row of scores [rows, N], both [rows]."""
    # .clone() because a copy is sorted in place; column by column, so that each comparison reads whole vectors.
    columns = list(scores.t().clone(memory_format=torch.contiguous_format).unbind(0))
    spare = torch.empty_like(columns[0])
    for i, j, larger, smaller in _comparators(scores.shape[1], k):
        if larger:
            torch.maximum(columns[i], columns[j], out=spare)
        if smaller:
            torch.minimum(columns[i], columns[j], out=columns[j])
        if larger:
            columns[i], spare = spare, columns[i]
    return columns[k - 1], columns[k]


@functools.lru_cache
def _comparators(width: int, k: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """List the comparators of Batcher's merge-exchange network that positions k-1 and k depend on.

    A comparator (i, j, larger, smaller), i < j, puts the larger of two entries at i and the smaller at j, where the
    flags say that this is looked at again. K. E. Batcher, Sorting networks and their applications, 1968, in the form
    of Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2M.
    """
    network = []
    top = 1 << ((width - 1).bit_length() - 1)
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            network += [(i, i + d) for i in range(width - d) if i & p == r]
            if q == p:
                break
            q, r, d = q // 2, p, q - p
        p //= 2
    needed = {k - 1, k}
    kept = []
    for i, j in reversed(network):
        if i in needed or j in needed:
            kept.append((i, j, i in needed, j in needed))
            needed |= {i, j}
    return tuple(reversed(kept))

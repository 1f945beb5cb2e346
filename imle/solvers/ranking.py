"""Ranks of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from imle.solvers._checks import check_floating, minimiser


@minimiser(lambda descending=False: descending)
def ranking(theta: Tensor, descending: bool = False) -> Tensor:
    """Return the rank of each entry along the last dimension of theta, from 1 to N.

    The smallest entry has rank 1 and the largest N: ranks are then a maximiser of <z, theta> over the permutations of
    1..N. With `descending` the largest has rank 1, as a place in a list; that is a minimiser, and estimators
    know it. Equal entries are ranked in the order in which they stand: every row is a permutation.
    NaN counts as the largest number.

    M. Rolínek et al., Optimizing rank-based metrics with blackbox differentiation, 2020, has ranks as a solver.

    Args:
        theta: scores, floating point, [B, ..., N].
        descending: the largest entry, not the smallest, has rank 1.

    Returns:
        z of theta's shape, dtype and device: whole numbers from 1 to N.

    Raises:
        ValueError: theta has no dimension, or its dtype cannot count to N (bfloat16 counts to 256, float16 to 2048).
        TypeError: theta is not floating point.

    Example:
        >>> ranking(torch.tensor([[0.3, 2.0, -1.0]]))
        tensor([[2., 3., 1.]])
        >>> ranking(torch.tensor([[0.3, 2.0, -1.0]]), descending=True)
        tensor([[2., 1., 3.]])
    """
    check_floating("scores", theta)
    if theta.dim() == 0:
        raise ValueError("theta needs at least one dimension, [B, ..., N]; it is a single number")
    length, most = theta.shape[-1], 2 / torch.finfo(theta.dtype).eps
    if length > most:
        raise ValueError(
            f"{theta.dtype} counts to {most:.0f}, but there are {length} entries to rank: use theta.float()"
        )
    order = theta.detach().sort(dim=-1, descending=descending, stable=True).indices
    ranks = torch.arange(1, length + 1, device=theta.device, dtype=theta.dtype)
    z = torch.empty_like(theta, memory_format=torch.contiguous_format, requires_grad=False)
    return z.scatter_(-1, order, ranks.expand_as(theta))

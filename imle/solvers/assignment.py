"""Matchings of greatest weight."""

from __future__ import annotations

import torch
from torch import Tensor

from imle.solvers._checks import broken_rows, check_floating, scipy_optimize


def assignment(weights: Tensor) -> Tensor:
    """Return the matching of rows to columns of greatest total weight for each matrix.

    This solver maximises <z, weights>; for an assignment of least cost, negate. Each row is matched with one column
    and each column with one row; of a matrix that is not square, every row or column on the shorter side is. An entry
    of -inf is a pair that is never matched. On ties it is one of the best matchings, the same at every call.

    Each matrix is solved in float64 by scipy's `linear_sum_assignment` (D. F. Crouse, On implementing 2D rectangular
    assignment algorithms, 2016), on the host: with weights on an accelerator, the host waits for them.

    Args:
        weights: weight of each pair, floating point, [B, n, m].

    Returns:
        z of the same shape, dtype and device: 1 for a matched pair, else 0; n = m gives permutation matrices.

    Raises:
        ValueError: weights are not matrices, or those of one allow no matching; the message names it.
        TypeError: weights are not floating point.
        FloatingPointError: a weight is NaN or +inf.
        ImportError: scipy is not installed.

    Example:
        >>> assignment(torch.tensor([[[4.0, 3.0], [3.0, 0.0]]]))
        tensor([[[0., 1.],
                 [1., 0.]]])
    """
    check_floating("weights", weights)
    if weights.dim() != 3:
        raise ValueError(f"weights must be a batch of matrices, [B, n, m]; their shape is {tuple(weights.shape)}")
    match = scipy_optimize("assignment").linear_sum_assignment
    matrices = weights.detach().to("cpu", torch.float64)
    broken_rows("weights", matrices, torch.inf)
    z = torch.zeros(matrices.shape, dtype=torch.float64)
    for row, (chosen, matrix) in enumerate(zip(z.numpy(), matrices.numpy())):
        try:
            chosen[match(matrix, maximize=True)] = 1.0
        except ValueError as error:
            raise ValueError(f"weights of -inf leave no matching in row {row}") from error
    return z.to(weights)

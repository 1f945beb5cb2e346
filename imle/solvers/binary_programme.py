"""Linear programmes in 0/1 variables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imle.solvers._checks import broken_rows, check_floating, minimiser, scipy_optimize

# HiGHS stops within 1e-6 of the best objective: with coefficients up to this number, within 1e-10 of the largest.
_LARGEST_COEFFICIENT = 1e4
_INFINITE_WEIGHT = 1e15  # of a constraint, which HiGHS refuses


@minimiser(lambda *constraints, maximise=True, **options: not maximise)
def binary_programme(
    theta: Tensor,
    A_ub: Any = None,
    b_ub: Any = None,
    A_eq: Any = None,
    b_eq: Any = None,
    *,
    maximise: bool = True,
    time_limit: float | None = None,
) -> Tensor:
    """Return the best 0/1 vector under linear constraints, the same for each instance.

        maximise <z, theta>   subject to   A_ub z <= b_ub,   A_eq z = b_eq,   z in {0, 1}^N

    An entry that the solver avoids without bounds (-inf; +inf for a minimiser) has z = 0. On ties it is one of the best
    vectors, the same at every call. For several limits on one set of items (a knapsack of several dimensions), and for
    whatever has no solver of its own.

    Each instance is solved in float64 by scipy's `milp`, which is HiGHS (Q. Huangfu, J. A. J. Hall, Parallelizing the
    dual revised simplex method, 2018), on the host: with theta on an accelerator, the host waits for it. Solutions meet
    the constraints within 1e-6, and are the best within 1e-10 of the largest entry of theta.

    Under an estimator bind the constraints first, by a closure or `functools.partial`, as in the example.

    Args:
        theta: coefficients, floating point, [B, ...], N of them in each instance.
        A_ub: a matrix [m, N], an array, tensor or scipy's sparse array.
        b_ub: [m], or [B, m] for limits of each instance.
        A_eq: a matrix [l, N].
        b_eq: [l], or [B, l].
        maximise: False minimises <z, theta>, and estimators know it.
        time_limit: seconds for each instance; None waits for the best vector.

    Returns:
        z of theta's shape, dtype and device.

    Raises:
        ValueError: shapes disagree, a matrix holds a number of 1e15 or more, or nothing meets the constraints of one
            instance; the message names it.
        TypeError: theta is not floating point.
        FloatingPointError: theta is NaN, or infinite on the side that the solver likes.
        TimeoutError: an instance was not solved within `time_limit`; the message names it.
        ImportError: scipy is not installed.

    Example:
        >>> import functools
        >>> two_of_three = functools.partial(binary_programme, A_eq=[[1, 1, 1]], b_eq=[2])
        >>> two_of_three(torch.tensor([[0.5, -1.0, 2.0], [-3.0, -1.0, -2.0]]))
        tensor([[1., 0., 1.],
                [0., 1., 1.]])
    """
    check_floating("theta", theta)
    if theta.dim() < 2:
        raise ValueError(f"theta must be [B, ...] with a batch dimension first, not {tuple(theta.shape)}")
    optimize = scipy_optimize("binary_programme")
    liked = torch.inf if maximise else -torch.inf
    coefficients = theta.detach().to("cpu", torch.float64).flatten(1)
    broken_rows("theta", coefficients, liked)
    allowed = coefficients.isfinite()
    coefficients = coefficients.masked_fill(~allowed, 0.0)
    largest = coefficients.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    costs = coefficients / largest * (-_LARGEST_COEFFICIENT if maximise else _LARGEST_COEFFICIENT)

    batch, length = coefficients.shape
    constraints = [
        _Constraint("ub", A_ub, b_ub, batch, length),
        _Constraint("eq", A_eq, b_eq, batch, length),
    ]
    z = torch.zeros_like(coefficients)
    for row in range(batch):
        result = optimize.milp(
            costs[row].numpy(),
            integrality=1,
            bounds=optimize.Bounds(0.0, allowed[row].double().numpy()),
            constraints=[constraint.of_row(row, optimize) for constraint in constraints if constraint.given],
            options={"mip_rel_gap": 0.0} | ({} if time_limit is None else {"time_limit": time_limit}),
        )
        _check_status(result, row, time_limit)
        z[row] = torch.from_numpy(result.x)
    return z.round_().view(theta.shape).to(theta)


class _Constraint:
    """A z <= b (`ub`) or A z = b (`eq`) for a batch."""

    def __init__(self, kind: str, matrix: Any, bound: Any, batch: int, length: int) -> None:
        import numpy
        from scipy.sparse import csr_array, issparse

        if (matrix is None) != (bound is None):
            raise ValueError(f"A_{kind} and b_{kind} go together; one of them is missing")
        self.given, self.is_equality = matrix is not None, kind == "eq"
        if not self.given:
            return
        matrix, bound = _on_host(matrix), numpy.asarray(_on_host(bound), dtype=float)
        self.matrix = csr_array(matrix if issparse(matrix) else numpy.asarray(matrix, dtype=float))
        if self.matrix.ndim != 2 or self.matrix.shape[1] != length:
            raise ValueError(f"A_{kind} must be a matrix [m, {length}] for N={length}; it is {self.matrix.shape}")
        if not (abs(self.matrix.data) < _INFINITE_WEIGHT).all():
            raise ValueError(
                f"A_{kind} must hold numbers below {_INFINITE_WEIGHT:.0e}, beyond which HiGHS takes them for infinite: "
                "what no solution may take is said by theta, -inf, or inf to minimise"
            )
        height = self.matrix.shape[0]
        if bound.shape not in ((height,), (batch, height)):
            expected = f"[{height}] or [{batch}, {height}]"
            raise ValueError(f"b_{kind} must be {expected}, one for each row of A_{kind}; it is {bound.shape}")
        self.bound = numpy.broadcast_to(bound, (batch, height))

    def of_row(self, row: int, optimize: Any) -> Any:
        bound = self.bound[row]
        return optimize.LinearConstraint(self.matrix, bound if self.is_equality else -torch.inf, bound)


def _on_host(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _check_status(result: Any, row: int, time_limit: float | None) -> None:
    if result.status == 0:
        return
    if result.status == 1:
        raise TimeoutError(f"row {row} was not solved within {time_limit} seconds")
    if result.status == 2:
        raise ValueError(f"nothing in {{0, 1}}^N meets the constraints in row {row}")
    raise RuntimeError(f"HiGHS gave up on row {row}: {result.message}")

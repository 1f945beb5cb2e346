"""The Sum-of-Gamma distribution: its quantiles, tabulated once from the exact law, and how draws are read from them."""

import functools
import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from imle._compile import eager, kept

# Scores of the table of quantiles: probabilities from 1.3e-12 to 1 - 1.3e-12, 1170 cells a standard deviation.
_SCORE_LIMIT = 7.0
_CELLS = 16384
# On the CPU a look-up goes in pieces this long: they stay in the cache and below torch's threshold for starting
# threads, whose waiting for one another costs more on a busy machine than it saves on an idle one.
_PIECE = 32768


def quantiles_of_scores_(scores: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Replace contiguous normal scores by the quantiles at the same probabilities; in place, for speed."""
    values, rises = table
    flat = scores.view(-1)
    for position in flat.split(_PIECE) if scores.device.type == "cpu" else (flat,):
        position.mul_(_CELLS / (2 * _SCORE_LIMIT)).add_(_CELLS / 2).clamp_min_(0).clamp_max_(_CELLS)
        cell = position.long()
        position.frac_().mul_(rises.index_select(0, cell)).add_(values.index_select(0, cell))
    return scores


@eager
@kept
def table(k: float, s: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return quantiles of SoG(k, s) at the cells' lower ends and their rises over the cells, [cells + 1] each."""
    values = torch.tensor(_quantiles(k, s), dtype=torch.float64, device="cpu")
    rises = torch.cat([values.diff(), values.new_zeros(1)])
    return values.to(dtype).to(device), rises.to(dtype).to(device)


# The exact distribution. P. G. Moschopoulos, The distribution of the sum of independent gamma random variables,
# 1985: in units of its smallest scale, the sum Y is a mixture of Gamma(rho + N) over an integer N >= 0, where rho
# is the sum of all shapes. The terms of the series are positive, so both tails keep their relative accuracy; the
# inverse Fourier transform of the characteristic function does not converge where rho is small.


@functools.lru_cache(maxsize=64)
@_disable_current_modes()
def _quantiles(k: float, s: int) -> list[float]:
    """Return the quantiles of SoG(k, s) at equally spaced normal scores, cells + 1 numbers, whatever torch traces."""
    shapes, scales, offset = _gamma_terms(k, s)
    unit = scales.min()
    mixture = _Mixture(shapes, unit / scales)
    # log(Y) is a smooth function of the score, of slopes from 1 to 10^7: the knots are placed in three rounds.
    lowest, highest = mixture.bounds
    log_y = (highest - torch.expm1(_linspace(0, math.log1p(highest - lowest), 129))).flip(0)
    for nb_knots in (129, 257, 1025):
        scores, _ = mixture.scores(log_y)
        log_y = _linear_interpolation(
            _linspace(-_SCORE_LIMIT - 0.1, _SCORE_LIMIT + 0.1, nb_knots), scores.clamp(-9, 9), log_y
        )
    scores, slopes = mixture.scores(log_y)
    table = _linspace(-_SCORE_LIMIT, _SCORE_LIMIT, _CELLS + 1)
    return (_cubic_interpolation(table, scores, log_y, slopes).exp() * unit + offset).tolist()


def _gamma_terms(k: float, s: int) -> tuple[Tensor, Tensor, float]:
    """Return shapes [J], scales [J] and an offset: eps = offset + sum_j Gamma(shape_j, scale_j)."""
    # The merged term costs as much as the terms it replaces up to 2 merged_from.
    merged_from = min(500, math.ceil(100 + 40 * k))
    exact = s if s <= 2 * merged_from else merged_from
    scales = 1 / torch.arange(1, exact + 1, dtype=torch.float64, device="cpu")
    shapes = torch.full_like(scales, 1 / k)
    offset = -math.log(s) / k
    if s > exact:
        # One Gamma with the other terms' second and third cumulants, S2/k and 2 S3/k, shifted to their mean S1/k.
        s1, s2, s3 = (power_sum(n, exact + 1, s) for n in (1, 2, 3))
        shapes = torch.cat([shapes, shapes.new_tensor([s2**3 / (k * s3**2)])])
        scales = torch.cat([scales, scales.new_tensor([s3 / s2])])
        offset += (s1 - s2**2 / s3) / k
    return shapes, scales, offset


class _Mixture:
    """The law of Y = sum_j Gamma(shape_j, rate_j), for rates of which the largest is 1, as a mixture over N."""

    def __init__(self, shapes: Tensor, rates: Tensor) -> None:
        rho = shapes.sum()
        # E exp(t Y) and Markov's inequality: P(Y > e^highest) and P(N > nb_terms) are below e^-36.
        t = 0.875 * rates.min()
        log_moment = -(shapes * torch.log1p(-t / rates)).sum()
        highest = torch.log((36 + log_moment) / t)
        nb_terms = math.ceil((36 + log_moment) / -torch.log1p(-t) - rho)
        # P(Y <= y) <= y^rho / Gamma(rho + 1) prod_j rate_j^shape_j, which is e^-30 at the lowest y.
        lowest = (-30 - (shapes * rates.log()).sum() + torch.lgamma(rho + 1)) / rho
        self.bounds = lowest.item(), highest.item()
        self.orders = rho + torch.arange(nb_terms, dtype=torch.float64, device="cpu")
        pmf = _negative_binomial_sum(shapes, 1 - rates, nb_terms)
        more = pmf.flip(0).cumsum(0).flip(0) - pmf
        self.weights = torch.stack([pmf.cumsum(0), more, pmf * self.orders], dim=1)

    def scores(self, log_y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normal score z of each value [n] at the same probability, and d log(y) / dz, [n]."""
        # T_m = y^(rho+m) e^-y / Gamma(rho+m+1);  P(Y <= y) = sum_m T_m P(N <= m);  y f(y) = sum_m T_m P(N = m) (rho+m)
        rows = max(1, 2**21 // len(self.orders))
        log_norm = torch.lgamma(self.orders + 1)
        sums = []
        for piece in log_y.split(rows):
            log_terms = torch.outer(piece, self.orders) - piece.exp()[:, None] - log_norm
            # e^-700 is as good as zero, and subnormal numbers are slow
            sums.append(log_terms.clamp_(min=-700).exp_() @ self.weights)
        at_most, more, density = torch.cat(sums).unbind(1)
        # The terms where P(N <= m), respectively P(N > m), is one make incomplete gamma functions.
        below = torch.special.gammainc(self.orders[-1] + 1, log_y.exp()) + at_most
        above = torch.special.gammaincc(self.orders[0], log_y.exp()) + more
        # The smaller tail gives the score; where y itself underflows (k in the thousands), only `below` is right.
        lower = (below < 0.5) | (log_y < -700)
        scores = torch.where(lower, torch.special.ndtri(below), -torch.special.ndtri(above))
        return scores, torch.exp(-(scores**2) / 2) / (math.sqrt(2 * math.pi) * density)


def _negative_binomial_sum(shapes: Tensor, failures: Tensor, nb_terms: int) -> Tensor:
    """Return P(N = m), m < nb_terms, of a sum of negative binomials: shapes [J], failure probabilities [J]."""
    # m P(N = m) = sum_{j=1..m} c_j P(N = m - j) with c_j = sum_i shape_i failure_i^j; [J, 512] powers at a time.
    powers = failures[:, None] ** torch.arange(1, 513, dtype=torch.float64, device="cpu")
    blocks = []
    for _ in range(0, nb_terms, 512):
        blocks.append(shapes @ powers)
        shapes = shapes * powers[:, -1]
    c_reversed = torch.cat(blocks)[:nb_terms].flip(0)
    pmf = torch.zeros_like(c_reversed)
    pmf[0] = 1.0
    for m in range(1, nb_terms):
        value = torch.dot(c_reversed[nb_terms - m :], pmf[:m]).item() / m
        pmf[m] = value
        if value > 1e200:  # P(N = 0) may be too small for a float: the scale is found at the end
            pmf[: m + 1] *= 1e-200
    return pmf / pmf.sum()


def power_sum(n: int, first: int, last: int) -> float:
    """Return the sum of i^-n for i = first..last."""
    ends = torch.tensor([first, last + 1], dtype=torch.float64, device="cpu")
    if n == 1:
        return torch.digamma(ends).diff().item()
    return -torch.special.zeta(torch.full_like(ends, n), ends).diff().item()


def _linspace(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")


def _linear_interpolation(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Return the polygon through (knots, values), both rising, at x between the first and the last knot."""
    i = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    return values[i - 1] + (values[i] - values[i - 1]) * (x - knots[i - 1]) / (knots[i] - knots[i - 1])


def _cubic_interpolation(x: Tensor, knots: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Return at x the cubic Hermite spline through (knots, values) with the given slopes."""
    i = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    width = knots[i] - knots[i - 1]
    u = (x - knots[i - 1]) / width
    rise, start, end = values[i] - values[i - 1], slopes[i - 1] * width, slopes[i] * width
    # value(0) = 0, value(1) = rise, value'(0) = start, value'(1) = end
    return values[i - 1] + u * (start + u * ((3 * rise - 2 * start - end) + u * (start + end - 2 * rise)))

"""Noise distributions: where the perturbation epsilon of perturb-and-MAP comes from.

A noise is any object with a method ``sample(shape)`` that returns a tensor of that shape; a distribution of
`torch.distributions` is one. Those of this module also take the device, the dtype and a generator.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from imle._compile import eager

Device = str | torch.device | int | None
Generators = torch.Generator | Sequence[torch.Generator] | None

# Scores of the table of quantiles: probabilities from 1.3e-12 to 1 - 1.3e-12, 1170 cells a standard deviation.
_SCORE_LIMIT = 7.0
_CELLS = 16384
# On the CPU a look-up goes in pieces this long: they stay in the cache and below torch's threshold for starting
# threads, whose waiting for one another costs more on a busy machine than it saves on an idle one.
_PIECE = 32768


class BaseNoiseDistribution(ABC):
    """A distribution of noise. Subclasses define `sample`, with or without the three keywords."""

    _takes_keywords = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls.sample).parameters
        any_keyword = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        cls._takes_keywords = any_keyword or {"device", "dtype", "generator"} <= set(parameters)

    @abstractmethod
    def sample(
        self,
        shape: Sequence[int],
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return independent draws in a tensor of the given shape.

        Args:
            shape: shape of the result.
            device: where the result lives; by default the distribution's device, else torch's default device.
            dtype: a floating-point type, by default torch's default dtype.
            generator: source of random numbers on that device; by default torch's global one.
        """


def draw(noise: Any, shape: Sequence[int], like: Tensor, generator: Generators = None) -> Tensor:
    """Return noise of the given shape with the dtype and on the device of `like`.

    Args:
        noise: any object with ``sample(shape)``.
        shape: shape of the result.
        like: tensor that sets dtype and device.
        generator: source of random numbers, or several for equal shares of the first dimension; only a noise that
            takes one can honour it.

    Raises:
        TypeError: `noise` has no method `sample`, or it returns something else than a tensor.
        ValueError: the result has another shape, `noise` cannot use the generator, or the shares are not equal.

    Example:
        >>> draw(torch.distributions.Normal(0.0, 1.0), (2, 3), like=torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
    """
    if isinstance(generator, Sequence):
        if not shape or shape[0] % len(generator):
            raise ValueError(f"{len(generator)} generators cannot draw equal shares of {tuple(shape)}")
        share = (shape[0] // len(generator), *shape[1:])
        return torch.cat([draw(noise, share, like, source) for source in generator])
    name = type(noise).__name__
    if not callable(getattr(noise, "sample", None)):
        raise TypeError(f"noise {name} has no method sample(shape); give it one, or use a class of imle.noise")
    if isinstance(noise, BaseNoiseDistribution) and noise._takes_keywords:
        eps = noise.sample(torch.Size(shape), device=like.device, dtype=like.dtype, generator=generator)
    elif generator is not None:
        raise ValueError(
            f"noise {name} takes no generator: seed it by torch.manual_seed, or derive it from "
            "BaseNoiseDistribution with sample(shape, *, device, dtype, generator)"
        )
    else:
        eps = noise.sample(torch.Size(shape))
    if not isinstance(eps, Tensor):
        raise TypeError(f"noise {name} returned {type(eps).__name__}; sample(shape) must return a torch.Tensor")
    if eps.shape != torch.Size(shape):
        raise ValueError(f"noise {name} returned shape {tuple(eps.shape)} where {tuple(shape)} was asked for")
    return eps.to(like)


class GumbelNoiseDistribution(BaseNoiseDistribution):
    """Gumbel noise: with location 0 and scale 1, the MAP of perturbed scores is a draw from their softmax.

    Args:
        location: mode of the distribution.
        scale: its spread, positive; the standard deviation is ``scale * pi / sqrt(6)``.
        device: default device of samples.

    Raises:
        ValueError: `location` is not finite, or `scale` is not positive and finite.

    Example:
        >>> GumbelNoiseDistribution().sample((2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, location: float = 0.0, scale: float = 1.0, device: Device = None) -> None:
        self.location, self.scale = float(location), float(scale)
        self.device = device
        if not math.isfinite(self.location):
            raise ValueError(f"location is {location}; it must be a finite number")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {scale}; it must be a positive finite number")

    def sample(
        self,
        shape: Sequence[int],
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return independent draws in a tensor of the given shape; always finite. Arguments as in the base class.

        Raises:
            TypeError: `dtype` is not a floating-point type.
        """
        dtype = _floating(dtype)
        where = self.device if device is None else device
        x, y = (torch.randn(shape, dtype=_computing(dtype), device=where, generator=generator) for _ in range(2))
        # -log(E) with E = (x^2 + y^2) / 2, an Exponential variable: fine-grained near 0, so that the upper tail is
        # whole (-log(-log(uniform)) cuts it off), faster than `exponential_`, and at work under vmap as well.
        twice_e = x.mul_(x).add_(y.mul_(y)).clamp_min_(torch.finfo(x.dtype).tiny)
        return twice_e.log_().sub_(math.log(2)).mul_(-self.scale).add_(self.location).to(dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density at each entry of `value`, with its shape; differentiable."""
        z = (value - self.location) / self.scale
        return -z - torch.exp(-z) - math.log(self.scale)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(location={self.location}, scale={self.scale}, device={self.device!r})"


class SumOfGammaNoiseDistribution(BaseNoiseDistribution):
    """Sum-of-Gamma noise SoG(k, s), of which k independent draws add up to a Gumbel(0, 1) variable as s grows.

    With it, the score ``<z, theta + eps>`` of a state z of k ones carries Gumbel noise, as perturb-and-MAP wants:
    ``eps = (sum_{i=1..s} Gamma(shape=1/k, scale=k/i) - log(s)) / k``. From *Implicit MLE: Backpropagating Through
    Discrete Exponential Family Distributions* (Niepert, Minervini, Franceschi, 2021).

    A draw is a normal variable and one look-up in a table of quantiles, not s Gamma variables. The table is made
    from the exact distribution at the first draw, once per process and (k, s): milliseconds for s = 10, seconds for
    s = 1000. It ends at the probabilities 1.3e-12 and 1 - 1.3e-12; between them it is within 3e-7 of the exact
    quantile, in float64 too. There is no `log_prob`: apart from s = 1 and k = 1 the density has no closed form.

    Args:
        k: number of ones in a state: subset size, number of edges. At least 0.01.
        nb_iterations: the number s of Gamma variables, at least 1; more is closer to the Gumbel sum. From some
            hundreds on (200 + 80 k, at most 1000) the smallest ones are merged into one of equal mean, variance
            and skewness, which moves quantiles by less than 3e-4.
        device: default device of samples.

    Raises:
        TypeError: `k` is not a number, or `nb_iterations` is not an integer.
        ValueError: `k` is below 0.01 or not finite, or `nb_iterations` is below 1.

    Example:
        >>> SumOfGammaNoiseDistribution(k=10).sample((2, 3)).shape
        torch.Size([2, 3])
        >>> round(SumOfGammaNoiseDistribution(k=10).variance, 4)
        0.155
    """

    k: float
    nb_iterations: int
    device: Device

    def __init__(self, k: float, nb_iterations: int = 10, device: Device = None) -> None:
        if not isinstance(k, Real):
            raise TypeError(f"k is {k!r}; it must be a number")
        if not isinstance(nb_iterations, Integral):
            raise TypeError(f"nb_iterations is {nb_iterations!r}; it must be an integer")
        if not 0.01 <= k < math.inf:
            raise ValueError(f"k is {k}; it must be at least 0.01 and finite: it is the number of ones in a state")
        if nb_iterations < 1:
            raise ValueError(f"nb_iterations is {nb_iterations}; it must be at least 1")
        self.k, self.nb_iterations = k, int(nb_iterations)
        self.device = device

    def sample(
        self,
        shape: Sequence[int],
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return independent draws in a tensor of the given shape. Arguments as in the base class.

        Raises:
            TypeError: `dtype` is not a floating-point type.
        """
        dtype = _floating(dtype)
        eps = torch.randn(
            shape,
            dtype=_computing(dtype),
            device=self.device if device is None else device,
            generator=generator,
        )
        _quantiles_of_scores_(eps, _table(float(self.k), self.nb_iterations, eps.dtype, eps.device))
        return eps.to(dtype)

    def quantile(self, p: Tensor) -> Tensor:
        """Return, for each probability in `p`, the value below which a draw falls with that probability.

        Computed in float64 from the table that serves `sample`; probabilities beyond its ends give its end values.

        Raises:
            ValueError: an entry of `p` is outside [0, 1].
        """
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError("p holds values outside [0, 1]; it must hold probabilities")
        scores = torch.special.ndtri(p.to(torch.float64)).contiguous()
        return _quantiles_of_scores_(scores, _table(float(self.k), self.nb_iterations, scores.dtype, p.device))

    def cumulant(self, n: int) -> float:
        """Return the exact n-th cumulant; n = 1 is the mean, 2 the variance.

        Raises:
            ValueError: `n` is below 1.
        """
        if n < 1:
            raise ValueError(f"n is {n}; cumulants are numbered from 1")
        # kappa_n = (n-1)! / k * sum_i i^-n, less log(s) / k from the mean
        shift = math.log(self.nb_iterations) if n == 1 else 0.0
        return (math.factorial(n - 1) * _power_sum(n, 1, self.nb_iterations) - shift) / self.k

    @property
    def mean(self) -> float:
        """Exact mean."""
        return self.cumulant(1)

    @property
    def variance(self) -> float:
        """Exact variance."""
        return self.cumulant(2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k}, nb_iterations={self.nb_iterations}, device={self.device!r})"


def _floating(dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise TypeError(f"noise of dtype {dtype} was asked for; it must be a floating-point type")
    return dtype


def _computing(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to sample in: bfloat16 and float16 are too coarse for tables and logarithms."""
    return dtype if dtype == torch.float64 else torch.float32


def _quantiles_of_scores_(scores: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Replace contiguous normal scores by the quantiles at the same probabilities; in place, for speed."""
    values, rises = table
    flat = scores.view(-1)
    for position in flat.split(_PIECE) if scores.device.type == "cpu" else (flat,):
        position.mul_(_CELLS / (2 * _SCORE_LIMIT)).add_(_CELLS / 2).clamp_min_(0).clamp_max_(_CELLS)
        cell = position.long()
        position.frac_().mul_(rises.index_select(0, cell)).add_(values.index_select(0, cell))
    return scores


@eager
@lru_cache(maxsize=64)
def _table(k: float, s: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return quantiles of SoG(k, s) at the cells' lower ends and their rises over the cells, [cells + 1] each."""
    with torch.inference_mode(False), torch.no_grad():
        values = _quantiles(k, s)
        rises = torch.cat([values.diff(), values.new_zeros(1)])
        return values.to(dtype).to(device), rises.to(dtype).to(device)


# The exact distribution. P. G. Moschopoulos, The distribution of the sum of independent gamma random variables,
# 1985: in units of its smallest scale, the sum Y is a mixture of Gamma(rho + N) over an integer N >= 0, where rho
# is the sum of all shapes. The terms of the series are positive, so both tails keep their relative accuracy; the
# inverse Fourier transform of the characteristic function does not converge where rho is small.


@lru_cache(maxsize=16)
def _quantiles(k: float, s: int) -> Tensor:
    """Return the quantiles of SoG(k, s) at equally spaced normal scores, [cells + 1], in float64 on the CPU."""
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
    return _cubic_interpolation(table, scores, log_y, slopes).exp() * unit + offset


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
        s1, s2, s3 = (_power_sum(n, exact + 1, s) for n in (1, 2, 3))
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


def _power_sum(n: int, first: int, last: int) -> float:
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

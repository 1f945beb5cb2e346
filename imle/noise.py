"""Noise distributions: where the perturbation epsilon of perturb-and-MAP comes from.

A noise is any object with a method ``sample(shape)`` that returns a tensor of that shape; a distribution of
`torch.distributions` is one. Those of this module also take the device, the dtype and a generator.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from imle._numerics import exact
from imle.sum_of_gamma import power_sum, quantiles_of_scores_, table

Device = str | torch.device | int | None


class BaseNoiseDistribution(ABC):
    """A distribution of noise: whatever has `sample(shape)`."""

    @abstractmethod
    def sample(self, shape: Sequence[int]) -> Tensor:
        """Return independent draws in a tensor of the given shape."""


class SeedableNoiseDistribution(BaseNoiseDistribution):
    """A distribution of noise that can be told where, in which dtype and from which random state to draw."""

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


def draw(noise: Any, shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return noise of the given shape with the dtype and on the device of `like`.

    Args:
        noise: any object with ``sample(shape)``.
        shape: shape of the result.
        like: tensor that sets dtype and device.
        generator: source of random numbers; only a `SeedableNoiseDistribution` can honour it.

    Raises:
        TypeError: `noise` has no method `sample`, or it returns something else than a tensor.
        ValueError: the result has another shape, or `noise` cannot use the generator.
        RuntimeError: a generator is named in a backward pass; see `not_repeated`.

    Example:
        >>> draw(torch.distributions.Normal(0.0, 1.0), (2, 3), like=torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
    """
    name, generator = type(noise).__name__, not_repeated(generator)
    if not callable(getattr(noise, "sample", None)):
        raise TypeError(f"noise {name} has no method sample(shape); give it one, or use a class of imle.noise")
    if isinstance(noise, SeedableNoiseDistribution):
        eps = noise.sample(torch.Size(shape), device=like.device, dtype=like.dtype, generator=generator)
    elif generator is not None:
        raise ValueError(
            f"noise {name} takes no generator: seed it by torch.manual_seed, or derive it from "
            "SeedableNoiseDistribution with sample(shape, *, device, dtype, generator)"
        )
    else:
        eps = noise.sample(torch.Size(shape))
    if not isinstance(eps, Tensor):
        raise TypeError(f"noise {name} returned {type(eps).__name__}; sample(shape) must return a torch.Tensor")
    if eps.shape != torch.Size(shape):
        raise ValueError(f"noise {name} returned shape {tuple(eps.shape)} where {tuple(shape)} was asked for")
    return eps.to(like)


def not_repeated(generator: torch.Generator | None) -> torch.Generator | None:
    """Return a generator to draw from in a forward pass.

    Raises:
        RuntimeError: a backward pass is under way, as where `torch.utils.checkpoint` runs a forward pass again. It
            restores torch's own random state, so that a draw is repeated, and no other.
    """
    if generator is not None and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a generator of your own cannot repeat its draws where torch.utils.checkpoint runs a layer again, in the "
            "backward pass: draw from torch's own there, generator=None, or leave the layer out of the checkpoint"
        )
    return generator


class _LocationScale(SeedableNoiseDistribution):
    """Base of the noises that are a standard one, stretched and moved."""

    def __init__(self, location: float = 0.0, scale: float = 1.0, device: Device = None) -> None:
        self.location, self.scale = float(location), float(scale)
        self.device = device
        if not math.isfinite(self.location):
            raise ValueError(f"location is {location}; it must be a finite number")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {scale}; it must be a positive finite number")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(location={self.location}, scale={self.scale}, device={self.device!r})"


class GumbelNoiseDistribution(_LocationScale):
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


class NormalNoiseDistribution(_LocationScale):
    """Normal (Gaussian) noise.

    Args:
        location: its mean.
        scale: its standard deviation, positive.
        device: default device of samples.

    Raises:
        ValueError: `location` is not finite, or `scale` is not positive and finite.

    Example:
        >>> NormalNoiseDistribution().sample((2, 3)).shape
        torch.Size([2, 3])
    """

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
        where = self.device if device is None else device
        x = torch.randn(shape, dtype=_computing(dtype), device=where, generator=generator)
        return x.mul_(self.scale).add_(self.location).to(dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density at each entry of `value`, with its shape; differentiable."""
        z = (value - self.location) / self.scale
        return -z.square() / 2 - math.log(self.scale * math.sqrt(2 * math.pi))


class SumOfGammaNoiseDistribution(SeedableNoiseDistribution):
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
        quantiles_of_scores_(eps, table(float(self.k), self.nb_iterations, eps.dtype, eps.device))
        return eps.to(dtype)

    def quantile(self, p: Tensor) -> Tensor:
        """Return, for each probability in `p`, the value below which a draw falls with that probability.

        Computed from the table that serves `sample`, in float64 where the device has it; probabilities beyond the
        table's ends give its end values.

        Raises:
            ValueError: an entry of `p` is outside [0, 1].
        """
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError("p holds values outside [0, 1]; it must hold probabilities")
        scores = torch.special.ndtri(exact(p)).contiguous()
        return quantiles_of_scores_(scores, table(float(self.k), self.nb_iterations, scores.dtype, p.device))

    def cumulant(self, n: int) -> float:
        """Return the exact n-th cumulant; n = 1 is the mean, 2 the variance.

        Raises:
            ValueError: `n` is below 1.
        """
        if n < 1:
            raise ValueError(f"n is {n}; cumulants are numbered from 1")
        # kappa_n = (n-1)! / k * sum_i i^-n, less log(s) / k from the mean
        shift = math.log(self.nb_iterations) if n == 1 else 0.0
        return (math.factorial(n - 1) * power_sum(n, 1, self.nb_iterations) - shift) / self.k

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

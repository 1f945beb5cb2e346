"""Target distributions: where the perturbation size lambda of the target parameters comes from.

    theta' = alpha theta - lambda dy

Source: Niepert, Minervini, Franceschi, "Implicit MLE", NeurIPS 2021 (a fixed lambda); Minervini, Franceschi,
Niepert, "Adaptive Perturbation-Based Gradient Estimation for Discrete Latent Variable Models", AAAI 2023 (an
adaptive one).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class BaseTargetDistribution(nn.Module, ABC):
    """What a target distribution offers to a rule: a perturbation size, and what becomes of the difference g."""

    alpha: float

    @abstractmethod
    def perturbation_size(self, theta: Tensor, dy: Tensor) -> Tensor:
        """Return lambda from theta `[B, ...]` and dy `[B, S, ...]`: 0-dimensional, or of instances `[B, 1, ...]`."""

    @abstractmethod
    def process(self, gradient: Tensor, theta: Tensor, dy: Tensor, perturbation_size: Tensor) -> Tensor:
        """Return the difference of solutions `[B, S, ...]`, scaled; an adaptive target takes note of it."""


class TargetDistribution(BaseTargetDistribution):
    """A fixed perturbation size.

    Args:
        alpha: how much of theta stays in theta'.
        beta: the perturbation size lambda; smaller is less biased, larger is less sparse.
        do_gradient_scaling: divide the gradient by lambda.

    Raises:
        ValueError: alpha or beta is not a finite number.

    Example:
        >>> TargetDistribution(beta=10.0)
        TargetDistribution(alpha=1.0, beta=10.0, do_gradient_scaling=False)
    """

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, do_gradient_scaling: bool = False):
        super().__init__()
        self.alpha, self.beta = _finite("alpha", alpha), _finite("beta", beta)
        self.do_gradient_scaling = do_gradient_scaling

    def perturbation_size(self, theta: Tensor, dy: Tensor) -> Tensor:
        """Return beta."""
        return dy.new_full((), self.beta)

    def process(self, gradient: Tensor, theta: Tensor, dy: Tensor, perturbation_size: Tensor) -> Tensor:
        """Return the gradient, divided by lambda on demand; zero where lambda is zero."""
        if not self.do_gradient_scaling:
            return gradient
        return gradient / self.beta if self.beta else torch.zeros_like(gradient)

    def extra_repr(self) -> str:
        """The options, for print()."""
        return f"alpha={self.alpha}, beta={self.beta}, do_gradient_scaling={self.do_gradient_scaling}"


class AdaptiveTargetDistribution(BaseTargetDistribution):
    """A perturbation size that tunes itself until the gradient has the wanted number of non-zero entries.

        lambda = beta ||theta|| / ||dy||

    so beta is the size of the step relative to theta. After each backward pass, with n the number of non-zero
    entries of g per solution,

        N <- 0.9 N + 0.1 n;   u <- mu u + (eta if N < c else -eta);   beta <- max(beta + u, 0)

    A pass whose dy is zero or not finite leaves this state alone. A theta of zeros has no scale: lambda and the
    gradient are zero there, so begin with small random numbers. The state lives in buffers: it is in `state_dict()`,
    moves with `.to()`, and follows theta to its device by itself.

    Args:
        initial_alpha: how much of theta stays in theta'.
        initial_beta: beta at the start; smaller is less biased, larger is less sparse. 0 starts without bias: the
            gradient is zero until beta has grown.
        initial_grad_norm: N at the start.
        beta_update_step: eta, how fast beta moves.
        beta_update_momentum: mu, how much of the last move is kept.
        grad_norm_decay_rate: 0.9 above; higher smooths n over more steps.
        target_norm: c, the wanted number of non-zero entries; higher drives beta up.
        exact_scaling: with S > 1 samples the step is taken with the norm of theta repeated S times, sqrt(S) larger.
            False (as the published figures rest on) divides g by the lambda of theta as it is, True by the
            lambda of the step; they differ by sqrt(S), and not at all for S = 1.
        groups: the number of equal parts of a batch, side by side, that have each a state and a lambda of their own,
            such as networks that train as one batched network. Above 1, the state holds that many numbers.

    Raises:
        ValueError: a number is not finite, or out of its range.

    Example:
        >>> target = AdaptiveTargetDistribution(initial_beta=0.5, target_norm=10.0)
        >>> target.beta, target.grad_norm
        (0.5, 1.0)
        >>> sorted(target.state_dict())
        ['_beta', '_beta_update', '_grad_norm']
    """

    _beta: Tensor
    _grad_norm: Tensor
    _beta_update: Tensor

    def __init__(
        self,
        initial_alpha: float = 1.0,
        initial_beta: float = 1.0,
        initial_grad_norm: float = 1.0,
        beta_update_step: float = 1e-4,
        beta_update_momentum: float = 0.0,
        grad_norm_decay_rate: float = 0.9,
        target_norm: float = 1.0,
        exact_scaling: bool = False,
        groups: int = 1,
    ):
        super().__init__()
        self.alpha = _finite("initial_alpha", initial_alpha)
        self.beta_update_step = _finite("beta_update_step", beta_update_step)
        self.beta_update_momentum = _finite("beta_update_momentum", beta_update_momentum)
        self.grad_norm_decay_rate = _finite("grad_norm_decay_rate", grad_norm_decay_rate)
        self.target_norm = _finite("target_norm", target_norm)
        self.exact_scaling = exact_scaling
        self.groups = groups
        if not (isinstance(groups, int) and groups >= 1):
            raise ValueError(f"groups must be a whole number from 1 up, not {groups!r}")
        if _finite("initial_beta", initial_beta) < 0:
            raise ValueError(f"initial_beta must be at least 0, not {initial_beta}")
        if not 0 <= grad_norm_decay_rate <= 1:
            raise ValueError(f"grad_norm_decay_rate must be between 0 and 1, not {grad_norm_decay_rate}")
        for name, value in (
            ("_beta", initial_beta),
            ("_grad_norm", initial_grad_norm),
            ("_beta_update", 0.0),
        ):
            start = torch.tensor(_finite(name.strip("_"), value), dtype=torch.float64)
            self.register_buffer(name, start if groups == 1 else start.repeat(groups))

    @property
    def beta(self) -> Any:
        """The relative perturbation size now, a list of them for several groups; reading it waits for the device."""
        return self._beta.tolist()

    @property
    def grad_norm(self) -> Any:
        """N, the running mean of the number of non-zero entries, as `beta`; reading it waits for the device."""
        return self._grad_norm.tolist()

    def perturbation_size(self, theta: Tensor, dy: Tensor) -> Tensor:
        """Return lambda = beta ||theta|| / ||dy||, norms over all of a group, theta repeated S times; 0 for dy = 0."""
        self._follow(dy.device)
        norm = by_group(safe_norm, dy, self.groups)
        scale = math.sqrt(dy.shape[1]) * by_group(safe_norm, theta.masked_fill(theta.isinf(), 0.0), self.groups)
        # lambda = beta ||theta|| / ||dy||
        size = torch.where(norm > 0, self._beta * scale / norm, 0.0).clamp(max=_largest(dy))
        return per_instance(size, dy)

    def process(self, gradient: Tensor, theta: Tensor, dy: Tensor, perturbation_size: Tensor) -> Tensor:
        """Return the gradient divided by lambda, zero where lambda is zero, and move beta by one step."""
        divisor = perturbation_size if self.exact_scaling else perturbation_size / math.sqrt(dy.shape[1])
        scaled = times(gradient, torch.where(divisor > 0, 1.0 / divisor, 0.0).clamp(max=_largest(gradient)))
        self._update(gradient, dy)
        return scaled

    def _update(self, gradient: Tensor, dy: Tensor) -> None:
        solutions = max(gradient.shape[0] * gradient.shape[1] // self.groups, 1)
        nonzero = by_group(_count_nonzero, gradient, self.groups).to(self._beta.dtype) / solutions
        decay, mu, eta = self.grad_norm_decay_rate, self.beta_update_momentum, self.beta_update_step
        grad_norm = decay * self._grad_norm + (1 - decay) * nonzero
        sparse = (grad_norm < self.target_norm).to(self._beta.dtype)
        update = mu * self._beta_update + eta * (2 * sparse - 1)
        beta = (self._beta + update).clamp(min=0.0)
        informative = by_group(_is_informative, dy, self.groups)
        self._grad_norm.copy_(torch.where(informative, grad_norm, self._grad_norm))
        self._beta_update.copy_(torch.where(informative, update, self._beta_update))
        self._beta.copy_(torch.where(informative, beta, self._beta))

    def _follow(self, device: torch.device) -> None:
        if self._beta.device != device:
            self.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # .half() or .to(bfloat16) on a whole model must not round the state: steps of 1e-4 would vanish
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            exact = before[name]
            if buffer is not None and exact is not None:
                self._buffers[name] = buffer.double() if exact.is_meta else exact.to(buffer.device)
        return self

    def extra_repr(self) -> str:
        """The state and the options, for print()."""
        beta = f"{self.beta:.6g}" if self.groups == 1 else [float(f"{value:.6g}") for value in self.beta]
        groups = "" if self.groups == 1 else f", groups={self.groups}"
        return f"alpha={self.alpha}, beta={beta}, target_norm={self.target_norm}, step={self.beta_update_step}{groups}"


def host_may_wait(x: Tensor) -> bool:
    """Whether looking at the numbers of x is free: on the CPU it is, elsewhere the host would wait for the device."""
    return x.device.type == "cpu"


def safe_norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of all entries, 0-dimensional float64: squares of 1e-30 or 1e30 are no trouble."""
    if not x.numel():
        return torch.zeros((), dtype=torch.float64, device=x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if host_may_wait(x):
        norm = torch.linalg.vector_norm(x, dtype=dtype).double()
        # what underflows in the squares is then too small to count
        if 1e-10 < norm < 1e18:
            return norm
    smallest, largest = torch.aminmax(x)
    # to [-1, 1] first, which is cheaper than to sum in float64
    scale = torch.maximum(smallest.abs(), largest.abs()).reciprocal().clamp(max=torch.finfo(x.dtype).max)
    norm = torch.linalg.vector_norm(x * scale, dtype=dtype)
    return norm.double() / scale.double()


def is_finite(x: Tensor) -> Tensor:
    """Return whether all entries are finite, 0-dimensional, in one pass."""
    if not x.numel():
        return torch.ones((), dtype=torch.bool, device=x.device)
    smallest, largest = torch.aminmax(x)
    return torch.isfinite(smallest) & torch.isfinite(largest)


def _count_nonzero(x: Tensor) -> Tensor:
    """Return the number of entries that are not 0, 0-dimensional; where one is NaN, of all entries."""
    # torch.count_nonzero branches on every entry, which on a CPU costs ten times as much where some are zero
    count = x.sign().abs_().sum(dtype=torch.promote_types(x.dtype, torch.float32))
    return count.nan_to_num(nan=x.numel())


def _is_informative(dy: Tensor) -> Tensor:
    """Return whether dy is finite and not all zero, 0-dimensional."""
    if not dy.numel():
        return torch.zeros((), dtype=torch.bool, device=dy.device)
    smallest, largest = torch.aminmax(dy)
    return ((smallest < 0) | (largest > 0)) & torch.isfinite(smallest) & torch.isfinite(largest)


def by_group(measure: Callable[[Tensor], Tensor], x: Tensor, groups: int) -> Tensor:
    """Return what `measure` makes of all entries: 0-dimensional, or for several groups of rows of x `[groups]`.

    Raises:
        ValueError: the rows are no multiple of the groups.
    """
    if groups == 1:
        return measure(x)
    if x.shape[0] % groups:
        raise ValueError(f"a batch of {x.shape[0]} cannot be split into {groups} equal groups")
    if host_may_wait(x):  # one by one, to the last digit what each of them alone would give
        return torch.stack([measure(part) for part in x.tensor_split(groups)])
    return torch.func.vmap(measure)(x.unflatten(0, (groups, -1)))


def per_instance(value: Tensor, x: Tensor) -> Tensor:
    """Return a value `[groups]` of each group for each row of x, `[B, 1, ...]`; one of no dimension as it is."""
    if value.dim() == 0:
        return value
    rows = value.repeat_interleave(x.shape[0] // value.shape[0])
    return rows.view(-1, *[1] * (x.dim() - 1))


def times(x: Tensor, factor: Tensor) -> Tensor:
    """Return x times a factor, 0-dimensional or of instances `[B, 1, ...]`, in the dtype of x."""
    dtype = torch.promote_types(x.dtype, torch.float32)  # half precision has no room for a large factor
    return (x.to(dtype) * factor.to(dtype)).to(x.dtype)


def _largest(x: Tensor) -> float:
    """Return the largest number to multiply x by: as infinity, it would turn the zeros of x into NaN."""
    return torch.finfo(torch.promote_types(x.dtype, torch.float32)).max


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    return float(value)

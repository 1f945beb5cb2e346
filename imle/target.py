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

from imle._numerics import count_nonzero, finite_number, is_informative, largest_factor, safe_norm, times


class BaseTargetDistribution(nn.Module, ABC):
    """What a target distribution offers to an estimator: a perturbation size, and what becomes of the difference.

    It is a module, and what it keeps are buffers. One target under several solvers is one state.
    """

    alpha: float

    @abstractmethod
    def perturbation_size(self, theta: Tensor, dy: Tensor) -> Tensor:
        """Return lambda from theta `[B, ...]` and dy `[B, R, ...]`, 0-dimensional; float64 holds any."""

    @abstractmethod
    def scale(self, difference: Tensor, theta: Tensor, dy: Tensor, perturbation_size: Tensor) -> Tensor:
        """Return the gradient g of a difference of solutions `[B, S, ...]`, of the same shape."""

    def update(self, difference: Tensor, dy: Tensor) -> None:
        """Take note of a backward pass: its difference `[B, S, ...]`, before scaling, and its dy `[B, R, ...]`."""
        return


class TargetDistribution(BaseTargetDistribution):
    """A fixed perturbation size.

    The step is lambda dy, so lambda goes with the scale of the loss. A loss that is multiplied before the backward
    pass, as `torch.amp.GradScaler` does by 65536, moves the target as much further, and nothing here can know: divide
    lambda by the scaler's factor, unscale the gradient of the solutions by a hook, or take
    `AdaptiveTargetDistribution`, which does not depend on the scale of the loss.

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
        self.alpha, self.beta = finite_number("alpha", alpha), finite_number("beta", beta)
        self.do_gradient_scaling = do_gradient_scaling

    def perturbation_size(self, theta: Tensor, dy: Tensor) -> Tensor:
        """Return beta."""
        return torch.full((), self.beta, dtype=torch.float64, device=dy.device)

    def scale(self, difference: Tensor, theta: Tensor, dy: Tensor, perturbation_size: Tensor) -> Tensor:
        """Return the difference, divided by lambda on demand; zero where lambda is zero."""
        if not self.do_gradient_scaling:
            return difference
        return difference / self.beta if self.beta else torch.zeros_like(difference)

    def extra_repr(self) -> str:
        """The options, for print()."""
        return f"alpha={self.alpha}, beta={self.beta}, do_gradient_scaling={self.do_gradient_scaling}"


class AdaptiveTargetDistribution(BaseTargetDistribution):
    """A perturbation size that tunes itself until the gradient has the wanted number of non-zero entries.

        lambda = beta ||theta|| / ||dy||

    so beta is the size of the step relative to theta. After each backward pass, with n the number of non-zero
    entries of g per solution,

        N <- 0.9 N + 0.1 n;   u <- mu u + (eta if N < c else -eta);   beta <- max(beta + u, 0)

    A pass whose dy is zero or not finite leaves this state alone, and so do Jacobians, which are many backward passes
    in one. A theta of zeros has no scale: lambda and the gradient are zero there, so begin with small random numbers.
    Entries that no solution can take (masks such as -inf or -1e9) count for nothing in ||theta||. The state lives in
    buffers: it is in `state_dict()`, moves with `.to()`, and follows theta to its device by itself. One target under
    two solvers is one state.

    Args:
        initial_alpha: how much of theta stays in theta'.
        initial_beta: beta at the start; smaller is less biased, larger is less sparse. 0 starts without bias: the
            gradient is zero until beta has grown.
        initial_grad_norm: N at the start.
        beta_update_step: eta, how fast beta moves.
        beta_update_momentum: mu, how much of the last move is kept.
        grad_norm_decay_rate: 0.9 above; higher smooths n over more steps.
        target_norm: c, the wanted number of non-zero entries; higher drives beta up.
        exact_scaling: with R > 1 solutions of an instance the step is taken with the norm of theta repeated R times,
            sqrt(R) larger. False (as in the published results) divides g by the lambda of theta as it is, True by
            the lambda of the step; they differ by sqrt(R), and not at all for R = 1.

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
    ):
        super().__init__()
        self.alpha = finite_number("initial_alpha", initial_alpha)
        self.initial_beta = finite_number("initial_beta", initial_beta)
        self.initial_grad_norm = finite_number("initial_grad_norm", initial_grad_norm)
        self.beta_update_step = finite_number("beta_update_step", beta_update_step)
        self.beta_update_momentum = finite_number("beta_update_momentum", beta_update_momentum)
        self.grad_norm_decay_rate = finite_number("grad_norm_decay_rate", grad_norm_decay_rate)
        self.target_norm = finite_number("target_norm", target_norm)
        self.exact_scaling = exact_scaling
        if initial_beta < 0:
            raise ValueError(f"initial_beta must be at least 0, not {initial_beta}")
        if not 0 <= grad_norm_decay_rate <= 1:
            raise ValueError(f"grad_norm_decay_rate must be between 0 and 1, not {grad_norm_decay_rate}")
        for name in ("_beta", "_grad_norm", "_beta_update"):
            self.register_buffer(name, torch.empty((), dtype=torch.float64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the state to its start."""
        self._beta.fill_(self.initial_beta)
        self._grad_norm.fill_(self.initial_grad_norm)
        self._beta_update.zero_()

    @property
    def beta(self) -> float:
        """The relative perturbation size now; reading it waits for the device."""
        return self._beta.item()

    @property
    def grad_norm(self) -> float:
        """N, the running mean of the number of non-zero entries; reading it waits for the device."""
        return self._grad_norm.item()

    def perturbation_size(self, theta: Tensor, dy: Tensor) -> Tensor:
        """Return lambda = beta ||theta|| / ||dy||, norms over the whole batch, theta repeated R times; 0 for dy = 0."""
        self._follow(dy.device)
        norm = safe_norm(dy)
        # lambda = beta ||theta|| / ||dy||
        size = self._beta * (math.sqrt(dy.shape[1]) * safe_norm(theta)) / norm
        return torch.where(norm > 0, size, 0.0).clamp(max=largest_factor(dy))

    def scale(self, difference: Tensor, theta: Tensor, dy: Tensor, perturbation_size: Tensor) -> Tensor:
        """Return the difference divided by lambda, zero where lambda is zero."""
        divisor = perturbation_size if self.exact_scaling else perturbation_size / math.sqrt(dy.shape[1])
        return times(difference, torch.where(divisor > 0, 1.0 / divisor, 0.0).clamp(max=largest_factor(difference)))

    def update(self, difference: Tensor, dy: Tensor) -> None:
        """Move beta by one step, unless dy is zero or not finite, or the difference is NaN."""
        nonzero = count_nonzero(difference).double() / max(difference.shape[0] * difference.shape[1], 1)
        decay, mu, eta = self.grad_norm_decay_rate, self.beta_update_momentum, self.beta_update_step
        grad_norm = decay * self._grad_norm + (1 - decay) * nonzero
        sparse = (grad_norm < self.target_norm).to(self._beta.dtype)
        update = mu * self._beta_update + eta * (2 * sparse - 1)
        beta = (self._beta + update).clamp(min=0.0)
        moves = is_informative(dy) & nonzero.isfinite()
        self._grad_norm.copy_(torch.where(moves, grad_norm, self._grad_norm))
        self._beta_update.copy_(torch.where(moves, update, self._beta_update))
        self._beta.copy_(torch.where(moves, beta, self._beta))

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
        if all(buffer is not None and buffer.is_meta for buffer in before.values()) and not self._beta.is_meta:
            self.reset_parameters()  # what memory was given instead of nothing holds no state yet
        return self

    def extra_repr(self) -> str:
        """The state and the options, for print()."""
        beta = "?" if self._beta.is_meta else f"{self.beta:.6g}"
        return f"alpha={self.alpha}, beta={beta}, target_norm={self.target_norm}, step={self.beta_update_step}"

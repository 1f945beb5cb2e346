"""Target distributions: where the perturbation size lambda of the target parameters comes from.

    theta' = alpha theta - lambda dy

Source: Niepert, Minervini, Franceschi, "Implicit MLE", NeurIPS 2021 (a fixed lambda); Minervini, Franceschi,
Niepert, "Adaptive Perturbation-Based Gradient Estimation for Discrete Latent Variable Models", AAAI 2023 (an
adaptive one).
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imle._numerics import (
    beside,
    count_nonzero,
    evidence,
    exact,
    exact_dtype,
    finite_number,
    host_may_wait,
    is_finite,
    largest_factor,
    quotient,
    row_norms,
    safe_norm,
    times,
)
from imle._processes import Processes, several


class BaseTargetDistribution(nn.Module, ABC):
    """What a target distribution offers to an estimator: a perturbation size, and what becomes of the difference.

    It is a module, and what it keeps are buffers. One target under several solvers is one state. Buffers that it only
    writes on in place may be named in `lent`: `torch.func.functional_call` lends others for a forward pass, and the
    backward pass is to have the same.
    """

    alpha: float
    exact_scaling: bool = True
    lent: tuple[str, ...] = ()

    @abstractmethod
    def perturbation_size(self, theta: Tensor, dy: Tensor) -> Tensor:
        """Return lambda from theta `[B, ...]` and dy `[B, R, ...]`: 0-dimensional, or `[B, 1, ...]` for each row."""

    def step_size(
        self, theta: Tensor, dy: Tensor, noise: Tensor | None, noise_temperature: float, walled: Tensor | None
    ) -> Tensor:
        """Return lambda as `perturbation_size` does, which masks are kept from.

        Args:
            theta: `[B, ...]`.
            dy: `[B, R, ...]`.
            noise: eps `[B, R, ...]`, or None.
            noise_temperature: tau'.
            walled: `[B, ...]`, which entries of theta are masks; None where none is.
        """
        return self.perturbation_size(theta if walled is None else theta.masked_fill(walled, 0.0), dy)

    @property
    def symmetric_perturbation(self) -> bool:
        """Whether `aimle` takes central differences where nothing is said of it: forward ones, as published."""
        return False

    def default_noise(self) -> Any:
        """Return the noise of an estimator for which none is named: none, as in the publications."""
        return None

    def scale(self, difference: Tensor, theta: Tensor, dy: Tensor, perturbation_size: Tensor) -> Tensor:
        """Return the gradient g of a difference of solutions `[B, S, ...]`, of the same shape.

        It is the difference divided by lambda, zero where lambda is zero; without `exact_scaling` sqrt(R) times that.
        """
        repeated = 1.0 if self.exact_scaling else math.sqrt(dy.shape[1])
        return times(difference, quotient(repeated, perturbation_size, largest_factor(difference)))

    def update(self, difference: Tensor, dy: Tensor) -> None:
        """Take note of a backward pass: its difference `[B, S, ...]`, before scaling, and its dy `[B, R, ...]`."""
        return

    def pass_over(self) -> None:
        """Take note of a backward pass that may not move the state: one of `torch.func`, or a second one."""
        return

    def finite_everywhere(self, dy: Tensor) -> Tensor | None:
        """Return whether dy is finite in all processes of a group, or None where each process minds its own."""
        return None


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
        limit = largest_factor(dy)
        return torch.full((), max(-limit, min(self.beta, limit)), dtype=exact_dtype(dy.device), device=dy.device)

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

    A pass whose dy is zero or not finite leaves this state alone, and so do `eval()` and what `torch.func` transforms.
    Of several backward passes through one forward pass, as `torch.autograd.functional.jacobian` takes, the first moves
    it. A theta of zeros has no scale: lambda and the gradient are zero there, so begin with small random numbers. Masks
    (-inf, or -1e8 and less; for a minimiser +inf, or 1e8 and more) count for nothing in ||theta||. The state is one
    buffer of three numbers in float64: it is in `state_dict()`, moves with `.to()`, follows theta to its device by
    itself, and no cast of the model rounds it. One target under two solvers is one state. `beta` and `grad_norm` (N)
    may be set by hand.

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
        per_instance: give each row of the batch a lambda of its own, with the norms of its own theta and dy; beta and
            N stay shared. False, as published, takes one lambda for all, by which a row that is much larger than the
            others takes their gradient away.
        process_group: data parallel training, the processes whose batches together are one batch: "world", or a group
            of torch.distributed. They share lambda and beta, and each of them must run every backward pass. None
            leaves every process its own beta.

    Raises:
        ValueError: a number is not finite, or out of its range.
        TypeError: process_group is none.

    Example:
        >>> target = AdaptiveTargetDistribution(initial_beta=0.5, target_norm=10.0)
        >>> target.beta, target.grad_norm
        (0.5, 1.0)
        >>> sorted(target.state_dict())
        ['_state']
    """

    lent = ("_state",)

    _state: Tensor  # beta, N and u

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
        per_instance: bool = False,
        process_group: Literal["world"] | torch.distributed.ProcessGroup | None = None,
    ):
        super().__init__()
        self.alpha = finite_number("initial_alpha", initial_alpha)
        self.initial_beta = finite_number("initial_beta", initial_beta)
        self.initial_grad_norm = finite_number("initial_grad_norm", initial_grad_norm)
        self.beta_update_step = finite_number("beta_update_step", beta_update_step)
        self.beta_update_momentum = finite_number("beta_update_momentum", beta_update_momentum)
        self.grad_norm_decay_rate = finite_number("grad_norm_decay_rate", grad_norm_decay_rate)
        self.target_norm = finite_number("target_norm", target_norm)
        self.exact_scaling, self.per_instance = exact_scaling, per_instance
        self._processes = None if process_group is None else Processes(process_group)
        self._warned = self._warned_of_zero = False
        if initial_beta < 0:
            raise ValueError(f"initial_beta must be at least 0, not {initial_beta}")
        if not 0 <= grad_norm_decay_rate <= 1:
            raise ValueError(f"grad_norm_decay_rate must be between 0 and 1, not {grad_norm_decay_rate}")
        self.register_buffer("_state", torch.zeros(3, dtype=exact_dtype(torch.get_default_device())))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the state to its start."""
        self._state.copy_(torch.tensor([self.initial_beta, self.initial_grad_norm, 0.0], dtype=self._state.dtype))

    @property
    def beta(self) -> float:
        """The relative perturbation size now; reading it waits for the device."""
        return self._numbers()[0].item()

    @beta.setter
    def beta(self, value: float) -> None:
        if finite_number("beta", value) < 0:
            raise ValueError(f"beta must be at least 0, not {value}")
        self._numbers()[0] = value

    @property
    def grad_norm(self) -> float:
        """N, the running mean of the number of non-zero entries; reading it waits for the device."""
        return self._numbers()[1].item()

    @grad_norm.setter
    def grad_norm(self, value: float) -> None:
        self._numbers()[1] = finite_number("grad_norm", value)

    @property
    def previous_beta_update(self) -> float:
        """u, the last move of beta; reading it waits for the device."""
        return self._numbers()[2].item()

    def perturbation_size(self, theta: Tensor, dy: Tensor) -> Tensor:
        """Return lambda = beta ||theta|| / ||dy||, 0 for dy = 0; theta counts as repeated R times.

        The norms are over the whole batch, joined over all processes of the group; with `per_instance` they are each
        row's own, and lambda is `[B, 1, ...]`.
        """
        if self._numbers().device != dy.device and not dy.is_meta:
            moved = self._state.to(dy.device, exact_dtype(dy.device))
            if torch._has_compatible_shallow_copy_type(self._state, moved):
                self._state.data = moved  # the same tensor, for it may be lent, and other passes may have it
            else:
                self._state = moved
        if self.per_instance:
            theta_norm, dy_norm = (beside(row_norms(x), dy) for x in (theta, dy))
        else:
            theta_norm, dy_norm = safe_norm(theta), safe_norm(dy)
            if self._processes is not None:
                # ||x|| is the norm of the processes' ||x||
                theta_norm, dy_norm = row_norms(self._processes.gather(theta_norm, dy_norm).T)
        if self._processes is None and not self._warned and several():
            self._warn()
        # lambda = beta ||theta|| / ||dy||
        return quotient(self._state[0] * (math.sqrt(dy.shape[1]) * theta_norm), dy_norm, largest_factor(dy))

    def update(self, difference: Tensor, dy: Tensor) -> None:
        """Move beta by one step, unless dy is zero, not finite or without numbers, or the difference is NaN."""
        if dy.is_meta:
            return
        count, seen, solutions = exact(count_nonzero(difference)), evidence(dy), difference.shape[:2].numel()
        if self._processes is None:
            nonzero = count / max(solutions, 1)
        else:
            joined = self._processes.gather(count, torch.full_like(count, solutions), exact(seen)).sum(dim=0)
            nonzero, seen = joined[0] / joined[1].clamp(min=1), joined[2]
        decay, mu, eta = self.grad_norm_decay_rate, self.beta_update_momentum, self.beta_update_step
        beta, grad_norm, update = self._state.unbind()
        grad_norm = decay * grad_norm + (1 - decay) * nonzero
        sparse = exact(grad_norm < self.target_norm)
        update = mu * update + eta * (2 * sparse - 1)
        moved = torch.stack([(beta + update).clamp(min=0.0), grad_norm, update])
        moves = seen + 0.0 * nonzero > 0  # neither for NaN nor for infinity
        self._state.copy_(torch.where(moves, moved, self._state))

    def pass_over(self) -> None:
        """Warn once where beta is 0, which nothing then moves."""
        state = self._state
        while torch._C._functorch.is_functorch_wrapped_tensor(state):  # one for each member of an ensemble
            state = torch._C._functorch.get_unwrapped(state)
        if not self._warned_of_zero and host_may_wait(state) and not state[..., 0].all():
            self._warned_of_zero = True
            warnings.warn(
                "beta is 0, so the gradient is zero, and torch.func does not move beta: take gradients by .backward() "
                "until it has grown, or begin with AdaptiveTargetDistribution(initial_beta=0.5)",
                stacklevel=2,
            )

    def finite_everywhere(self, dy: Tensor) -> Tensor | None:
        """Return whether dy is finite in all processes of the group; None without a group."""
        if self._processes is None:
            return None
        return self._processes.gather(is_finite(dy).float()).min() > 0

    def _numbers(self) -> Tensor:
        """Return the state.

        Raises:
            TypeError: it is not float64 any more.
        """
        wanted = exact_dtype(self._state.device)
        if self._state.dtype != wanted:
            raise TypeError(
                f"the adaptive state became {self._state.dtype}, in which steps of {self.beta_update_step:g} get lost: "
                f"keep it {wanted} in what is given to functional_call, and from FSDP's buffer_dtype: "
                "ignored_modules=[target]"
            )
        return self._state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow to another device, but no cast: steps of 1e-4 would vanish in half precision."""
        was_meta = self._state.is_meta
        device = fn(torch.zeros((), dtype=torch.float32, device=self._state.device)).device  # maybe without float64
        moved = torch.empty_like if was_meta else Tensor.to
        self._state = state = moved(self._state, device=device, dtype=exact_dtype(device))
        super()._apply(fn, recurse)  # share_memory() works in place
        self._state = state
        if was_meta and device.type != "meta":
            self.reset_parameters()  # what memory was given instead of nothing holds no state yet
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load the state, also that of version 0.1, whose three numbers had names."""
        names = [prefix + name for name in ("_beta", "_grad_norm", "_beta_update")]
        if all(name in state_dict for name in names):
            state_dict[prefix + "_state"] = torch.stack([state_dict.pop(name) for name in names])
        if isinstance(state_dict.get(prefix + "_state"), Tensor):
            state_dict[prefix + "_state"] = exact(state_dict[prefix + "_state"])  # assign=True takes it as it is
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _warn(self) -> None:
        self._warned = True
        if torch.distributed.get_rank() == 0:
            warnings.warn(
                "each process of this job moves a beta of its own, and they will differ: pass process_group='world' to "
                "AdaptiveTargetDistribution for data parallel training",
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        """The state and the options, for print()."""
        beta = "?" if self._state.is_meta else f"{self._state[0].item():.6g}"
        return f"alpha={self.alpha}, beta={beta}, target_norm={self.target_norm}, step={self.beta_update_step}"

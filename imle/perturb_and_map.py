"""The skeleton that all estimators share: draw, perturb, solve, and pull the gradient back through a rule.

    z = MAP(theta + tau eps),    MAP(theta) = argmax over z in C of <z, theta>

An estimator is a value: a dataclass whose fields are its options. Called with a solver, it returns a differentiable
solver. What one estimator adds to this skeleton is its rule, `gradient(solve, theta, noise, z, dy)`.

Shapes: B instances; S samples and M marginal samples of each, R = S*M rows; `...` the shape of one instance.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from imle._compile import eager
from imle._numerics import beside, host_may_wait, host_sees_finite, is_finite, name_rows, rows_with
from imle.noise import draw
from imle.solver import BoundSolver, DifferentiableSolver, ReverseMode, Solver

Arguments = ParamSpec("Arguments")
Output = TypeVar("Output")


def over_samples(x: Tensor, samples: int, sample_reduction: str) -> Tensor:
    """Return x, of which S rows are of one instance, with a gradient that is a sum or a mean over them."""
    return _ScaledGradient.apply(x, 1 / samples) if sample_reduction == "mean" and samples > 1 else x


def check_reduction(sample_reduction: str) -> None:
    """Refuse a way to put the gradients of samples together that there is not, with a ValueError."""
    if sample_reduction not in ("mean", "sum"):
        raise ValueError(f"sample_reduction must be 'mean' or 'sum', not {sample_reduction!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimator(Generic[Output]):
    """Base of all estimators: how the forward pass is perturbed.

    The decorated solver maps theta `[B, ...]` to solutions `[B*S*M, ...]`, those of one instance side by side. It keeps
    the solver's further arguments: tensors and arrays among them whose first dimension is B, and lists and tuples of B
    objects, also within dicts, are repeated to match (`imle.solver.shared` marks what is not); none gets a gradient.
    Each call of the solver sees `[B*S*M, ...]` rows in the order of the batch.

    Args:
        noise_distribution: where eps comes from: any object with `sample(shape)`; None adds no noise.
        nb_samples: S, solutions for each instance; more is less noisy, and S times the work.
        sample_reduction: how the gradients of an instance's samples are put together. "mean", as published, for a loss
            that sums over samples and takes the mean over instances; "sum", the chain rule, for a loss that is a mean
            over all rows. With either the gradient does not grow with S.
        generator: the random state for noises that take one; None uses torch's own.
        _is_minimization: the solver minimises <z, theta>: its noise is subtracted, and a gradient that is dy itself has
            the other sign. None asks the solver, which may have an attribute `minimises`.
    """

    noise_distribution: Any = None
    nb_samples: int = 1
    sample_reduction: Literal["mean", "sum"] = "mean"
    generator: torch.Generator | None = None
    _is_minimization: bool | None = None

    def __post_init__(self) -> None:
        self._check_counts("nb_samples")
        check_reduction(self.sample_reduction)
        if self._is_minimization not in (True, False, None):
            raise ValueError(f"_is_minimization must be True, False or None, not {self._is_minimization!r}")
        if self.noise_distribution is not None and not hasattr(self.noise_distribution, "sample"):
            raise TypeError(f"noise_distribution needs a sample(shape) method, {self.noise_distribution!r} has none")
        if not isinstance(self.generator, torch.Generator | None):
            raise TypeError(
                f"generator must be a torch.Generator, such as torch.Generator().manual_seed(1), not {self.generator!r}"
            )

    def _check_counts(self, *names: str) -> None:
        for name in names:
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name} must be a whole number from 1 up, not {getattr(self, name)!r}")

    def _check_temperatures(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, not {getattr(self, name)!r}")

    def __call__(self, solver: Callable[Arguments, Any]) -> DifferentiableSolver[Arguments, Output]:
        """Return the solver as a differentiable function of its first argument."""
        if not callable(solver):
            raise TypeError(f"a solver must be callable, {solver!r} is not")

        @functools.wraps(solver)
        def differentiable_solver(theta: Tensor, *args: Any, **kwargs: Any) -> Output:
            return self.sample(solver, theta, args, kwargs)

        differentiable_solver.solver, differentiable_solver.estimator = solver, self  # type: ignore[attr-defined]
        differentiable_solver.target_distribution = getattr(self, "target_distribution", None)  # type: ignore[attr-defined]
        return cast(Any, differentiable_solver)

    @property
    def tau(self) -> float:
        """How strongly the forward pass is perturbed."""
        raise NotImplementedError(f"{type(self).__name__} has no noise temperature")

    @property
    def rows(self) -> int:
        """R, how many perturbed solutions of an instance there are."""
        return self.nb_samples

    @property
    def needs_noise(self) -> bool:
        """Whether any pass is perturbed."""
        return self.noise_distribution is not None and self.tau > 0

    def sample(
        self, solver: Solver, theta: Tensor, args: tuple, kwargs: dict, generator: torch.Generator | None = None
    ) -> Output:
        """Return perturbed solutions, which carry the estimator's gradient.

        Args:
            solver: parameters `[B*R, ...]` -> solutions of the same shape.
            theta: `[B, ...]`.
            args: the solver's further arguments.
            kwargs: the same, by name.
            generator: of this call's noise; None uses the estimator's.
        """
        raise NotImplementedError(f"{type(self).__name__} has no way to sample")

    @eager
    @torch.no_grad()
    def solve(self, solver: Solver, theta: Tensor, args: tuple, kwargs: dict) -> Output:
        """Return what `sample` does, for the solutions MAP(theta) `[B, ...]`: without noise, and without a gradient."""
        bound = self.bind(solver, theta, 1, args, kwargs)
        parameters = theta.clone(memory_format=torch.contiguous_format).unsqueeze(1)
        return self.solved(bound(parameters).squeeze(1).clone())

    def solved(self, z: Tensor) -> Output:
        """Return solutions `[B, ...]` in the form that `sample` returns."""
        return cast(Any, z)

    def draw_noise(self, theta: Tensor, sign: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Return eps `[B, R, ...]`, for a minimiser (`sign` -1) -eps: one draw serves all passes.

        argmin(theta - eps) is argmax(-theta + eps): what a minimiser draws is what a maximiser of -theta does.
        """
        if not self.needs_noise:
            return None
        shape = (theta.shape[0], self.rows, *theta.shape[1:])
        source = self.generator if generator is None else generator
        noise = draw(self.noise_distribution, shape, like=theta, generator=source)
        return noise if sign > 0 else -noise

    def perturb(self, theta: Tensor, noise: Tensor | None, sign: int) -> Tensor:
        """Return theta + tau eps `[B, R, ...]` in memory of its own, which a solver may overwrite.

        Args:
            theta: `[B, ...]`.
            noise: from `draw_noise`, or None.
            sign: of the solver.
        """
        if noise is None or self.tau == 0:
            return theta.unsqueeze(1).repeat_interleave(self.rows, dim=1).contiguous()
        # theta + tau eps
        return torch.add(theta.unsqueeze(1), noise, alpha=self.tau)

    def bind(self, solver: Solver, theta: Tensor, rows: int, args: tuple, kwargs: dict) -> BoundSolver:
        """Return the solver with its arguments, over `rows` rows for each instance of theta `[B, ...]`.

        Raises:
            TypeError: theta is not a tensor of floating-point numbers.
            ValueError: theta has no batch dimension.
            FloatingPointError: a row holds NaN, or an infinity that every solution would have to take.
            ValueError: the solver's sense is not what `_is_minimization` says.
        """
        if not isinstance(theta, Tensor) or not theta.is_floating_point():
            found = theta.dtype if isinstance(theta, Tensor) else type(theta).__name__
            raise TypeError(f"theta must be a tensor of floating-point numbers, not {found}")
        if theta.dim() < 2:
            raise ValueError(f"theta must be [B, ...] with a batch dimension first, not {tuple(theta.shape)}")
        bound = BoundSolver(solver, theta.shape[0], rows, args, kwargs, self._is_minimization)
        self.check_finite(theta, bound.sign)
        return bound

    def check_finite(self, theta: Tensor, sign: int) -> None:
        """Refuse theta where it is no parameter of any problem."""
        if host_may_wait(theta) and not host_sees_finite(theta):
            broken = self.broken(theta, sign)
            if broken.any():
                mask = "-inf" if sign > 0 else "+inf, for the solver minimises"
                raise FloatingPointError(
                    f"theta holds NaN, or an infinity that is no mask, in {name_rows(broken)}: look for overflow in "
                    f"the network before the solver; a mask is {mask}"
                )

    def broken(self, theta: Tensor, sign: int) -> Tensor:
        """Return where theta `[B, ...]` is no parameter of any problem."""
        return theta.isnan()


@dataclass(frozen=True, kw_only=True, eq=False)
class PerturbAndMAP(Estimator[Tensor]):
    """Base of the estimators that turn dy, the gradient at the solutions, into one at theta by a rule.

    In the backward pass solutions are averaged over M, and the gradient over S. A dy of zero gives a zero gradient.

    Args:
        nb_marginal_samples: M, how many of the S*M solutions of an instance stand together for one estimate of its
            marginals in the backward pass.
        nonfinite: what a NaN or infinite dy does: "raise" a FloatingPointError, or "skip" the step (zero gradient) with
            a warning. The adaptive state is left alone either way. On an accelerator nothing may wait for the host:
            "raise" gives a gradient of NaN there, "skip" a silent zero.
    """

    nb_marginal_samples: int = 1
    nonfinite: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("nb_marginal_samples")
        if self.nonfinite not in ("raise", "skip"):
            raise ValueError(f"nonfinite must be 'raise' or 'skip', not {self.nonfinite!r}")
        if self.rows > 1 and not self.needs_noise:
            warnings.warn(
                f"nothing perturbs theta, so the {self.rows} solutions of an instance are equal and one would do: "
                "name a noise_distribution, such as GumbelNoiseDistribution(), or leave nb_samples at 1",
                stacklevel=5,  # past two __post_init__, __init__ and the decorator
            )

    @property
    def rows(self) -> int:
        """R = S*M."""
        return self.nb_samples * self.nb_marginal_samples

    @property
    def outputs(self) -> int:
        """How many rows of an instance the decorated solver returns."""
        return self.rows

    @eager
    def sample(
        self, solver: Solver, theta: Tensor, args: tuple, kwargs: dict, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return z `[B*R, ...]`; see `Estimator.sample`."""
        bound = self.bind(solver, theta, self.rows, args, kwargs)
        noise = self.draw_noise(theta, bound.sign, generator)
        return _PerturbAndMAP.apply(theta, noise, self, bound, self.state(), *bound.mapped())

    def state(self) -> dict[str, Tensor | None]:
        """Return what a backward pass reads and moves, as the forward pass has it: `functional_call` lends another."""
        return {}

    def gradient(
        self, solve: BoundSolver, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """The rule: return g `[B, S, ...]`, before it is averaged over S.

        Args:
            solve: perturbed parameters `[B, R, ...]` -> solutions `[B, R, ...]`, which the next call may overwrite; its
                `sign` is -1 where they minimise.
            theta: `[B, ...]`.
            noise: `[B, R, ...]`, the draw of the forward pass as it is added, or None.
            z: `[B, R, ...]`, what the forward pass returned.
            dy: `[B, R, ...]`, the gradient of the loss with respect to z; NaN in rows that are to count for nothing.
            take_note: whether an adaptive state may move.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradient rule for theta")

    def pull_back(
        self,
        solver: BoundSolver,
        theta: Tensor,
        noise: Tensor | None,
        z: Tensor,
        dy: Tensor,
        take_note: bool,
        state: dict[str, Tensor | None],
    ) -> Tensor:
        """Return the gradient of theta `[B, ...]` from z and dy `[B*R, ...]`."""
        rows = (theta.shape[0], self.rows)
        dy, finite = self.check_gradient(dy)
        if self.sample_reduction == "sum" and self.outputs > 1:
            dy = dy * self.outputs  # of a mean over all rows: what a sum over samples would have
        z, dy = z.unflatten(0, rows), dy.unflatten(0, rows)
        if solver.skipped is not None:
            skipped = beside(solver.skipped, theta)
            theta, dy = theta.masked_fill(skipped, 0.0), dy.masked_fill(skipped.unsqueeze(1), 0.0)
        if host_may_wait(theta):  # the forward pass has refused a broken theta
            g = self.gradient(solver, theta, noise, z, dy, take_note)
            g = g.mean(dim=1) if g.shape[1] > 1 else g[:, 0]
        else:  # NaN in place of dy marks the rows that are to count for nothing
            broken = rows_with(self.broken(theta, solver.sign))
            theta, dy = theta.masked_fill(broken, 0.0), dy.masked_fill(broken.unsqueeze(1), torch.nan)
            g = self.gradient(solver, theta, noise, z, dy, take_note).mean(dim=1).masked_fill(broken, torch.nan)
        if solver.skipped is not None:
            g = g.masked_fill(beside(solver.skipped, theta), 0.0)
        return g if finite is None else torch.where(finite, g, torch.nan)

    def average(self, x: Tensor) -> Tensor:
        """Return `[B, S*M, ...]` averaged over the M marginal samples, `[B, S, ...]`."""
        if self.nb_marginal_samples == 1:
            return x
        return x.unflatten(1, (self.nb_samples, self.nb_marginal_samples)).mean(dim=2)

    def broken(self, theta: Tensor, sign: int) -> Tensor:
        """Return where theta `[B, ...]` is NaN, or infinite on the side that the solver likes."""
        return theta.isnan() | (theta == sign * torch.inf)

    def check_gradient(self, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return dy, zero where it is not finite, and, where the host may not wait for it, whether it was finite.

        Raises:
            FloatingPointError: dy holds NaN or infinite numbers, and `nonfinite` is "raise".
        """
        if not host_may_wait(dy):
            finite = is_finite(dy)
            return torch.where(finite, dy, 0.0), finite if self.nonfinite == "raise" else None
        if host_sees_finite(dy):
            return dy, None
        if self.nonfinite == "raise":
            raise FloatingPointError(
                "the gradient dy that reached the solver is not finite: look for NaN or overflow in the loss, "
                'or pass nonfinite="skip" to leave such steps out'
            )
        warnings.warn("a step was skipped: the gradient dy that reached the solver is not finite", stacklevel=2)
        return torch.zeros_like(dy), None


class _PerturbAndMAP(ReverseMode):
    """theta [B, ...] -> z [B*R, ...]; its gradient is the estimator's rule.

    The last inputs are the solver's tensors, which are inputs under the transforms of `torch.func` alone.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        theta: Tensor,
        noise: Tensor | None,
        estimator: PerturbAndMAP,
        solver: BoundSolver,
        state: dict[str, Tensor | None],
        *tensors: Tensor,
    ) -> Tensor:
        # .clone(): z outlives the call, and the solver may write its next answer into the same memory.
        return solver.given(tensors)(estimator.perturb(theta, noise, solver.sign)).flatten(0, 1).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        theta, noise, ctx.estimator, ctx.solver, ctx.state, *tensors = inputs
        # of the many backward passes of a Jacobian not every one may move an adaptive state
        ctx.take_note = not torch._C._are_functorch_transforms_active()
        ctx.save_for_backward(theta, noise, output, *tensors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        theta, noise, z, *tensors = ctx.saved_tensors
        if torch._C._functorch.is_legacy_batchedtensor(dy):
            raise RuntimeError(
                "torch.autograd's own vmap, as in jacobian(vectorize=True), cannot call a solver: use torch.func.jacrev"
            )
        with torch.no_grad():
            before = {name: None if tensor is None else tensor.clone() for name, tensor in ctx.state.items()}
            g = ctx.estimator.pull_back(ctx.solver.given(tensors), theta, noise, z, dy, ctx.take_note, ctx.state)
            ctx.take_note, ctx.state = False, before  # a second pass reads what this one read, and moves nothing
        if torch.is_grad_enabled():  # create_graph=True
            g = _OnceDifferentiable.apply(g, theta, dy)
        return g, *(None,) * (len(ctx.needs_input_grad) - 1)


# torch asks for the signature in every call, and would make it anew
_PerturbAndMAP.forward.__signature__ = inspect.signature(_PerturbAndMAP.forward)  # type: ignore[attr-defined]


class _ScaledGradient(ReverseMode):
    """Return x as it is, and its gradient times a factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.factor, None


class _OnceDifferentiable(ReverseMode):
    """Return a gradient as it is; its own gradient is an error, for everything that it depends on."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, theta: Tensor, dy: Tensor) -> Tensor:
        return g.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        return

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("the gradient of a solver is a difference of its solutions and has no gradient of its own")

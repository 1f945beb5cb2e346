"""Modules of a network: a solver with an estimator, or with a relaxation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imle.perturb_and_map import Estimator, check_reduction, over_samples
from imle.relaxations import check_temperature
from imle.solver import Solver


class MAPLayer(nn.Module):
    """A solver as a layer: it samples or solves; called as it is, it samples in training and solves in evaluation.

    The target distribution is a part of the module: its adaptive state is in `state_dict()`.

    Args:
        solver: theta `[B, ...]` -> z of the same shape; further arguments are passed on.
        estimator: `aimle(...)`, `imle(...)`, `ste(...)` or `sfe(...)`, called without a solver.

    Raises:
        TypeError: the estimator is not one (such as `ste` in place of `ste()`).

    Example:
        >>> import torch
        >>> from imle.aimle import aimle
        >>> from imle.solvers import spanning_tree
        >>> layer = MAPLayer(spanning_tree, aimle(nb_samples=2))
        >>> weights = torch.rand(3, 4, 4)
        >>> layer(weights + weights.mT).shape, layer.eval()(weights + weights.mT).shape
        (torch.Size([6, 4, 4]), torch.Size([3, 4, 4]))
    """

    def __init__(self, solver: Solver, estimator: Estimator):
        super().__init__()
        if not isinstance(estimator, Estimator):
            raise TypeError(f"estimator must be a call such as aimle() or ste(), not {estimator!r}")
        self.solver = solver
        self.estimator = estimator

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the estimator's target distribution and the part of the module one thing."""
        if name == "target_distribution":
            name, value = "estimator", replace(self.estimator, **{name: value})
        super().__setattr__(name, value)
        if name == "estimator":
            target: Any = getattr(value, "target_distribution", None)
            super().__setattr__("target_distribution", target)

    def extra_repr(self) -> str:
        """The solver and the estimator with its options that are not the defaults, for print()."""
        options = [
            f"{option.name}={getattr(self.estimator, option.name)!r}"
            for option in fields(self.estimator)
            if option.repr
            and option.name != "target_distribution"  # which is a part of the module
            and getattr(self.estimator, option.name) != option.default
        ]
        return f"solver={_name(self.solver)}, estimator={type(self.estimator).__name__}({', '.join(options)})"

    def sample(self, theta: Tensor, *args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Any:
        """Return perturbed solutions `[B*S*M, ...]` that carry a gradient, in either mode; for `sfe` a pair.

        Args:
            theta: `[B, ...]`.
            args: the solver's further arguments.
            generator: of the noise; the estimator's own by default.
            kwargs: the solver's further arguments, by name.
        """
        return self.estimator.sample(self.solver, theta, args, kwargs, generator)

    def solve(self, theta: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return MAP(theta) `[B, ...]`, without noise and without a gradient, in either mode; for `sfe` a pair."""
        return self.estimator.solve(self.solver, theta, args, kwargs)

    def forward(self, theta: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Sample (training) or solve (evaluation)."""
        return (self.sample if self.training else self.solve)(theta, *args, **kwargs)


class RelaxedLayer(nn.Module):
    """A solver as a layer whose samples are relaxed: real numbers in place of 0 and 1, through which gradients pass.

    Like a `MAPLayer` it samples in training and solves in evaluation.

    Args:
        solver: theta `[B, N]` -> MAP(theta) `[B, N]`.
        relax: theta `[B, N]`, temperature and generator, by name -> a random relaxed solution `[B, N]`.
        temperature: positive; lower is closer to discrete and has gradients of larger variance. An attribute, for a
            schedule to set.
        nb_samples: S.
        sample_reduction: "mean" for a loss that sums over samples, "sum" for one that is a mean over all rows; see
            `imle.perturb_and_map.Estimator`.

    Raises:
        TypeError: the solver or the relaxation cannot be called.
        ValueError: the temperature is not positive, there is no sample, or another reduction is asked for.

    Example:
        >>> import torch
        >>> from imle.relaxations import gumbel_softmax, softsub
        >>> from imle.solvers import select_k
        >>> from imle.structures import spanning_trees, stochastic_softmax
        >>> RelaxedLayer(partial(select_k, k=1), partial(gumbel_softmax, hard=True), temperature=0.5)
        RelaxedLayer(solver=select_k(k=1), relax=gumbel_softmax(hard=True), temperature=0.5, nb_samples=1)
        >>> layer = RelaxedLayer(partial(select_k, k=2), partial(softsub, k=2), temperature=0.5, nb_samples=4)
        >>> layer(torch.randn(3, 5)).shape, layer.eval()(torch.randn(3, 5)).shape
        (torch.Size([12, 5]), torch.Size([3, 5]))
        >>> trees = spanning_trees(vertices=4)
        >>> layer = RelaxedLayer(trees.solve, partial(stochastic_softmax, structure=trees), temperature=0.5)
        >>> layer(torch.randn(3, 6)).shape
        torch.Size([3, 6])
    """

    # below any score that a network gives, and finite: rows with too few allowed positions still have k entries
    FORBIDDEN = -1e4

    def __init__(
        self,
        solver: Callable[..., Tensor],
        relax: Callable[..., Tensor],
        temperature: float,
        nb_samples: int = 1,
        sample_reduction: Literal["mean", "sum"] = "mean",
    ):
        super().__init__()
        check_reduction(sample_reduction)
        for name, function in (("solver", solver), ("relax", relax)):
            if not callable(function):
                raise TypeError(f"{name} must be callable, {function!r} is not")
        check_temperature(temperature)
        if not (isinstance(nb_samples, int) and nb_samples >= 1):
            raise ValueError(f"nb_samples must be a whole number from 1 up, not {nb_samples!r}")
        self.solver, self.relax, self.temperature, self.nb_samples = solver, relax, temperature, nb_samples
        self.sample_reduction = sample_reduction

    def sample(self, theta: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return relaxed solutions `[B*S, N]` in either mode; what `mask` `[B, N]` forbids, by False, is left out.

        Raises:
            ValueError: the temperature is not positive any more.
        """
        if mask is not None:
            theta = theta.masked_fill(~mask, self.FORBIDDEN)
        if self.nb_samples > 1:
            theta = theta.repeat_interleave(self.nb_samples, dim=0)
        theta = over_samples(theta, self.nb_samples, self.sample_reduction)
        return self.relax(theta, temperature=self.temperature, generator=generator)

    @torch.no_grad()
    def solve(self, theta: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return MAP(theta) `[B, N]`, without noise and without a gradient, in either mode."""
        return self.solver(theta) if mask is None else self.solver(theta, mask=mask)

    def forward(self, theta: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sample (training) or solve (evaluation)."""
        return (self.sample if self.training else self.solve)(theta, mask)

    def extra_repr(self) -> str:
        """The parts, for print()."""
        parts = f"solver={_name(self.solver)}, relax={_name(self.relax)}"
        return f"{parts}, temperature={self.temperature}, nb_samples={self.nb_samples}"


def _name(function: Callable[..., Any]) -> str:
    """Return a function's name, with the arguments that are bound to it."""
    if isinstance(function, partial):
        options = (f"{name}={_name(value) if callable(value) else value}" for name, value in function.keywords.items())
        return f"{_name(function.func)}({', '.join([*map(str, function.args), *options])})"
    return getattr(function, "__name__", repr(function))

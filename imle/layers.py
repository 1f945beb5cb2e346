"""A solver and an estimator as a module of a network."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from imle.perturb_and_map import Estimator
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
        name = getattr(self.solver, "__name__", repr(self.solver))
        options = [
            f"{option.name}={getattr(self.estimator, option.name)!r}"
            for option in fields(self.estimator)
            if option.repr
            and option.name != "target_distribution"  # which is a part of the module
            and getattr(self.estimator, option.name) != option.default
        ]
        return f"solver={name}, estimator={type(self.estimator).__name__}({', '.join(options)})"

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

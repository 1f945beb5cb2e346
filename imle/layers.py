"""A solver and an estimator as a module of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imle._compile import eager
from imle.perturb_and_map import BoundSolver, PerturbAndMAP, Solver, check_theta


class MAPLayer(nn.Module):
    """A solver as a layer: in training it samples, in evaluation it solves.

    In `train()` mode `layer(theta, *args)` is the solver decorated with the estimator: theta `[B, ...]` ->
    z `[B*S, ...]` (for `sfe`, a pair with the log-probabilities). In `eval()` mode it is the solver itself, without
    noise: theta `[B, ...]` -> MAP(theta) `[B, ...]`, no gradient. The target distribution is a part of the module:
    its adaptive state is in `state_dict()`.

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

    def __init__(self, solver: Solver, estimator: PerturbAndMAP):
        super().__init__()
        if not isinstance(estimator, PerturbAndMAP):
            raise TypeError(f"estimator must be a call such as aimle() or ste(), not {estimator!r}")
        self.solver = solver
        self.estimator = estimator
        self.target_distribution = getattr(estimator, "target_distribution", None)

    def forward(self, theta: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Sample (training) or solve (evaluation)."""
        if self.training:
            return self.estimator.apply(self.solver, theta, *args, **kwargs)
        return self._solve(theta, *args, **kwargs)

    @eager
    @torch.no_grad()
    def _solve(self, theta: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        bound = BoundSolver(self.solver, check_theta(theta).shape[0], args, kwargs)
        return bound(theta.clone(memory_format=torch.contiguous_format)[None, :, None])[0, :, 0].clone()

"""The SPO+ loss: learning to predict the parameters of a linear problem by what decisions cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imle._compile import eager
from imle._numerics import inner
from imle.perturb_and_map import PerturbAndMAP
from imle.solver import BoundSolver, Solver


class SPOPlusLoss(nn.Module):
    """Bound what is lost by deciding with predicted parameters theta in place of the true ones.

        SPO(theta; c)  = <c, z(c)> - <c, z(theta)>,    z(theta) = MAP(theta)
        SPO+(theta; c) = max over z in C of <2 theta - c, z>  -  2 <theta, z(c)>  +  <c, z(c)>
        g              = 2 [MAP(2 theta - c) - z(c)]

    with all signs changed for a solver that minimises (predicted costs), as the paper has it. SPO+ is convex in theta
    and at least SPO; the latter, the regret, is piecewise constant in theta. g is a subgradient.

    Source: Elmachtoub, Grigas, "Smart 'Predict, then Optimize'", Management Science 2022.

    Args:
        solver: theta `[B, ...]` -> z of the same shape; further arguments are passed on.
        _is_minimization: the solver minimises <z, theta>; None asks the solver.

    Raises:
        TypeError: the solver is not callable.

    Example:
        >>> from imle.solvers import shortest_path
        >>> loss = SPOPlusLoss(shortest_path)
        >>> costs, predicted = torch.rand(3, 5, 5), torch.rand(3, 5, 5, requires_grad=True)
        >>> loss(predicted, costs).mean().backward()
        >>> loss(costs, costs)
        tensor([0., 0., 0.])
    """

    def __init__(self, solver: Solver, _is_minimization: bool | None = None):
        super().__init__()
        if not callable(solver):
            raise TypeError(f"a solver must be callable, {solver!r} is not")
        self.solver, self.problem = solver, PerturbAndMAP(_is_minimization=_is_minimization)

    @eager
    def forward(
        self, theta: Tensor, theta_true: Tensor, *args: Any, z_true: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the loss of each instance `[B]`, 0 where a solver that may skip instances did.

        Args:
            theta: predicted parameters `[B, ...]`.
            theta_true: true parameters, of the same shape; they get no gradient.
            args: the solver's further arguments.
            z_true: solutions at theta_true, of the same shape; solved for where not given.
            kwargs: the solver's further arguments, by name.

        Raises:
            ValueError: theta, theta_true and z_true are not of one shape, or the solver returned another one.
            FloatingPointError: theta, theta_true or an answer of the solver is not finite.
        """
        solver = self.problem.bind(self.solver, theta, 1, args, kwargs)
        for name, value in (("theta_true", theta_true), ("z_true", z_true)):
            if value is not None and value.shape != theta.shape:
                raise ValueError(f"{name} {tuple(value.shape)} must have the shape of theta, {tuple(theta.shape)}")
        theta_true = theta_true.detach().to(theta)
        z_true = self._solved(solver, theta_true) if z_true is None else z_true.detach().to(theta)
        # 2 theta - c; a mask stays one
        beyond = torch.where(theta.isinf(), theta, 2 * theta - theta_true)
        z = self._solved(solver, beyond)
        # max <2 theta - c, z> - <2 theta - c, z(c)>, which is the difference of the solutions' values
        loss = inner(beyond, solver.sign * (z - z_true))
        return loss if solver.skipped is None else loss.masked_fill(solver.skipped, 0.0)

    @torch.no_grad()
    def _solved(self, solver: BoundSolver, theta: Tensor) -> Tensor:
        self.problem.check_finite(theta, solver.sign)
        return solver(theta.clone(memory_format=torch.contiguous_format).unsqueeze(1)).squeeze(1).clone()

"""The Fenchel-Young loss of a perturbed solver."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imle._compile import eager
from imle._numerics import inner
from imle.perturb_and_map import Estimator, PerturbAndMAP
from imle.perturbed import PerturbedOptimiser
from imle.solver import Solver


class FenchelYoungLoss(nn.Module):
    """Compare parameters with a wanted solution: zero gradient where the perturbed solver returns it on average.

        L(theta; z_true) = F(theta) - <theta, z_true>,    F(theta) = E max over z in C of <theta + tau eps, z>
        grad L           = E[MAP(theta + tau eps)] - z_true

    L is convex in theta, and needs no gradient of the solver. It is given up to a constant, the conjugate of F at
    z_true, which does not depend on theta: it may be negative. With multiplicative noise, F has theta exp(tau eps -
    tau^2 / 2), which also multiplies the solutions in the gradient.

    Source: Berthet, Blondel, Teboul, Cuturi, Vert, Bach, "Learning with Differentiable Perturbed Optimizers", NeurIPS
    2020; Blondel, Martins, Niculae, "Learning with Fenchel-Young Losses", JMLR 2020.

    Args:
        solver: theta `[B, ...]` -> z of the same shape; further arguments are passed on.
        estimator: says how theta is perturbed, and whether the solver minimises: `perturbed(...)`, which is the
            default, or any other with noise. All of its S*M draws enter the mean.

    Raises:
        TypeError: the estimator is none that perturbs theta.

    Example:
        >>> from imle.perturbed import perturbed
        >>> from imle.solvers import select_k
        >>> loss = FenchelYoungLoss(select_k, perturbed(nb_marginal_samples=10, noise_temperature=0.5))
        >>> theta, z_true = torch.zeros(2, 4, requires_grad=True), torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 2)
        >>> loss(theta, z_true, k=2).mean().backward()
        >>> (theta.grad < 0).tolist()  # a step against the gradient raises the first two
        [[True, True, False, False], [True, True, False, False]]
    """

    def __init__(self, solver: Solver, estimator: Estimator[Any] | None = None):
        super().__init__()
        estimator = PerturbedOptimiser() if estimator is None else estimator
        if not isinstance(estimator, PerturbAndMAP):
            raise TypeError(f"estimator must be a call such as perturbed(), not {estimator!r}")
        if getattr(estimator, "projection", None) is not None:
            raise TypeError("a loss of theta cannot perturb a projection of it: give perturbed(), and project before")
        self.solver, self.estimator = solver, estimator

    @eager
    def forward(self, theta: Tensor, z_true: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of each instance `[B]`, 0 where a solver that may skip instances did.

        Args:
            theta: `[B, ...]`.
            z_true: wanted solutions, or means of solutions, of the same shape; they get no gradient.
            args: the solver's further arguments.
            kwargs: the solver's further arguments, by name.

        Raises:
            ValueError: theta and z_true are not of one shape, or the solver returned another one.
            FloatingPointError: theta or an answer of the solver is not finite.
        """
        solver = self.estimator.bind(self.solver, theta, self.estimator.rows, args, kwargs)
        if theta.shape != z_true.shape:
            raise ValueError(f"z_true {tuple(z_true.shape)} must have the shape of theta, {tuple(theta.shape)}")
        u = self.estimator.perturb(theta, self.estimator.draw_noise(theta, solver.sign), solver.sign)
        with torch.no_grad():
            # .clone(): the solver may overwrite its input
            z = solver(u.detach().clone()).clone()
        # F(theta) as a function of theta, at the maximisers: its gradient is that of <u, z> (Danskin)
        maximum = inner(u.flatten(0, 1), z.flatten(0, 1)).unflatten(0, z.shape[:2]).mean(dim=1)
        loss = solver.sign * (maximum - inner(theta, z_true.detach().to(theta)))
        return loss if solver.skipped is None else loss.masked_fill(solver.skipped, 0.0)

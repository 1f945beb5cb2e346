"""Distributions whose solutions can be listed: their probabilities, marginals and gradients, exactly.

    p(z) ~ exp(<z, theta>)          the exponential family over the solutions; for costs exp(-<z, theta>)
    z = MAP(theta + eps)            the perturb-and-MAP distribution, which estimators sample

For noise of Gumbel(0, 1) and one of n the two are one. Elsewhere they differ, and the gradient of the second is an
estimate from many samples, with its standard error.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aaai23.synth.config import item_weights
from imle.noise import draw
from imle.solvers import grid_arcs, ranking, shortest_path_arcs
from imle.structures import Structure, k_subsets, spanning_trees
from imle.structures import knapsacks as knapsack_structure

BATCHES = 10
"""Of a large sample, whose spread gives its standard error."""


@dataclass(frozen=True)
class Family:
    """A family of solutions, all of them listed.

    Args:
        solve: theta `[B, N]` -> MAP(theta) `[B, N]`.
        states: the solutions `[C, N]`.
        k: of Sum-of-Gamma noise: what adds up to a solution.
        sign: 1 for a solver that maximises <z, theta>, -1 for one that minimises it.
        structure: with marginals of its own, for relaxations; None where the library has none.
        subset: size of the subset, None for other structures.
    """

    solve: Callable[[Tensor], Tensor] = field(repr=False)
    states: Tensor = field(repr=False)
    k: int
    sign: int = 1
    structure: Structure | None = None
    subset: int | None = None

    def log_probs(self, theta: Tensor) -> Tensor:
        """Return log p(z) of each solution under the exponential family, `[B, C]`, for theta `[B, N]`."""
        return (self.sign * theta @ self.states.to(theta).mT).log_softmax(dim=1)

    def marginals(self, theta: Tensor) -> Tensor:
        """Return E[z] under the exponential family, `[B, N]`."""
        return self.log_probs(theta).exp() @ self.states.to(theta)

    def mean_loss(self, theta: Tensor, losses: Tensor) -> Tensor:
        """Return E[f(z)] `[B]`, for the losses f `[B, C]` of all solutions."""
        return (self.log_probs(theta).exp() * losses).sum(dim=1)

    def gradient(self, theta: Tensor, losses: Tensor) -> Tensor:
        """Return the gradient of E[f(z)] `[B, N]`: the covariance of f and z, for any losses f `[B, C]`."""
        centred = losses - self.mean_loss(theta, losses).unsqueeze(1)
        return self.sign * (self.log_probs(theta).exp() * centred) @ self.states.to(theta)

    def index(self, z: Tensor) -> Tensor:
        """Return which of the listed solutions each z `[B, N]` is, `[B]`."""
        # a number for each solution, far further from the others than rounding takes it
        weights = torch.rand(z.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(z.device)
        numbers, order = (self.states.double() @ weights).sort()
        return order[torch.searchsorted(numbers, z.double() @ weights - 1e-9).clamp(max=len(order) - 1)]

    def frequencies(self, theta: Tensor, noise: Any, draws: int) -> Tensor:
        """Return how often each solution is MAP(theta + eps), `[B, C]`, in so many draws for each theta."""
        found = []
        for row in theta:
            z = self.solve(row + draw(noise, (draws, len(row)), like=row))
            found.append(self.index(z).bincount(minlength=len(self.states)))
        return torch.stack(found).to(theta) / draws

    def perturbed_gradient(self, theta: Tensor, losses: Tensor, noise: Any, draws: int) -> tuple[Tensor, Tensor]:
        """Estimate the gradient of E[f(MAP(theta + eps))] from a large sample.

        A noise of known density gives it without bias, by its score. Any other takes central differences in each entry,
        an eighth of the noise's standard deviation wide, and 2N times fewer draws.

        Args:
            theta: `[B, N]`.
            losses: f of all solutions, `[B, C]`.
            noise: of eps.
            draws: calls of the solver for each theta.

        Returns:
            The gradient `[B, N]`, and its standard error `[B]` relative to its length.
        """
        estimate = self._by_score if hasattr(noise, "log_prob") else self._by_differences
        batches = torch.stack([estimate(row, f, noise, draws) for row, f in zip(theta, losses)])  # [B, BATCHES, N]
        mean = batches.mean(dim=1)
        error = (batches.var(dim=1).sum(dim=1) / BATCHES).sqrt() / mean.norm(dim=1)
        return mean, error

    def _by_score(self, theta: Tensor, losses: Tensor, noise: Any, draws: int) -> Tensor:
        eps = draw(noise, (draws // BATCHES * BATCHES, len(theta)), like=theta)
        score = -torch.func.grad(lambda eps: noise.log_prob(eps).sum())(eps)
        f = losses[self.index(self.solve(theta + eps))]
        return ((f - f.mean()).unsqueeze(1) * score).unflatten(0, (BATCHES, -1)).mean(dim=1)

    def _by_differences(self, theta: Tensor, losses: Tensor, noise: Any, draws: int) -> Tensor:
        n = len(theta)
        perturbed = theta + draw(noise, (max(draws // (2 * n * BATCHES), 1) * BATCHES, n), like=theta)
        h = perturbed.std(dim=0).mean() / 8
        rises = []
        for step in h * torch.eye(n, dtype=theta.dtype, device=theta.device):
            up, down = (losses[self.index(self.solve(perturbed + sign * step))] for sign in (1, -1))
            rises.append((up - down) / (2 * h))
        return torch.stack(rises, dim=1).unflatten(0, (BATCHES, -1)).mean(dim=1)


def subsets(n: int, k: int) -> Family:
    """Return all choices of k of n entries.

    >>> len(subsets(5, 2).states)
    10
    """
    chosen = torch.tensor(list(itertools.combinations(range(n), k)))
    structure = k_subsets(k)
    states = torch.zeros(len(chosen), n).scatter(1, chosen, 1.0)
    return Family(structure.solve, states, k, structure=structure, subset=k)


def trees(n: int) -> Family:
    """Return all spanning trees of the complete graph of n vertices, as vectors of edges.

    >>> len(trees(4).states)
    16
    """
    ends = torch.triu_indices(n, n, 1).T.tolist()
    found = []
    for edges in itertools.combinations(range(len(ends)), n - 1):
        reached = {0}
        for _ in edges:  # each round reaches one vertex more, or none
            reached |= {vertex for edge in edges if reached & set(ends[edge]) for vertex in ends[edge]}
        if len(reached) == n:
            found.append(edges)
    structure = spanning_trees(n)
    states = torch.zeros(len(found), len(ends)).scatter(1, torch.tensor(found), 1.0)
    return Family(structure.solve, states, n, structure=structure)


def paths(side: int) -> Family:
    """Return all paths across a grid by moves right and down, as vectors of arcs; the solver minimises.

    >>> len(paths(3).states)
    6
    """
    arcs, moves = grid_arcs(side, side), 2 * (side - 1)
    position = {arc: n for n, arc in enumerate(zip(*arcs.tolist()))}
    found = []
    for down in itertools.combinations(range(moves), side - 1):
        cells = list(itertools.accumulate([side if move in down else 1 for move in range(moves)], initial=0))
        found.append([position[arc] for arc in itertools.pairwise(cells)])
    states = torch.zeros(len(found), arcs.shape[1]).scatter(1, torch.tensor(found), 1.0)
    solve = functools.partial(shortest_path_arcs, arcs=arcs, source=0, target=side**2 - 1)
    return Family(solve, states, moves, sign=-1)


def rankings(n: int) -> Family:
    """Return all rankings of n entries, by numbers from 1 to n.

    >>> len(rankings(4).states)
    24
    """
    return Family(ranking, torch.tensor(list(itertools.permutations(range(1, n + 1)))).float(), n)


def knapsacks(n: int) -> Family:
    """Return all sets of n items of weights 3, 5, 7, 3, ... that weigh at most half of all items.

    >>> len(knapsacks(4).states)
    8
    """
    weights = item_weights(n)
    structure = knapsack_structure(weights, sum(weights) // 2)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)))
    states = states[states @ torch.tensor(weights).float() <= sum(weights) // 2]
    return Family(structure.solve, states, structure.k, structure=structure)


FAMILIES: dict[str, Callable[[int, int], Family]] = {
    "subsets": subsets,
    "trees": lambda n, k: trees(n),
    "paths": lambda n, k: paths(n),
    "rankings": lambda n, k: rankings(n),
    "knapsacks": lambda n, k: knapsacks(n),
}

"""Structures: families of solutions with their solver, marginals and noise, and the relaxation that all have.

Graphs are vectors of edges. Undirected edges come in the order of `torch.triu_indices(n, n, 1)`, U = n(n-1)/2 of
them; directed ones, 2U, row by row of an n x n matrix without its diagonal: the row is the receiver.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imle.k_subsets import marginals as k_subset_marginals
from imle.knapsacks import marginals as knapsack_marginals
from imle.noise import Device, GumbelNoiseDistribution, SeedableNoiseDistribution, draw
from imle.relaxations import check_temperature, perturbed, spanning_tree_edge_marginals, straight_through
from imle.solvers import knapsack, select_k, spanning_tree_edges


@dataclass(frozen=True)
class Structure:
    """A family of solutions.

    Args:
        solve: theta `[B, N]` -> its best solutions MAP(theta) `[B, N]`; it may take further arguments.
        k: of Sum-of-Gamma noise: the size of a subset, the most items of a knapsack; of graphs the number of vertices.
        marginals: theta `[B, N]` -> how likely each entry is 1 under the exponential family; differentiable.
        noise: of the utilities theta + noise whose MAP is a sample, for methods that choose no noise themselves.
        perturb: theta `[B, N]`, and `generator=` -> such utilities, up to a constant in each row on which no solution
            depends.
    """

    solve: Callable[..., Tensor] = field(repr=False)
    k: int
    marginals: Callable[[Tensor], Tensor] = field(repr=False)
    noise: SeedableNoiseDistribution
    perturb: Callable[..., Tensor] = field(repr=False)


def stochastic_softmax(
    theta: Tensor,
    structure: Structure,
    temperature: float,
    hard: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample a relaxed solution: the marginals of a structure at perturbed logits over a temperature.

    Reference: Paulus et al., "Gradient Estimation with Stochastic Softmax Tricks", 2020.

    Args:
        theta: logits `[B, N]`.
        structure: the family of solutions.
        temperature: positive; lower is closer to discrete and has gradients of larger variance.
        hard: return the MAP of the same perturbed logits, with the gradient of the relaxed solution.
        generator: source of the noise; torch's own when None.

    Raises:
        ValueError: the temperature is not positive.

    Example:
        >>> tree = stochastic_softmax(torch.randn(3, 6), spanning_trees(vertices=4), temperature=0.5)
        >>> tree.sum(dim=1)
        tensor([3.0000, 3.0000, 3.0000])
    """
    check_temperature(temperature)
    utilities = structure.perturb(theta, generator=generator)
    soft = structure.marginals(utilities / temperature)
    return (straight_through(structure.solve(utilities), soft) if hard else soft).to(theta.dtype)


def k_subsets(k: int) -> Structure:
    """Return all choices of k of N entries; `solve(theta, mask=)` takes those that may be chosen, bool `[B, N]`.

    >>> k_subsets(2).marginals(torch.zeros(1, 4))
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    solve, marginals, perturb = (
        functools.partial(function, k=k) for function in (select_k, k_subset_marginals, perturbed)
    )
    return Structure(solve, k, marginals, GumbelNoiseDistribution(), perturb)


def knapsacks(weights: Sequence[int], capacity: int) -> Structure:
    """Return all selections of items whose total weight is at most the capacity.

    >>> knapsacks([1, 2, 3], capacity=3).marginals(torch.zeros(1, 3))
    tensor([[0.4000, 0.4000, 0.2000]])
    """
    most = sum(total <= capacity for total in itertools.accumulate(sorted(weights)))
    noise = GumbelNoiseDistribution()
    solve, marginals = (
        functools.partial(function, weights=weights, capacity=capacity) for function in (knapsack, knapsack_marginals)
    )
    return Structure(solve, most, marginals, noise, functools.partial(_plus, noise=noise))


def spanning_trees(vertices: int, max_range: float = math.inf) -> Structure:
    """Return all trees over undirected edges; `max_range` is that of `spanning_tree_edge_marginals`.

    >>> spanning_trees(3).solve(torch.tensor([[3.0, 1.0, 2.0]]))
    tensor([[1., 0., 1.]])
    """
    marginals = functools.partial(spanning_tree_edge_marginals, max_range=max_range)
    noise = GumbelNoiseDistribution()
    return Structure(spanning_tree_edges, vertices, marginals, noise, functools.partial(_plus, noise=noise))


def _plus(theta: Tensor, noise: SeedableNoiseDistribution, generator: torch.Generator | None = None) -> Tensor:
    return theta + draw(noise, theta.shape, like=theta, generator=generator)


def directed_spanning_trees(vertices: int, max_range: float = math.inf) -> Structure:
    """Return all trees over directed edges: theta is read where receiver > sender, and z answers for both directions.

    >>> directed_spanning_trees(3).solve(torch.tensor([[9.0, 9.0, 3.0, 9.0, 1.0, 2.0]]))
    tensor([[1., 0., 1., 1., 0., 1.]])
    """
    trees = spanning_trees(vertices, max_range)
    solve, marginals = (
        functools.partial(_both_directions, function=function, vertices=vertices)
        for function in (trees.solve, trees.marginals)
    )
    return replace(trees, solve=solve, marginals=marginals)


def _both_directions(theta: Tensor, function: Callable[[Tensor], Tensor], vertices: int) -> Tensor:
    low, high = torch.triu_indices(vertices, vertices, 1, device=theta.device)
    down, up = high * (vertices - 1) + low, low * (vertices - 1) + high - 1  # where high receives, where low does
    answer = torch.empty_like(theta)
    answer[..., down] = answer[..., up] = function(theta[..., down])
    return answer


def edge_subsets(vertices: int, directed: bool = False) -> Structure:
    """Return all choices of as many edges as a tree has, n-1, and of twice as many where each direction counts.

    >>> edge_subsets(3).solve(torch.tensor([[3.0, 1.0, 2.0]]))
    tensor([[1., 0., 1.]])
    """
    edges = vertices - 1
    return replace(k_subsets(2 * edges if directed else edges), k=vertices)


def any_edges(vertices: int) -> Structure:
    """Return all sets of edges: each is chosen by itself, with log-odds theta.

    >>> any_edges(3).solve(torch.tensor([[3.0, -1.0, 2.0]]))
    tensor([[1., 0., 1.]])
    """
    noise = LogisticNoise()
    return Structure(positive, vertices, torch.sigmoid, noise, functools.partial(_plus, noise=noise))


def positive(theta: Tensor) -> Tensor:
    """Return 1 where theta is positive, else 0."""
    return (theta > 0).to(theta.dtype)


class LogisticNoise(SeedableNoiseDistribution):
    """The difference of two Gumbel(0, 1) variables: the sign of theta plus it is an edge drawn by its log-odds."""

    def sample(
        self,
        shape: Sequence[int],
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return independent draws; arguments as in the base class."""
        options: dict[str, Any] = {"device": device, "dtype": dtype, "generator": generator}
        gumbel = GumbelNoiseDistribution()
        return gumbel.sample(shape, **options) - gumbel.sample(shape, **options)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density at each entry of `value`."""
        return -value - 2 * F.softplus(-value)

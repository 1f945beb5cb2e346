"""Brute-force answers for small problems: every state is listed, so nothing here can be clever enough to be wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def all_subsets(n: int, k: int) -> Tensor:
    """List the indicators of the k-subsets of n entries, [n choose k, n]."""
    chosen = list(itertools.combinations(range(n), k))
    states = torch.zeros(len(chosen), n)
    for state, indices in zip(states, chosen):
        state[list(indices)] = 1.0
    return states


def all_spanning_trees(n: int) -> Tensor:
    """List the adjacency matrices of the spanning trees of the complete graph, [n^(n-2), n, n], from Pruefer codes."""
    if n == 1:
        return torch.zeros(1, 1, 1)
    codes = list(itertools.product(range(n), repeat=n - 2))
    states = torch.zeros(len(codes), n, n)
    for state, code in zip(states, codes):
        degree = [1 + code.count(v) for v in range(n)]
        for v in code:
            leaf = degree.index(1)
            state[leaf, v] = state[v, leaf] = 1.0
            degree[leaf] -= 1
            degree[v] -= 1
        u, v = (w for w in range(n) if degree[w] == 1)
        state[u, v] = state[v, u] = 1.0
    return states


def all_simple_paths(h: int, w: int, neighbours: int = 8) -> Tensor:
    """List the cells of the simple paths from the top left to the bottom right of a grid, [P, h, w]."""
    paths: list[list[tuple[int, int]]] = []

    def extend(path: list[tuple[int, int]]) -> None:
        row, column = path[-1]
        if (row, column) == (h - 1, w - 1):
            paths.append(path)
            return
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            cell = (row + down, column + right)
            adjacent = neighbours == 8 or abs(down) + abs(right) == 1
            if adjacent and cell not in path and 0 <= cell[0] < h and 0 <= cell[1] < w:
                extend([*path, cell])

    extend([(0, 0)])
    states = torch.zeros(len(paths), h, w)
    for state, path in zip(states, paths):
        rows, columns = zip(*path)
        state[list(rows), list(columns)] = 1.0
    return states


def scores(theta: Tensor, states: Tensor) -> Tensor:
    """Return <z, theta> of each state z, [B, C], for theta [B, ...] and states [C, ...]."""
    return theta.flatten(1) @ states.to(theta.dtype).flatten(1).mT


def map_state(theta: Tensor, states: Tensor) -> Tensor:
    """Return the state with the largest <z, theta> for each row of theta [B, ...]; states are [C, ...]."""
    return states[scores(theta, states).argmax(dim=1)].to(theta.dtype)


def exact_marginals(theta: Tensor, states: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean of z, [B, ...], where z has probability proportional to exp(<z, theta> / temperature)."""
    probabilities = (scores(theta, states) / temperature).softmax(dim=1)
    return (probabilities @ states.to(theta.dtype).flatten(1)).view(theta.shape)


def all_permutations(n: int) -> Tensor:
    """List the rankings of n entries, the permutations of 1..n, [n!, n]."""
    return torch.tensor(list(itertools.permutations(range(1, n + 1))), dtype=torch.float32).view(-1, n)


def all_matchings(n: int, m: int) -> Tensor:
    """List the matchings of n rows and m columns that use the shorter side up, [C, n, m]."""
    if n > m:
        return all_matchings(m, n).mT
    chosen = list(itertools.permutations(range(m), n))
    states = torch.zeros(len(chosen), n, m)
    for state, columns in zip(states, chosen):
        state[list(range(n)), list(columns)] = 1.0
    return states


def all_binary_vectors(n: int) -> Tensor:
    """List the vectors of n zeros and ones, [2^n, n]."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n))).view(-1, n)


def all_arborescences(n: int, root: int) -> Tensor:
    """List the spanning arborescences of the complete graph as matrices of [parent, child], [n^(n-2), n, n]."""
    trees = all_spanning_trees(n)
    states = torch.zeros_like(trees)
    for state, tree in zip(states, trees):
        reached = [root]
        for u in reached:
            for v in tree[u].nonzero().flatten().tolist():
                if v not in reached:
                    state[u, v] = 1.0
                    reached.append(v)
    return states


def all_arc_paths(arcs: Tensor, source: int, target: int) -> Tensor:
    """List the indicators of the arcs of the simple paths from source to target, [P, A], for arcs [2, A]."""
    tails, heads = arcs.tolist()
    paths: list[list[int]] = []

    def extend(path: list[int], seen: list[int]) -> None:
        if seen[-1] == target:
            paths.append(path)
            return
        for arc, (tail, head) in enumerate(zip(tails, heads)):
            if tail == seen[-1] and head not in seen:
                extend([*path, arc], [*seen, head])

    extend([], [source])
    states = torch.zeros(len(paths), len(tails))
    for state, path in zip(states, paths):
        state[path] = 1.0
    return states


def all_knapsacks(weights: Sequence[int], capacity: int) -> Tensor:
    """List the selections of items that weigh at most the capacity, [C, N]."""
    states = all_binary_vectors(len(weights))
    return states[states @ torch.tensor(weights, dtype=torch.float32) <= capacity]

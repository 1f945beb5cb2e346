"""Structures against the list of all their solutions, and stochastic softmax over them."""

import functools
import itertools
import math

import pytest
import torch

from imle.layers import RelaxedLayer
from imle.structures import (
    LogisticNoise,
    any_edges,
    directed_spanning_trees,
    edge_subsets,
    k_subsets,
    knapsacks,
    positive,
    spanning_trees,
    stochastic_softmax,
)
from tests.reference.oracles import all_knapsacks, all_spanning_trees, all_subsets, exact_marginals, map_state

DOUBLE = torch.float64
VERTICES = 4
LOW, HIGH = torch.triu_indices(VERTICES, VERTICES, 1)
DIRECTED = [(receiver, sender) for receiver in range(VERTICES) for sender in range(VERTICES) if receiver != sender]
TREES = all_spanning_trees(VERTICES)[:, LOW, HIGH]
WEIGHTS, CAPACITY = [3, 1, 0, 7, 3, 20, 5], 11
STRUCTURES = {
    "k-subsets": (k_subsets(3), all_subsets(7, 3)),
    "knapsacks": (knapsacks(WEIGHTS, CAPACITY), all_knapsacks(WEIGHTS, CAPACITY)),
    "trees": (spanning_trees(VERTICES), TREES),
    "n-1 edges": (edge_subsets(VERTICES), all_subsets(6, 3)),
    "2(n-1) directed edges": (edge_subsets(VERTICES, directed=True), all_subsets(12, 6)),
    "any edges": (any_edges(VERTICES), torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)))),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def both_directions(undirected):
    """Return vectors of directed edges from vectors of undirected ones, by the names of their ends."""
    place = {pair: i for i, pair in enumerate(zip(LOW.tolist(), HIGH.tolist()))}
    return torch.stack([undirected[..., place[min(edge), max(edge)]] for edge in DIRECTED], dim=-1)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_best_solution_and_marginals_equal_enumeration(name):
    structure, states = STRUCTURES[name]
    theta = 2 * torch.randn(20, states.shape[1], dtype=DOUBLE, requires_grad=True)
    assert torch.equal(structure.solve(theta.detach()), map_state(theta.detach(), states))
    found, expected = structure.marginals(theta), exact_marginals(theta, states)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(theta)
    gradients = [torch.autograd.grad((it * slope).sum(), theta)[0] for it in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_best_solution_of_perturbed_utilities_is_that_of_theta_and_noise(name):
    structure, states = STRUCTURES[name]
    theta = torch.randn(50, states.shape[1], dtype=DOUBLE)
    utilities = structure.perturb(theta, generator=seeded(3))
    noise = structure.noise.sample(theta.shape, dtype=DOUBLE, generator=seeded(3))
    torch.testing.assert_close(utilities - utilities[:, :1], (theta + noise) - (theta + noise)[:, :1])
    assert torch.equal(structure.solve(utilities), map_state(theta + noise, states))


def test_directed_trees_read_one_half_and_answer_for_both_directions():
    structure = directed_spanning_trees(VERTICES)
    theta = torch.randn(30, 12, dtype=DOUBLE)
    read = torch.stack([theta[:, DIRECTED.index((high, low))] for low, high in zip(LOW.tolist(), HIGH.tolist())], -1)
    assert torch.equal(structure.solve(theta), both_directions(map_state(read, TREES)))
    torch.testing.assert_close(structure.marginals(theta), both_directions(exact_marginals(read, TREES)))


@pytest.mark.parametrize("trees", [spanning_trees, directed_spanning_trees])
def test_max_range_softens_the_marginals_of_trees_alone(trees):
    theta = 10 * torch.randn(5, 6 if trees is spanning_trees else 12, dtype=DOUBLE)
    wide, narrow = trees(VERTICES), trees(VERTICES, max_range=1.0)
    assert torch.equal(wide.solve(theta), narrow.solve(theta))
    assert (wide.marginals(theta).amax() - narrow.marginals(theta).amax()) > 0.01
    torch.testing.assert_close(narrow.marginals(theta).sum(-1), wide.marginals(theta).sum(-1))


def test_subsets_leave_out_what_may_not_be_chosen():
    theta, mask = torch.randn(40, 7), torch.rand(40, 7) < 0.6
    found = k_subsets(3).solve(theta, mask=mask)
    assert torch.equal(found, map_state(theta.masked_fill(~mask, -100.0), all_subsets(7, 3)) * mask)


def test_the_size_of_graphs_for_sum_of_gamma_noise_is_the_number_of_vertices():
    graphs = (spanning_trees, directed_spanning_trees, edge_subsets, any_edges)
    assert {make(5).k for make in graphs} == {5} and k_subsets(3).k == 3


def test_positive_takes_what_is_above_zero():
    assert positive(torch.tensor([-1.0, 0.0, 2.0])).tolist() == [0, 0, 1]


def test_logistic_noise_has_the_logistic_density():
    noise = LogisticNoise()
    draws = noise.sample((200000,))
    assert abs((draws < 1.0).float().mean().item() - 1 / (1 + math.exp(-1))) < 0.005
    grid = torch.linspace(-40, 40, 20001, dtype=DOUBLE)
    assert abs(torch.trapezoid(noise.log_prob(grid).exp(), grid).item() - 1) < 1e-9
    below = grid <= 1
    assert abs(torch.trapezoid(noise.log_prob(grid[below]).exp(), grid[below]).item() - 1 / (1 + math.exp(-1))) < 1e-6


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", STRUCTURES)
def test_sst_is_the_marginals_at_perturbed_logits_on_every_structure(name, hard):
    structure, states = STRUCTURES[name]
    width = states.shape[1]
    relax = functools.partial(stochastic_softmax, structure=structure, hard=hard)
    layer = RelaxedLayer(structure.solve, relax, temperature=0.5, nb_samples=2, sample_reduction="sum")
    theta = torch.randn(3, width, dtype=DOUBLE, requires_grad=True)
    dy = torch.randn(6, width, dtype=DOUBLE)
    rows = theta.repeat_interleave(2, dim=0)
    utilities = rows + structure.noise.sample(rows.shape, dtype=DOUBLE, generator=seeded())
    soft = structure.marginals(utilities / 0.5)
    expected = structure.solve(utilities) if hard else soft.detach()
    (gradient,) = torch.autograd.grad(soft, theta, dy)
    found = layer.sample(theta, generator=seeded())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, theta, dy)[0], gradient)
    assert gradient.abs().max() > 0


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"temperature .* must be positive, got 0"):
        stochastic_softmax(torch.zeros(2, 6), spanning_trees(4), 0.0)


def test_a_relaxed_layer_shows_its_parts_and_refuses_what_is_none():
    structure = k_subsets(3)
    layer = RelaxedLayer(structure.solve, functools.partial(stochastic_softmax, structure=structure), 0.5, 2)
    shown = repr(torch.nn.Sequential(layer))
    for part in ("select_k(k=3)", "stochastic_softmax(structure=Structure(k=3", "temperature=0.5", "nb_samples=2"):
        assert part in shown
    with pytest.raises(TypeError, match="relax must be callable, 'softsub' is not"):
        RelaxedLayer(structure.solve, "softsub", 0.5)
    with pytest.raises(ValueError, match="nb_samples must be a whole number from 1 up, not 0"):
        RelaxedLayer(structure.solve, structure.marginals, 0.5, 0)

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from imle import relaxations as R
from imle.k_subsets import marginals as k_subset_marginals
from imle.noise import GumbelNoiseDistribution, draw
from imle.structures import any_edges, k_subsets, spanning_trees, stochastic_softmax
from tests.reference.oracles import all_spanning_trees, all_subsets, exact_marginals

DOUBLE = torch.float64


def sst(logits, k, temperature, generator=None):
    return stochastic_softmax(logits, k_subsets(k), temperature, generator=generator)


SUBSET_RELAXATIONS = [R.concrete_max, R.softsub, sst]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gumbel_like(logits, seed=0):
    """The noise that a relaxation draws first from the same seed."""
    return draw(GumbelNoiseDistribution(), logits.shape, like=logits, generator=seeded(seed))


def top_k_indicator(scores, k):
    return torch.zeros_like(scores).scatter(-1, scores.topk(k, dim=-1).indices, 1.0)


def random_symmetric(batch, n, scale=1.0):
    weights = scale * torch.randn(batch, n, n, dtype=DOUBLE)
    return (weights + weights.mT) / 2


def published_softsub(keys, k, temperature):
    chosen = 0
    for _ in range(k):
        choice = torch.softmax(keys / temperature, -1)
        chosen = chosen + choice
        keys = keys + torch.log(1 - choice)
    return chosen


# Scores of any size: all that is far below the rest stands for its limit at minus infinity, here at -LIMIT


LIMIT = 100.0
MASKS = [-1e6, -1e9, torch.finfo(torch.float32).min, -math.inf]
TOLERANCE = {torch.float32: 2e-5, DOUBLE: 1e-9, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def assert_limit(function, values, levels, unit, states, dtype):
    """Compare function(values + levels * unit), and its gradient, with enumeration at levels LIMIT apart.

    Values [E] are small multiples of 1/8, levels [E] whole numbers from 0 down, and states [C, E].
    """
    values, levels = torch.as_tensor(values, dtype=DOUBLE), torch.as_tensor(levels, dtype=DOUBLE)
    limit = (values + levels * LIMIT).unsqueeze(0).requires_grad_()
    expected = exact_marginals(limit, states.to(DOUBLE), 1.0)
    slope = torch.linspace(-1, 1, len(values), dtype=DOUBLE)
    (expected * slope).sum().backward()

    scores = torch.where(levels < 0, values + levels * unit, values).to(dtype).unsqueeze(0).requires_grad_()
    found = function(scores)
    assert found.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.to(DOUBLE), expected.detach(), atol=tolerance, rtol=0)
    (found * slope.to(dtype)).sum().backward()
    assert scores.grad.isfinite().all()
    inner = scores.detach()[0].isfinite()
    torch.testing.assert_close(scores.grad[0, inner].to(DOUBLE), limit.grad[0, inner], atol=2 * tolerance, rtol=0)


def edges_of(n):
    return torch.triu_indices(n, n, 1)


def trees_as_edges(n):
    first, second = edges_of(n)
    return all_spanning_trees(n)[:, first, second]


def multiples_of_an_eighth(size, generator):
    return torch.randint(-8, 9, (size,), generator=generator).to(DOUBLE) / 8


@pytest.mark.parametrize("n", [4, 5, 6])
@pytest.mark.parametrize("mask", MASKS)
def test_padding_around_a_triangle_leaves_its_tree_marginals_alone(n, mask):
    weights = torch.full((1, n, n), mask)
    weights[0, :3, :3] = torch.tensor([[0, 1, 0.5], [1, 0, -1], [0.5, -1, 0]])
    marginals = R.spanning_tree_marginals(weights)[0]
    triangle = torch.stack([marginals[0, 1], marginals[0, 2], marginals[1, 2]])
    torch.testing.assert_close(triangle, torch.tensor([0.90038, 0.83575, 0.26388]), atol=1e-5, rtol=0)
    torch.testing.assert_close(marginals.triu().sum(), torch.tensor(n - 1.0), atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("components", [(3, 2), (2, 2, 1), (1, 1, 1, 1, 1), (5,)])
def test_masked_tree_marginals_of_several_components_are_the_limit(components, mask, dtype):
    member = torch.cat([torch.full((size,), i) for i, size in enumerate(components)])
    first, second = edges_of(5)
    across = (member[first] != member[second]).to(DOUBLE)
    values = multiples_of_an_eighth(10, seeded()) * (1 - across)
    assert_limit(R.spanning_tree_edge_marginals, values, -across, -mask, trees_as_edges(5), dtype)


@pytest.mark.parametrize("unit", [1e3, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("seed", range(4))
def test_tree_marginals_of_huge_scores_keep_small_differences(seed, dtype, unit):
    generator = seeded(seed)
    levels = -torch.randint(0, 4, (10,), generator=generator)
    values = multiples_of_an_eighth(10, generator)
    values = torch.where(levels < 0, values.round() * (unit < 1e30), values)  # what float32 can tell at that size
    assert_limit(R.spanning_tree_edge_marginals, values, levels, unit, trees_as_edges(5), dtype)


def test_an_edge_masked_in_one_of_its_two_entries_is_masked():
    weights = random_symmetric(1, 4)
    weights[0, 0, 1] = weights[0, 3, 2] = -math.inf
    marginals = R.spanning_tree_marginals(weights)[0]
    assert marginals[0, 1] < 1e-30 and marginals[2, 3] < 1e-30
    torch.testing.assert_close(marginals.triu().sum(), torch.tensor(3.0, dtype=DOUBLE))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_tree_marginals_do_not_overflow_at_the_largest_numbers(dtype):
    limits = torch.finfo(dtype)
    weights = torch.full((1, 4, 4), limits.min, dtype=dtype)
    weights[0, :3, :3] = limits.max
    weights[0, 0, 2] = weights[0, 2, 0] = 0.75 * limits.max
    first, second = edges_of(4)
    found = R.spanning_tree_marginals(weights)[0, first, second]
    expected = torch.tensor([1, 0, 1 / 3, 1, 1 / 3, 1 / 3], dtype=DOUBLE).to(dtype)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kept", [2, 3, 5])  # k is 3: fewer than k, as many, more
def test_masked_subset_marginals_are_the_limit(kept, mask, dtype):
    values = multiples_of_an_eighth(7, seeded())
    masked = (torch.arange(7) >= kept).to(DOUBLE)
    values = values * (1 - masked)
    function = lambda logits: k_subset_marginals(logits, 3)  # noqa: E731
    assert_limit(function, values, -masked, -mask, all_subsets(7, 3), dtype)


@pytest.mark.parametrize("unit", [1e3, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("seed", range(4))
def test_subset_marginals_of_huge_scores_keep_small_differences(seed, dtype, unit):
    generator = seeded(seed)
    levels = -torch.randint(0, 3, (9,), generator=generator)
    values = multiples_of_an_eighth(9, generator)
    values = torch.where(levels < 0, values.round() * (unit < 1e30), values)
    function = lambda logits: k_subset_marginals(logits, 4)  # noqa: E731
    assert_limit(function, values, levels, unit, all_subsets(9, 4), dtype)


@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_marginals_do_not_change_when_all_scores_move(offset):
    values = torch.randint(-3, 4, (4, 10)).float()
    for function in (R.spanning_tree_edge_marginals, lambda x: k_subset_marginals(x, 4)):
        torch.testing.assert_close(function(values + offset), function(values))


@pytest.mark.parametrize("relaxation", [*SUBSET_RELAXATIONS, None])
@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_samples_do_not_change_when_all_logits_move(relaxation, offset):
    logits = torch.randint(-3, 4, (4, 10)).float()

    def sample(x):
        if relaxation is None:
            return R.gumbel_softmax(x, 0.5, generator=seeded())
        return relaxation(x, 4, 0.5, generator=seeded())

    torch.testing.assert_close(sample(logits + offset), sample(logits))


@pytest.mark.parametrize("relaxation", [*SUBSET_RELAXATIONS, None])
@pytest.mark.parametrize("mask", MASKS)
def test_samples_of_masked_logits_are_those_of_the_others(relaxation, mask):
    logits = torch.randn(20, 9)
    logits[:, 5:] = mask
    slope = torch.randn(20, 9)

    def sample_and_gradient(logits):
        logits = logits.clone().requires_grad_()
        if relaxation is None:
            sample = R.gumbel_softmax(logits, 0.5, generator=seeded())
        else:
            sample = relaxation(logits, 3, 0.5, generator=seeded())
        (sample * slope).sum().backward()
        return sample, logits.grad

    sample, gradient = sample_and_gradient(logits)
    assert (sample[:, 5:] == 0).all() and (gradient[:, 5:] == 0).all()
    expected, expected_gradient = sample_and_gradient(logits.clamp(min=-LIMIT))  # the same noise, moderate numbers
    torch.testing.assert_close(sample, expected)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mask", MASKS)
def test_masked_softsub_follows_the_published_recursion_on_the_others(mask):
    logits = torch.full((30, 8), mask, dtype=torch.float32)
    logits[:, :5] = torch.randn(30, 5)
    kept = logits[:, :5].double().requires_grad_()
    expected = published_softsub(kept + gumbel_like(logits)[:, :5].double(), 3, 0.8)
    slope = torch.randn(30, 5, dtype=DOUBLE)
    (expected * slope).sum().backward()
    logits.requires_grad_()
    found = R.softsub(logits, 3, 0.8, generator=seeded())[:, :5]
    (found * slope.float()).sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.grad[:, :5].double(), kept.grad, atol=1e-4, rtol=1e-4)
    assert (logits.grad[:, 5:] == 0).all()


@pytest.mark.parametrize("relaxation", [R.softsub, sst])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_with_fewer_than_k_logits_above_the_mask_samples_are_still_those_of_the_limit(relaxation, mask, kept):
    logits = torch.full((20, 6), mask, dtype=torch.float32)
    logits[:, :kept] = torch.randn(20, kept)
    expected = relaxation(logits.clamp(min=-LIMIT), 3, 0.5, generator=seeded())
    logits.requires_grad_()
    sample = relaxation(logits, 3, 0.5, generator=seeded())
    torch.testing.assert_close(sample[:, :kept], expected[:, :kept])
    torch.testing.assert_close(sample.sum(-1), torch.full((20,), 3.0))
    for temperature in (0.5, 1e-3, 1e-9):
        sample = relaxation(logits, 3, temperature)
        assert sample.isfinite().all()
        (sample * torch.randn(20, 6)).sum().backward()
        assert logits.grad.isfinite().all()


def test_one_huge_logit_among_small_ones_is_chosen_and_leaves_their_differences():
    logits = torch.randn(50, 7)
    noise = gumbel_like(logits)
    for huge in (1e6, 1e30):
        logits[:, 2] = huge
        for relaxation in (R.softsub, sst):
            sample = relaxation(logits, 3, 0.5, generator=seeded())
            torch.testing.assert_close(sample[:, 2], torch.ones(50))
            others = torch.arange(7) != 2
            keys = (logits + noise)[:, others].double()
            expected = published_softsub(keys, 2, 0.5) if relaxation is R.softsub else k_subset_marginals(keys / 0.5, 2)
            torch.testing.assert_close(sample[:, others].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("relaxation", SUBSET_RELAXATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_samples_of_half_precision_are_computed_in_single_precision(relaxation, dtype):
    logits = (3 * torch.randn(6, 9)).to(dtype)
    logits[:, 7:] = torch.finfo(dtype).min
    logits.requires_grad_()
    sample = relaxation(logits, 4, 0.1, generator=seeded())
    single = logits.detach().float().requires_grad_()
    expected = relaxation(single, 4, 0.1, generator=seeded())
    assert torch.equal(sample, expected.to(dtype))
    slope = torch.randn(6, 9).to(dtype)
    (sample * slope).sum().backward()
    (expected * slope.float()).sum().backward()
    torch.testing.assert_close(logits.grad, single.grad.to(dtype))


@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_every_relaxation_takes_any_leading_dimensions(lead):
    rows, edges = torch.randn(math.prod(lead), 6), torch.randn(math.prod(lead), 10)
    u, v = edges_of(5)
    functions = [lambda x, r=r: r(x, 3, 0.5, generator=seeded()) for r in SUBSET_RELAXATIONS]
    functions += [lambda x: R.gumbel_softmax(x, 0.5, generator=seeded()), lambda x: k_subset_marginals(x, 3)]
    for function in functions:
        torch.testing.assert_close(function(rows.view(*lead, 6)), function(rows).view(*lead, 6))
    marginals = R.spanning_tree_edge_marginals(edges)
    torch.testing.assert_close(R.spanning_tree_edge_marginals(edges.view(*lead, 10)), marginals.view(*lead, 10))
    matrices = torch.zeros(*lead, 5, 5)
    matrices[..., u, v] = 2 * edges.view(*lead, 10)
    torch.testing.assert_close(R.spanning_tree_marginals(matrices)[..., u, v], marginals.view(*lead, 10))


def test_a_row_with_a_missing_number_is_missing_and_leaves_the_others_alone():
    values = torch.randn(3, 10)
    for function in (R.spanning_tree_edge_marginals, lambda x: k_subset_marginals(x, 4)):
        expected = function(values)
        broken = values.clone()
        broken[1, 4] = math.nan
        found = function(broken)
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], expected[[0, 2]])


# Marginals of k-subsets


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 1), (4, 4), (5, 2), (7, 3), (8, 7), (9, 4)])
def test_subset_marginals_equal_enumeration(n, k):
    logits = 2 * torch.randn(6, n, dtype=DOUBLE)
    expected = exact_marginals(logits, all_subsets(n, k).to(DOUBLE), 1.0)
    torch.testing.assert_close(k_subset_marginals(logits, k), expected)


def test_marginals_of_one_subset_are_softmax_and_of_all_are_one():
    logits = torch.randn(3, 11, dtype=DOUBLE)
    torch.testing.assert_close(k_subset_marginals(logits, 1), logits.softmax(-1))
    torch.testing.assert_close(k_subset_marginals(logits, 11), torch.ones_like(logits))


@pytest.mark.parametrize(("n", "k"), [(5, 2), (8, 3), (6, 5)])
def test_gradients_of_subset_marginals_pass_gradcheck(n, k):
    logits = torch.randn(2, n, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda theta: k_subset_marginals(theta, k), (logits,))


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize(("n", "k"), [(350, 10), (50, 5), (50, 49)])
def test_subset_marginals_are_stable_in_single_precision(n, k, scale):
    logits = (scale * torch.randn(4, n)).requires_grad_()
    marginals = k_subset_marginals(logits, k)
    torch.testing.assert_close(marginals.sum(-1), torch.full((4,), float(k)), atol=1e-4, rtol=0)
    assert marginals.min() >= 0
    assert marginals.max() <= 1 + 1e-4
    torch.testing.assert_close(marginals.double(), k_subset_marginals(logits.double(), k), atol=2e-4, rtol=1e-3)
    (marginals * torch.randn(4, n)).sum().backward()
    assert logits.grad.isfinite().all()


def test_an_entry_of_minus_infinity_is_never_chosen_and_leaves_the_others_alone():
    logits = torch.randn(2, 6, dtype=DOUBLE)
    masked = torch.cat([logits, torch.full((2, 3), -math.inf, dtype=DOUBLE)], dim=-1).requires_grad_()
    marginals = k_subset_marginals(masked, 6 - 1)
    torch.testing.assert_close(marginals, F.pad(k_subset_marginals(logits, 5), (0, 3)))
    (marginals * torch.randn(2, 9)).sum().backward()
    assert masked.grad.isfinite().all()
    assert (masked.grad[:, 6:] == 0).all()


def test_cold_subset_marginals_are_the_top_k():
    logits = torch.randn(5, 20, dtype=DOUBLE)
    torch.testing.assert_close(k_subset_marginals(logits / 1e-4, 4), top_k_indicator(logits, 4))


def test_marginals_without_gradients_are_the_same_numbers():
    logits = torch.randn(2, 9, requires_grad=True)
    with torch.no_grad():
        marginals = k_subset_marginals(logits, 3)
    assert not marginals.requires_grad
    assert torch.equal(marginals, k_subset_marginals(logits, 3))
    assert logits.grad is None


# Marginals of spanning trees


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_tree_marginals_equal_enumeration(n):
    weights = random_symmetric(4, n, scale=2.0)
    trees = all_spanning_trees(n).to(DOUBLE)
    assert len(trees) == n ** (n - 2)
    first, second = torch.triu_indices(n, n, 1)
    expected = exact_marginals(weights[:, first, second], trees[:, first, second], 1.0)

    marginals = R.spanning_tree_marginals(weights)
    torch.testing.assert_close(marginals[:, first, second], expected)
    torch.testing.assert_close(marginals, marginals.mT)
    assert (marginals.diagonal(dim1=1, dim2=2) == 0).all()
    torch.testing.assert_close(R.spanning_tree_edge_marginals(weights[:, first, second]), expected)


def test_tree_marginals_equal_edge_weight_times_effective_resistance():
    weights = random_symmetric(3, 10)
    conductance = weights.exp() * (1 - torch.eye(10, dtype=DOUBLE))
    inverse = torch.linalg.pinv(torch.diag_embed(conductance.sum(-1)) - conductance)
    diagonal = inverse.diagonal(dim1=1, dim2=2)
    resistance = diagonal.unsqueeze(1) + diagonal.unsqueeze(2) - 2 * inverse
    torch.testing.assert_close(R.spanning_tree_marginals(weights), conductance * resistance)


def test_an_edge_has_the_mean_of_its_two_entries_and_the_diagonal_is_unused():
    weights = torch.randn(2, 5, 5, dtype=DOUBLE)
    expected = R.spanning_tree_marginals((weights + weights.mT) / 2)
    torch.testing.assert_close(R.spanning_tree_marginals(weights + 7 * torch.eye(5)), expected)


@pytest.mark.parametrize("max_range", [math.inf, 1.0])
def test_gradients_of_tree_marginals_pass_gradcheck(max_range):
    matrix = torch.randn(2, 4, 4, dtype=DOUBLE, requires_grad=True)
    edges = torch.randn(2, 10, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda weights: R.spanning_tree_marginals(weights, max_range), (matrix,))
    assert gradcheck(lambda weights: R.spanning_tree_edge_marginals(weights, max_range), (edges,))


def test_max_range_raises_small_weights_to_that_distance_below_the_largest():
    edges = 10 * torch.randn(6, 45, dtype=DOUBLE)
    largest = edges.amax(-1, keepdim=True)
    clipped = torch.maximum(edges, largest - 15)
    assert not torch.equal(clipped, edges)
    marginals = R.spanning_tree_edge_marginals(edges, max_range=15)
    torch.testing.assert_close(marginals, R.spanning_tree_edge_marginals(clipped))
    assert not torch.allclose(marginals, R.spanning_tree_edge_marginals(edges))


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_tree_marginals_are_stable_in_single_precision(scale):
    edges = (scale * torch.randn(8, 45)).requires_grad_()
    marginals = R.spanning_tree_edge_marginals(edges)
    torch.testing.assert_close(marginals.sum(-1), torch.full((8,), 9.0))
    assert marginals.min() >= 0
    torch.testing.assert_close(marginals.double(), R.spanning_tree_edge_marginals(edges.double()), atol=2e-4, rtol=1e-3)
    (marginals * torch.randn(8, 45)).sum().backward()
    assert edges.grad.isfinite().all()


def test_two_groups_joined_by_feeble_edges_share_one_bridge():
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    across = group.unsqueeze(0) != group.unsqueeze(1)
    marginals = R.spanning_tree_marginals(-200.0 * across.float().unsqueeze(0))[0]
    torch.testing.assert_close(marginals[across], torch.full((18,), 1 / 9))  # 9 bridges, each entered twice
    torch.testing.assert_close(marginals[0, 1], torch.tensor(2 / 3))  # 2 of the 3 edges of a triangle


def test_cold_tree_marginals_are_the_maximum_spanning_tree():
    weights = random_symmetric(5, 5)
    trees = all_spanning_trees(5).to(DOUBLE)
    best = trees[torch.einsum("bij,tij->bt", weights, trees).argmax(-1)]
    torch.testing.assert_close(R.spanning_tree_marginals(weights / 1e-4), best)


def test_independent_edges_are_enumerated_too():
    weights = torch.randn(2, 3, dtype=DOUBLE)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=DOUBLE)] * 3)
    torch.testing.assert_close(any_edges(3).marginals(weights), exact_marginals(weights, states, 1.0))


# Samples


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    soft = torch.rand(100, requires_grad=True)
    hard = soft.detach().round().requires_grad_()
    slope = torch.randn(100)
    result = R.straight_through(hard, soft)
    assert torch.equal(result, hard)
    (result * slope).sum().backward()
    assert torch.equal(soft.grad, slope)
    assert hard.grad is None


def test_hard_gumbel_softmax_is_one_hot_and_as_frequent_as_softmax():
    logits = torch.tensor([0.5, -1.0, 1.5, 0.0], dtype=DOUBLE)
    samples = R.gumbel_softmax(logits.expand(40_000, 4), 0.7, hard=True, generator=seeded())
    assert torch.equal(samples, top_k_indicator(samples, 1))
    probabilities = logits.softmax(-1)
    standard_error = (probabilities * (1 - probabilities) / len(samples)).sqrt()
    assert ((samples.mean(0) - probabilities).abs() < 4 * standard_error).all()


def test_hard_gumbel_softmax_has_the_gradient_of_the_soft_one():
    logits, slope = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    soft = R.gumbel_softmax(logits, 0.5, generator=seeded())
    hard = R.gumbel_softmax(logits, 0.5, hard=True, generator=seeded())
    torch.testing.assert_close(soft.sum(-1), torch.ones(3))
    gradients = [torch.autograd.grad((sample * slope).sum(), logits)[0] for sample in (soft, hard)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("relaxation", SUBSET_RELAXATIONS)
def test_gradients_of_samples_pass_gradcheck(relaxation):
    logits = torch.randn(2, 5, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda theta: relaxation(theta, 3, 0.7, generator=seeded()), (logits,))


@pytest.mark.parametrize("relaxation", SUBSET_RELAXATIONS)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_samples_and_gradients_are_finite_for_cold_and_large_logits(relaxation, scale):
    logits = (scale * torch.randn(4, 30)).requires_grad_()
    sample = relaxation(logits, 5, 0.05)
    assert sample.min() >= 0
    assert sample.sum(-1).max() <= 5 + 1e-3
    (sample * torch.randn(4, 30)).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("relaxation", SUBSET_RELAXATIONS)
def test_a_generator_makes_samples_reproducible(relaxation):
    logits = torch.randn(2, 8)
    sample = relaxation(logits, 3, 0.5, generator=seeded(1))
    assert torch.equal(sample, relaxation(logits, 3, 0.5, generator=seeded(1)))
    assert not torch.equal(sample, relaxation(logits, 3, 0.5, generator=seeded(2)))
    assert sample.dtype == logits.dtype


def test_concrete_max_is_the_maximum_of_independent_samples_and_can_repeat_itself():
    logits = torch.zeros(500, 4)
    sample = R.concrete_max(logits, 3, 0.01, generator=seeded())
    rounded = sample.round()
    assert (sample - rounded).abs().mean() < 0.01
    # three draws from four: all different with probability 4/4 * 3/4 * 2/4
    assert (rounded.sum(-1) == 3).double().mean() == pytest.approx(0.375, abs=4 * (0.375 * 0.625 / 500) ** 0.5)
    assert rounded.sum(-1).max() == 3
    one = R.concrete_max(logits, 1, 0.5, generator=seeded())
    torch.testing.assert_close(one, R.gumbel_softmax(logits, 0.5, generator=seeded()))


def test_softsub_follows_the_published_recursion():
    logits = torch.randn(6, 7, dtype=DOUBLE)
    expected = published_softsub(logits + gumbel_like(logits), 3, 0.8)
    torch.testing.assert_close(R.softsub(logits, 3, 0.8, generator=seeded()), expected)
    torch.testing.assert_close(expected.sum(-1), torch.full((6,), 3.0, dtype=DOUBLE))


@pytest.mark.parametrize("relaxation", [R.softsub, sst])
@pytest.mark.parametrize(("dtype", "scale", "temperature"), [(DOUBLE, 1.0, 1e-6), (torch.float32, 1e3, 1e-3)])
def test_cold_samples_are_the_top_k_of_perturbed_logits_and_take_none_twice(relaxation, dtype, scale, temperature):
    logits = scale * torch.randn(200, 12, dtype=dtype)
    keys = logits + gumbel_like(logits)
    # The published mask lowers a chosen key by its lead over the next, divided by the temperature: near a tie that is
    # less than the range of the keys, and the entry may come up again.
    clear = keys.sort(dim=-1).values.diff().amin(dim=-1) > temperature * (keys.amax(dim=-1) - keys.amin(dim=-1))
    assert clear.sum() > 100
    sample = relaxation(logits, 5, temperature, generator=seeded())
    torch.testing.assert_close(sample[clear], top_k_indicator(keys, 5)[clear], atol=1e-3, rtol=0)


def test_softsub_never_takes_a_masked_entry():
    logits = torch.zeros(50, 6)
    logits[:, 3:] = -math.inf
    sample = R.softsub(logits, 3, 0.1)
    assert (sample[:, 3:] == 0).all()
    torch.testing.assert_close(sample.sum(-1), torch.full((50,), 3.0))


def test_sst_is_the_marginals_of_perturbed_logits():
    logits = torch.randn(3, 9, dtype=DOUBLE)
    expected = k_subset_marginals((logits + gumbel_like(logits)) / 0.3, 4)
    torch.testing.assert_close(sst(logits, 4, 0.3, generator=seeded()), expected)


# Bad input


@pytest.mark.parametrize("relaxation", SUBSET_RELAXATIONS)
@pytest.mark.parametrize("k", [0, 6])
def test_a_subset_larger_than_the_set_is_refused(relaxation, k):
    with pytest.raises(ValueError, match=f"cannot choose {k} of 5"):
        relaxation(torch.zeros(2, 5), k, 0.5)


@pytest.mark.parametrize("relaxation", SUBSET_RELAXATIONS)
def test_a_temperature_of_zero_is_refused(relaxation):
    with pytest.raises(ValueError, match=r"temperature .* must be positive, got 0"):
        relaxation(torch.zeros(2, 5), 2, 0.0)


def test_weights_of_no_graph_are_refused():
    with pytest.raises(ValueError, match="no graph has 7 undirected edges"):
        R.spanning_tree_edge_marginals(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"\[B, n, n\]"):
        R.spanning_tree_marginals(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="max_range must be positive"):
        R.spanning_tree_edge_marginals(torch.zeros(2, 6), max_range=0.0)


@pytest.mark.gpu
def test_the_gpu_computes_the_same():
    logits, edges = torch.randn(4, 60, dtype=DOUBLE), torch.randn(4, 45, dtype=DOUBLE)
    for function, x in ((lambda x: k_subset_marginals(x, 7), logits), (R.spanning_tree_edge_marginals, edges)):
        torch.testing.assert_close(function(x.cuda()).cpu(), function(x))
    for relaxation in SUBSET_RELAXATIONS:
        assert relaxation(logits.cuda(), 7, 0.5).device.type == "cuda"


@pytest.mark.parametrize("far", [1e9, 1e30, math.inf])
def test_a_weight_far_above_the_others_leaves_their_differences(far):
    near, rest = torch.full((1,), 60.0), torch.randn(5)
    expected = R.spanning_tree_edge_marginals(torch.cat([near, rest]))
    assert torch.allclose(R.spanning_tree_edge_marginals(torch.cat([near * 0 + far, rest])), expected)
    assert expected[1:].std() > 0.01


@pytest.mark.parametrize("hard", [False, True])
def test_an_entry_of_infinity_is_surely_chosen(hard):
    logits = torch.tensor([[0.0, math.inf, 1.0, 3e38]], requires_grad=True)
    for sample in (R.gumbel_softmax(logits, 0.1, hard=hard), R.concrete_max(logits, 2, 0.1)):
        assert torch.equal(sample, torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    R.gumbel_softmax(logits, 0.1, hard=hard).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    "relax",
    [
        lambda theta, generator: R.gumbel_softmax(theta, 0.5, generator=generator),
        lambda theta, generator: R.concrete_max(theta, 2, 0.5, generator),
        lambda theta, generator: R.softsub(theta, 2, 0.5, generator),
        lambda theta, generator: stochastic_softmax(theta, spanning_trees(4), 0.5, generator=generator),
    ],
    ids=["gumbel_softmax", "concrete_max", "softsub", "stochastic_softmax"],
)
def test_checkpointing_cannot_repeat_a_relaxation_of_ones_own_generator_and_says_so(relax, use_reentrant):
    theta, generator = torch.randn(3, 6, requires_grad=True), torch.Generator().manual_seed(7)
    with pytest.raises(RuntimeError, match="draw from torch's own there, generator=None"):
        soft = checkpoint(lambda theta: relax(theta, generator) * theta, theta, use_reentrant=use_reentrant)
        soft.square().sum().backward()

"""The exact family of k-subsets, and the layers on it, against enumeration."""

import copy
import functools
import math
import pickle

import pytest
import torch

from imle import k_subsets
from imle.k_subset_sfe import KSubsetSFE
from imle.sfe import score_function_loss
from imle.simple import SIMPLE
from imle.solvers import select_k
from tests.reference.oracles import all_subsets, exact_marginals

LAYERS = [SIMPLE, KSubsetSFE]
SIZES = [(1, 1), (3, 2), (5, 5), (8, 4), (9, 1)]
GOAL = torch.linspace(-1, 1, 6, dtype=torch.float64)


def solutions(output):
    return output[0] if isinstance(output, tuple) else output


def enumerated(theta, k):
    """All subsets `[K, N]` and their probabilities `[B, K]`."""
    states = all_subsets(theta.shape[-1], k).to(theta)
    return states, torch.softmax(theta @ states.T, dim=-1)


# The family


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_all_quantities_agree_with_enumeration(n, k, scale):
    theta = scale * torch.randn(4, n, dtype=torch.float64)
    states, p = enumerated(theta, k)
    assert torch.allclose(k_subsets.log_partition(theta, k), torch.logsumexp(theta @ states.T, 1), rtol=0, atol=1e-10)
    assert torch.allclose(k_subsets.marginals(theta, k), exact_marginals(theta, states), rtol=0, atol=1e-10)
    found = k_subsets.log_prob(theta.unsqueeze(1), states, k)
    assert torch.allclose(found, torch.log_softmax(theta @ states.T, 1), rtol=0, atol=1e-10)
    assert torch.allclose(k_subsets.entropy(theta, k), -torch.xlogy(p, p).sum(1), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3)])
def test_gradients_are_those_of_finite_differences_to_the_second_order(n, k):
    theta = torch.randn(1, n, dtype=torch.float64, requires_grad=True)
    z = select_k(theta, k)
    functions = [
        functools.partial(k_subsets.log_partition, k=k),
        functools.partial(k_subsets.marginals, k=k),
        functools.partial(k_subsets.entropy, k=k),
        lambda x: k_subsets.log_prob(x, z, k),
    ]
    for function in functions:
        assert torch.autograd.gradcheck(function, theta)
        assert torch.autograd.gradgradcheck(function, theta)


@pytest.mark.parametrize("k", [1, 10, 500, 990])
def test_a_thousand_entries_lose_nothing_in_float32(k):
    theta = torch.randn(3, 1000) * 4
    mu, exact = k_subsets.marginals(theta, k), k_subsets.marginals(theta.double(), k)
    assert torch.allclose(mu.double(), exact, rtol=1e-5, atol=0)  # small probabilities too
    assert torch.allclose(mu.sum(1), torch.tensor(float(k)), rtol=2e-6)
    expected = k_subsets.log_partition(theta.double(), k)
    assert torch.allclose(k_subsets.log_partition(theta, k).double(), expected, rtol=0, atol=1e-6 * 4000)  # sum |theta|
    assert (k_subsets.sample(theta, k, 2).sum(1) == k).all()


def test_equal_scores_have_binomial_partition_functions():
    found = k_subsets.log_partition(torch.full((1, 1000), 0.5, dtype=torch.float64), 300).item()
    assert found == pytest.approx(math.lgamma(1001) - math.lgamma(301) - math.lgamma(701) + 150, abs=1e-9)


@pytest.mark.parametrize("wall", [-1e4, -1e9, torch.finfo(torch.float32).min, -torch.inf])
def test_masked_entries_are_as_good_as_absent(wall):
    theta = torch.randn(4, 6)
    wide = torch.cat([theta, torch.full((4, 3), wall)], dim=1).requires_grad_()
    mu = k_subsets.marginals(wide, 2)
    assert torch.allclose(mu[:, :6], k_subsets.marginals(theta, 2), atol=1e-6)
    assert not mu[:, 6:].any()
    assert torch.allclose(k_subsets.log_partition(wide, 2), k_subsets.log_partition(theta, 2), atol=1e-5)
    assert torch.allclose(k_subsets.entropy(wide, 2), k_subsets.entropy(theta, 2), atol=1e-5)
    assert not k_subsets.sample(wide, 2, 100)[:, 6:].any()
    mu[:, 0].sum().backward()
    assert wide.grad.isfinite().all() and wide.grad[:, :6].any() and not wide.grad[:, 6:].any()


def test_where_too_few_are_left_masked_entries_are_chosen_all_alike():
    theta = torch.tensor([[0.3, -torch.inf, -torch.inf, -0.2], [1e9, 1e9, -1e9, -1e9]])
    expected = torch.tensor([[1, 0.5, 0.5, 1], [1, 1, 0.5, 0.5]])
    assert torch.allclose(k_subsets.marginals(theta, 3), expected)
    z = k_subsets.sample(theta, 3, 500).view(2, 500, 4)
    assert (z.mean(dim=1) - expected).abs().max() < 0.1
    assert torch.allclose(k_subsets.log_prob(theta, z[:, 0], 3), torch.tensor(-math.log(2)))


def test_an_entry_far_above_is_certain_and_its_distance_counts_in_log_partition_alone():
    near = torch.tensor([[60.0, 0.5, 0.1, -0.4]], dtype=torch.float64)
    far = near + torch.tensor([1e6, 0, 0, 0])
    assert torch.allclose(k_subsets.marginals(near, 2), k_subsets.marginals(far, 2), atol=1e-12)
    difference = k_subsets.log_partition(far, 2) - k_subsets.log_partition(near, 2)
    assert difference.item() == pytest.approx(1e6)
    missing = k_subsets.log_prob(far, torch.tensor([[0.0, 1, 1, 0]]), 2)
    assert missing.item() == pytest.approx(-1e6, rel=1e-4)


@pytest.mark.parametrize(("n", "k"), [(5, 2), (6, 3), (7, 6)])
def test_samples_have_the_exact_distribution(n, k):
    theta, draws = torch.randn(2, n), 20000
    states, p = enumerated(theta, k)
    z = k_subsets.sample(theta, k, draws).view(2, draws, n)
    counts = (z.unsqueeze(2) == states).all(-1).sum(1)
    assert (counts.sum(1) == draws).all()
    chi_square = ((counts - draws * p).square() / (draws * p)).sum(1)
    degrees = len(states) - 1
    assert (chi_square < degrees + 5 * math.sqrt(2 * degrees)).all()
    assert ((counts / draws - p).abs().sum(1) / 2 < 0.02).all()  # total variation


def test_samples_are_independent_and_lie_side_by_side():
    theta = torch.zeros(2, 3, 4)
    theta[1] = torch.tensor([50.0, 0, 0, -50])
    z = k_subsets.sample(theta, 1, 4000)
    assert z.shape == (8000, 3, 4)
    assert torch.equal(z[4000:], torch.tensor([1.0, 0, 0, 0]).expand(4000, 3, 4))
    first = z[:4000]
    together = torch.einsum("sai,sbj->abij", first, first) / 4000
    assert (together[0, 1] - 1 / 16).abs().max() < 0.02
    assert (first[::2] * first[1::2]).sum(-1).mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_results_have_the_dtype_of_theta(dtype):
    theta = torch.randn(3, 6).to(dtype)
    exact = k_subsets.marginals(theta.double(), 2)
    assert torch.allclose(k_subsets.marginals(theta, 2).double(), exact, atol=1e-2)
    results = [k_subsets.log_partition(theta, 2), k_subsets.entropy(theta, 2), k_subsets.sample(theta, 2)]
    results.append(k_subsets.log_prob(theta, results[-1], 2))
    assert {result.dtype for result in results} == {dtype}


def test_strides_transforms_and_modes_change_nothing():
    theta = torch.randn(6, 4).mT
    expected = k_subsets.marginals(theta.contiguous(), 2)
    assert torch.allclose(k_subsets.marginals(theta, 2), expected)
    assert torch.allclose(torch.func.vmap(lambda x: k_subsets.marginals(x, 2))(theta), expected)
    with torch.inference_mode():
        assert torch.allclose(k_subsets.marginals(theta, 2), expected)
    covariance = torch.func.vmap(torch.func.jacrev(lambda x: k_subsets.marginals(x, 2)))(theta.double())
    states, p = enumerated(theta.double(), 2)
    mu = p @ states
    assert torch.allclose(covariance, torch.einsum("bk,ki,kj->bij", p, states, states) - mu[:, :, None] * mu[:, None])


def test_a_row_of_nan_stays_by_itself_and_no_sample_is_drawn_from_it():
    theta = torch.randn(3, 5)
    expected = k_subsets.marginals(theta, 2)
    theta[1, 2] = torch.nan
    mu = k_subsets.marginals(theta, 2)
    assert mu[1].isnan().all() and torch.equal(mu[[0, 2]], expected[[0, 2]])
    for function in (functools.partial(k_subsets.sample, k=2), SIMPLE(2), KSubsetSFE(2), SIMPLE(2).eval()):
        with pytest.raises(FloatingPointError, match="theta is NaN in row 1"):
            function(theta)


def test_on_an_accelerator_the_sample_of_a_row_of_nan_is_nan(no_waiting):
    theta = torch.randn(3, 5)
    theta[1, 2] = torch.nan
    no_waiting()
    z = k_subsets.sample(theta, 2, 2)
    assert z[2:4].isnan().all()
    assert (z[[0, 1, 4, 5]].sum(1) == 2).all()


@pytest.mark.parametrize("k", [0, 6])
@pytest.mark.parametrize("name", ["log_partition", "marginals", "entropy", "sample"])
def test_sizes_out_of_range_are_refused(name, k):
    with pytest.raises(ValueError, match=f"k must be between 1 and 5, the entries; it is {k}"):
        getattr(k_subsets, name)(torch.zeros(2, 5), k)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="each row of zeros and k = 2 ones"):
        k_subsets.log_prob(torch.zeros(1, 4), torch.tensor([[1.0, 1, 1, 0]]), 2)
    with pytest.raises(ValueError, match="zeros and k = 2 ones"):
        k_subsets.log_prob(torch.zeros(1, 4), torch.tensor([[2.0, 0, 0, 0]]), 2)
    with pytest.raises(ValueError, match="batch dimension first"):
        k_subsets.sample(torch.zeros(4), 2)
    with pytest.raises(TypeError, match=r"not torch\.int64"):
        k_subsets.marginals(torch.zeros(1, 4).long(), 2)
    for options in ({"k": 0}, {"k": 2, "nb_samples": 0}, {"k": 1.5}):
        with pytest.raises(ValueError, match="must be a whole number from 1 up"):
            SIMPLE(**options)


# The layers


@pytest.mark.parametrize("nb_samples", [1, 3])
def test_simple_pulls_dy_back_through_the_covariance_of_the_subset(nb_samples):
    theta = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(4 * nb_samples, 6, dtype=torch.float64)
    SIMPLE(2, nb_samples)(theta).backward(dy)
    states, p = enumerated(theta.detach(), 2)
    centred = states - (p @ states).unsqueeze(1)
    covariance = torch.einsum("bk,bki,bkj->bij", p, centred, centred)
    mean_dy = dy.view(4, nb_samples, 6).mean(1)
    assert torch.allclose(theta.grad, (covariance @ mean_dy.unsqueeze(2)).squeeze(2))


def exact_gradient(theta, loss, k):
    theta = theta.clone().requires_grad_()
    states, p = enumerated(theta, k)
    (p * loss(states)).sum().backward()
    return theta.grad


def square_loss(z):
    return (z @ GOAL).square()


@pytest.mark.parametrize(("nb_samples", "baseline"), [(1, None), (2, "leave_one_out"), (4, "leave_one_out")])
def test_the_exact_score_is_unbiased(nb_samples, baseline):
    theta = torch.randn(6, dtype=torch.float64)
    exact = exact_gradient(theta[None], square_loss, 3)[0]
    leaf = theta.expand(20000, 6).clone().requires_grad_()
    z, log_prob = KSubsetSFE(3, nb_samples)(leaf)
    score_function_loss(square_loss(z), log_prob, nb_samples, baseline).sum().backward()
    mean, error = leaf.grad.mean(0), leaf.grad.std(0) / math.sqrt(20000)
    assert ((mean - exact).abs() < 4.5 * error).all()
    assert error.norm() < 0.1 * exact.norm()


def test_leave_one_out_lowers_the_variance_of_the_exact_score():
    gradients = []
    for baseline in (None, "leave_one_out"):
        leaf = torch.zeros(5000, 6, dtype=torch.float64, requires_grad=True)
        z, log_prob = KSubsetSFE(3, 4)(leaf)
        score_function_loss(square_loss(z), log_prob, 4, baseline).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[1].var(0).sum() < 0.85 * gradients[0].var(0).sum()


@pytest.mark.parametrize("shape", [(5,), (3, 5)], ids=str)
@pytest.mark.parametrize("make", LAYERS)
def test_a_layer_samples_in_training_and_solves_in_evaluation(make, shape):
    layer, theta = make(2, nb_samples=3), torch.randn(4, *shape, requires_grad=True)
    sampled = solutions(layer(theta))
    assert sampled.shape == (12, *shape)
    assert set(sampled.unique().tolist()) == {0, 1}
    for output in (layer.eval()(theta), layer.train().solve(theta)):
        assert torch.equal(solutions(output), select_k(theta, 2))
        assert not solutions(output).requires_grad
    for output in (layer(theta), layer.eval().sample(theta)):
        carrier = output[1] if isinstance(output, tuple) else output
        assert carrier.shape == ((12,) if isinstance(output, tuple) else (12, *shape))
        theta.grad = None
        (carrier * torch.randn_like(carrier)).sum().backward()
        assert theta.grad.isfinite().all() and theta.grad.abs().sum() > 0
    with torch.no_grad():
        output = layer.sample(theta)
    assert not any(x.requires_grad for x in (output if isinstance(output, tuple) else (output,)))
    assert solutions(layer.sample(torch.zeros(0, *shape))).shape == (0, *shape)


@pytest.mark.parametrize("make", LAYERS)
def test_the_log_probability_of_many_subsets_is_their_sum_and_layers_follow_seeds(make):
    theta = torch.randn(4, 3, 6)
    layer = make(2, nb_samples=2, generator=torch.Generator().manual_seed(3))
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    state = torch.get_rng_state()
    output = layer(theta)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(solutions(twin(theta)), solutions(output)) for twin in twins)
    assert not torch.equal(solutions(layer(theta)), solutions(output))
    assert repr(layer) == f"{make.__name__}(k=2, nb_samples=2)"
    if isinstance(output, tuple):
        z, log_prob = output
        rows = k_subsets.log_prob(theta.repeat_interleave(2, dim=0).flatten(0, 1), z.flatten(0, 1), 2)
        assert torch.allclose(log_prob, rows.view(8, 3).sum(1))


@pytest.mark.parametrize("make", LAYERS)
def test_gradients_under_function_transforms_are_the_same(make):
    layer, theta = make(2, nb_samples=2), torch.randn(3, 6, dtype=torch.float64)

    def loss(x):
        output = layer(x)
        losses = square_loss(solutions(output))
        return (score_function_loss(losses, output[1], 2) if isinstance(output, tuple) else losses).sum()

    leaf = theta.clone().requires_grad_()
    torch.manual_seed(1)
    loss(leaf).backward()
    torch.manual_seed(1)
    assert torch.allclose(torch.func.grad(loss)(theta), leaf.grad)
    members = torch.func.vmap(torch.func.grad(loss), randomness="different")(theta.expand(4, 3, 6))
    assert members.isfinite().all() and members.unique(dim=0).shape[0] == 4

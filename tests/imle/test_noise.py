"""Noise: the table-based Sum-of-Gamma against sums of Gamma draws, closed forms and an inversion formula."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import special, stats

from imle.noise import (
    BaseNoiseDistribution,
    GumbelNoiseDistribution,
    SumOfGammaNoiseDistribution,
    draw,
)

GRID = [(k, s) for k in (1, 5, 10, 350) for s in (1, 10, 100)]
PROBABILITIES = torch.tensor([1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9], dtype=torch.float64)
OURS = [SumOfGammaNoiseDistribution(5), GumbelNoiseDistribution(0.5, 2.0)]


def sum_of_gamma_draws(k: int, s: int, n: int) -> torch.Tensor:
    """The definition: s Gamma draws for each of n values; in float64, since Gamma(1/350) underflows in float32."""
    total = torch.zeros(n, dtype=torch.float64)
    shape = torch.tensor(1.0 / k, dtype=torch.float64)
    for i in range(1, s + 1):
        total += torch.distributions.Gamma(shape, shape * i).sample((n,))
    return (total - math.log(s)) / k


def max_of_exponentials_cdf(x: np.ndarray, s: int) -> np.ndarray:
    """SoG(1, s), and the sum of k draws of SoG(k, s), is the largest of s Exponentials, less log(s)."""
    return np.clip(1 - np.exp(-np.asarray(x, dtype=float)) / s, 0, None) ** s


def inverted_cdf(x: np.ndarray, k: int, s: int, dt: float = 0.02, steps: int = 500_000) -> np.ndarray:
    """Gil-Pelaez: F(x) = 1/2 - 1/pi int_0^inf Im(exp(-itx) phi(t)) / t dt, by the midpoint rule."""
    t = (np.arange(steps) + 0.5) * dt
    log_phi = -1j * t * math.log(s) / k - sum(np.log(1 - 1j * t / i) for i in range(1, s + 1)) / k
    return np.array([0.5 - np.sum(np.exp(log_phi - 1j * t * v).imag / t) * dt / math.pi for v in x])


def cumulants_by_quadrature(noise: SumOfGammaNoiseDistribution) -> list[float]:
    z = torch.linspace(-7, 7, 56001, dtype=torch.float64)
    weight = torch.exp(-(z**2) / 2) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    eps = noise.quantile(torch.special.ndtr(z))
    mean = (weight * eps).sum()
    m2, m3, m4 = ((weight * (eps - mean) ** n).sum().item() for n in (2, 3, 4))
    return [mean.item(), m2, m3, m4 - 3 * m2**2]


@pytest.mark.parametrize(("k", "s"), GRID)
def test_sum_of_gamma_is_distributed_like_sums_of_gamma_draws(k, s):
    n = 100_000 if s <= 10 else 20_000
    reference = sum_of_gamma_draws(k, s, n).float()
    eps = SumOfGammaNoiseDistribution(k, s).sample((n,))
    assert stats.ks_2samp(eps.numpy(), reference.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("k", "s"), GRID)
def test_cumulants_of_the_table_are_the_closed_forms(k, s):
    noise = SumOfGammaNoiseDistribution(k, s)
    harmonic = sum(1 / i for i in range(1, s + 1))
    expected = [(harmonic - math.log(s)) / k]
    expected += [math.factorial(n - 1) / k * sum(i**-n for i in range(1, s + 1)) for n in (2, 3, 4)]
    assert [noise.cumulant(n) for n in (1, 2, 3, 4)] == pytest.approx(expected, rel=1e-12)
    assert (noise.mean, noise.variance) == (noise.cumulant(1), noise.cumulant(2))
    # Linear interpolation between the table's entries shifts the mean by some 1e-8; what lies beyond a normal score
    # of 7 is missing from the integral, which shows in the higher cumulants.
    mean, *others = cumulants_by_quadrature(noise)
    assert mean == pytest.approx(expected[0], abs=1e-7 * math.sqrt(noise.variance))
    assert others[:2] == pytest.approx(expected[1:3], rel=1e-5)
    assert others[2] == pytest.approx(expected[3], rel=1e-4)


@pytest.mark.parametrize("s", [1, 3, 10, 100, 280])
def test_quantiles_at_k_one_are_those_of_the_largest_exponential(s):
    quantiles = SumOfGammaNoiseDistribution(1, s).quantile(PROBABILITIES)
    exact = -torch.log(-torch.expm1(PROBABILITIES.log() / s)) - math.log(s)
    torch.testing.assert_close(quantiles, exact, rtol=0, atol=3e-7)


@pytest.mark.parametrize("k", [0.5, 1, 2, 10, 350, 1000])
def test_quantiles_at_one_gamma_are_those_of_the_gamma_distribution(k):
    p = PROBABILITIES
    exact = torch.from_numpy(
        np.where(p < 0.5, special.gammaincinv(1 / k, p.numpy()), special.gammainccinv(1 / k, 1 - p.numpy()))
    )
    torch.testing.assert_close(SumOfGammaNoiseDistribution(k, 1).quantile(p), exact, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize(("k", "s"), [(2, 8), (3, 20), (0.7, 5)])
def test_quantiles_agree_with_the_inverted_characteristic_function(k, s):
    p = PROBABILITIES[1:-1]
    x = SumOfGammaNoiseDistribution(k, s).quantile(p).numpy()
    np.testing.assert_allclose(inverted_cdf(x, k, s), p.numpy(), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize(("k", "s"), [(1, 1), (10, 10), (350, 1), (350, 100), (1000, 1), (1000, 20), (20_000, 2)])
def test_quantiles_rise_from_the_end_of_the_support(k, s):
    p = torch.special.ndtr(torch.linspace(-6.9, 6.9, 40_001, dtype=torch.float64))
    quantiles = SumOfGammaNoiseDistribution(k, s).quantile(p)
    assert quantiles.isfinite().all()
    assert (quantiles.diff() >= 0).all()
    assert quantiles.min() >= -math.log(s) / k
    assert quantiles[-1] - quantiles[0] > 1


def test_one_draw_in_a_million_lies_beyond_the_exact_quantile_of_one_in_a_million():
    s, n = 10, 40_000_000
    noise = SumOfGammaNoiseDistribution(1, s)
    low = -math.log(s * (1 - 1e-6 ** (1 / s)))
    high = -math.log(-s * math.expm1(math.log1p(-1e-6) / s))
    below = above = 0
    for _ in range(20):
        eps = noise.sample((n // 20,))
        below, above = below + int((eps < low).sum()), above + int((eps > high).sum())
    for count in (below, above):  # Poisson with mean 40
        assert 15 <= count <= 70


@pytest.mark.parametrize(("k", "s"), [(1, 10), (2, 10), (5, 10), (10, 3)])
def test_k_draws_add_up_to_the_largest_of_s_exponentials(k, s):
    total = SumOfGammaNoiseDistribution(k, s).sample((100_000, k), dtype=torch.float64).sum(-1)
    assert stats.kstest(total.numpy(), max_of_exponentials_cdf, args=(s,)).pvalue > 1e-3


@pytest.mark.parametrize("k", [1, 5])
def test_k_draws_with_many_terms_add_up_to_a_gumbel_variable(k):
    total = SumOfGammaNoiseDistribution(k, 300).sample((50_000, k)).sum(-1)
    assert stats.kstest(total.numpy(), "gumbel_r").pvalue > 1e-3


def test_merging_the_smallest_terms_keeps_the_distribution():
    s = 100_000
    noise = SumOfGammaNoiseDistribution(1, s)
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    np.testing.assert_allclose(max_of_exponentials_cdf(noise.quantile(p).numpy(), s), p.numpy(), atol=1e-7)
    exact = [noise.cumulant(n) for n in (1, 2, 3, 4)]
    assert exact[1] == pytest.approx(math.pi**2 / 6, rel=1e-4)
    assert cumulants_by_quadrature(noise) == pytest.approx(exact, rel=1e-5)


def test_the_number_of_terms_matters():
    variances = [SumOfGammaNoiseDistribution(3, s).sample((100_000,)).var().item() for s in (1, 2, 100)]
    assert variances == pytest.approx([1 / 3, 1.25 / 3, math.pi**2 / 18], rel=0.05)


def test_quantiles_refuse_what_is_no_probability():
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            SumOfGammaNoiseDistribution(3).quantile(torch.tensor([0.5, p]))


def test_quantiles_keep_the_shape_of_their_probabilities():
    p = torch.rand(4, 3).T
    quantiles = SumOfGammaNoiseDistribution(3).quantile(p)
    assert quantiles.shape == (3, 4)
    torch.testing.assert_close(quantiles[1, 2], SumOfGammaNoiseDistribution(3).quantile(p[1, 2]))


def test_gumbel_draws_are_gumbel():
    eps = GumbelNoiseDistribution(location=1.0, scale=2.0).sample((100_000,))
    assert stats.kstest(eps.numpy(), "gumbel_r", args=(1.0, 2.0)).pvalue > 1e-3


def test_gumbel_draws_are_finite_and_reach_far_into_the_upper_tail():
    eps = GumbelNoiseDistribution().sample((20_000_000,))
    assert eps.isfinite().all()
    assert 10 <= int((eps > math.log(1e6)).sum()) <= 40  # Poisson with mean 20
    assert 5 <= int((eps < -math.log(math.log(1e6))).sum()) <= 45


def test_gumbel_log_prob_integrates_to_one_and_is_the_known_density():
    noise = GumbelNoiseDistribution(location=-1.0, scale=0.5)
    x = torch.linspace(-4, 16, 20_001, dtype=torch.float64)
    log_prob = noise.log_prob(x)
    assert torch.trapezoid(log_prob.exp(), x).item() == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(log_prob.numpy(), stats.gumbel_r.logpdf(x.numpy(), -1.0, 0.5), rtol=1e-12)


def test_gumbel_log_prob_is_differentiable():
    noise = GumbelNoiseDistribution(location=0.3, scale=1.7)
    assert torch.autograd.gradcheck(noise.log_prob, torch.randn(5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("noise", OURS, ids=lambda n: type(n).__name__)
class TestEveryNoise:
    @pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 5), (70_000,), torch.Size([2, 40_000])])
    def test_has_the_shape_asked_for(self, noise, shape):
        eps = noise.sample(shape)
        assert eps.shape == torch.Size(shape)
        assert eps.dtype == torch.float32
        assert eps.unique().numel() > 0.9 * eps.numel() or eps.numel() == 0

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_has_the_dtype_asked_for_and_the_same_distribution(self, noise, dtype):
        eps = noise.sample((50_000,), dtype=dtype)
        reference = noise.sample((50_000,), dtype=torch.float64).to(dtype)
        assert eps.dtype == dtype
        assert stats.ks_2samp(eps.double().numpy(), reference.double().numpy()).pvalue > 1e-3

    def test_is_reproducible_with_a_generator_of_its_own(self, noise):
        before = torch.get_rng_state()
        first, again, other = (noise.sample((50,), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(before, torch.get_rng_state())

    def test_is_reproducible_under_the_global_seed(self, noise):
        torch.manual_seed(3)
        first = noise.sample((50,))
        second = noise.sample((50,))
        torch.manual_seed(3)
        assert torch.equal(first, noise.sample((50,)))
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
    def test_survives_copying_and_pickling(self, noise, clone):
        noise.sample((2,))
        twin = clone(noise)
        assert repr(twin) == repr(noise)
        torch.manual_seed(5)
        eps = noise.sample((9,))
        torch.manual_seed(5)
        assert torch.equal(twin.sample((9,)), eps)
        assert len(pickle.dumps(noise)) < 1000

    def test_refuses_integers(self, noise):
        with pytest.raises(TypeError, match="floating-point"):
            noise.sample((2,), dtype=torch.int64)

    def test_samples_on_its_own_device_unless_told_otherwise(self, noise):
        noise = copy.copy(noise)
        noise.device = "meta"
        assert noise.sample((2,)).device.type == "meta"
        assert noise.sample((2,), device="cpu").device.type == "cpu"

    def test_made_in_inference_mode_serves_autograd(self, noise):
        noise = copy.copy(noise)
        noise.nb_iterations = 7  # a table that no other test has made
        with torch.inference_mode():
            noise.sample((2,))
        weight = torch.ones(3, requires_grad=True)
        eps = noise.sample((3,))
        (weight * eps).sum().backward()
        assert torch.equal(weight.grad, eps)

    def test_has_independent_draws_under_vmap(self, noise):
        def shifted(theta):
            return theta + noise.sample(theta.shape)

        z = torch.vmap(shifted, randomness="different")(torch.zeros(3, 4))
        assert z.unique().numel() == 12

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_has_the_same_distribution_on_the_gpu(self, noise):
        on_gpu = noise.sample((100_000,), device="cuda")
        assert on_gpu.is_cuda
        assert stats.ks_2samp(on_gpu.cpu().numpy(), noise.sample((100_000,)).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("kwargs", "error", "name"),
    [
        ({"k": 0}, ValueError, "k"),
        ({"k": -1}, ValueError, "k"),
        ({"k": math.inf}, ValueError, "k"),
        ({"k": math.nan}, ValueError, "k"),
        ({"k": "10"}, TypeError, "k"),
        ({"k": None}, TypeError, "k"),
        ({"k": 3, "nb_iterations": 0}, ValueError, "nb_iterations"),
        ({"k": 3, "nb_iterations": 2.5}, TypeError, "nb_iterations"),
    ],
)
def test_sum_of_gamma_names_the_bad_argument(kwargs, error, name):
    with pytest.raises(error, match=f"^{name} is "):
        SumOfGammaNoiseDistribution(**kwargs)


def test_cumulants_are_numbered_from_one():
    with pytest.raises(ValueError, match="numbered from 1"):
        SumOfGammaNoiseDistribution(3).cumulant(0)


@pytest.mark.parametrize("kwargs", [{"location": math.nan}, {"scale": 0.0}, {"scale": -1.0}, {"scale": math.inf}])
def test_gumbel_names_the_bad_argument(kwargs):
    (name,) = kwargs
    with pytest.raises(ValueError, match=f"^{name} is "):
        GumbelNoiseDistribution(**kwargs)


def test_integers_of_numpy_are_numbers():
    noise = SumOfGammaNoiseDistribution(np.int64(5), np.int64(3))
    assert noise.variance == pytest.approx((1 + 1 / 4 + 1 / 9) / 5)


class ForeignNoise:
    """The contract of the library and no more."""

    def __init__(self, value=lambda shape: torch.full(shape, 0.5)):
        self.value = value

    def sample(self, shape):
        return self.value(shape)


class PlainNoise(BaseNoiseDistribution):
    """A subclass that knows nothing of keywords."""

    def sample(self, shape):
        return torch.ones(shape)


@pytest.mark.parametrize("noise", [*OURS, ForeignNoise(), PlainNoise(), torch.distributions.Normal(0.0, 1.0)])
def test_draw_takes_any_noise_to_the_dtype_of_theta(noise):
    eps = draw(noise, (2, 3), like=torch.zeros(5, dtype=torch.float64))
    assert eps.shape == (2, 3)
    assert eps.dtype == torch.float64


def test_draw_passes_the_generator_on():
    for noise in OURS:
        like, generators = torch.zeros(1), [torch.Generator().manual_seed(4) for _ in range(2)]
        first = draw(noise, (6,), like, generators[0])
        assert torch.equal(first, draw(noise, (6,), like, generators[1]))
        assert not torch.equal(first, draw(noise, (6,), like, generators[1]))


@pytest.mark.parametrize("noise", [ForeignNoise(), PlainNoise()])
def test_draw_refuses_a_generator_that_the_noise_would_ignore(noise):
    with pytest.raises(ValueError, match="takes no generator"):
        draw(noise, (2,), torch.zeros(1), torch.Generator())


def test_draw_names_both_shapes_when_they_differ():
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(2, 3\)"):
        draw(ForeignNoise(lambda shape: torch.zeros(shape[::-1])), (2, 3), torch.zeros(1))


def test_draw_refuses_what_is_no_noise():
    with pytest.raises(TypeError, match="no method sample"):
        draw(0.5, (2,), torch.zeros(1))
    with pytest.raises(TypeError, match="ndarray"):
        draw(ForeignNoise(np.zeros), (2,), torch.zeros(1))

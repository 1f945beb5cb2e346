"""What a command line says is what the library is told: each layer against one made by hand, number by number."""

from dataclasses import replace

import pytest
import torch

from aaai23.dvae import cli as dvae_cli
from aaai23.dvae import train as dvae_train
from aaai23.l2x import cli as l2x_cli
from aaai23.l2x import train as l2x_train
from aaai23.methods import METHODS, beta_of
from imle.aimle import aimle
from imle.auto import AutoTargetDistribution
from imle.imle import imle
from imle.k_subsets import marginals as k_subset_marginals
from imle.layers import MAPLayer
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.relaxations import concrete_max, gumbel_softmax, perturbed, softsub
from imle.solvers import select_k
from imle.ste import ste
from imle.structures import k_subsets
from imle.target import AdaptiveTargetDistribution, TargetDistribution
from tests.aaai23.settings import Settings

K = 3
SOG = SumOfGammaNoiseDistribution(k=K, nb_iterations=10)
GUMBEL = GumbelNoiseDistribution()


def select_three(theta):
    return select_k(theta, K)


def with_noise(estimator, target, noise, samples=1, tau=1.0, target_tau=1.0, **more):
    layer = estimator(
        target_distribution=target,
        noise_distribution=noise,
        nb_samples=samples,
        theta_noise_temperature=tau,
        target_noise_temperature=target_tau,
        **more,
    )
    return MAPLayer(select_three, layer)


class Relaxed(torch.nn.Module):
    def __init__(self, relax, samples=1, k=K):
        super().__init__()
        self.relax, self.samples, self.k = relax, samples, k

    def forward(self, theta):
        return self.sample(theta) if self.training else select_k(theta, self.k)

    def sample(self, theta):
        return self.relax(theta.repeat_interleave(self.samples, dim=0))


def sst(theta, tau):
    return k_subset_marginals(perturbed(theta, K) / tau, K)


ADAPTIVE = "--aimle-target adaptive --imle-lambda 0.3 --aimle-beta-update-step 0.02 --aimle-beta-update-momentum 0.5 "
ADAPTIVE += "--aimle-target-norm 2.5"


def adaptive(exact_scaling=False):
    return AdaptiveTargetDistribution(
        initial_alpha=1.0,
        initial_beta=0.3,
        initial_grad_norm=1.0,
        beta_update_step=0.02,
        beta_update_momentum=0.5,
        grad_norm_decay_rate=0.9,
        target_norm=2.5,
        exact_scaling=exact_scaling,
    )


def scaled(size):
    return TargetDistribution(alpha=1.0, beta=size, do_gradient_scaling=True)


def fixed(size):
    return TargetDistribution(alpha=1.0, beta=size, do_gradient_scaling=False)


DEFAULT_ADAPTIVE = {"initial_beta": 0.0, "beta_update_step": 1e-4, "beta_update_momentum": 0.0, "target_norm": 1.0}
TEMPERATURES = "--imle-input-temperature 0.5 --imle-output-temperature 0.25"
L2X = {
    "": lambda: with_noise(imle, fixed(1000.0), SOG, tau=0.0, target_tau=10.0),
    f"-M imle --imle-lambda 2 --imle-samples 3 {TEMPERATURES}": lambda: with_noise(imle, fixed(2.0), SOG, 3, 0.5, 0.25),
    "-M imle --imle-lambda 2 --imle-input-temperature 1 --imle-noise none": lambda: with_noise(imle, fixed(2.0), None),
    "-M imle --imle-lambda 2 --imle-noise gumbel --imle-input-temperature 1 --gradient-scaling": lambda: with_noise(
        imle, scaled(2.0), GUMBEL, target_tau=10.0
    ),
    "-M imletopk": lambda: with_noise(imle, fixed(1000.0), SOG, 1, 10.0, 10.0),
    f"-M imletopk --imle-noise gumbel --imle-lambda 3 {TEMPERATURES}": lambda: with_noise(
        imle, fixed(3.0), GUMBEL, tau=0.5, target_tau=0.25
    ),
    "-M aimle --imle-lambda 2 --imle-input-temperature 1 --imle-output-temperature 0.5": lambda: with_noise(
        aimle, fixed(2.0), SOG, target_tau=0.5
    ),
    f"-M aimle {ADAPTIVE} --imle-input-temperature 0.5 --imle-output-temperature 1 --imle-noise gumbel": lambda: (
        with_noise(aimle, adaptive(), GUMBEL, tau=0.5)
    ),
    f"-M aimle --aimle-symmetric {ADAPTIVE} --imle-input-temperature 1 --imle-output-temperature 0.5": lambda: (
        with_noise(aimle, adaptive(), SOG, target_tau=0.5, symmetric_perturbation=True)
    ),
    f"-M aimle {ADAPTIVE} --imle-samples 3 --imle-input-temperature 1 --imle-output-temperature 1": lambda: with_noise(
        aimle, adaptive(exact_scaling=True), SOG, 3
    ),
    "-M aimle --aimle-target adaptive --imle-lambda 0 --imle-input-temperature 1": lambda: with_noise(
        aimle, AdaptiveTargetDistribution(**DEFAULT_ADAPTIVE), SOG, target_tau=10.0
    ),
    "-M aimle --aimle-target auto --imle-noise gumbel --imle-input-temperature 1 --imle-output-temperature 1 "
    "--imle-samples 3": lambda: with_noise(aimle, AutoTargetDistribution(), GUMBEL, 3, symmetric_perturbation=False),
    "-M ste": lambda: MAPLayer(select_three, ste(noise_distribution=SOG, noise_temperature=0.0)),
    "-M ste --ste-noise gumbel --ste-temperature 2 --imle-input-temperature 5 --imle-samples 3": lambda: MAPLayer(
        select_three, ste(noise_distribution=GUMBEL, noise_temperature=2.0, nb_samples=3)
    ),
    "-M sst --sst-temperature 0.7": lambda: Relaxed(lambda theta: sst(theta, 0.7)),
    "-M sst": lambda: Relaxed(lambda theta: sst(theta, 0.1)),
    "-M softsub --softsub-temperature 0.7": lambda: Relaxed(lambda theta: softsub(theta, K, 0.7)),
    "-M softsub --imle-samples 2": lambda: Relaxed(lambda theta: softsub(theta, K, 0.5), 2),
    "-M softsub": lambda: Relaxed(lambda theta: softsub(theta, K, 0.5)),
    "-M l2x --sst-temperature 0.7": lambda: Relaxed(lambda theta: concrete_max(theta, K, 0.1)),
}
VAE = {
    "": lambda: with_noise(imle, fixed(10.0), SOG, tau=10.0, target_tau=10.0),
    "-M imle --imle-lambda 2 --imle-temperature 0.5 --imle-noise gumbel --imle-samples 3 --gradient-scaling": lambda: (
        with_noise(imle, scaled(2.0), GUMBEL, 3, 0.5, 0.5)
    ),
    f"-M aimle {ADAPTIVE} --imle-temperature 0.5 --imle-samples 2": lambda: with_noise(
        aimle, adaptive(), SOG, 2, 0.5, 0.5
    ),
    f"-M aimle {ADAPTIVE} --imle-temperature 2 --aimle-symmetric": lambda: with_noise(
        aimle, adaptive(), SOG, 1, 2.0, 2.0, symmetric_perturbation=True
    ),
    "-M aimle --aimle-target adaptive --imle-lambda 0 --imle-temperature 1": lambda: with_noise(
        aimle, AdaptiveTargetDistribution(**DEFAULT_ADAPTIVE), SOG
    ),
    "-M aimle --aimle-target auto --imle-noise gumbel --imle-temperature 1 --imle-samples 3": lambda: with_noise(
        aimle, AutoTargetDistribution(exact_scaling=False), GUMBEL, 3, symmetric_perturbation=False
    ),
    "-M ste": lambda: MAPLayer(select_three, ste(noise_distribution=SOG, noise_temperature=0.0)),
    "-M ste --ste-noise gumbel --ste-temperature 2 --imle-temperature 5 --imle-samples 2": lambda: MAPLayer(
        select_three, ste(noise_distribution=GUMBEL, noise_temperature=2.0, nb_samples=2)
    ),
    "-M gumbel-softmax --init-temperature 0.7 --imle-samples 2": lambda: Relaxed(
        lambda theta: gumbel_softmax(theta, 0.7), 2, k=1
    ),
    "-M gumbel-softmax --hard": lambda: Relaxed(lambda theta: gumbel_softmax(theta, 1.0, hard=True), k=1),
}


def l2x_layer(line):
    config, _ = l2x_cli.parse_arguments(["-K", str(K), *line.split()])
    return l2x_train.build(config, torch.zeros(2, 4)).layer


def vae_layer(line):
    config, _ = dvae_cli.parse_arguments(["-K", str(K), *line.split()])
    return dvae_train.build(config).layer


def three_steps(layer):
    """Solutions, gradients and beta of three training passes, and what evaluation solves and samples."""
    torch.manual_seed(1)
    results = []
    for size in (1.0, 1e-2, 1e-4):  # of dy: beside which lambda and the noise of the target pass count more and more
        theta = torch.randn(6, 8, requires_grad=True)
        z = layer.train()(theta)
        z.backward(size * torch.randn(z.shape))
        results += [z.detach(), theta.grad, torch.tensor(beta_of(layer) or 0.0)]
    return [*results, layer.eval()(theta).detach(), layer.sample(theta).detach()]


@pytest.mark.parametrize(
    ("build", "line", "by_hand"),
    [(build, *case) for build, cases in ((l2x_layer, L2X), (vae_layer, VAE)) for case in cases.items()],
)
def test_a_layer_of_the_command_line_is_the_librarys_with_those_options(build, line, by_hand):
    layer = by_hand()
    if build is l2x_layer and isinstance(layer, MAPLayer):  # its loss is a mean over samples
        layer.estimator = replace(layer.estimator, sample_reduction="sum")
    for found, expected in zip(three_steps(build(line)), three_steps(layer), strict=True):
        assert torch.equal(found, expected)


def test_the_networks_of_the_command_line_have_its_sizes():
    config, _ = l2x_cli.parse_arguments(["-k", "5", "-H", "7", "--mask-padding"])
    model = l2x_train.build(config, torch.zeros(2, 4))
    assert [w.shape[2] for w in model.selector.parameters() if w.dim() == 3] == [5, 5, 5]
    assert [tuple(w.shape) for w in model.predictor.parameters()] == [(7, 4), (7,), (1, 7), (1,)]
    assert model.mask_padding and model.select_k == 10
    config, _ = dvae_cli.parse_arguments(["--input-dim", "9", "--code-m", "2", "--code-n", "11"])
    model = dvae_train.build(config)
    logits, reconstruction = model(torch.rand(3, 9))
    assert logits.shape == (6, 11) and reconstruction.shape == (3, 9)


# What every layer promises to a task


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def z_of(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("method", METHODS)
def test_every_layer_samples_in_training_solves_in_evaluation_and_does_either_when_asked(method):
    structure = k_subsets(1 if method == "gumbel-softmax" else 3)
    layer = METHODS[method](structure, Settings(nb_samples=2, perturbation_size=1.0))
    theta, best = torch.randn(5, 8), structure.solve
    for mode in (True, False):
        layer.train(mode)
        first, again, other = (z_of(layer.sample(theta, generator=seeded(seed))) for seed in (1, 1, 2))
        assert first.shape == (10, 8) and torch.equal(first, again) and not torch.equal(first, other)
        assert torch.equal(z_of(layer.solve(theta.requires_grad_())), best(theta))
        assert not z_of(layer.solve(theta)).requires_grad
        torch.manual_seed(3)
        found = z_of(layer(theta))
        torch.manual_seed(3)
        assert torch.equal(found, z_of(layer.sample(theta) if mode else layer.solve(theta)))


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_keeps_solutions_and_samples_to_what_it_allows(method):
    structure = k_subsets(1 if method == "gumbel-softmax" else 3)
    layer = METHODS[method](structure, Settings(nb_samples=2, perturbation_size=1.0))
    mask = torch.arange(8) >= torch.tensor([[0], [4], [5]])
    for z in (z_of(layer.sample(torch.randn(3, 8), mask=mask)), z_of(layer.solve(torch.randn(3, 8), mask=mask))):
        assert not z[~mask.repeat_interleave(len(z) // 3, dim=0)].any()


def gumbel_softmax_layer(temperature, hard=False, samples=1):
    settings = Settings(relaxation_temperature=temperature, hard=hard, nb_samples=samples)
    return METHODS["gumbel-softmax"](k_subsets(1), settings)


@pytest.mark.parametrize("training", [True, False])
def test_gumbel_softmax_samples_also_in_evaluation(training):
    layer = gumbel_softmax_layer(0.7).train(training)
    z = layer.sample(torch.zeros(50, 4))
    torch.testing.assert_close(z.sum(-1), torch.ones(50))
    assert len(set(z.argmax(-1).tolist())) == 4


def test_hard_gumbel_softmax_draws_categories_as_often_as_softmax_says():
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 2.0]], requires_grad=True)
    z = gumbel_softmax_layer(0.5, hard=True, samples=20_000)(logits)
    assert set(z.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(z.unflatten(0, (2, -1)).mean(1), logits.softmax(-1), atol=0.015, rtol=0)
    z[:, 0].sum().backward()
    assert logits.grad.abs().min() > 0


def test_a_relaxed_layer_takes_its_temperature_from_outside_and_a_generator():
    layer, generator, theta = gumbel_softmax_layer(10.0), torch.Generator().manual_seed(3), torch.randn(100, 4)
    before = torch.get_rng_state()
    warm = layer.sample(theta, generator=generator)
    layer.temperature = 0.1
    cold = layer.sample(theta, generator=generator.manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(warm.argmax(-1), cold.argmax(-1))
    assert cold.max(-1).values.mean() > 0.8 > 0.5 > warm.max(-1).values.mean()


@pytest.mark.parametrize("method", ["sst", "softsub", "l2x", "gumbel-softmax"])
def test_a_relaxed_layer_of_temperature_zero_is_refused(method):
    with pytest.raises(ValueError, match="temperature"):
        METHODS[method](k_subsets(1), Settings(relaxation_temperature=0.0))
    layer = METHODS[method](k_subsets(1), Settings())
    layer.temperature = 0.0
    with pytest.raises(ValueError, match="temperature"):
        layer(torch.zeros(2, 3))


def test_the_target_without_numbers_reads_none_of_the_flags_of_the_others():
    def gradient(**settings):
        torch.manual_seed(0)
        layer = METHODS["aimle"](k_subsets(3), Settings(target="auto", noise="gumbel", **settings))
        theta = torch.randn(4, 9).requires_grad_()
        (layer(theta) - torch.rand(4, 9)).square().sum().backward()
        return theta.grad

    plain = gradient()
    assert plain.ne(0).any(dim=1).all()
    assert torch.equal(plain, gradient(perturbation_size=7.0, beta_update_step=0.0, target_norm=9.0))

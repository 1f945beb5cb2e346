"""What a command line says is what the library is told: each layer against one made by hand, number by number."""

import pytest
import torch

from aaai23.dvae import cli as dvae_cli
from aaai23.dvae import train as dvae_train
from aaai23.dvae.model import GumbelSoftmaxLayer
from aaai23.l2x import cli as l2x_cli
from aaai23.l2x import train as l2x_train
from aaai23.methods import beta_of
from aaai23.relaxations import concrete_max, gumbel_softmax, softsub, sst_k_subset
from imle.aimle import aimle
from imle.imle import imle
from imle.layers import MAPLayer
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution
from imle.solvers import select_k
from imle.ste import ste
from imle.target import AdaptiveTargetDistribution, TargetDistribution

K = 3
SOG = SumOfGammaNoiseDistribution(k=K, nb_iterations=10)
GUMBEL = GumbelNoiseDistribution()


def select_three(theta):
    return select_k(theta, K)


def perturbed(estimator, target, noise, samples=1, tau=1.0, target_tau=1.0, **more):
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
    def __init__(self, relax):
        super().__init__()
        self.relax = relax

    def forward(self, theta):
        return self.relax(theta) if self.training else select_three(theta)


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
L2X = {
    "": lambda: perturbed(imle, fixed(1000.0), SOG, tau=0.0, target_tau=10.0),
    "-M imle --imle-lambda 2 --imle-input-temperature 0.5 --imle-output-temperature 0.25 --imle-samples 3": lambda: (
        perturbed(imle, fixed(2.0), SOG, 3, 0.5, 0.25)
    ),
    "-M imle --imle-lambda 2 --imle-input-temperature 1 --imle-noise none": lambda: perturbed(imle, fixed(2.0), None),
    "-M imle --imle-lambda 2 --imle-noise gumbel --imle-input-temperature 1 --gradient-scaling": lambda: perturbed(
        imle, scaled(2.0), GUMBEL, target_tau=10.0
    ),
    "-M imletopk --imle-input-temperature 10": lambda: perturbed(imle, fixed(1000.0), SOG, 1, 10.0, 10.0),
    "-M aimle --imle-lambda 2 --imle-input-temperature 1 --imle-output-temperature 0.5": lambda: perturbed(
        aimle, fixed(2.0), SOG, target_tau=0.5
    ),
    f"-M aimle {ADAPTIVE} --imle-input-temperature 0.5 --imle-output-temperature 1 --imle-noise gumbel": lambda: (
        perturbed(aimle, adaptive(), GUMBEL, tau=0.5)
    ),
    f"-M aimle --aimle-symmetric {ADAPTIVE} --imle-input-temperature 1 --imle-output-temperature 0.5": lambda: (
        perturbed(aimle, adaptive(), SOG, target_tau=0.5, symmetric_perturbation=True)
    ),
    f"-M aimle {ADAPTIVE} --imle-samples 3 --imle-input-temperature 1 --imle-output-temperature 1": lambda: perturbed(
        aimle, adaptive(exact_scaling=True), SOG, 3
    ),
    "-M aimle --aimle-target adaptive --imle-lambda 0 --imle-input-temperature 1": lambda: perturbed(
        aimle, AdaptiveTargetDistribution(**DEFAULT_ADAPTIVE), SOG, target_tau=10.0
    ),
    "-M ste": lambda: MAPLayer(select_three, ste(noise_distribution=SOG, noise_temperature=0.0)),
    "-M ste --ste-noise gumbel --ste-temperature 2 --imle-input-temperature 5 --imle-samples 3": lambda: MAPLayer(
        select_three, ste(noise_distribution=GUMBEL, noise_temperature=2.0, nb_samples=3)
    ),
    "-M sst --sst-temperature 0.7": lambda: Relaxed(lambda theta: sst_k_subset(theta, K, 0.7)),
    "-M sst": lambda: Relaxed(lambda theta: sst_k_subset(theta, K, 0.1)),
    "-M softsub --softsub-temperature 0.7": lambda: Relaxed(lambda theta: softsub(theta, K, 0.7)),
    "-M softsub": lambda: Relaxed(lambda theta: softsub(theta, K, 0.5)),
    "-M l2x --sst-temperature 0.7": lambda: Relaxed(lambda theta: concrete_max(theta, K, 0.1)),
}
VAE = {
    "": lambda: perturbed(imle, fixed(10.0), SOG, tau=10.0, target_tau=10.0),
    "-M imle --imle-lambda 2 --imle-temperature 0.5 --imle-noise gumbel --imle-samples 3 --gradient-scaling": lambda: (
        perturbed(imle, scaled(2.0), GUMBEL, 3, 0.5, 0.5)
    ),
    f"-M aimle {ADAPTIVE} --imle-temperature 0.5 --imle-samples 2": lambda: perturbed(
        aimle, adaptive(), SOG, 2, 0.5, 0.5
    ),
    f"-M aimle {ADAPTIVE} --imle-temperature 2 --aimle-symmetric": lambda: perturbed(
        aimle, adaptive(), SOG, 1, 2.0, 2.0, symmetric_perturbation=True
    ),
    "-M aimle --aimle-target adaptive --imle-lambda 0 --imle-temperature 1": lambda: perturbed(
        aimle, AdaptiveTargetDistribution(**DEFAULT_ADAPTIVE), SOG
    ),
    "-M ste": lambda: MAPLayer(select_three, ste(noise_distribution=SOG, noise_temperature=0.0)),
    "-M ste --ste-noise gumbel --ste-temperature 2 --imle-temperature 5 --imle-samples 2": lambda: MAPLayer(
        select_three, ste(noise_distribution=GUMBEL, noise_temperature=2.0, nb_samples=2)
    ),
    "-M gumbel-softmax --init-temperature 0.7 --imle-samples 2": lambda: GumbelSoftmaxLayer(0.7, False, 2),
    "-M gumbel-softmax --hard": lambda: GumbelSoftmaxLayer(1.0, True, 1),
}


def l2x_layer(line):
    args = l2x_cli.parser().parse_args(["-K", str(K), *line.split()])
    return l2x_train.build(args, torch.zeros(2, 4)).layer


def vae_layer(line):
    args = dvae_cli.parser().parse_args(["-K", str(K), *line.split()])
    return dvae_train.build(args).layer


def three_steps(layer):
    """Solutions, gradients and beta of three training passes, and the solution that evaluation gives."""
    torch.manual_seed(1)
    results = []
    for size in (1.0, 1e-2, 1e-4):  # of dy: beside which lambda and the noise of the target pass count more and more
        theta = torch.randn(6, 8, requires_grad=True)
        z = layer.train()(theta)
        z.backward(size * torch.randn(z.shape))
        results += [z.detach(), theta.grad, torch.tensor(beta_of(layer) or 0.0)]
    return [*results, layer.eval()(theta).detach()]


@pytest.mark.parametrize(
    ("build", "line", "by_hand"),
    [(build, *case) for build, cases in ((l2x_layer, L2X), (vae_layer, VAE)) for case in cases.items()],
)
def test_a_layer_of_the_command_line_is_the_librarys_with_those_options(build, line, by_hand):
    for found, expected in zip(three_steps(build(line)), three_steps(by_hand()), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("hard", [False, True])
def test_the_layer_of_gumbel_softmax_is_the_relaxation_of_repeated_rows(hard):
    theta = torch.randn(4, 5)
    torch.manual_seed(2)
    expected = gumbel_softmax(theta.repeat_interleave(3, dim=0), 0.4, hard)
    torch.manual_seed(2)
    assert torch.equal(GumbelSoftmaxLayer(0.4, hard, samples=3)(theta), expected)


def test_the_networks_of_the_command_line_have_its_sizes():
    args = l2x_cli.parser().parse_args(["-k", "5", "-H", "7", "--mask-padding"])
    model = l2x_train.build(args, torch.zeros(2, 4))
    assert [w.shape[2] for w in model.selector.parameters() if w.dim() == 3] == [5, 5, 5]
    assert [tuple(w.shape) for w in model.predictor.parameters()] == [(7, 4), (7,), (1, 7), (1,)]
    assert model.mask_padding and model.select_k == 10
    args = dvae_cli.parser().parse_args(["--input-dim", "9", "--code-m", "2", "--code-n", "11"])
    model = dvae_train.build(args)
    logits, reconstruction = model(torch.rand(3, 9))
    assert logits.shape == (6, 11) and reconstruction.shape == (3, 9)

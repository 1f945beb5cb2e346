"""The discrete VAE and its losses, against plain loops."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from aaai23.dvae import fast
from aaai23.dvae.model import (
    DiscreteVAE,
    join_rows,
    losses,
    nelbo,
    published_test_loss,
    temperature_at,
    training_loss,
)
from aaai23.methods import METHODS
from imle.aimle import aimle
from imle.layers import MAPLayer
from imle.noise import SumOfGammaNoiseDistribution
from imle.solvers import select_k
from imle.structures import k_subsets
from tests.aaai23.settings import Settings


class Repeat(nn.Module):
    """The logits themselves as each of S samples: a layer without choices, for gradients that can be checked."""

    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def sample(self, theta, generator=None):
        return theta.repeat_interleave(self.samples, dim=0)


def plain_losses(logits, reconstruction_logits, images, code_m, samples):
    """The losses as the paper's code has them, an image, a sample, a pixel and a row at a time."""
    bce = torch.zeros(len(images), samples, dtype=images.dtype)
    kl = torch.zeros(len(images), dtype=images.dtype)
    for b, image in enumerate(images):
        for s in range(samples):
            for x, y in zip(reconstruction_logits[b * samples + s], image):
                p = torch.sigmoid(x)
                bce[b, s] -= y * torch.log(p) + (1 - y) * torch.log(1 - p)
        for m in range(code_m):
            q = torch.softmax(logits[b * code_m + m], dim=0)
            kl[b] += sum(q[n] * torch.log(q[n] * len(q) + 1e-20) for n in range(len(q)))
    return bce, kl


@pytest.fixture
def inputs():
    """Logits [B*M, N], reconstruction logits [B*S, P] and images [B, P]; B = 3, M = 2, N = 5, S = 4, P = 6."""
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    reconstruction = (3 * torch.randn(12, 6, dtype=torch.float64)).requires_grad_()
    return logits, reconstruction, torch.rand(3, 6, dtype=torch.float64)


def test_losses_and_their_gradients_are_those_of_plain_loops(inputs):
    logits, reconstruction, _ = inputs
    found, expected = losses(*inputs), plain_losses(*inputs, code_m=2, samples=4)
    for ours, plain in zip(found, expected):
        torch.testing.assert_close(ours, plain)
    totals = [training_loss(*pair).mean() for pair in (found, expected)]
    gradients = [torch.autograd.grad(total, (logits, reconstruction)) for total in totals]
    torch.testing.assert_close(*gradients)


def test_losses_stay_finite_and_exact_for_extreme_logits():
    reconstruction = torch.tensor([[200.0, -200.0, 200.0]], requires_grad=True)
    logits = torch.tensor([[500.0, 0.0, -500.0, 0.0]], requires_grad=True)
    bce, kl = losses(logits, reconstruction, torch.tensor([[1.0, 0.0, 0.0]]))
    (bce.sum() + kl.sum()).backward()
    assert bce.item() == pytest.approx(200.0)
    assert kl.item() == pytest.approx(math.log(4))
    torch.testing.assert_close(reconstruction.grad, torch.tensor([[0.0, 0.0, 1.0]]))
    assert logits.grad.isfinite().all()


def test_kl_of_uniform_rows_is_zero():
    _, kl = losses(torch.full((6, 5), 3.0), torch.zeros(3, 4), torch.rand(3, 4))
    torch.testing.assert_close(kl, torch.zeros(3))


def test_published_losses_sum_over_samples_and_count_kl_once():
    bce = torch.tensor([[1.0, 2.0], [3.0, 5.0], [6.0, 6.0]])
    kl = torch.tensor([10.0, 20.0, 30.0])
    assert training_loss(bce, kl).tolist() == [13, 28, 42]
    assert published_test_loss(bce, kl).tolist() == [6.5, 14, 21]
    assert nelbo(bce, kl).tolist() == [11.5, 24, 36]


def test_all_losses_agree_for_one_sample(inputs):
    logits, reconstruction, images = inputs
    pair = losses(logits, reconstruction[::4], images)
    torch.testing.assert_close(training_loss(*pair), published_test_loss(*pair))
    torch.testing.assert_close(training_loss(*pair), nelbo(*pair))


@pytest.mark.parametrize("samples", [1, 3])
def test_join_rows_puts_the_rows_of_one_sample_into_one_code(samples):
    batch, code_m, code_n = 4, 2, 5
    z = torch.randn(batch * code_m * samples, code_n)
    codes = join_rows(z, batch, code_m)
    assert codes.shape == (batch * samples, code_m * code_n)
    for b in range(batch):
        for s in range(samples):
            for m in range(code_m):
                row = z[(b * code_m + m) * samples + s]
                assert torch.equal(codes[b * samples + s, m * code_n : (m + 1) * code_n], row)


@pytest.mark.parametrize("samples", [1, 3])
def test_forward_decodes_each_sample_of_each_image(samples):
    model = DiscreteVAE(12, code_m=3, code_n=4, layer=Repeat(samples))
    images = torch.rand(5, 12)
    logits, reconstruction = model(images)
    assert logits.shape == (15, 4)
    for b, image in enumerate(images):
        code = model.encoder(image)
        torch.testing.assert_close(logits[3 * b : 3 * b + 3].flatten(), code)
        decoded = model.decoder(code).expand(samples, -1)
        torch.testing.assert_close(reconstruction[samples * b : samples * (b + 1)], decoded)


def test_the_fast_networks_start_as_the_plain_ones_and_give_the_same():
    models = []
    for kind in (fast.DiscreteVAE, DiscreteVAE):
        torch.manual_seed(3)
        models.append(kind(12, code_m=3, code_n=4, layer=Repeat(2)))
    ours, plain = models
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    for rows in (1, 5, 16, 32):
        images = torch.rand(rows, 12, dtype=torch.float64)
        found = []
        for model in models:
            output = model.double()(images)
            loss = training_loss(*losses(*output, images)).mean()
            found.append((output, torch.autograd.grad(loss, list(model.parameters()))))
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_layers_have_the_published_sizes():
    model = DiscreteVAE(784, code_m=20, code_n=20, layer=Repeat(1))
    for network, sizes in ((model.encoder, [784, 512, 256, 400]), (model.decoder, [400, 256, 512, 784])):
        linears = [module for module in network if isinstance(module, nn.Linear)]
        assert [(module.in_features, module.out_features) for module in linears] == list(pairwise(sizes))
        kinds = [nn.Linear, nn.ReLU] * 2 + [nn.Linear]
        assert all(isinstance(module, kind) for module, kind in zip(network, kinds, strict=True))


def test_weights_start_xavier_uniform_with_the_gain_of_relu_and_biases_at_zero():
    model = DiscreteVAE(784, code_m=20, code_n=20, layer=Repeat(1))
    for module in filter(lambda module: isinstance(module, nn.Linear), model.modules()):
        bound = math.sqrt(2) * math.sqrt(6 / (module.in_features + module.out_features))
        scaled = module.weight.detach().flatten() / bound
        assert 0.999 < scaled.abs().max() <= 1
        assert scaled.mean().abs() < 0.01
        assert scaled.square().mean() == pytest.approx(1 / 3, rel=0.02)
        assert not module.bias.any()


def test_temperature_keeps_its_start_for_1000_batches_as_in_the_published_log():
    batches_done = [600 * epoch for epoch in range(1, 5)]
    assert [temperature_at(done, 0.0, 3e-5, 0.5) for done in batches_done] == [0.0, 0.5, 0.5, 0.5]


def test_temperature_changes_every_1000th_batch_down_to_its_minimum():
    assert temperature_at(0, 1.0, 3e-5, 0.5) == temperature_at(999, 1.0, 3e-5, 0.5) == 1.0
    assert temperature_at(1000, 1.0, 3e-5, 0.5) == pytest.approx(math.exp(-0.03))
    assert temperature_at(2999, 2.0, 3e-5, 0.5) == pytest.approx(2 * math.exp(-0.06))
    assert temperature_at(60_000, 1.0, 3e-5, 0.5) == 0.5


def test_codes_are_sampled_in_evaluation_too_and_from_a_generator_that_is_given():
    """As published: the test loss is that of sampled codes."""
    model, images = DiscreteVAE(12, code_m=3, code_n=8, layer=LAYERS["aimle"]()), torch.rand(5, 12)
    before = torch.get_rng_state()
    found = [model.train(mode)(images, torch.Generator().manual_seed(4))[1] for mode in (True, False)]
    assert torch.equal(*found) and found[0].shape == (15, 12)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(model(images)[1], model(images)[1])


LAYERS = {
    "aimle": lambda: MAPLayer(
        lambda theta: select_k(theta, 4), aimle(noise_distribution=SumOfGammaNoiseDistribution(k=4), nb_samples=3)
    ),
    "gumbel-softmax": lambda: METHODS["gumbel-softmax"](
        k_subsets(1), Settings(relaxation_temperature=0.5, nb_samples=3)
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_model_learns_to_reconstruct(name):
    images = (torch.rand(64, 1) < torch.linspace(0, 1, 20)).float() * torch.rand(64, 1).round()
    model = DiscreteVAE(20, code_m=2, code_n=8, layer=LAYERS[name]())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = []
    for _ in range(100):
        bce, kl = losses(*model(images), images)
        assert bce.shape == (64, 3)
        optimiser.zero_grad()
        training_loss(bce, kl).mean().backward()
        optimiser.step()
        history.append(nelbo(bce, kl).mean().item())
    assert history[-1] < 0.5 * history[0]
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.parameters())

"""The discrete variational autoencoder, and its losses.

Shapes: B images, P pixels, S samples, M rows of N logits. A row is one instance of the solver; M*N bits are a code.
"""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from aaai23.methods import Layer

HIDDEN = (512, 256)
ANNEAL_EVERY = 1000  # batches


class DiscreteVAE(nn.Module):
    """Encodes an image as M*N bits, and decodes each of S samples of them.

    Encoder P-512-256-(M*N) and decoder (M*N)-256-512-P with ReLU; weights Xavier-uniform with ReLU's gain, biases 0.

    Args:
        input_dim: pixels of an image [P].
        code_m: rows of a code [M].
        code_n: entries of a row [N].
        layer: what turns logits into codes, theta [B*M, N] -> z [B*M*S, N], the samples of one row side by side;
            it alone decides about S.
    """

    linear: type[nn.Linear] = nn.Linear

    def __init__(self, input_dim: int, code_m: int, code_n: int, layer: Layer):
        super().__init__()
        self.input_dim, self.code_m, self.code_n = input_dim, code_m, code_n
        self.encoder = self.perceptron(input_dim, *HIDDEN, code_m * code_n)
        self.layer = layer
        self.decoder = self.perceptron(code_m * code_n, *reversed(HIDDEN), input_dim)

    def perceptron(self, *sizes: int) -> nn.Sequential:
        """Return dense layers of these sizes, with ReLU between them."""
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            linear = self.linear(fan_in, fan_out)
            nn.init.xavier_uniform_(linear.weight, gain=nn.init.calculate_gain("relu"))
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU(inplace=True)]
        return nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [B*M, N] and reconstruction logits [B*S, P], after sampled codes, of images in [0, 1], [B, P].

        Codes are sampled in evaluation mode too: the published test loss is that of sampled codes.
        """
        logits = self.encoder(images).view(-1, self.code_n)
        codes = join_rows(self.layer.sample(logits, generator=generator), len(images), self.code_m)
        return logits, self.decoder(codes)


def join_rows(z: Tensor, batch_size: int, code_m: int) -> Tensor:
    """Return codes [B*S, M*N] of solutions z [B*M*S, N]: the S samples change places with the M rows."""
    return z.view(batch_size, code_m, -1, z.shape[-1]).transpose(1, 2).reshape(-1, code_m * z.shape[-1])


def losses(logits: Tensor, reconstruction_logits: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return how badly images are reconstructed, bce [B, S], and how much codes tell, kl [B], both in nats.

    Args:
        logits: [B*M, N].
        reconstruction_logits: [B*S, P].
        images: in [0, 1], [B, P].

    `bce` is the binary cross-entropy summed over pixels. `kl` is KL(softmax(row) || uniform) summed over rows.
    """
    by_sample = reconstruction_logits.view(len(images), -1, images.shape[-1])
    targets = images.unsqueeze(1).expand_as(by_sample)
    bce = F.binary_cross_entropy_with_logits(by_sample, targets, reduction="none").sum(-1)
    # Published with 1e-20 inside the log: the limit of q log q at 0, which a log-softmax needs no help with.
    log_q = F.log_softmax(logits, dim=-1)
    kl = (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])
    return bce, kl.view(len(images), -1).sum(-1)


def training_loss(bce: Tensor, kl: Tensor) -> Tensor:
    """Return the published training loss of each image, [B]: bce summed over S, + kl; grows with S."""
    return bce.sum(-1) + kl


def published_test_loss(bce: Tensor, kl: Tensor) -> Tensor:
    """Return the published test loss of each image, [B]: the training loss / S, in which kl counts 1/S."""
    return training_loss(bce, kl) / bce.shape[-1]


def nelbo(bce: Tensor, kl: Tensor) -> Tensor:
    """Return the negative evidence lower bound of each image, [B]: the mean of bce over S, + kl."""
    return bce.mean(-1) + kl


def temperature_at(batch: int, initial: float, rate: float, minimum: float) -> float:
    """Return the temperature after so many batches, counted over all epochs; it changes every 1000th batch.

    tau = max(initial exp(-rate * batch), minimum). The first 1000 batches keep `initial`, even one below `minimum`.
    """
    annealed_at = batch // ANNEAL_EVERY * ANNEAL_EVERY
    return max(initial * math.exp(-rate * annealed_at), minimum) if annealed_at else initial

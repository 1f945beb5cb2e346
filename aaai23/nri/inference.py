"""Neural Relational Inference as one module: logits of edges, a sampled graph, predictions along its edges.

Reference: T. Kipf, E. Fetaya, K.-C. Wang, M. Welling, R. Zemel, *Neural Relational Inference for Interacting
Systems*, ICML 2018.
"""

from __future__ import annotations

import math
from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aaai23.methods import undo_mean_over_samples
from aaai23.nri.methods import EdgeSampler, build_sampler
from aaai23.nri.metrics import kl_gumbel, nll_gaussian
from aaai23.nri.model import MLPDecoder, MLPEncoder, symmetrise, to_directed


class RelationalInference(nn.Module):
    """An encoder, a sampler of edges and a decoder.

    Args:
        encoder: positions `[B, n, T, dims]` -> logits of directed edges `[B, n(n-1)]`.
        decoder: positions, edges and prediction steps -> predicted frames `[B*S, n, T-1, dims]`.
        sampler: theta `[B, E]` -> edges `[B*S, E]`.
        symmetric: theta holds one logit for both directions of an edge, the mean of the encoder's two.
        variance: of a predicted coordinate.
        bernoulli: the divergence is that of single edges from fair coins, not of Gumbel utilities.
    """

    def __init__(
        self,
        encoder: MLPEncoder,
        decoder: MLPDecoder,
        sampler: EdgeSampler,
        symmetric: bool,
        variance: float,
        bernoulli: bool = False,
    ):
        super().__init__()
        self.encoder, self.decoder, self.sampler = encoder, decoder, sampler
        self.symmetric, self.variance, self.bernoulli = symmetric, variance, bernoulli

    def logits(self, inputs: Tensor) -> Tensor:
        """Return theta, `[B, n(n-1)/2]` if symmetric, else `[B, n(n-1)]`."""
        directed = self.encoder(inputs)
        return symmetrise(directed, inputs.shape[1]) if self.symmetric else directed

    def directed(self, edges: Tensor, vertices: int) -> Tensor:
        """Return edges or logits as theta holds them, for both directions, `[B, n(n-1)]`."""
        return to_directed(edges, vertices) if self.symmetric else edges

    def divergence(self, theta: Tensor, vertices: int) -> Tensor:
        """Return the KL divergence of the edges from their prior, per vertex, `[B]`."""
        directed = self.directed(theta, vertices)
        return kl_bernoulli(directed, vertices) if self.bernoulli else kl_gumbel(directed)

    def loss(self, inputs: Tensor, prediction_steps: int) -> Tensor:
        """Return the negative evidence lower bound of `[B, n, T, dims]`, its mean over instances and samples."""
        theta = self.logits(inputs)
        edges, log_prob = self.sampler(theta)
        samples = len(edges) // len(inputs)
        predicted = self.decoder(inputs, undo_mean_over_samples(edges, samples), prediction_steps)
        frames = inputs[:, :, 1:].repeat_interleave(samples, dim=0)
        nll = self.sampler.surrogate(nll_gaussian(predicted, frames, self.variance), log_prob, inputs)
        return nll.mean() + self.divergence(theta, inputs.shape[1]).mean()


def kl_bernoulli(theta: Tensor, vertices: int) -> Tensor:
    """Return KL(Bernoulli(sigmoid(theta)) || Bernoulli(1/2)) summed over edges `[B, E]`, per vertex, `[B]`."""
    # sum_z q(z) log q(z) + log 2, with log q(1) = -softplus(-theta) and log q(0) = -softplus(theta)
    entropy = F.softplus(theta) - theta * torch.sigmoid(theta)
    return (math.log(2.0) - entropy).sum(dim=-1) / vertices


def build(args: Namespace) -> RelationalInference:
    """Return the untrained networks around the method that the command line names."""
    encoder = MLPEncoder(args.timesteps * args.dims, args.encoder_hidden, args.encoder_dropout, args.factor)
    hidden = args.decoder_hidden
    decoder = MLPDecoder(
        args.dims, args.edge_types, hidden, hidden, hidden, args.decoder_dropout, skip_first=args.skip_first
    )
    return RelationalInference(
        encoder, decoder, build_sampler(args), args.symmeterize_logits, args.var, not args.use_gumbels_for_kl
    )

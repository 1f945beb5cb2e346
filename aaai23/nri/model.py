"""Neural Relational Inference as one module: logits of edges, a sampled graph, predictions along its edges.

theta is `[B, E]`, one logit for each undirected edge (`--symmeterize_logits`) or for each directed one.

AIMLE and I-MLE over trees see both directions of an edge, as the published settings do: their layer works on
`to_directed(theta)`, and its solver reads one half and answers for both. Half of dy is then ignored, norms run over
twice the entries, and each edge counts twice among the non-zero entries of g. `--undirected-theta` gives them theta
itself, as all other methods and structures have it, for which nothing was published.

Reference: T. Kipf, E. Fetaya, K.-C. Wang, M. Welling, R. Zemel, *Neural Relational Inference for Interacting
Systems*, ICML 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aaai23.methods import METHODS, Layer
from aaai23.nri import fast
from aaai23.nri.config import NRIConfig
from aaai23.nri.metrics import kl_gumbel, nll_gaussian
from aaai23.nri.networks import MLPDecoder, MLPEncoder, symmetrise, to_directed
from aaai23.nri.score import BASELINES, NVILBaseline, surrogate
from imle.structures import Structure, any_edges, directed_spanning_trees, edge_subsets, spanning_trees


class RelationalInference(nn.Module):
    """An encoder, a layer that chooses edges, and a decoder.

    Args:
        encoder: positions `[B, n, T, dims]` -> logits of directed edges `[B, n(n-1)]`.
        decoder: positions, edges and prediction steps -> predicted frames `[B*S, n, T-1, dims]`.
        structure: the graphs that there may be, over theta.
        layer: theta -> edges `[B*S, E]`, in a pair with their log-densities `[B*S]` where there is a baseline.
        symmetric: theta holds one logit for both directions of an edge, the mean of the encoder's two.
        variance: of a predicted coordinate.
        directed_layer: the layer sees `to_directed(theta)`, and its edges are directed.
        bernoulli: the divergence is that of single edges from fair coins, not of Gumbel utilities.
        baseline: of the losses; see `aaai23.nri.score`.
    """

    def __init__(
        self,
        encoder: MLPEncoder,
        decoder: MLPDecoder,
        structure: Structure,
        layer: Layer,
        symmetric: bool,
        variance: float,
        directed_layer: bool = False,
        bernoulli: bool = False,
        baseline: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder, self.decoder, self.layer, self.baseline = encoder, decoder, layer, baseline
        self.structure, self.symmetric, self.variance = structure, symmetric, variance
        self.directed_layer, self.bernoulli = directed_layer, bernoulli

    def logits(self, inputs: Tensor) -> Tensor:
        """Return theta, `[B, n(n-1)/2]` if symmetric, else `[B, n(n-1)]`."""
        directed = self.encoder(inputs)
        return symmetrise(directed, inputs.shape[1]) if self.symmetric else directed

    def sample(
        self, theta: Tensor, vertices: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layer's edges `[B*S, E]`, and their log-densities `[B*S]` where there is a baseline."""
        z = self.layer.sample(self.seen(theta, vertices), generator=generator)
        return z if isinstance(z, tuple) else (z, None)

    def seen(self, theta: Tensor, vertices: int) -> Tensor:
        """Return theta as the layer sees it."""
        return to_directed(theta, vertices) if self.directed_layer else theta

    def directed(self, edges: Tensor, vertices: int) -> Tensor:
        """Return edges or logits, undirected or directed, for both directions, `[B, n(n-1)]`."""
        return edges if edges.shape[-1] == vertices * (vertices - 1) else to_directed(edges, vertices)

    def divergence(self, theta: Tensor, vertices: int) -> Tensor:
        """Return the KL divergence of the edges from their prior, per vertex, `[B]`."""
        directed = self.directed(theta, vertices)
        return kl_bernoulli(directed, vertices) if self.bernoulli else kl_gumbel(directed)

    def loss(self, inputs: Tensor, prediction_steps: int) -> Tensor:
        """Return the negative evidence lower bound of `[B, n, T, dims]`, its mean over instances and samples."""
        theta = self.logits(inputs)
        edges, log_prob = self.sample(theta, inputs.shape[1])
        samples = len(edges) // len(inputs)
        predicted = self.decoder(inputs, edges, prediction_steps)
        nll = nll_gaussian(predicted, inputs[:, :, 1:].repeat_interleave(samples, dim=0), self.variance)
        if self.baseline is not None:
            assert log_prob is not None
            nll = surrogate(nll, log_prob, self.baseline, inputs)
        return nll.mean() + self.divergence(theta, inputs.shape[1]).mean()


def kl_bernoulli(theta: Tensor, vertices: int) -> Tensor:
    """Return KL(Bernoulli(sigmoid(theta)) || Bernoulli(1/2)) summed over edges `[B, E]`, per vertex, `[B]`."""
    # sum_z q(z) log q(z) + log 2, with log q(1) = -softplus(-theta) and log q(0) = -softplus(theta)
    entropy = F.softplus(theta) - theta * torch.sigmoid(theta)
    return (math.log(2.0) - entropy).sum(dim=-1) / vertices


STRUCTURES: dict[str, Callable[[NRIConfig], Structure]] = {
    "tree": lambda config: spanning_trees(config.num_vertices, config.max_range),
    "topk": lambda config: edge_subsets(config.num_vertices, directed=not config.symmeterize_logits),
    "indep": lambda config: any_edges(config.num_vertices),
}


def build(config: NRIConfig) -> RelationalInference:
    """Return the untrained networks around the method that is asked for."""
    encoder = fast.MLPEncoder(
        config.timesteps * config.dims, config.encoder_hidden, config.encoder_dropout, config.factor
    )
    decoder = fast.MLPDecoder(config.dims, config.decoder_hidden, config.decoder_dropout, config.skip_first)
    structure = STRUCTURES[config.sst](config)
    directed = config.directed_theta
    seen = directed_spanning_trees(config.num_vertices, config.max_range) if directed else structure
    return RelationalInference(
        encoder,
        decoder,
        structure,
        METHODS[config.chosen_method](seen, config),
        config.symmeterize_logits,
        config.var,
        directed,
        not config.use_gumbels_for_kl,
        baseline_of(config),
    )


def baseline_of(config: NRIConfig) -> nn.Module | None:
    """Return the baseline of the losses, None for a method that has none."""
    if config.use_nvil:
        return NVILBaseline(config.num_vertices * config.timesteps * config.dims, config.ema_for_loss)
    return BASELINES[config.reinforce_baseline](config.ema_for_loss) if config.use_reinforce else None

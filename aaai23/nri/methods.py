"""How edges are drawn from their logits, and how gradients find their way back: a name -> a sampler.

A sampler is built around a structure, the family of graphs that an edge vector may be: a spanning tree, n-1 edges,
or any edges. theta is `[B, E]`, one logit per undirected edge (`symmeterize_logits`) or per directed one; samples are
`[B*S, E]`, the S samples of one instance side by side.

AIMLE and I-MLE over trees see both directions of an edge, as the published settings do: their layer works on
`to_directed(theta)`, and its solver reads one half and answers for both. Half of dy is then ignored, norms run over
twice the entries, and each edge counts twice among the non-zero entries of g. `--undirected-theta` gives them theta
itself, as all other methods and structures have it, for which nothing was published.
"""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aaai23.methods import METHODS, NOISES, Options, Solver, beta_of
from aaai23.nri.model import receiver_above_sender, to_directed
from aaai23.relaxations import (
    independent_edge_marginals,
    k_subset_marginals,
    spanning_tree_edge_marginals,
    straight_through,
)
from imle.layers import MAPLayer
from imle.noise import BaseNoiseDistribution, Device, GumbelNoiseDistribution, SeedableNoiseDistribution, draw
from imle.sfe import score_function_loss, sfe
from imle.solvers import select_k, spanning_tree_edges


class LogisticNoise(SeedableNoiseDistribution):
    """The difference of two Gumbel(0, 1) variables: the sign of theta plus it is an edge drawn by its log-odds."""

    def sample(
        self,
        shape: Sequence[int],
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return independent draws; arguments as in the base class."""
        options: dict[str, Any] = {"device": device, "dtype": dtype, "generator": generator}
        gumbel = GumbelNoiseDistribution()
        return gumbel.sample(shape, **options) - gumbel.sample(shape, **options)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density at each entry of `value`."""
        return -value - 2 * F.softplus(-value)


@dataclass(frozen=True)
class Structure:
    """A family of graphs.

    Args:
        solver: theta -> its best graph, MAP(theta).
        marginals: theta -> how likely each edge is under the exponential family over the graphs; differentiable.
        noise: of the utilities theta + noise whose MAP is a sample.
    """

    solver: Solver
    marginals: Callable[[Tensor], Tensor]
    noise: BaseNoiseDistribution


def _tree(args: Namespace) -> Structure:
    marginals = functools.partial(spanning_tree_edge_marginals, max_range=args.max_range)
    return Structure(spanning_tree_edges, marginals, GumbelNoiseDistribution())


def _topk(args: Namespace) -> Structure:
    k = (args.num_vertices - 1) * (1 if args.symmeterize_logits else 2)
    return Structure(
        functools.partial(select_k, k=k), functools.partial(k_subset_marginals, k=k), GumbelNoiseDistribution()
    )


def _independent(args: Namespace) -> Structure:
    return Structure(positive, independent_edge_marginals, LogisticNoise())


def positive(theta: Tensor) -> Tensor:
    """Return 1 where theta is positive, else 0: the best set of edges that are chosen one by one."""
    return (theta > 0).to(theta.dtype)


STRUCTURES: dict[str, Callable[[Namespace], Structure]] = {"tree": _tree, "topk": _topk, "indep": _independent}


def best_directed_tree(theta: Tensor, vertices: int) -> Tensor:
    """Return the best spanning tree `[..., E]`: theta is read where receiver > sender, and z answers for both.

    >>> best_directed_tree(torch.tensor([[9.0, 9.0, 3.0, 9.0, 1.0, 2.0]]), 3)
    tensor([[1., 0., 1., 1., 0., 1.]])
    """
    return to_directed(spanning_tree_edges(receiver_above_sender(theta, vertices)), vertices)


class EdgeSampler(nn.Module):
    """What the samplers share: in evaluation, each draws discrete graphs as it does in training.

    Args:
        structure: the family of graphs.
        noise: of the perturbed logits, None for none.
        temperature: of the noise.
        measured_without_noise: the bound is measured along the best graphs, and along drawn ones beside it.
    """

    def __init__(
        self, structure: Structure, noise: Any, temperature: float = 1.0, measured_without_noise: bool = False
    ):
        super().__init__()
        self.structure, self.noise, self.temperature = structure, noise, temperature
        self.measured_without_noise = measured_without_noise

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return samples for training, and their log-densities `[B*S]` if gradients need them.

        Samples are `[B*S, E]` as theta is, or in both directions `[B*S, n(n-1)]`.
        """
        raise NotImplementedError

    def surrogate(self, nll: Tensor, log_prob: Tensor | None, inputs: Tensor) -> Tensor:
        """Return `nll` `[B*S]`, unchanged in value, with the gradient that the samples do not carry themselves."""
        return nll

    @property
    def beta(self) -> float | None:
        """The perturbation size now, None if the method has none."""
        return None

    @torch.no_grad()
    def draw(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return one discrete sample of each instance, `[B, E]`."""
        if self.noise is None or self.temperature == 0:
            return self.structure.solver(theta)
        noise = draw(self.noise, theta.shape, like=theta, generator=generator)
        return self.structure.solver(theta + self.temperature * noise)


class PerturbedSampler(EdgeSampler):
    """AIMLE, I-MLE and straight-through: discrete samples whose gradient is the method's own.

    Args:
        structure: the family of graphs.
        method: a name in METHODS.
        options: of the method.
        tree_vertices: n, for a layer that sees both directions of a tree's edges; None: it sees theta as it is.
    """

    def __init__(self, structure: Structure, method: str, options: Options, tree_vertices: int | None = None):
        noise = NOISES[options.noise](options.noise_k)
        super().__init__(structure, noise, options.theta_temperature, measured_without_noise=method != "ste")
        self.tree_vertices, solver = tree_vertices, structure.solver
        if tree_vertices is not None:
            solver = functools.partial(best_directed_tree, vertices=tree_vertices)
        self.layer = METHODS[method](solver, options)

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return samples `[B*S, E]`, or `[B*S, n(n-1)]` where the layer sees both directions."""
        return self.layer(theta if self.tree_vertices is None else to_directed(theta, self.tree_vertices)), None

    @property
    def beta(self) -> float | None:
        """The perturbation size now, None for straight-through."""
        return beta_of(self.layer)


class RelaxedSampler(EdgeSampler):
    """Stochastic softmax tricks: the marginals of the structure at perturbed logits over a temperature.

    Reference: Paulus et al., "Gradient Estimation with Stochastic Softmax Tricks", 2020.

    Args:
        structure: the family of graphs.
        temperature: of the relaxation; lower is closer to discrete and has gradients of larger variance.
        hard: return discrete samples, with the gradient of the relaxed ones.
    """

    def __init__(self, structure: Structure, temperature: float, hard: bool):
        super().__init__(structure, structure.noise)
        self.relaxation_temperature, self.hard = temperature, hard

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return samples `[B, E]`, in [0, 1]."""
        utilities = theta + draw(self.noise, theta.shape, like=theta)
        soft = self.structure.marginals(utilities / self.relaxation_temperature)
        return (straight_through(self.structure.solver(utilities), soft) if self.hard else soft), None


class ScoreSampler(EdgeSampler):
    """Discrete samples whose gradient is the score of the perturbed logits times loss minus baseline.

    Args:
        structure: the family of graphs.
        samples: S.
        baseline: what is subtracted from the losses `[B, S]`; see `BASELINES`.
    """

    def __init__(self, structure: Structure, samples: int, baseline: nn.Module):
        super().__init__(structure, structure.noise)
        self.samples = samples
        self.layer = MAPLayer(structure.solver, sfe(noise_distribution=structure.noise, nb_samples=samples))
        self.baseline = baseline

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return samples and their log-densities."""
        return self.layer(theta)

    def surrogate(self, nll: Tensor, log_prob: Tensor | None, inputs: Tensor) -> Tensor:
        """Return `nll`, with the score-function gradient and, for a learned baseline, the gradient of its fit."""
        assert log_prob is not None
        baseline, misfit = self.baseline(nll.detach().unflatten(0, (-1, self.samples)), inputs)
        baseline = baseline.flatten()
        return score_function_loss(nll - baseline, log_prob) + baseline + (misfit - misfit.detach())


class EmaBaseline(nn.Module):
    """The running mean of the losses of earlier batches, corrected for its start at 0."""

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def reset_parameters(self) -> None:
        """Forget all losses."""
        self.total.zero_()
        self.weight.zero_()

    def forward(self, losses: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return a baseline for losses `[B, S]`, and 0: nothing is to be learned by gradient."""
        mean = self.total / self.weight.clamp(min=torch.finfo(self.weight.dtype).tiny)
        self.total.lerp_(losses.mean(), 1 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)
        return mean.expand_as(losses), losses.new_zeros(())


class BatchBaseline(nn.Module):
    """The mean of all other losses of the batch."""

    def forward(self, losses: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return baselines `[B, S]` for losses `[B, S]`, and 0."""
        return _mean_of_others(losses.flatten()).view_as(losses), losses.new_zeros(())


class MultiSampleBaseline(nn.Module):
    """The mean loss of the other samples of the same instance (Kool et al. 2019)."""

    def forward(self, losses: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return baselines `[B, S]` for losses `[B, S]`, and 0."""
        return _mean_of_others(losses), losses.new_zeros(())


def _mean_of_others(losses: Tensor) -> Tensor:
    return (losses.sum(-1, keepdim=True) - losses) / max(1, losses.shape[-1] - 1)


class NVILBaseline(nn.Module):
    """A small network that predicts the loss from the input, on top of the running mean.

    Reference: Mnih, Gregor, "Neural Variational Inference and Learning in Belief Networks", 2014.

    Args:
        n_in: numbers of one input.
        decay: of the running mean.
        hidden: width of the network.
    """

    def __init__(self, n_in: int, decay: float, hidden: int = 128):
        super().__init__()
        self.mean = EmaBaseline(decay)
        self.network = nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, losses: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return baselines `[B, S]` for losses `[B, S]` of inputs `[B, ...]`, and the mean squared misfit."""
        mean, _ = self.mean(losses, inputs)
        predicted = self.network(inputs.flatten(1))
        misfit = (losses - mean - predicted).square().mean()
        return mean + predicted.detach(), misfit


BASELINES: dict[str, Callable[[Namespace], nn.Module]] = {
    "ema": lambda args: EmaBaseline(args.ema_for_loss),
    "batch": lambda args: BatchBaseline(),
    "multi_sample": lambda args: MultiSampleBaseline(),
}


def build_sampler(args: Namespace) -> EdgeSampler:
    """Return the sampler that the command line names."""
    structure = STRUCTURES[args.sst](args)
    if args.use_nvil:
        n_in = args.num_vertices * args.timesteps * args.dims
        return ScoreSampler(structure, args.num_samples, NVILBaseline(n_in, args.ema_for_loss))
    if args.use_reinforce:
        return ScoreSampler(structure, args.num_samples, BASELINES[args.reinforce_baseline](args))
    if args.method == "sst":
        return RelaxedSampler(structure, args.temp, args.hard)
    options = Options(
        noise=args.imle_noise,
        noise_k=args.num_vertices,
        samples=args.imle_samples,
        theta_temperature=args.imle_noise_temperature,
        target_temperature=args.imle_noise_temperature,
        target=args.aimle_target,
        perturbation_size=args.imle_lambda,
        symmetric=args.aimle_symmetric,
        gradient_scaling=args.gradient_scaling,
        beta_update_step=args.imle_lambda_update_step,
        exact_scaling=True,
    )
    both_directions = args.method != "ste" and args.sst == "tree" and not args.undirected_theta
    return PerturbedSampler(structure, args.method, options, args.num_vertices if both_directions else None)

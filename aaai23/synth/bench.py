"""The bench: problems, estimators, and what is measured of their gradients, with the cost in calls of the solver.

    bias       1 - cos(mean gradient, exact gradient)       the mean's own noise is taken off its length
    variance   of cos(one gradient, mean gradient)
    error      mean of 1 - cos(one gradient, exact gradient); an empty gradient has cosine 0

P problems stand side by side, each with R gradients: P*R rows of one batch. A metric is a mean over problems and comes
with its standard error, under the name with `_se`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from aaai23.synth.config import SynthConfig
from aaai23.synth.exact import FAMILIES, Family
from imle.aimle import aimle
from imle.auto import AutoTargetDistribution
from imle.blackbox import blackbox
from imle.identity import identity
from imle.imle import imle
from imle.k_subset_sfe import KSubsetSFE
from imle.layers import RelaxedLayer
from imle.noise import GumbelNoiseDistribution, SumOfGammaNoiseDistribution, draw
from imle.perturbed import perturbed
from imle.relaxations import gumbel_softmax, softsub
from imle.sfe import score_function_loss, sfe
from imle.simple import SIMPLE
from imle.ste import ste
from imle.structures import stochastic_softmax
from imle.target import AdaptiveTargetDistribution, BaseTargetDistribution, TargetDistribution

Entry = dict[str, Any]
Loss = Callable[[Tensor], Tensor]

NUMBERS_AT_ONCE = 2_000_000
NOISES: dict[str, Callable[[int], Any]] = {
    "gumbel": lambda k: GumbelNoiseDistribution(),
    "sog": lambda k: SumOfGammaNoiseDistribution(k=k),
}


# ---- problems


@dataclass(frozen=True)
class Problems:
    """P problems: minimise E[f(z)], f(z) = ||z - b||^2 or ||A (z - b)||^2.

    Args:
        family: of z.
        theta: `[P, N]`, from N(0, I).
        b: `[P, N]`, from |N(0, I)|.
        a: `[P, N, N]`, from N(0, I / N); None for the first loss.
    """

    family: Family
    theta: Tensor
    b: Tensor
    a: Tensor | None

    def loss(self, z: Tensor, rows: Tensor) -> Tensor:
        """Return f(z) `[B*S]` of solutions `[B*S, N]`, S for each of the problems `rows` `[B]`."""
        away = z.unflatten(0, (len(rows), -1)) - self.b[rows].unsqueeze(1)
        if self.a is not None:
            away = away @ self.a[rows].mT
        return away.square().sum(dim=2).flatten()

    @property
    def rows(self) -> Tensor:
        """Each problem once."""
        return torch.arange(len(self.theta), device=self.theta.device)

    def all_losses(self) -> Tensor:
        """Return f of all solutions `[P, C]`."""
        states = self.family.states
        return self.loss(states.repeat(len(self.theta), 1), self.rows).view(len(self.theta), len(states))

    def exact(self) -> Tensor:
        """Return the gradients of E[f(z)] under the exponential family, `[P, N]`."""
        return self.family.gradient(self.theta.double(), self.all_losses().double()).to(self.theta)


def problems_of(config: SynthConfig, device: torch.device) -> Problems:
    """Draw the problems that a configuration asks for."""
    family = FAMILIES[config.structure](config.size, config.k)
    n, generator = family.states.shape[1], torch.Generator().manual_seed(config.seed)
    theta, b = (torch.randn(config.seeds, n, generator=generator) for _ in range(2))
    a = torch.randn(config.seeds, n, n, generator=generator) / math.sqrt(n) if config.loss == "coupled" else None
    family = replace(family, states=family.states.to(device))
    return Problems(family, theta.to(device), b.abs().to(device), None if a is None else a.to(device))


# ---- estimators


@dataclass(frozen=True)
class Gradients:
    """An estimator's gradients of the problems of a batch.

    Args:
        layer: theta `[B, N]` -> samples, or samples and their log-probabilities.
        samples: S.
        baseline: of score functions.
    """

    layer: Callable[[Tensor], Any]
    samples: int
    baseline: Literal["leave_one_out"] | None = None

    def __call__(self, theta: Tensor, loss: Loss) -> Tensor:
        """Return one gradient for each row of theta `[B, N]`."""
        theta = theta.detach().clone().requires_grad_()
        z = self.layer(theta)
        if isinstance(z, tuple):
            losses = score_function_loss(loss(z[0]), z[1], self.samples, self.baseline)
        else:
            losses = loss(z)
        losses.sum().backward()
        return torch.zeros_like(theta) if theta.grad is None else theta.grad


Build = Callable[[Family, Any, int, Any], Gradients | None]
"""(family, noise, S, target distribution) -> its gradients; None where the family, or S, does not allow them."""


def _by_difference(family: Family, noise: Any, samples: int, target: Any, kind: Any, **options: Any) -> Gradients:
    options |= {"target_distribution": target, "noise_distribution": noise, "_is_minimization": family.sign < 0}
    return Gradients(kind(family.solve, nb_samples=samples, **options), samples)


def _by_noise(family: Family, noise: Any, samples: int, _: Any, kind: Any, **options: Any) -> Gradients:
    options |= {"noise_distribution": noise, "_is_minimization": family.sign < 0}
    return Gradients(kind(family.solve, nb_samples=samples, **options), samples)


def _blackbox(family: Family, noise: Any, samples: int, _: Any, interpolation: float) -> Gradients | None:
    if samples > 1:  # there is no noise: all samples are one
        return None
    return _by_noise(family, None, samples, None, kind=blackbox, interpolation=interpolation)


def _score(family: Family, noise: Any, samples: int, _: Any, exact: bool, baseline: Any = None) -> Gradients | None:
    impossible = family.subset is None if exact else not hasattr(noise, "log_prob")
    if impossible or (baseline and samples < 2):
        return None
    if exact:
        return Gradients(KSubsetSFE(family.subset or 0, samples), samples, baseline)
    return Gradients(sfe(family.solve, noise_distribution=noise, nb_samples=samples), samples, baseline)


def _simple(family: Family, noise: Any, samples: int, _: Any) -> Gradients | None:
    return None if family.subset is None else Gradients(SIMPLE(family.subset, samples), samples)


def _perturbed(family: Family, noise: Any, samples: int, _: Any) -> Gradients | None:
    if samples < 2 or not hasattr(noise, "log_prob"):
        return None
    options: Any = {"noise_distribution": noise, "nb_marginal_samples": samples, "baseline": "leave_one_out"}
    return Gradients(perturbed(family.solve, **options), samples)


def _relaxed(family: Family, noise: Any, samples: int, _: Any, kind: str, temperature: float) -> Gradients | None:
    relax: Any = {
        "sst": family.structure and partial(stochastic_softmax, structure=family.structure),
        "softsub": family.subset and partial(softsub, k=family.subset),
        "gumbel-softmax": gumbel_softmax if family.subset == 1 else None,
    }[kind]
    if relax is None:
        return None
    return Gradients(RelaxedLayer(family.solve, relax, temperature, samples), samples)


def _no_target() -> None:
    return None


def _adaptive(c: float) -> Callable[[], BaseTargetDistribution]:
    """Return the paper's rule, with a lambda for each row and a step that gets there in some hundred passes."""
    return partial(
        AdaptiveTargetDistribution,
        initial_beta=0.0,
        beta_update_step=1e-2,
        target_norm=c,
        exact_scaling=True,
        per_instance=True,
    )


CENTRAL: Build = partial(_by_difference, kind=aimle, symmetric_perturbation=True)
FORWARD: Build = partial(_by_difference, kind=aimle)
COUNTS = (1, 2, 4)

ESTIMATORS: dict[str, tuple[Build, Callable[[], BaseTargetDistribution | None]]] = {
    **{f"aimle central c={c}": (CENTRAL, _adaptive(c)) for c in COUNTS},
    **{f"aimle forward c={c}": (FORWARD, _adaptive(c)) for c in COUNTS},
    "aimle central auto": (CENTRAL, AutoTargetDistribution),
    "aimle forward auto": (FORWARD, AutoTargetDistribution),
    **{
        f"imle lambda={beta:g}": (partial(_by_difference, kind=imle), partial(TargetDistribution, beta=beta))
        for beta in (0.25, 1.0, 2.5, 10.0, 100.0)
    },
    "ste": (partial(_by_noise, kind=ste), _no_target),
    "identity": (partial(_by_noise, kind=identity, projection="mean"), _no_target),
    "blackbox lambda=2.5": (partial(_blackbox, interpolation=2.5), _no_target),
    "sfe": (partial(_score, exact=False), _no_target),
    "sfe loo": (partial(_score, exact=False, baseline="leave_one_out"), _no_target),
    "perturbed loo": (_perturbed, _no_target),
    "exact score": (partial(_score, exact=True), _no_target),
    "exact score loo": (partial(_score, exact=True, baseline="leave_one_out"), _no_target),
    "simple": (_simple, _no_target),
    "sst tau=0.5": (partial(_relaxed, kind="sst", temperature=0.5), _no_target),
    "softsub tau=0.5": (partial(_relaxed, kind="softsub", temperature=0.5), _no_target),
    "gumbel-softmax tau=0.5": (partial(_relaxed, kind="gumbel-softmax", temperature=0.5), _no_target),
}


class Counter:
    """A solver that counts the instances that it has solved."""

    def __init__(self, solve: Callable[[Tensor], Tensor]):
        self.solve, self.solved = solve, 0

    def __call__(self, theta: Tensor) -> Tensor:
        """Solve."""
        self.solved += len(theta)
        return self.solve(theta)


# ---- the measure


@dataclass
class Bench:
    """Problems with their exact gradients, and what is measured on them."""

    config: SynthConfig
    device: torch.device

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        self.problems = problems_of(self.config, self.device)
        self.counter = Counter(self.problems.family.solve)
        self.family = replace(self.problems.family, solve=self.counter)
        self.noise = NOISES[self.config.noise](self.family.k)
        self.exact = self.problems.exact()

    @property
    def names(self) -> list[str]:
        """The estimators that are asked for."""
        return [name for name in ESTIMATORS if name.startswith(tuple(self.config.only or ("",)))]

    def take(self, gradients: Gradients, repeats: int) -> tuple[Tensor, float]:
        """Return R gradients for each problem `[P, R, N]`, and the calls of the solver for one of them."""
        theta, self.counter.solved = self.problems.theta, 0
        rows = self.problems.rows.repeat_interleave(repeats)
        at_once = max(NUMBERS_AT_ONCE // (gradients.samples * theta.shape[1]), 1)
        found = [gradients(theta[some], partial(self.problems.loss, rows=some)) for some in rows.split(at_once)]
        return torch.cat(found).unflatten(0, (len(theta), repeats)), self.counter.solved / len(rows)

    def settled(self, name: str) -> BaseTargetDistribution | None:
        """Return an estimator's target distribution, an adaptive one after some hundred steps, frozen."""
        build, make_target = ESTIMATORS[name]
        target = make_target()
        if isinstance(target, AdaptiveTargetDistribution):
            gradients = build(self.family, self.noise, 1, target)
            assert gradients is not None
            for _ in range(self.config.settle):
                self.take(gradients, repeats=max(128 // len(self.exact), 1))
            target.beta_update_step = 0.0
        return target

    def measured(self, gradients: Gradients | None, repeats: int, sampled: Tensor | None = None) -> Entry:
        """Return the metrics of gradients; `sampled` are those of the distribution that is really sampled."""
        assert gradients is not None
        g, calls = self.take(gradients, repeats)
        return {"calls": calls, **moments(g, self.exact, sampled)}

    def perturbation_size(self, target: BaseTargetDistribution, samples: int) -> float:
        """Return the median of lambda over the problems, of gradients of so many samples."""
        theta = self.problems.theta
        noise = draw(self.noise, (len(theta), samples, theta.shape[1]), like=theta)
        z = self.problems.family.solve((theta.unsqueeze(1) + noise).flatten(0, 1)).requires_grad_()
        (dy,) = torch.autograd.grad(self.problems.loss(z, self.problems.rows).sum(), z)
        size = target.step_size(theta, dy.unflatten(0, noise.shape[:2]), noise, 1.0, None)
        return size.median().item()


def moments(g: Tensor, exact: Tensor, sampled: Tensor | None = None) -> Entry:
    """Return bias, variance, error and non-zero entries of gradients `[P, R, N]` beside exact ones `[P, N]`."""
    repeats, mean = g.shape[1], g.mean(dim=1)
    each = {
        "error": 1 - (unit(g) @ unit(exact).unsqueeze(2)).mean(dim=(1, 2)),
        "nonzero": (g != 0).sum(dim=2).float().mean(dim=1),
    }
    if repeats > 1:
        each["variance"] = (unit(g) @ unit(mean).unsqueeze(2)).var(dim=(1, 2))
        # |E g|^2, from pairs of different gradients; where noise is most of it there is nothing to say
        square = mean.square().sum(dim=1)
        true = (repeats * square - g.square().sum(dim=2).mean(dim=1)) / (repeats - 1)
        length = torch.where(true > square / 4, true, torch.nan).sqrt()
        for name, reference in (("bias", exact), ("bias_sampled", sampled)):
            if reference is not None:
                each[name] = 1 - (mean * unit(reference)).sum(dim=1) / length
    return {key: value for name, it in each.items() for key, value in summary(name, it).items()}


def summary(name: str, values: Tensor) -> Entry:
    """Return the mean over problems and its standard error; NaN where more than a twentieth of them are."""
    known = values[~values.isnan()]
    if len(known) < 0.95 * len(values) or len(known) == 0:
        return {name: math.nan, f"{name}_se": math.nan}
    error = known.std().item() / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return {name: known.mean().item(), f"{name}_se": error}


def unit(x: Tensor) -> Tensor:
    """Return vectors `[..., N]` of length 1."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)

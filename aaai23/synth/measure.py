"""What is measured of gradients, every estimator under the same measure, and its cost in calls of the solver.

    bias       1 - cos(mean gradient, exact gradient)       the mean's own noise is taken off its length
    variance   of cos(one gradient, mean gradient)
    error      mean of 1 - cos(one gradient, exact gradient); an empty gradient has cosine 0

P problems stand side by side, each with R gradients: P*R rows of one batch. A metric is a mean over problems and comes
with its standard error, under the name with `_se`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
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
LAMBDAS = [10 ** (i / 3) for i in range(-6, 7)]
LEARNING_RATES = (0.02, 0.1, 0.5)
STARTS = (0.0, 1e-6, 1.0, 1e6)


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


_central: Build = partial(_by_difference, kind=aimle, symmetric_perturbation=True)
_forward: Build = partial(_by_difference, kind=aimle)
COUNTS = (1, 2, 4)

ESTIMATORS: dict[str, tuple[Build, Callable[[], BaseTargetDistribution | None]]] = {
    **{f"aimle central c={c}": (_central, _adaptive(c)) for c in COUNTS},
    **{f"aimle forward c={c}": (_forward, _adaptive(c)) for c in COUNTS},
    "aimle central auto": (_central, AutoTargetDistribution),
    "aimle forward auto": (_forward, AutoTargetDistribution),
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
        "error": 1 - (_unit(g) @ _unit(exact).unsqueeze(2)).mean(dim=(1, 2)),
        "nonzero": (g != 0).sum(dim=2).float().mean(dim=1),
    }
    if repeats > 1:
        each["variance"] = (_unit(g) @ _unit(mean).unsqueeze(2)).var(dim=(1, 2))
        # |E g|^2, from pairs of different gradients; where noise is most of it there is nothing to say
        square = mean.square().sum(dim=1)
        true = (repeats * square - g.square().sum(dim=2).mean(dim=1)) / (repeats - 1)
        length = torch.where(true > square / 4, true, torch.nan).sqrt()
        for name, reference in (("bias", exact), ("bias_sampled", sampled)):
            if reference is not None:
                each[name] = 1 - (mean * _unit(reference)).sum(dim=1) / length
    return {key: value for name, it in each.items() for key, value in summary(name, it).items()}


def summary(name: str, values: Tensor) -> Entry:
    """Return the mean over problems and its standard error; NaN where more than a twentieth of them are."""
    known = values[~values.isnan()]
    if len(known) < 0.95 * len(values) or len(known) == 0:
        return {name: math.nan, f"{name}_se": math.nan}
    error = known.std().item() / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return {name: known.mean().item(), f"{name}_se": error}


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def by_lambda(bench: Bench) -> Iterator[Entry]:
    """Yield the metrics of finite differences at each lambda, and where the adaptive rule settles."""
    samples, repeats = bench.config.samples, bench.config.repeats
    for name, build in (("forward", _forward), ("central", _central)):
        for beta in LAMBDAS:
            fixed = TargetDistribution(beta=beta, do_gradient_scaling=True)
            gradients = build(bench.family, bench.noise, samples, fixed)
            yield {"estimator": name, "lambda": beta, **bench.measured(gradients, repeats)}
    for name in [name for name in bench.names if name.startswith("aimle")]:
        target, build = bench.settled(name), ESTIMATORS[name][0]
        assert target is not None
        size = bench.perturbation_size(target, samples)
        found = bench.measured(build(bench.family, bench.noise, samples, target), repeats)
        yield {"estimator": name, "lambda": size, "beta": getattr(target, "beta", None), **found}


def by_samples(bench: Bench) -> Iterator[Entry]:
    """Yield the error of each estimator for each number of samples: 1, 3, 10, 30, ..."""
    grid = [a * 10**b for b in range(9) for a in (1, 3) if a * 10**b <= bench.config.max_samples]
    for name in bench.names:
        build, target = ESTIMATORS[name][0], bench.settled(name)
        for samples in grid:
            gradients = build(bench.family, bench.noise, samples, target)
            if gradients is not None:
                yield {"estimator": name, "samples": samples, **bench.measured(gradients, max(100 // samples, 1))}


def by_bias_and_variance(bench: Bench) -> Iterator[Entry]:
    """Yield bias, variance and error of each estimator, for one sample and for 32 (2 where one is not enough)."""
    losses, draws = bench.problems.all_losses(), bench.config.reference_draws
    sampled, error = bench.problems.family.perturbed_gradient(bench.problems.theta, losses, bench.noise, draws)
    for name in bench.names:
        build, target = ESTIMATORS[name][0], bench.settled(name)
        for samples in (1, 2, 32):
            gradients = build(bench.family, bench.noise, samples, target)
            if gradients is not None and (samples != 2 or build(bench.family, bench.noise, 1, target) is None):
                found = bench.measured(gradients, max(bench.config.repeats // samples, 50), sampled)
                yield {"estimator": name, "samples": samples, **found, "reference_error": error.mean().item()}


def by_optimiser(bench: Bench) -> Iterator[Entry]:
    """Yield E[f(z)] - min f along SGD and Adam, each estimator with the learning rate that ends lowest."""
    for optimiser in (torch.optim.SGD, torch.optim.Adam):
        for name in bench.names:
            curves = [curve for rate in LEARNING_RATES if (curve := _curve(bench, name, optimiser, rate))]
            yield from min(curves, key=lambda curve: curve[-1]["regret"], default=[])


def _curve(bench: Bench, name: str, optimiser: Any, rate: float) -> list[Entry]:
    """Return the entries of one optimisation, of as many samples a step as the calls of the solver allow."""
    build, make_target = ESTIMATORS[name]
    samples = _affordable(bench, name)
    gradients = build(bench.family, bench.noise, samples, make_target())
    if gradients is None:
        return []
    losses, problems = bench.problems.all_losses(), bench.problems
    least = losses.amin(dim=1)
    theta = problems.theta.clone()
    moving, entries = optimiser([theta], lr=rate), []
    every = max(bench.config.steps // 30, 1)
    shared: Entry = {"estimator": name, "optimiser": optimiser.__name__.lower(), "rate": rate, "samples": samples}
    bench.counter.solved = 0
    for step in range(bench.config.steps + 1):
        if step % every == 0:
            calls = bench.counter.solved / len(theta)
            regret = summary("regret", problems.family.mean_loss(theta, losses) - least)
            entries.append({**shared, "step": step, "calls": calls, **regret})
        theta.grad = gradients(theta, partial(problems.loss, rows=problems.rows))
        moving.step()
    return entries


def _affordable(bench: Bench, name: str) -> int:
    """Return the number of samples that the calls of a step allow; where none is called, as many as calls."""
    build, make_target = ESTIMATORS[name]
    for samples in (2, 1):  # what two cost tells the share of each
        gradients = build(bench.family, bench.noise, samples, make_target())
        if gradients is not None:
            _, calls = bench.take(gradients, 1)
            each = calls / samples
            most = bench.config.calls if not each else max(int(bench.config.calls / each), 1)
            return most if samples == 2 else 1
    return 1


def by_start(bench: Bench) -> Iterator[Entry]:
    """Yield beta and the count of non-zero entries along the passes of a network that stands still."""
    config = bench.config
    for start in STARTS:
        target = AdaptiveTargetDistribution(
            initial_beta=start,
            beta_update_step=config.beta_update_step,
            target_norm=config.target_norm,
            per_instance=True,
        )
        gradients = _central(bench.family, bench.noise, config.samples, target)
        assert gradients is not None
        for step in range(config.steps + 1):
            if step % max(config.steps // 100, 1) == 0:
                yield {"start": start, "step": step, "beta": target.beta, "nonzero": target.grad_norm}
            bench.take(gradients, 1)


def by_noise(bench: Bench) -> Iterator[Entry]:
    """Yield how far the distribution that a noise makes, and its gradient, are from the exponential family's."""
    problems, family, draws = bench.problems, bench.problems.family, bench.config.reference_draws
    exact = family.log_probs(problems.theta).exp()
    for name, make in NOISES.items():
        noise = make(family.k)
        found = family.frequencies(problems.theta, noise, draws)
        picked = exact.multinomial(draws, replacement=True)
        floor = torch.zeros_like(exact).scatter_add_(1, picked, torch.ones_like(picked, dtype=exact.dtype)) / draws
        gradient, error = family.perturbed_gradient(problems.theta, problems.all_losses(), noise, draws)
        yield {
            "estimator": name,
            **summary("total_variation", (found - exact).abs().sum(dim=1) / 2),
            **summary("floor", (floor - exact).abs().sum(dim=1) / 2),
            **summary("gradient_distance", 1 - (_unit(gradient) * _unit(bench.exact)).sum(dim=1)),
            "reference_error": error.mean().item(),
        }


MEASURES: dict[str, Callable[[Bench], Iterator[Entry]]] = {
    "lambda": by_lambda,
    "samples": by_samples,
    "bias-variance": by_bias_and_variance,
    "optimise": by_optimiser,
    "adapt": by_start,
    "noise": by_noise,
}


def needed(history: list[Entry], error: float = 0.1) -> Entry:
    """Return, for each estimator, the samples and the calls of the solver that bring the error down to `error`.

    Between two numbers of samples the error is a straight line over their logarithm. What never gets there is None.
    """
    found: Entry = {}
    for name in dict.fromkeys(entry["estimator"] for entry in history):
        curve = [entry for entry in history if entry["estimator"] == name]
        for column in ("samples", "calls"):
            found[f"{name}: {column}"] = _crossing([(entry[column], entry["error"]) for entry in curve], error)
    return found


def _crossing(curve: list[tuple[float, float]], level: float) -> float | None:
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if y0 <= level:
            return x0
        if y1 <= level:
            return x1 if not x0 else x0 * (x1 / x0) ** ((y0 - level) / (y0 - y1))
    return curve[-1][0] if curve[-1][1] <= level else None

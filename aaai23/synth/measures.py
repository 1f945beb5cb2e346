"""The measures: what is taken at the bench, an entry of a record at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from aaai23.synth.bench import CENTRAL, ESTIMATORS, FORWARD, NOISES, Bench, Entry, summary, unit
from imle.target import AdaptiveTargetDistribution, TargetDistribution

LAMBDAS = [10 ** (i / 3) for i in range(-6, 7)]
LEARNING_RATES = (0.02, 0.1, 0.5)
STARTS = (0.0, 1e-6, 1.0, 1e6)


def by_lambda(bench: Bench) -> Iterator[Entry]:
    """Yield the metrics of finite differences at each lambda, and where the adaptive rule settles."""
    samples, repeats = bench.config.samples, bench.config.repeats
    for name, build in (("forward", FORWARD), ("central", CENTRAL)):
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
        gradients = CENTRAL(bench.family, bench.noise, config.samples, target)
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
            **summary("gradient_distance", 1 - (unit(gradient) * unit(bench.exact)).sum(dim=1)),
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

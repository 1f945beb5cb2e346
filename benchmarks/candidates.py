"""Rules for lambda, and ways to spend solver calls, that were tried beside the library's: one judge for all.

python -m benchmarks.candidates [names] [--problems N] [--seeds N]        judges (a) and (b)
python -m benchmarks.candidates --task vae|l2x|nri NAME FLAGS...          judge (c): a task's script with a candidate

(a) The error 1 - cos of one gradient to the exact one for ||z - b||^2 (docs/gradients.md), Gumbel noise, central
    differences, at 6 / 60 calls of the solver, small and large structures. What moves has moved for 300 passes.
(b) The precision of a subset, n = 400, k = 20, and the regret of shortest paths (`benchmarks.learning`), S = 1.
(c) The VAE, L2X and NRI, each with the flags of docs/gradients.md.

Candidates live here and not in the library, until one of them wins.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aaai23.synth.config import SynthConfig
from aaai23.synth.exact import Family
from aaai23.synth.measure import Gradients, Problems, moments, problems_of
from benchmarks.learning import decision_loss, mean, precision, regret, shortest_paths
from imle.aimle import AIMLE
from imle.auto import AutoTargetDistribution
from imle.noise import BaseNoiseDistribution, GumbelNoiseDistribution
from imle.perturb_and_map import Solve
from imle.structures import Structure, k_subsets, spanning_trees
from imle.target import AdaptiveTargetDistribution, BaseTargetDistribution, TargetDistribution

PASSES = 300
REPEATS = 20  # gradients for each problem


# ---- targets


class ClosedForm(AutoTargetDistribution):
    """`AutoTargetDistribution` with another constant, and another power of R.

    Args:
        constant: of the step, in standard deviations of the perturbed theta.
        power: the step goes with R^-power.
        shared: one lambda for all rows of the batch.
        spread: how much of theta's own variance counts beside that of the noise.
        batch: R counts all solutions of the batch, since a network that makes theta sums over them all.
    """

    def __init__(
        self,
        constant: float = 4.0,
        power: float = 0.5,
        shared: bool = False,
        spread: float = 1.0,
        batch: bool = False,
    ):
        super().__init__()
        self.constant, self.power, self.shared, self.spread, self.batch = constant, power, shared, spread, batch

    def perturbation_size(
        self, theta: Tensor, dy: Tensor, sigma: Tensor | float = 0.0, walled: Tensor | None = None
    ) -> Tensor:
        """Return lambda `[B, 1, ...]`."""
        size = super().perturbation_size(self.spread**0.5 * theta, dy, sigma, walled)
        size = size * (self.constant / 4.0 * dy.shape[1] ** (0.5 - self.power))
        if self.batch:
            size = size * dy.shape[0] ** -self.power
        if self.shared:
            weights = dy.flatten(1).square().sum(dim=1).view_as(size)
            size = (size * weights).sum() / weights.sum() + torch.zeros_like(size)
        return size


class Multiplied(AdaptiveTargetDistribution):
    """The paper's rule with steps of beta by a factor."""

    FACTOR = math.exp(0.05)

    def update(self, difference: Tensor, dy: Tensor) -> None:
        """Move beta by one step."""
        before = self.beta
        super().update(difference, dy)  # N, and nothing else: eta is 0
        self.beta = before * (self.FACTOR if self.grad_norm < self.wanted else 1 / self.FACTOR)

    @property
    def wanted(self) -> float:
        """The wanted number of non-zero entries."""
        return self.target_norm


class Relative(Multiplied):
    """A wanted number of non-zero entries that is a share of those that differ between two solutions."""

    changeable = 1.0  # entries; `Counting` knows
    share = 0.5

    @property
    def wanted(self) -> float:
        """The wanted number of non-zero entries."""
        return self.share * self.changeable


class RelativeFactor(ClosedForm):
    """The closed form times a factor that moves until the share of `Relative` is reached."""

    changeable = 1.0
    share = 0.5
    factor = 1.0
    count = 1.0

    def perturbation_size(
        self, theta: Tensor, dy: Tensor, sigma: Tensor | float = 0.0, walled: Tensor | None = None
    ) -> Tensor:
        """Return lambda `[B, 1, ...]`."""
        return super().perturbation_size(theta, dy, sigma, walled) * self.factor

    def update(self, difference: Tensor, dy: Tensor) -> None:
        """Move the factor by one step."""
        nonzero = difference.count_nonzero().item() / max(difference.shape[:2].numel(), 1)
        self.count = 0.9 * self.count + 0.1 * nonzero
        self.factor *= Multiplied.FACTOR ** (1 if self.count < self.share * self.changeable else -1)


# ---- estimators


class Counting(AIMLE):
    """AIMLE that tells its target in how many entries two solutions differ, neighbours in the batch."""

    def gradient(
        self, solve: Solve, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g `[B, S, ...]`."""
        rows = z.flatten(0, 1).flatten(1)
        self.target.changeable = (rows != rows.roll(1, 0)).sum(dim=1).float().mean().item()  # type: ignore[assignment]
        return super().gradient(solve, theta, noise, z, dy, take_note)


class TwoSteps(AIMLE):
    """The mean of the differences at lambda and at a quarter of it: two lambdas in one pass."""

    def difference(self, solve: Solve, theta: Tensor, noise: Tensor | None, z: Tensor, step: Tensor) -> Tensor:
        """Return the numerator of g `[B, R, ...]`, over lambda."""
        far, near = (super(TwoSteps, self).difference(solve, theta, noise, z, step * size) for size in (1.0, 0.25))
        return (far + 4 * near) / 2


class Clipped(AIMLE):
    """A lambda that is halved where the sides are the same at half of it."""

    def difference(self, solve: Solve, theta: Tensor, noise: Tensor | None, z: Tensor, step: Tensor) -> Tensor:
        """Return the numerator of g `[B, R, ...]`, over lambda."""
        far, near = (super(Clipped, self).difference(solve, theta, noise, z, step * size) for size in (1.0, 0.5))
        same = (far == near).flatten(2).all(dim=2).view(*far.shape[:2], *[1] * (far.dim() - 2))
        return torch.where(same, 2 * near, far)


class SharedSides(AIMLE):
    """Sides in the direction of the mean of dy over the samples of an instance."""

    def gradient(
        self, solve: Solve, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g `[B, S, ...]`."""
        return super().gradient(solve, theta, noise, z, dy.mean(dim=1, keepdim=True).expand_as(dy), take_note)


class Controlled(AIMLE):
    """Central differences with z+ - 2z + z- as a control variate, of which the mean is 0 but for curvature.

    Its factor is the regression's over the batch.
    """

    def difference(self, solve: Solve, theta: Tensor, noise: Tensor | None, z: Tensor, step: Tensor) -> Tensor:
        """Return the numerator of g `[B, R, ...]`."""
        base = self.base(theta, noise)
        plus = solve(base + step).clone()
        minus = solve(base - step)
        central, bend = (plus - minus) / 2, plus - 2 * z + minus
        return central - bend * ((central * bend).sum() / bend.square().sum().clamp(min=1e-30))


class Flattened(AIMLE):
    """A lambda that is smaller where the gradients dy at two samples of an instance differ: curvature."""

    def size(self, theta: Tensor, noise: Tensor | None, dy: Tensor) -> Tensor:
        """Return lambda `[B, 1, ...]`."""
        size = super().size(theta, noise, dy)
        if dy.shape[1] == 1:
            return size
        rows = dy.flatten(2)
        differ = (rows - rows.roll(1, 1)).norm(dim=2).mean(dim=1) / (2 * rows.norm(dim=2).mean(dim=1)).clamp(min=1e-30)
        return size * (1 - differ).clamp(min=0.1).view_as(size)


class Bent(AIMLE):
    """A direction that knows the curvature of the loss, and so points where a large step should go.

    Let f(z') = f(z) + <dy, z' - z> + q ||z' - z||^2 / 2. For solutions z' of 0 and 1, or of one length, that is linear
    in z', with coefficients dy + q (1/2 - z). The noise tells q without a further call: it moves z, and with it dy, and
    belongs to no instance: q = Cov(dy, eps) / Cov(z, eps), over the batch and the last passes.
    """

    KEPT = 0.9

    def gradient(
        self, solve: Solve, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g `[B, S, ...]`."""
        assert noise is not None
        target: Any = self.target
        moves, bends = getattr(target, "moved", (0.0, 0.0))
        eps = noise - noise.mean()
        target.moved = moves, bends = (
            self.KEPT * moves + (z * eps).mean().item(),
            self.KEPT * bends + (dy * eps).mean().item(),
        )
        dy = dy + bends / moves * (0.5 - z)
        return super().gradient(solve, theta, noise, z, dy, take_note)


class Calibrated(AIMLE):
    """A gradient of the size that the noise tells, which a difference over a large step falls short of.

    Both z against eps and the difference against the step have a slope, a mean diagonal of the same Jacobian; the
    gradient is multiplied by their ratio, over the batch.
    """

    def gradient(
        self, solve: Solve, theta: Tensor, noise: Tensor | None, z: Tensor, dy: Tensor, take_note: bool
    ) -> Tensor:
        """Return g `[B, S, ...]`."""
        assert noise is not None
        g = super().gradient(solve, theta, noise, z, dy, take_note)
        eps = noise - noise.mean()
        by_noise = (z * eps).sum() / eps.square().sum()  # negative for a solver that minimises
        by_step = (g * dy).sum() / dy.square().sum()
        return g * (by_noise.abs() / by_step.clamp(min=1e-30)).clamp(0.0, 1e3)


class AntitheticGumbel(BaseNoiseDistribution):
    """Gumbel noise of which the samples of an instance are pairs, of quantiles u and 1 - u."""

    def sample(self, shape: Any, *_: Any, **__: Any) -> Tensor:
        """Return eps `[B, R, ...]`."""
        instances, samples, *rest = shape
        u = torch.rand(instances, (samples + 1) // 2, *rest).clamp(1e-7, 1 - 1e-7)
        return -torch.stack([u, 1 - u], dim=2).flatten(1, 2)[:, :samples].log().neg().log()


# ---- candidates


@dataclass(frozen=True)
class Candidate:
    """One thing to try.

    Args:
        target: makes the target distribution.
        estimator: what takes the differences.
        noise: makes the noise.
        calls: of the solver, for a sample of central differences.
    """

    target: Callable[[], BaseTargetDistribution]
    estimator: Callable[..., Any] = AIMLE
    noise: Callable[[], Any] = GumbelNoiseDistribution
    calls: int = 3


def paper(c: float, **options: Any) -> Candidate:
    """Return the paper's rule; what is not named is as published."""
    options = {"initial_beta": 0.0, "beta_update_step": 1e-3, "exact_scaling": True, **options}
    return Candidate(partial(AdaptiveTargetDistribution, target_norm=c, **options))


COUNTS = (0.5, 1, 2, 4, 8, 16)
SIZES = (0.25, 0.5, 1, 2, 4, 8, 16)

CANDIDATES: dict[str, Candidate] = {
    "paper, c=1": paper(1),
    **{f"paper, tuned c={c}": paper(c, beta_update_step=1e-2) for c in COUNTS},
    **{f"paper, from 1, c={c}": paper(c, beta_update_step=1e-2, initial_beta=1.0) for c in COUNTS},
    **{f"fixed lambda={x}": Candidate(partial(TargetDistribution, beta=x, do_gradient_scaling=True)) for x in SIZES},
    "auto": Candidate(AutoTargetDistribution),
    "auto, 2 S^-1/5": Candidate(partial(ClosedForm, 2.0, 0.2)),
    "auto, constant 2": Candidate(partial(ClosedForm, 2.0)),
    "auto, constant 8": Candidate(partial(ClosedForm, 8.0)),
    "auto, one deviation": Candidate(partial(ClosedForm, 1.0, 0.0)),
    "auto, batch": Candidate(partial(ClosedForm, batch=True)),
    "auto, batch, noise alone": Candidate(partial(ClosedForm, spread=0.0, batch=True)),
    "auto, noise alone": Candidate(partial(ClosedForm, spread=0.0)),
    "auto, noise alone, constant 1": Candidate(partial(ClosedForm, 1.0, spread=0.0)),
    "auto, one lambda": Candidate(partial(ClosedForm, shared=True)),
    "multiplied, c=1": Candidate(partial(Multiplied, target_norm=1.0, beta_update_step=0.0, exact_scaling=True)),
    "lambda per instance, c=1": paper(1, per_instance=True),
    "multiplied, per instance, c=1": Candidate(
        partial(Multiplied, target_norm=1.0, beta_update_step=0.0, exact_scaling=True, per_instance=True)
    ),
    "relative count": Candidate(
        partial(Relative, beta_update_step=0.0, exact_scaling=True, per_instance=True), Counting
    ),
    "auto, relative count": Candidate(RelativeFactor, Counting),
    "auto, two lambdas": Candidate(AutoTargetDistribution, TwoSteps, calls=5),
    "auto, clipped": Candidate(AutoTargetDistribution, Clipped, calls=5),
    "auto, antithetic": Candidate(AutoTargetDistribution, noise=AntitheticGumbel),
    "auto, shared sides": Candidate(AutoTargetDistribution, SharedSides),
    "auto, antithetic, shared sides": Candidate(AutoTargetDistribution, SharedSides, AntitheticGumbel),
    "auto, controlled": Candidate(AutoTargetDistribution, Controlled),
    "auto, calibrated": Candidate(AutoTargetDistribution, Calibrated),
    "auto, noise alone, calibrated": Candidate(partial(ClosedForm, spread=0.0), Calibrated),
    "auto, bent": Candidate(AutoTargetDistribution, Bent),
    "auto, bent, antithetic": Candidate(AutoTargetDistribution, Bent, AntitheticGumbel),
    "auto, flattened": Candidate(AutoTargetDistribution, Flattened),
    "auto, antithetic, flattened": Candidate(AutoTargetDistribution, Flattened, AntitheticGumbel),
}


# ---- judge (a)


@dataclass(frozen=True)
class Exact:
    """Problems and the exact gradients `[P, N]`."""

    problems: Problems
    gradients: Tensor = field(repr=False)

    def error(self, candidate: Candidate, calls: int) -> float:
        """Return the mean error of one gradient that costs so many calls of the solver."""
        samples = max(calls // candidate.calls, 1)
        estimator = candidate.estimator(
            target_distribution=candidate.target(),
            noise_distribution=candidate.noise(),
            nb_samples=samples,
            symmetric_perturbation=True,
            _is_minimization=self.problems.family.sign < 0,
        )
        gradients = Gradients(estimator(self.problems.family.solve), samples)
        if type(estimator.target).update is not BaseTargetDistribution.update:
            for _ in range(PASSES):
                self._take(gradients, 1)
        return moments(self._take(gradients, REPEATS), self.gradients)["error"]

    def _take(self, gradients: Gradients, repeats: int) -> Tensor:
        rows = self.problems.rows.repeat_interleave(repeats)
        g = gradients(self.problems.theta[rows], partial(self.problems.loss, rows=rows))
        return g.unflatten(0, (-1, repeats))


def listed(count: int, **options: Any) -> Exact:
    """Return problems of which all solutions are listed."""
    problems = problems_of(SynthConfig(method="samples", seeds=count, **options), torch.device("cpu"))
    return Exact(problems, problems.exact())


def known(count: int, structure: Structure, n: int) -> Exact:
    """Return problems of too many solutions to list, of which the marginals are known: solutions of 0 and 1.

    ||z - b||^2 is then <z, 1 - 2b> and a constant, and its gradient that times the marginals' Jacobian.
    """
    generator = torch.Generator().manual_seed(0)
    theta, b = torch.randn(count, n, generator=generator), torch.randn(count, n, generator=generator).abs()
    at = theta.double().requires_grad_()
    (gradients,) = torch.autograd.grad(structure.marginals(at), at, (1 - 2 * b).double())  # the Jacobian is symmetric
    family = Family(structure.solve, torch.zeros(0, n), structure.k)
    return Exact(Problems(family, theta, b, None), gradients.float())


def small(count: int, loss: str = "separable") -> Iterator[tuple[str, Exact]]:
    """Yield the small problems."""
    yield "subsets 10/5", listed(count, structure="subsets", n=10, k=5, loss=loss)
    yield "subsets 50/1", listed(count, structure="subsets", n=50, k=1, loss=loss)
    yield "trees 6", listed(count, structure="trees", n=6, loss=loss)
    yield "rankings 5", listed(count, structure="rankings", n=5, loss=loss)
    yield "paths 4", listed(count, structure="paths", n=4, loss=loss)


def large(count: int) -> Iterator[tuple[str, Exact]]:
    """Yield the large ones."""
    yield "subsets 200/20", known(count, k_subsets(20), 200)
    yield "subsets 200/1", listed(count, structure="subsets", n=200, k=1)
    yield "trees 12", known(count, spanning_trees(12), 66)
    yield "rankings 7", listed(count, structure="rankings", n=7)
    yield "paths 7", listed(count, structure="paths", n=7)


# ---- judges (b) and (c)


def make(candidate: Candidate, **options: Any) -> Any:
    """Return a candidate's estimator of forward differences."""
    return candidate.estimator(target_distribution=candidate.target(), noise_distribution=candidate.noise(), **options)


def learn(candidate: Candidate, seeds: int) -> tuple[float, float]:
    """Return the precision of the subset and the regret of paths."""
    subset = mean([precision(partial(make, candidate), seed) for seed in range(seeds)])
    found = []
    for seed in range(seeds):
        problem = shortest_paths(seed)
        decide = make(candidate, _is_minimization=True)(problem.solver)
        found.append(regret(problem, seed, decision_loss(decide, "regret", True)))
    return subset, mean(found)


SCRIPTS = {"vae": "aaai23.dvae.cli", "l2x": "aaai23.l2x.cli", "nri": "aaai23.nri.cli"}


def run_task(task: str, name: str, flags: list[str]) -> int:
    """Run a task's script with a candidate in place of the target that its flags name."""
    candidate, methods = CANDIDATES[name], importlib.import_module("aaai23.methods")

    def instead(target_distribution: Any, **options: Any) -> Any:
        target: Any = candidate.target()
        if task == "vae":  # whose published results rest on a gradient that grows with the root of S
            scale = target.scale
            target.scale = lambda difference, theta, dy, size: scale(difference, theta, dy, size) * dy.shape[1] ** 0.5
        return candidate.estimator(target_distribution=target, **options)

    methods.aimle = instead  # type: ignore[attr-defined]
    return importlib.import_module(SCRIPTS[task]).main(flags)


def main(argv: list[str] | None = None) -> int:
    """Judge and print."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.candidates", description="Rules for lambda.")
    if arguments[:1] == ["--task"]:
        parser.add_argument("--task", choices=SCRIPTS, required=True)
        parser.add_argument("name", choices=CANDIDATES, metavar="NAME")
        task = parser.parse_args(arguments[:3])
        return run_task(task.task, task.name, arguments[3:])
    parser.add_argument("names", nargs="*", help=f"which, by their first letters; all by default: {list(CANDIDATES)}")
    parser.add_argument("--problems", type=int, default=64, help="of each structure (default 64)")
    parser.add_argument("--seeds", type=int, default=3, help="of the learning (default 3)")
    args = parser.parse_args(arguments)
    names = [name for name in CANDIDATES if name.startswith(tuple(args.names or [""]))]
    coupled = partial(small, loss="coupled")
    for title, problems in (("small", small), ("small, ||A (z - b)||^2", coupled), ("large", large)):
        sets = dict(problems(args.problems))
        columns = [(structure, calls) for structure in sets for calls in (6, 60)]
        print(f"\n{title:32}" + "".join(f"{structure:>16}" for structure in sets) + f"{'mean':>14}")
        for name in names:
            torch.manual_seed(0)
            errors = [sets[structure].error(CANDIDATES[name], calls) for structure, calls in columns]
            pairs = [*zip(errors[::2], errors[1::2]), (mean(errors[::2]), mean(errors[1::2]))]
            print(f"{name:32}" + "".join(f"{f'{x:.3f} / {y:.3f}':>16}" for x, y in pairs), flush=True)
    print(f"\n{'':32}{'subset precision':>18}{'path regret, %':>18}")
    for name in names:
        subset, path = learn(CANDIDATES[name], args.seeds)
        print(f"{name:32}{subset:18.3f}{path:18.2f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

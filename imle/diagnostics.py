"""Is my gradient right? An estimator's gradients beside those of the expected loss, from values of the loss alone.

    F(theta) = E[loss(MAP(theta + tau eps))]

or with what else an estimator does to theta, as `identity` does. For `perturbed`, whose loss is that of a mean of
solutions, F is another function unless the loss is linear in z.

The reference knows nothing of the estimator. It takes central differences of F in random directions xi ~ N(0, I), the
same eps on both sides, times the direction: their mean is the gradient of F, smoothed by noise of the size of the step.
It serves any noise and any solver, at two more solutions a sample. Means over pairs of different samples give lengths
of gradients without the bias that their noise has; standard errors come from leaving out one sample at a time.

Source: Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation", 1992;
Nesterov, Spokoiny, "Random gradient-free minimization of convex functions", 2017 (Gaussian directions).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from imle._numerics import beside
from imle.noise import draw
from imle.perturb_and_map import Estimator
from imle.sfe import score_function_loss
from imle.solver import BoundSolver

Loss = Callable[[Tensor], Tensor]

_BATCHES = 20  # of the reference, whose spread gives its standard error
_FAR = 10.0  # times the noise's deviation that theta's is more or less, of which a report speaks
_MASK = 1e8
_COMPARED = ("cosine", "bias", "size")


@dataclass(frozen=True, kw_only=True)
class GradientReport:
    """What `gradient_report` found; `print` shows it as a table. NaN stands for what cannot be said.

    Args:
        cosine: of one gradient to the reference, the mean over repeats; an empty gradient counts as 0.
        bias: 1 - the cosine of the mean gradient to the reference.
        size: length of the mean gradient over that of the reference.
        variance: of the cosine of one gradient to the mean gradient.
        agreement: mean cosine of two gradients to each other.
        nonzero: non-zero entries of a gradient, a mean over instances and repeats.
        entries: of an instance.
        perturbation_size: lambda, the mean over repeats.
        beta: of the target distribution.
        spread: the standard deviation of theta's entries within an instance, over that of tau eps.
        reference: how the reference was made, with its relative standard error.
        verdict: what follows, in a sentence.
        note: what is odd about the solutions themselves, if anything is.
        errors: standard errors, by the name.
    """

    cosine: float = math.nan
    bias: float = math.nan
    size: float = math.nan
    variance: float
    agreement: float
    nonzero: float
    entries: int
    perturbation_size: float
    beta: float
    spread: float = math.nan
    reference: str
    verdict: str
    note: str = ""
    errors: dict[str, float] = field(default_factory=dict)

    def _hint(self) -> str:
        if self.spread > _FAR:
            return ": noise changes few solutions; raise its temperature, or keep theta small"
        return ": theta hardly matters beside the noise" if self.spread < 1 / _FAR else ""

    def __str__(self) -> str:
        error = {name: self.errors.get(name, math.nan) for name in _COMPARED}
        rows = [
            ("cosine", f"{self.cosine:.3f} ± {error['cosine']:.3f}", "of one gradient to the reference"),
            ("bias", f"{self.bias:.3f} ± {error['bias']:.3f}", "1 - cosine of the mean gradient to the reference"),
            ("size", f"{self.size:.3g} ± {error['size']:.2g}", "of the mean gradient, over the reference's"),
            ("variance", f"{self.variance:.3f}", "of the cosine of one gradient to the mean gradient"),
            ("agreement", f"{self.agreement:.3f}", "mean cosine of two gradients"),
            ("non-zero entries", f"{self.nonzero:.1f}", f"of {self.entries} of an instance"),
            (
                "lambda",
                f"{self.perturbation_size:.3g}",
                "size of the step" + f", beta {self.beta:.3g}" * (self.beta >= 0),
            ),
            ("spread", f"{self.spread:.3g}", f"of theta's entries, over the noise's{self._hint()}"),
        ]
        known = [(name, value, meaning) for name, value, meaning in rows if not value.startswith("nan")]
        lines = [f"{name:<16} {value:>16}   {meaning}" for name, value, meaning in known]
        lines += [f"reference: {self.reference}", f"verdict: {self.verdict}"]
        return "\n".join([*lines, f"note: {self.note}"] if self.note else lines)


def gradient_report(
    layer: Any,
    theta: Tensor,
    loss: Loss,
    *args: Any,
    nb_reference: int = 10_000,
    nb_repeats: int = 100,
    step: float | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> GradientReport:
    """Compare an estimator's gradients with central differences of the expected loss.

    The gradients are those of the whole batch, with the target distribution in its present state. Neither that state
    nor torch's random state moves. The solver is called 41 times with `B * nb_reference / 20` rows, 40 of them for the
    reference, and as often as `nb_repeats` forward and backward passes call it.

    Args:
        layer: a decorated solver, or a `MAPLayer`.
        theta: `[B, ...]`.
        loss: solutions `[B*R, ...]` for any R, those of one instance side by side -> losses `[B*R]`. Labels of the B
            instances are repeated by `labels.repeat_interleave(len(z) // B, dim=0)`.
        args: the solver's further arguments.
        nb_reference: pairs of samples for each instance, in 20 batches; four times as many halve the reference's error.
        nb_repeats: gradients to take, 3 or more.
        step: of the central differences, which smooth the loss by as much; by default an eighth of the standard
            deviation of the noise. Without noise the loss is constant almost everywhere, and its gradient zero: there
            is no reference then, but for a step that you give, of the loss which that step smooths.
        seed: of all noise.
        kwargs: the solver's further arguments, by name.

    Raises:
        TypeError: the layer has no solver and estimator.
        ValueError: a number is too small, the losses are not `[B*R]`, or the noise is not in units of theta
            (multiplicative, or behind a projection) and no step is named.

    Example:
        >>> from imle.aimle import aimle
        >>> from imle.noise import GumbelNoiseDistribution
        >>> from imle.solvers import select_k
        >>> @aimle(noise_distribution=GumbelNoiseDistribution(), nb_samples=8)
        ... def select_two(theta):
        ...     return select_k(theta, 2)
        >>> report = gradient_report(select_two, torch.tensor([[0.3, 0.1, -0.4, 0.0]]), lambda z: z[:, 0] - z[:, 3])
        >>> report.verdict
        'the mean gradient points the right way'
    """
    solver, estimator = getattr(layer, "solver", None), getattr(layer, "estimator", None)
    if not isinstance(estimator, Estimator) or solver is None:
        raise TypeError(f"gradient_report needs a decorated solver or a MAPLayer, {layer!r} has no estimator")
    if nb_reference < 2 * _BATCHES or nb_repeats < 3 or not (step is None or 0 < step < math.inf):
        need = f"nb_reference must be {2 * _BATCHES} or more, nb_repeats 3 or more, step positive"
        raise ValueError(f"{need}; they are {nb_reference}, {nb_repeats}, {step}")
    theta, sizes = theta.detach(), list[float]()
    with torch.random.fork_rng(devices=[theta.device] if theta.is_cuda else []):
        torch.manual_seed(seed)
        gradients = [_gradient(estimator, solver, theta, loss, args, kwargs, sizes) for _ in range(nb_repeats)]
        solve = estimator.bind(solver, theta, nb_reference // _BATCHES, args, kwargs)
        differences = [_difference(estimator, solve, theta, loss, step) for _ in range(_BATCHES)]
        note = _note(estimator, solve, theta)
        spread = _spread(estimator, solve, theta)
    g = _rows(gradients)
    units = _unit(g)
    return GradientReport(
        **_comparison(g, differences, _BATCHES * solve.rows * len(theta)),
        variance=(units @ _unit(g.mean(dim=0))).var().item(),
        agreement=_mean_over_pairs(units @ units.mT).item(),
        nonzero=(g != 0).sum().item() / (nb_repeats * len(theta)),
        entries=theta[0].numel(),
        perturbation_size=sum(sizes) / len(sizes) if sizes else math.nan,
        beta=float(getattr(getattr(estimator, "target_distribution", None), "beta", math.nan)),
        spread=spread,
        note=note,
    )


def _gradient(
    estimator: Any, solver: Any, theta: Tensor, loss: Loss, args: tuple, kwargs: dict, sizes: list[float]
) -> Tensor:
    """Return the estimator's gradient `[B, ...]`, its state as it is, and take note of its lambda."""
    options: dict[str, Any] = {"generator": None, "sample_reduction": "mean"}
    target: Any = getattr(estimator, "target_distribution", None)
    if target is not None:
        target = options["target_distribution"] = deepcopy(target)
    if hasattr(target, "perturbation_size"):
        measure = target.perturbation_size
        target.perturbation_size = lambda *tensors: _noted(measure(*tensors), sizes)
    theta = theta.clone().requires_grad_()
    z = replace(estimator, **options).sample(solver, theta, args, kwargs)
    if isinstance(z, tuple):  # of the score function, whose losses need no gradient of their own
        samples: int = estimator.nb_samples
        baseline: Any = "leave_one_out" if samples > 1 else None
        losses = score_function_loss(_losses(loss, z[0]), z[1], samples, baseline)
    else:
        losses = _losses(loss, z)
    losses.sum().backward()
    return torch.zeros_like(theta) if theta.grad is None else theta.grad


def _noted(size: Tensor, sizes: list[float]) -> Tensor:
    sizes.append(size.mean().item())
    return size


@torch.no_grad()
def _difference(
    estimator: Any, solve: BoundSolver, theta: Tensor, loss: Loss, step: float | None
) -> tuple[Tensor, float] | None:
    """Return an estimate `[B, ...]` of the gradient of the expected loss, and its step; None without noise."""
    base, eps = theta.repeat_interleave(solve.rows, dim=0), _noise(estimator, solve, theta)
    if eps is not None:
        if step is None and (getattr(estimator, "multiplicative", False) or getattr(estimator, "projection", None)):
            raise ValueError("name a step: this noise is not in units of theta, so its size says nothing of the step's")
        step = step or estimator.tau * eps.std().item() / 8
    if step is None:
        return None
    xi = torch.randn_like(base).masked_fill(base.isinf(), 0.0)

    def losses(h: float) -> Tensor:
        parameters = estimator.perturb(base + h * xi, eps, solve.sign)[:, 0].unflatten(0, (len(theta), solve.rows))
        return _losses(loss, solve(parameters).flatten(0, 1).clone())

    # (loss(theta + h xi) - loss(theta - h xi)) / 2h  xi
    rise = beside((losses(step) - losses(-step)) / (2 * step), theta)
    return (rise * xi).unflatten(0, (len(theta), solve.rows)).mean(dim=1), step


def _noise(estimator: Any, solve: BoundSolver, theta: Tensor) -> Tensor | None:
    """Return eps `[B*R, 1, ...]` as it is added; None without noise."""
    if estimator.noise_distribution is None or not estimator.tau > 0:
        return None
    shape = (len(theta) * solve.rows, 1, *theta.shape[1:])
    return solve.sign * draw(estimator.noise_distribution, shape, like=theta)


def _spread(estimator: Any, solve: BoundSolver, theta: Tensor) -> float:
    """Return the deviation of theta's entries within an instance over that of tau eps; NaN without noise."""
    eps = _noise(estimator, solve, theta)
    if eps is None:
        return math.nan
    seen = theta.flatten(1).double()
    seen = seen.masked_fill(seen.abs() >= _MASK, torch.nan)
    away = (seen - seen.nanmean(dim=1, keepdim=True)).square().nanmean()
    return float(away.sqrt() / (estimator.tau * eps.std()))


@torch.no_grad()
def _note(estimator: Any, solve: BoundSolver, theta: Tensor) -> str:
    """Return a sentence if the solutions look like orders, `argsort` of theta; else nothing."""
    base = theta.repeat_interleave(solve.rows, dim=0)
    x = estimator.perturb(base, _noise(estimator, solve, theta), solve.sign)[:, 0]
    z = solve(x.clone().unflatten(0, (len(theta), solve.rows))).flatten(0, 1).cpu().double()
    x = x.cpu().unique(return_inverse=True)[1].double()  # how they are ordered: whole numbers, of infinities too
    for dim in range(1, z.dim()):
        if _are_orders(z.transpose(dim, -1), x.transpose(dim, -1)):
            first, last = int(z.min()), int(z.max())
            return (
                f"a solution looks like labels {first}..{last}, not like a score's weights: ranks are fine, an order "
                "(argsort, a tour of cities) is not; answer what it takes, such as its edges"
            )
    return ""


def _are_orders(z: Tensor, x: Tensor) -> bool:
    """Say whether all z `[..., N]` are permutations of N >= 3 consecutive numbers, and not ranks of parameters x."""
    there, numbers = z.sort(dim=-1).values, torch.arange(z.shape[-1], device=z.device)
    if len(numbers) < 3 or not torch.equal(there - z.min(), numbers.to(z).expand_as(z)):
        return False
    # ranks are the permutation of largest, or of least, <z, theta>
    score, up = (z * x).sum(dim=-1), x.sort(dim=-1).values
    return not any(torch.equal(score, (there * best).sum(dim=-1)) for best in (up, up.flip(-1)))


def _losses(loss: Loss, z: Tensor) -> Tensor:
    losses = loss(z)
    if losses.shape != z.shape[:1]:
        raise ValueError(f"loss returned {tuple(losses.shape)} for solutions {tuple(z.shape)}, not one number a row")
    return losses


def _rows(gradients: list[Tensor]) -> Tensor:
    return torch.stack(gradients).flatten(1).cpu().double()


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def _comparison(g: Tensor, differences: list[tuple[Tensor, float] | None], pairs: int) -> dict[str, Any]:
    """Return what gradients `[R, B*N]` are beside the reference."""
    found = [it for it in differences if it is not None]
    if not found:
        why = "none: without noise the loss is constant almost everywhere; give a step to smooth it"
        return {"reference": why, "verdict": "undecided"}
    q, step = _rows([it[0] for it in found]), sum(it[1] for it in found) / len(found)
    x = torch.cat([g, q])
    products, left_out = x @ x.mT, []
    for i in range(len(x)):
        kept = torch.arange(len(x)) != i
        left_out.append(_compare(products[kept][:, kept], len(g) - (i < len(g))))
    # the jackknife, over repeats and over batches of the reference
    spreads = [(len(it) - 1) ** 2 / len(it) * it.var(dim=0) for it in torch.stack(left_out).split([len(g), len(q)])]
    values, errors = _compare(products, len(g)).tolist(), (spreads[0] + spreads[1]).sqrt().tolist()
    noise = (q.var(dim=0).sum() / len(q)).sqrt() / q.mean(dim=0).norm()
    return {
        **dict(zip(_COMPARED, values, strict=True)),
        "errors": dict(zip(_COMPARED, errors, strict=True)),
        "reference": f"central differences, {pairs} pairs, step {step:.2g}, relative standard error {noise:.2g}",
        "verdict": _verdict(1 - values[1], errors[1], bool(g.any())),
    }


def _compare(products: Tensor, repeats: int) -> Tensor:
    """Return cosine, bias and size from the inner products of all gradients, the reference's after the repeats."""
    gg, gq, qq = products[:repeats, :repeats], products[:repeats, repeats:], products[repeats:, repeats:]
    mean, reference = _mean_over_pairs(gg).sqrt(), _mean_over_pairs(qq).sqrt()  # NaN where noise is all there is
    along = gq.mean(dim=1) / reference
    one = torch.where(gg.diagonal() > 0, along / gg.diagonal().sqrt(), 0.0).mean()
    return torch.stack([one, 1 - along.mean() / mean, mean / reference])


def _mean_over_pairs(products: Tensor) -> Tensor:
    """Return the mean of <x, x'> over pairs of different samples: |E x|^2, where <x, x> has the variance in it."""
    return (products.sum() - products.trace()) / (len(products) * (len(products) - 1))


def _verdict(cosine: float, error: float, any_gradient: bool) -> str:
    if not any_gradient:
        return "the gradient is zero: lambda changes no solution, or the loss does not depend on it"
    if not abs(cosine) > 3 * error:
        return "undecided: take more nb_reference, nb_repeats or instances"
    if cosine < 0:
        return "the mean gradient points the wrong way: look for a sign, such as that of a solver that minimises"
    return "the mean gradient points the right way"

"""Published values, the runs that they belong to, and what must be said beside them."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import generate_l2x_aimle_cmd as l2x
import generate_nri_aimle_cmd as nri
import generate_vae_aimle_cmd as vae
import sweep

SECONDARY = "mean only, from a secondary source; number of seeds not stated"
ONE_SEED = "one seed, by the paper's authors"


@dataclass(frozen=True)
class PublishedValue:
    """A published value.

    Args:
        task: l2x, vae or nri.
        flags: of the runs that it belongs to, as the generators print them.
        metric: its name in a record.
        value: as published.
        caveat: what a reader must know.
    """

    task: str
    flags: Mapping[str, Any] = field(hash=False)
    metric: str
    value: float
    caveat: str


@dataclass(frozen=True)
class PublishedCurve:
    """What is known of a published run along its training.

    Args:
        task: l2x, vae or nri.
        flags: of the run, as the generators print them.
        key: the metric's name in the entries of a record.
        points: (epoch or iteration, value).
    """

    task: str
    flags: Mapping[str, Any] = field(hash=False)
    key: str
    points: tuple[tuple[int, float], ...]


def _l2x() -> Iterator[PublishedValue]:
    imle = (2.51, 2.62, 2.96, 2.38)
    by_aspect = {
        "l2x": (10.7, 5.75, 6.7, 6.92),
        "softsub": (2.48, 2.52, 2.94, 2.18),
        "imletopk": imle,
        "imle": imle,
    }
    for method, values in by_aspect.items():
        source = f"{SECONDARY}; temperatures not stated" if "imle" in method else SECONDARY
        for aspect, value in enumerate(values):
            caveat = f"{source}; for aroma the number of selected words is not stated" if aspect == 1 else source
            yield PublishedValue("l2x", l2x.flags_of(aspect, 10, method), "best_test_mse", value, caveat)


VAE_BY_EPOCH = {
    "loss": {1: 1102.3853, 2: 765.9837, 3: 720.9445, 4: 699.9427, 99: 593.7420, 100: 593.5313},
    "test_loss": {1: 79.85607, 2: 72.88469, 3: 70.79888, 99: 60.44106, 100: 60.20955},
    "beta": {1: 0.600, 2: 1.058, 3: 1.056, 4: 1.064, 99: 0.298, 100: 0.270},
}
# validation; up to 390 two runs of the authors' code on their data, at the end the authors' own log
NRI_BY_ITERATION = {
    "val_elbo": ((0, -3779.6), (195, -2564.5), (195, -2549.5), (390, -2505.3), (390, -2484.7), (50_000, -1660.797)),
    "val_precision": ((0, 0.201), (195, 0.389), (195, 0.402), (390, 0.432), (390, 0.461), (50_000, 0.6375)),
}


def _vae() -> Iterator[PublishedValue]:
    for metric in ("loss", "test_loss"):
        for epoch, value in VAE_BY_EPOCH[metric].items():
            yield PublishedValue("vae", vae.flags_of("aimle", epoch), metric, value, f"seed 0: {ONE_SEED}")


def _nri() -> Iterator[PublishedValue]:
    values = {
        "val_elbo": NRI_BY_ITERATION["val_elbo"][-1][1],
        "test_elbo": -1659.316,
        "test_acc": 0.8547,
        "test_precision": 0.63674,
        "test_recall": 0.63674,
    }
    flags = nri.flags_of(10, nri.PUBLISHED[10, "aimle_forward"])
    for metric, value in values.items():
        yield PublishedValue("nri", flags, metric, value, f"seed 3: {ONE_SEED}")


def _curves() -> Iterator[PublishedCurve]:
    for key, points in VAE_BY_EPOCH.items():
        yield PublishedCurve("vae", vae.flags_of("aimle", 100), key, tuple(points.items()))
    for key, known in NRI_BY_ITERATION.items():
        yield PublishedCurve("nri", nri.flags_of(10, nri.PUBLISHED[10, "aimle_forward"]), key, known)


PUBLISHED = (*_l2x(), *_vae(), *_nri())
CURVES = tuple(_curves())
LENGTHS = frozenset({"epochs", "num_iterations", "max_steps"})


@functools.cache
def _settings(published: PublishedValue | PublishedCurve) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the settings of a published value's runs, and the task's defaults, as records hold them."""
    from aaai23.harness.config import defaults
    from aaai23.harness.record import plain

    config = sweep.config_of(published.task, sweep.words(published.flags))
    return plain(config.settings()), plain(defaults(type(config)))


def published_value(task: str, metric: str, settings: Mapping[str, Any]) -> PublishedValue | None:
    """Return the published value for a run's settings, None if there is none.

    All settings must be those of the published command; one that a record lacks counts as its default.
    """
    for published in PUBLISHED:
        if (published.task, published.metric) == (task, metric) and not _differences(published, settings):
            return published
    return None


def published_points(task: str, key: str, settings: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    """Return what is known of the published run with a run's settings, which may be shorter or longer."""
    for curve in CURVES:
        if (curve.task, curve.key) == (task, key) and _differences(curve, settings) <= LENGTHS:
            return curve.points
    return ()


def _differences(published: PublishedValue | PublishedCurve, settings: Mapping[str, Any]) -> set[str]:
    """Return the settings in which a run differs from a published one."""
    wanted, default = _settings(published)
    ours, theirs = {**default, **settings}, {**default, **wanted}
    return {key for key in ours | theirs if key not in ours or key not in theirs or ours[key] != theirs[key]}

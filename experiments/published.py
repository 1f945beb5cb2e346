"""Published values, the runs that they belong to, and what must be said beside them."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import generate_l2x_aimle_cmd as l2x
import generate_nri_aimle_cmd as nri
import generate_vae_aimle_cmd as vae
import sweep

SECONDARY = "BeerAdvocate, mean only, from a secondary source; number of seeds not stated"
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


def _vae() -> Iterator[PublishedValue]:
    by_epoch = {
        1: (1102.3853, 79.85607),
        2: (765.9837, 72.88469),
        3: (720.9445, 70.79888),
        4: (699.9427, None),
        99: (593.7420, 60.44106),
        100: (593.5313, 60.20955),
    }
    for epoch, values in by_epoch.items():
        for metric, value in zip(("loss", "test_loss"), values):
            if value is not None:
                yield PublishedValue("vae", vae.flags_of("aimle", epoch), metric, value, f"seed 0: {ONE_SEED}")


def _nri() -> Iterator[PublishedValue]:
    values = {
        "val_elbo": -1660.797,
        "test_elbo": -1659.316,
        "test_acc": 0.8547,
        "test_precision": 0.63674,
        "test_recall": 0.63674,
    }
    flags = nri.flags_of(10, nri.PUBLISHED[10, "aimle_forward"])
    for metric, value in values.items():
        yield PublishedValue("nri", flags, metric, value, f"seed 3: {ONE_SEED}")


PUBLISHED = (*_l2x(), *_vae(), *_nri())


@functools.cache
def _settings(published: PublishedValue) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
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
        if (published.task, published.metric) == (task, metric):
            wanted, default = _settings(published)
            if {**default, **settings} == {**default, **wanted}:
                return published
    return None

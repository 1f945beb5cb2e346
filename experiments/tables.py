"""Tables from groups of records: a row for each name, with mean, spread and interval over its seeds."""

import itertools
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from published import PublishedValue, published_value
from records import Group

RESAMPLES = 4000


@dataclass(frozen=True)
class Metric:
    """A final metric: its name in a record, its title, the digits to show, whether methods differ in it."""

    key: str
    title: str
    digits: int
    compared: bool = True


@dataclass(frozen=True)
class Task:
    """How a task is shown.

    Args:
        title: of its tables.
        settings: column title -> name of a setting.
        metrics: the columns of metrics.
        curves: what is logged while training -> title; none where nothing is trained.
        data: what was published rests on; whether a run's data are those, no record can tell.
    """

    title: str
    settings: Mapping[str, str]
    metrics: tuple[Metric, ...]
    curves: Mapping[str, str]
    data: str = ""

    @property
    def published(self) -> str:
        """Names what was published, with its data."""
        return f"published ({self.data})"


TEST_GRAPHS = (
    Metric("test_elbo", "test ELBO", 1),
    Metric("test_acc", "test accuracy", 4),
    Metric("test_precision", "test precision", 4),
    Metric("test_recall", "test recall", 4),
)
TASKS = {
    "l2x": Task(
        "Learning to explain",
        {"aspect": "aspect", "K": "select_k", "method": "method"},
        (
            Metric("best_test_mse", "test MSE × 100", 3),
            Metric("best_val_mse", "validation MSE × 100", 3),
            Metric("best_subset_prec", "subset precision × 100", 2),
            Metric("chance_subset_prec", "chance precision × 100", 2, compared=False),
        ),
        {"loss_mean": "training loss", "val_mse": "validation MSE × 100", "test_mse": "test MSE × 100"},
        "BeerAdvocate",
    ),
    "vae": Task(
        "Discrete variational autoencoder",
        {"method": "method", "S": "nb_samples"},
        (
            Metric("loss", "training loss", 2),
            Metric("test_loss", "test loss", 2),
            Metric("test_nelbo", "test NELBO", 2),
        ),
        {"loss": "training loss", "test_loss": "test loss", "beta": "beta"},
        "MNIST",
    ),
    "nri": Task(
        "Neural relational inference",
        {"T": "timesteps", "method": "method"},
        (
            Metric("val_elbo", "validation ELBO", 1),
            *TEST_GRAPHS,
        ),
        {"val_elbo": "validation ELBO", "val_precision": "validation precision", "beta": "beta"},
        "graph layouts",
    ),
    "nri-eval": Task(
        "Neural relational inference, trials measured again",
        {"T": "timesteps", "method": "method"},
        (
            Metric("valid_elbo", "validation ELBO", 1),
            *TEST_GRAPHS,
        ),
        {},
    ),
}


def task_of(name: str, groups: Sequence[Group]) -> Task:
    """Return how a task is shown; one that is not known shows all its final metrics."""
    if name in TASKS:
        return TASKS[name]
    final = {key: None for found in groups for record in found.finished for key in record.final or {}}
    keys = [key for key in final if any(found.values(key) for found in groups)]
    return Task(name, {"method": "method"}, tuple(Metric(key, key, 4) for key in keys), {key: key for key in keys})


@dataclass(frozen=True)
class Summary:
    """Numbers of n seeds; those that n does not allow are None."""

    n: int
    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


def summarise(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and 95% bootstrap interval of the mean.

    The interval is BCa; percentiles where that does not exist. The resamples are the same in each call.
    """
    if len(values) < 2:
        return Summary(len(values), *values)
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    if min(values) == max(values):
        return Summary(len(values), mean, deviation, mean, mean)
    import numpy as np
    from scipy.stats import bootstrap

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that BCa does not exist is seen in the interval
            low, high = bootstrap(
                (values,), np.mean, method=method, n_resamples=RESAMPLES, rng=np.random.default_rng(0)
            ).confidence_interval
        if np.isfinite([low, high]).all():
            break
    return Summary(len(values), mean, deviation, float(low), float(high))


@dataclass(frozen=True)
class Row:
    """A group with what was computed from it.

    Args:
        group: the runs.
        settings: the columns before the metrics.
        summaries: metric -> its mean and spread over the seeds.
        published: metric -> the published value; never beside sample data.
    """

    group: Group
    settings: Mapping[str, Any]
    summaries: Mapping[Metric, Summary]
    published: Mapping[Metric, PublishedValue]


def row_of(found: Group, task: Task) -> Row:
    """Return a group's row."""
    settings = {
        title: found.method if key == "method" else found.settings.get(key, "") for title, key in task.settings.items()
    }
    summaries = {metric: summarise(found.values(metric.key)) for metric in task.metrics}
    values = {metric: published_value(found.task, metric.key, found.settings) for metric in task.metrics}
    published = {metric: value for metric, value in values.items() if value and not found.sample_data}
    return Row(found, settings, summaries, published)


@dataclass(frozen=True)
class Table:
    """Rows of one task, all on sample data or none."""

    name: str
    task: Task
    sample_data: bool
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Says whose metrics these are."""
        return f"{self.task.title} ({self.name})" + (", sample data" if self.sample_data else "")


def tables_of(groups: Sequence[Group]) -> list[Table]:
    """Return a table for each task, and one more for its runs on sample data."""
    ordered = sorted(groups, key=lambda found: (found.task, found.sample_data))
    tables = []
    for (name, sample_data), members in itertools.groupby(ordered, lambda found: (found.task, found.sample_data)):
        chosen = list(members)
        task = task_of(name, chosen)
        tables.append(Table(name, task, sample_data, tuple(row_of(found, task) for found in chosen)))
    return tables


def markdown_line(cells: Sequence[Any]) -> str:
    """Return a line of a table in Markdown."""
    return "| " + " | ".join(str(item).replace("|", "\\|") for item in cells) + " |"

"""What a run of Neural Relational Inference is judged by: evidence lower bound and recovered edges."""

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from aaai23.errors import UsageError


def nll_gaussian(predictions: Tensor, targets: Tensor, variance: float) -> Tensor:
    """Return the negative log-likelihood of each sample but for its constant, `[B]`, in nats per vertex.

    It is sum (prediction - target)^2 / (2 variance) / n over vertices, frames and dimensions.

    Args:
        predictions: `[B, n, T-1, dims]`, as the decoder returns them.
        targets: positions of frames 1 to T-1, of the same shape.
        variance: of the Gaussian around a prediction, in squared units of position.

    >>> nll_gaussian(torch.zeros(1, 2, 3, 2), torch.ones(1, 2, 3, 2), variance=0.5)
    tensor([6.])
    """
    if predictions.shape != targets.shape:
        raise UsageError(f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} differ in shape")
    return (predictions - targets).square().flatten(1).sum(1) / (2 * variance * predictions.shape[1])


def kl_gumbel(logits: Tensor) -> Tensor:
    """Return the divergence of Gumbel(l, 1) from Gumbel(0, 1) over the directed edges of each sample, `[B]`.

    It is sum (l + exp(-l) - 1) / n, in nats per vertex.

    Args:
        logits: l `[B, E]` with E = n(n-1) directed edges; give symmetric logits in both directions.

    >>> kl_gumbel(torch.zeros(1, 6))
    tensor([0.])
    """
    edges = logits.shape[1]
    vertices = isqrt(edges) + 1
    if vertices * (vertices - 1) != edges:
        raise UsageError(f"{edges} logits a graph are not the n(n-1) directed edges of any number n of vertices")
    return (logits + torch.exp(-logits) - 1).sum(1) / vertices


@dataclass(frozen=True)
class EdgeMetrics:
    """How well edges were recovered, for each sample.

    Attributes:
        accuracy: share of edges that are right, `[B]`.
        precision: share of the inferred edges that are true, `[B]`; 0 where none was inferred.
        recall: share of the true edges that were inferred, `[B]`; 0 where there is none.
        flipped: the model's "no edge" was read as "edge".
    """

    accuracy: Tensor
    precision: Tensor
    recall: Tensor
    flipped: bool

    @property
    def reading(self) -> str:
        """The reading as a record names it."""
        return "flipped" if self.flipped else "as_is"

    def means(self) -> dict[str, float]:
        """Return the means over samples, under the names of the published tables."""
        return {
            "acc": self.accuracy.mean().item(),
            "precision": self.precision.mean().item(),
            "recall": self.recall.mean().item(),
        }


def edge_metrics(inferred: Tensor, true: Tensor, reading: str | None = None) -> EdgeMetrics:
    """Return accuracy, precision and recall of inferred edges, in a reading, or in the one of better mean precision.

    Training never says which of two edge types is "edge", so both readings of the inferred 0/1 are scored, over all
    samples given: give all validation graphs at once, and the reading that they chose for all others.

    Args:
        inferred: 0/1 `[B, E]`.
        true: 0/1 `[B, E]`.
        reading: "as_is" or "flipped"; None chooses.

    >>> edge_metrics(torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 0]])).means()
    {'acc': 0.75, 'precision': 0.5, 'recall': 1.0}
    """
    if inferred.shape != true.shape:
        raise UsageError(f"inferred edges {tuple(inferred.shape)} and true {tuple(true.shape)} differ in shape")
    inferred, true = inferred > 0.5, true > 0.5
    as_is, flipped = _score(inferred, true, flipped=False), _score(~inferred, true, flipped=True)
    if reading is None:
        return flipped if flipped.precision.mean() > as_is.precision.mean() else as_is
    return {result.reading: result for result in (as_is, flipped)}[reading]


def _score(inferred: Tensor, true: Tensor, flipped: bool) -> EdgeMetrics:
    hits = (inferred & true).sum(1).float()
    return EdgeMetrics(
        accuracy=(inferred == true).float().mean(1),
        precision=hits / inferred.sum(1).clamp(min=1),
        recall=hits / true.sum(1).clamp(min=1),
        flipped=flipped,
    )

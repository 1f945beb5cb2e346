"""Alternating measurements: these machines are noisy, so only ratios taken side by side count."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from aaai23.speed.replay import TrainingStep
from imle.layers import RelaxedLayer


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        case: what is measured.
        ours_ms: median milliseconds of ours.
        reference: what it is compared with.
        reference_ms: median milliseconds of the reference.
        ratio: median of ours / reference, pair by pair.
        target: the ratio to stay at or below; None where there is none.
        note: further metrics, such as samples a second.
    """

    case: str
    ours_ms: float
    reference: str
    reference_ms: float
    ratio: float
    target: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the row with its verdict."""
        return {**asdict(self), "met": None if self.target is None else self.ratio <= self.target}


class Repeat(RelaxedLayer):
    """The floor's stand-in for a discrete layer: theta `[B, ...]` repeated S times."""

    def __init__(self, samples: int):
        def same(theta: Tensor, **_: object) -> Tensor:
            return theta

        super().__init__(solver=same, relax=same, temperature=1.0, nb_samples=samples)


def milliseconds(function: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Return the mean time of a call over `repeats` calls, with the device's work done."""
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    _synchronise(device)
    return 1e3 * (time.perf_counter() - start) / repeats


def compare(
    case: str,
    ours: Callable[[], object],
    reference_name: str,
    reference: Callable[[], object],
    device: torch.device | None = None,
    *,
    pairs: int = 15,
    repeats: int = 1,
    target: float | None = None,
    per_call: int = 0,
    unit: str = "samples",
    note: str = "",
) -> Row:
    """Measure both in turn, `pairs` times, after a warm-up of each.

    Args:
        case: what is measured.
        ours: one call of ours.
        reference_name: what it is compared with.
        reference: one call of that.
        device: whose work to wait for.
        pairs: how many alternations.
        repeats: calls in a row of each; several for calls of less than a millisecond.
        target: the ratio to stay at or below.
        per_call: samples that one call of ours handles, for samples a second.
        unit: what they are.
        note: what else to say.
    """
    device = device or torch.device("cpu")
    for function in (ours, reference):
        milliseconds(function, device, repeats=2 if device.type == "cpu" else 5)  # a GPU's step is recorded in the 4th
    times = [(milliseconds(ours, device, repeats), milliseconds(reference, device, repeats)) for _ in range(pairs)]
    ours_ms, reference_ms = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    rate = f"{1e3 * per_call / ours_ms:,.0f} {unit}/s" if per_call else ""
    return Row(case, ours_ms, reference_name, reference_ms, ratio, target, ", ".join(filter(None, (rate, note))))


def as_table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| case | ours, ms | compared with | its ms | ratio | target | met | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        target = "" if row.target is None else f"{row.target:.3g}"
        reference_ms, ratio = (
            "" if math.isnan(number) else f"{number:.3g}" for number in (row.reference_ms, row.ratio)
        )
        met = "" if row.target is None else ("yes" if row.ratio <= row.target else "no")
        lines.append(
            f"| {row.case} | {row.ours_ms:.3g} | {row.reference} | {reference_ms} | {ratio} "
            f"| {target} | {met} | {row.note} |"
        )
    return "\n".join(lines)


def training_step(model: nn.Module, loss: Callable[..., Tensor], replay: bool = True) -> TrainingStep:
    """Return the optimiser step of `model` on `loss`, as the training loops take it."""
    return TrainingStep(torch.optim.Adam(model.parameters(), lr=1e-3, fused=True), loss, replay)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

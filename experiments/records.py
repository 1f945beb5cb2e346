"""Records of runs, read and grouped: what may be averaged together, and what may not."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # beside this file, wherever else it is installed
from aaai23.errors import UsageError
from aaai23.harness.record import Record, read_record

OTHER_FILES = ("train_config.json", "all_measurements.json")
"""JSON that the tasks write beside their records."""


def find(places: Iterable[Path]) -> tuple[list[tuple[Path, Record]], list[str]]:
    """Return the records in files and folders, and a line for each JSON file that holds none.

    Raises:
        FileNotFoundError: a place does not exist.
    """
    records, skipped = [], []
    for path in dict.fromkeys(path for place in places for path in _files(place)):
        try:
            records.append((path, read_record(path)))
        except UsageError as error:
            skipped.append(f"skipped {error}")
    return records, skipped


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise FileNotFoundError(place)
    if place.is_file():
        return [place]
    return sorted(path for path in place.rglob("*.json") if path.name not in OTHER_FILES)


@dataclass
class Group:
    """Runs that differ in their seed only.

    Args:
        task, name, method, sample_data, data, settings: what they share.
        records: one for each seed.
    """

    task: str
    name: str
    method: str
    sample_data: bool
    data: str
    settings: Mapping[str, Any]
    records: list[Record]

    @cached_property
    def finished(self) -> list[Record]:
        """The runs that are done."""
        return [record for record in self.records if record.status == "finished"]

    def values(self, metric: str) -> list[float]:
        """Return a final metric of each finished run; those that are not finite are left out."""
        found = [(record.final or {}).get(metric) for record in self.finished]
        return [
            float(value)
            for value in found
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ]


def group(records: Iterable[tuple[Path, Record]]) -> tuple[list[Group], list[str]]:
    """Return groups in the order of their names, and a line for whatever could not be averaged.

    Runs under one name that have other settings, or other data, become groups of their own.
    """
    variants: dict[tuple[str, str], dict[str, Group]] = {}
    notes = []
    for path, record in records:
        named = variants.setdefault((record.task, record.name), {})
        key = json.dumps([record.sample_data, record.data, record.settings], sort_keys=True)
        shared = (record.task, record.name, record.method, record.sample_data, record.data, record.settings)
        same = named.setdefault(key, Group(*shared, [])).records
        if record.seed in (other.seed for other in same):
            notes.append(f"skipped {path}: seed {record.seed} of {record.task}/{record.name} is there already")
        else:
            same.append(record)
    groups = [found for _, named in sorted(variants.items()) for found in named.values()]
    notes += [difference(list(named.values())) for named in variants.values() if len(named) > 1]
    for found in groups:
        found.records.sort(key=lambda record: record.seed)
    return groups, notes


def difference(groups: Sequence[Group]) -> str:
    """Return a line that says how groups of one name differ."""
    settings = [{**found.settings, "data": found.data, "sample_data": found.sample_data} for found in groups]
    keys = dict.fromkeys(key for config in settings for key in config)
    told = []
    for key in keys:
        values = dict.fromkeys(json.dumps(config.get(key)) for config in settings)
        if len(values) > 1:
            told.append(f"{key} {', '.join(values)}")
    return f"{groups[0].task}/{groups[0].name} holds runs of different settings, kept apart: {'; '.join(told)}"


def unfinished(groups: Iterable[Group]) -> list[str]:
    """Return a line for each run that failed or has not ended."""
    return [
        f"{record.status}: {found.task}/{found.name} seed {record.seed}: {_state(record)}"
        for found in groups
        for record in found.records
        if record.status != "finished"
    ]


def flipped(groups: Iterable[Group]) -> list[str]:
    """Return a line for each group in whose runs, as they stand, "no edge" was read as "edge" (NRI)."""
    seeds = [(it, [str(record.seed) for record in it.records if _flipped(record)]) for it in groups]
    return [
        f'{found.task}/{found.name}: with seed {" ".join(those)} "no edge" is read as "edge", for more precision; '
        "a mean of accuracy, precision or recall over both readings says little"
        for found, those in seeds
        if those
    ]


def _flipped(record: Record) -> bool:
    """Whether what a record tells of edges is of that reading; a record of trials tells the mean over all of them."""
    told = record.history
    if record.task != "nri-eval":
        told = [record.final] if record.final else record.history[-1:]
    return any(entry.get("edge_reading") == "flipped" for entry in told)


def _state(record: Record) -> str:
    if record.status == "failed":
        return " ".join((record.error or "no reason given").split())
    updated = record.timing.get("updated", "an unknown time")
    return f"{len(record.history)} entries, last written {updated}; it may have been killed"

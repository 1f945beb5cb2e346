"""Records of runs, read and grouped: what may be averaged together, and what may not."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

FORMAT = 1
FIELDS = {"task": str, "name": str, "seed": int, "status": str, "config": dict, "history": list, "sample_data": bool}
STATUSES = ("finished", "failed", "running")
OTHER_FILES = ("train_config.json",)
"""JSON that the tasks write beside their records."""
NOT_SETTINGS = {
    *("seed", "name", "resume", "again", "device", "results_dir", "debug", "data_dir", "checkpoint", "reruns"),
    *("mode", "cuda", "verbose", "experiments_folder", "experiment_name", "add_timestamp"),
    *("use_cpp_for_sampling", "use_cpp_for_edge_metric", "eps_for_finitediff"),
}
"""Settings that say how or where a run ran, not what it computed."""

Record = Mapping[str, Any]


def read(path: Path) -> Record:
    """Return the record in a file.

    Raises:
        ValueError: it holds none; the message says why.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("not whole JSON") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"no run record of format {FORMAT}")
    wrong = [key for key, kind in FIELDS.items() if not isinstance(record.get(key), kind)]
    if record.get("status") not in STATUSES:
        wrong.append("status")
    if record.get("status") == "finished" and not isinstance(record.get("final"), dict):
        wrong.append("final")
    if not all(isinstance(entry, dict) for entry in record.get("history") or ()):
        wrong.append("history")
    if wrong:
        raise ValueError(f"no run record: field {wrong[0]} is missing or wrong")
    return record


def find(places: Iterable[Path]) -> tuple[list[tuple[Path, Record]], list[str]]:
    """Return the records in files and folders, and a line for each JSON file that holds none.

    Raises:
        FileNotFoundError: a place does not exist.
    """
    records, skipped = [], []
    for path in dict.fromkeys(path for place in places for path in _files(place)):
        try:
            records.append((path, read(path)))
        except ValueError as error:
            skipped.append(f"skipped {path}: {error}")
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
        task, name, sample_data, config: what they share.
        records: one for each seed.
    """

    task: str
    name: str
    sample_data: bool
    config: Mapping[str, Any]
    records: list[Record]

    @property
    def method(self) -> str:
        """The method's name: NVIL and REINFORCE, which have flags of their own, go before `method`."""
        for name in ("nvil", "reinforce"):
            if self.config.get(f"use_{name}"):
                return name
        return str(self.config.get("method", ""))

    @cached_property
    def finished(self) -> list[Record]:
        """The runs that are done."""
        return [record for record in self.records if record["status"] == "finished"]

    def values(self, metric: str) -> list[float]:
        """Return a final figure of each finished run; those that are not finite are left out."""
        found = [record["final"].get(metric) for record in self.finished]
        return [float(value) for value in found if isinstance(value, int | float) and math.isfinite(value)]


def group(records: Iterable[tuple[Path, Record]]) -> tuple[list[Group], list[str]]:
    """Return groups in the order of their names, and a line for whatever could not be averaged.

    Runs under one name that have other settings, or other data, become groups of their own.
    """
    variants: dict[tuple[str, str], dict[str, Group]] = {}
    notes = []
    for path, record in records:
        config = {key: value for key, value in record["config"].items() if key not in NOT_SETTINGS}
        named = variants.setdefault((record["task"], record["name"]), {})
        key = json.dumps([record["sample_data"], config], sort_keys=True)
        new = Group(record["task"], record["name"], record["sample_data"], config, [])
        same = named.setdefault(key, new).records
        if record["seed"] in (other["seed"] for other in same):
            notes.append(f"skipped {path}: seed {record['seed']} of {record['task']}/{record['name']} is there already")
        else:
            same.append(record)
    groups = [found for _, named in sorted(variants.items()) for found in named.values()]
    notes += [difference(list(named.values())) for named in variants.values() if len(named) > 1]
    for found in groups:
        found.records.sort(key=lambda record: record["seed"])
    return groups, notes


def difference(groups: Sequence[Group]) -> str:
    """Return a line that says how groups of one name differ."""
    settings = [{**found.config, "sample_data": found.sample_data} for found in groups]
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
        f"{record['status']}: {found.task}/{found.name} seed {record['seed']}: {_state(record)}"
        for found in groups
        for record in found.records
        if record["status"] != "finished"
    ]


def _state(record: Record) -> str:
    if record["status"] == "failed":
        return " ".join(str(record.get("error") or "no reason given").split())
    updated = (record.get("timing") or {}).get("updated", "an unknown time")
    return f"{len(record['history'])} entries, last written {updated}; it may have been killed"


def several_origins(groups: Iterable[Group]) -> list[str]:
    """Return a line for each group whose runs come from several versions of the code or of torch."""
    lines = []
    for found in groups:
        for key, word in (("commit", "commits"), ("torch", "versions of torch")):
            values = {str((record.get("environment") or {}).get(key))[:12] for record in found.finished}
            if len(values) > 1:
                lines.append(f"{found.task}/{found.name} is of several {word}: {', '.join(sorted(values))}")
    return lines

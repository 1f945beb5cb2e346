"""Who a run is, and whether the record or checkpoint in its place is its own. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaai23.errors import UsageError
from aaai23.harness.config import Config, declared, defaults, folder_name
from aaai23.harness.files import fingerprint, is_sample
from aaai23.harness.record import Record, plain, read_record


@dataclass(frozen=True)
class Identity:
    """What makes a run this run and no other: two starts with one identity are one run.

    Args:
        task: folder of results.
        name: folder of the runs that differ in their seed only.
        seed: of this run.
        method: as tables call it.
        settings: what decides its metrics, with the lengths, as JSON holds them.
        defaults: of the settings; one that a record lacks counts as its default.
        lengths: which of the settings may grow on resuming.
        data: fingerprint of the files that it reads.
        sample_data: whether these are stand-ins.
        folder: of its files.
    """

    task: str
    name: str
    seed: int
    method: str
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    lengths: tuple[str, ...]
    data: str
    sample_data: bool
    folder: Path

    def file(self, ending: str) -> Path:
        """Return where a file of this run lies, such as `.json`, `.pt` or `_curves.png`."""
        return self.folder / f"seed{self.seed}{ending}"


def identify(task: str, config: Config, files: Iterable[Path], digest: Callable[[Path], str] | None = None) -> Identity:
    """Return who a run is, from its configuration and the data files that it reads.

    Without `--name` the name is the configuration's label and six digits that the settings which differ from their
    defaults, and the data, decide: a new flag changes no name.

    Raises:
        UsageError: a data file is missing, or the name is not a plain folder name.
    """
    files = list(files)
    data, sample_data = fingerprint(files, digest), any(is_sample(path.parent) for path in files)
    known, default = declared(type(config)), plain(defaults(type(config)))
    settings = plain(config.settings())
    lengths = tuple(name for name in settings if known[name].role == "length")
    changed = {key: it for key, it in settings.items() if key not in lengths and it != default[key]}
    hashed = hashlib.sha256(json.dumps([changed, data], sort_keys=True).encode()).hexdigest()
    name = config.name or f"{config.label}-{hashed[:6]}"
    try:
        folder_name(name)
    except ArgumentTypeError as error:
        raise UsageError(f"--name {error}") from None
    folder = Path(config.results_dir) / task / name
    return Identity(
        task, name, config.seed, config.chosen_method, settings, default, lengths, data, sample_data, folder
    )


def difference(saved: Record | Mapping[str, Any], now: Identity) -> str | None:
    """Return how a record or a checkpoint differs from a run that would go on from it, None if it does not.

    A setting that is absent counts as its default; lengths may differ.
    """
    get = saved.get if isinstance(saved, Mapping) else lambda key: getattr(saved, key)
    if get("seed") != now.seed:
        return f"it is of seed {get('seed')}, not {now.seed}"
    before = get("settings") or {}
    keys = [key for key in dict.fromkeys((*before, *now.settings)) if key not in now.lengths]
    pairs = [(key, *(it.get(key, now.defaults.get(key)) for it in (before, now.settings))) for key in keys]
    differing = [f"{key} {was!r} (now {it!r})" for key, was, it in pairs if was != it]
    lengths = {key: before.get(key, now.defaults.get(key)) for key in now.lengths}
    differing += [f"{key} {it!r}, no number" for key, it in lengths.items() if type(it) is not int and it is not None]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        return f"it has other settings: {', '.join(differing[:5])}{more}"
    if get("data") != now.data:
        return f"it read other data: fingerprint {get('data')}, now {now.data}"
    return None


def finished(run: Identity) -> Record | None:
    """Return the record of a run that is finished and as long as is asked for, None if there is work to do.

    Raises:
        UsageError: another run's finished record lies in its place, or one that could go on.
    """
    path = run.file(".json")
    try:
        record = read_record(path)
    except UsageError:
        return None
    if record.status != "finished":
        return None
    problem = difference(record, run)
    if problem:
        raise UsageError(f"the finished run {path} stays: {problem}; choose another --name, or --again to replace it")
    return None if longer(run, record.settings) else record


def finished_line(run: Identity, record: Record) -> str:
    """Return what a script says in place of training a finished run again."""
    return f"{run.file('.json')} is finished, with {len(record.history)} entries; --again trains it anew"


def longer(run: Identity, earlier: Mapping[str, Any]) -> bool:
    """Whether a run is to go on for longer than an earlier start was; None is no limit."""
    lengths = [(earlier.get(key), run.settings[key]) for key in run.lengths]
    return any(was is not None and (now is None or now > was) for was, now in lengths)

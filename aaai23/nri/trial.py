"""Trials: the released program's folder of one trained seed, written from a run and read by `--mode eval` alone.

experiments/<experiments_folder>/lr{lr}_temp{temp}_encwd{wd}_decwd{wd}_{seed}/
    train_config.json                 seed, settings and data of the run
    encoder.pt, decoder.pt            the weights to evaluate
    log.txt                           a line for each evaluation
    train_and_val_measurements.pkl    the same metrics, a list of dicts for other programs; not read here
"""

from __future__ import annotations

import glob
import json
import pickle
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

from aaai23.errors import UsageError
from aaai23.harness.checkpoint import load, origin, save
from aaai23.harness.files import check_writable, read_text, write_atomically
from aaai23.harness.identity import Identity, difference
from aaai23.harness.record import plain
from aaai23.nri.config import ROOT, NRIConfig

CONFIG, LOG, MEASUREMENTS = "train_config.json", "log.txt", "train_and_val_measurements.pkl"


def experiments_folder(config: NRIConfig, name: str) -> Path:
    """Return the folder of the trials of a run."""
    return ROOT / (config.experiments_folder or f"../exp_nri/{name}")


def trial_folder(config: NRIConfig, run: Identity) -> Path:
    """Return the folder of this trial, which may not exist yet.

    With `--experiment_name` and `--add_timestamp True` it ends in the time of the start; then `--resume` finds the
    latest one of this run.
    """
    parent = experiments_folder(config, run.name)
    if config.experiment_name is None:
        decay = f"encwd{config.enc_weight_decay}_decwd{config.dec_weight_decay}"
        return parent / f"lr{config.lr}_temp{config.temp}_{decay}_{config.seed}"
    if not config.add_timestamp:
        return parent / config.experiment_name
    if config.resume:
        named = (path.parent for path in parent.glob(f"{glob.escape(config.experiment_name)}_*/{CONFIG}"))
        started = sorted(trial for trial in named if difference(read_config(trial), run) is None)
        if started:
            return started[-1]
    return parent / f"{config.experiment_name}_{datetime.now():%Y-%m-%d_%H-%M-%S}"


def find_trials(folder: Path) -> list[Path]:
    """Return the trials in a folder, in the order of their names.

    Raises:
        UsageError: there are none.
    """
    trials = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not trials:
        raise UsageError(f"no trial in {folder}: train first, or check --experiments_folder")
    return trials


def check(trial: Path, run: Identity) -> None:
    """See before hours of work that the folder can be written, and that no other run's trial is in it.

    Raises:
        UsageError: it cannot, or there is one.
    """
    if (trial / CONFIG).exists():
        problem = difference(read_config(trial), run)
        if problem:
            raise UsageError(f"the trial {trial} stays: {problem}; choose another --experiments_folder")
    check_writable(trial / ".probe")


def begin(trial: Path, run: Identity) -> None:
    """Write whose trial this is."""
    write_atomically(trial / CONFIG, (json.dumps(plain(origin(run)), indent=1, sort_keys=True) + "\n").encode())


def read_config(trial: Path) -> dict[str, Any]:
    """Return whose trial this is: seed, settings, data.

    Raises:
        UsageError: the file is broken.
    """
    remedy = "move the trial away or train it again"
    try:
        config = json.loads(read_text(trial / CONFIG))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{trial / CONFIG} is no whole JSON file; {remedy}") from error
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise UsageError(f"{trial / CONFIG} holds no settings; {remedy}")
    if type(config.get("seed")) is not int or not 0 <= config["seed"] < 2**32:
        raise UsageError(f"{trial / CONFIG} holds no seed; {remedy}")
    return config


def check_config(trial: Path, run: Identity, compared: Iterable[str]) -> dict[str, Any]:
    """Return whose trial this is, if it was trained with the same settings, as far as `compared` names them.

    Raises:
        UsageError: it was not; the message names the differences.
    """
    found = read_config(trial)
    pairs = [(key, *(it.get(key, run.defaults[key]) for it in (found["settings"], run.settings))) for key in compared]
    differing = [f"{key} {was!r} (now {it!r})" for key, was, it in pairs if was != it]
    if differing:
        raise UsageError(
            f"the trial {trial} has other settings: {', '.join(differing[:5])}; give the flags it was trained with"
        )
    return found


def save_weights(trial: Path, networks: Mapping[str, nn.Module]) -> None:
    """Write `encoder.pt` and `decoder.pt` from the networks of those names."""
    for name, network in networks.items():
        save(trial / f"{name}.pt", network.state_dict())


def load_weights(trial: Path, networks: Mapping[str, nn.Module]) -> None:
    """Load the weights of a trial into its networks.

    Raises:
        UsageError: a file is missing, broken, or of another network.
    """
    for name, network in networks.items():
        path = trial / f"{name}.pt"
        if not path.is_file():
            raise UsageError(f"{path} is missing: this trial has no weights to evaluate; train it")
        state = load(path)
        try:
            network.load_state_dict(state)
        except Exception as error:  # torch has several for what are no weights
            raise UsageError(f"{path} does not hold the weights of this {name}; train the trial again") from error


def write_measurements(trial: Path, history: Iterable[Mapping[str, Any]], lines: Iterable[str]) -> None:
    """Write the metrics of all evaluations so far, and the log's lines for them."""
    write_atomically(trial / MEASUREMENTS, pickle.dumps([dict(entry) for entry in history], protocol=4))
    write_atomically(trial / LOG, "".join(f"{line}\n" for line in lines).encode())

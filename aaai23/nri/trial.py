"""Trials: the folder of one trained seed inside an experiments folder.

experiments/<experiments_folder>/lr{lr}_temp{temp}_encwd{wd}_decwd{wd}_{seed}/
    train_config.json                 the settings
    encoder.pt, decoder.pt            the weights to evaluate
    checkpoint.pt                     what --resume continues from
    log.txt                           a line for each evaluation
    train_and_val_measurements.pkl    the same figures, a list of dicts for other programs; not read here
"""

from __future__ import annotations

import json
import pickle
from argparse import Namespace
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

from aaai23.checkpoint import load_checkpoint, save_checkpoint
from aaai23.errors import UsageError
from aaai23.nri.settings import NOT_COMPARED
from aaai23.record import check_same_config, plain, read_settings, write_atomically

ROOT = Path("experiments")
CONFIG, CHECKPOINT, LOG = "train_config.json", "checkpoint.pt", "log.txt"
MEASUREMENTS = "train_and_val_measurements.pkl"


def experiments_folder(args: Namespace) -> Path:
    """Return the folder of the trials."""
    return ROOT / args.experiments_folder


def trial_folder(args: Namespace) -> Path:
    """Return the folder of this trial, which may not exist yet.

    With `--experiment_name` and `--add_timestamp True` it ends in the time of the start; then `--resume` finds the
    latest one that has a checkpoint.
    """
    parent = experiments_folder(args)
    if args.experiment_name is None:
        decay = f"encwd{args.enc_weight_decay}_decwd{args.dec_weight_decay}"
        return parent / f"lr{args.lr}_temp{args.temp}_{decay}_{args.seed}"
    if not args.add_timestamp:
        return parent / args.experiment_name
    if args.resume:
        started = sorted(path.parent for path in parent.glob(f"{args.experiment_name}_*/{CHECKPOINT}"))
        if started:
            return started[-1]
    return parent / f"{args.experiment_name}_{datetime.now():%Y-%m-%d_%H-%M-%S}"


def find_trials(folder: Path) -> list[Path]:
    """Return the trials in a folder, in the order of their names.

    Raises:
        UsageError: there are none.
    """
    trials = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not trials:
        raise UsageError(f"no trial in {folder}: train first, or check --experiments_folder")
    return trials


def write_config(trial: Path, config: Mapping[str, Any]) -> None:
    """Write the settings of a trial; a folder that cannot be written shows before hours of work."""
    write_atomically(trial / CONFIG, (json.dumps(plain(config, words=True), indent=1, sort_keys=True) + "\n").encode())


def read_config(trial: Path) -> dict[str, Any]:
    """Return the settings of a trial.

    Raises:
        UsageError: the file is broken.
    """
    try:
        config = json.loads((trial / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{trial / CONFIG} is no whole JSON file; move the trial away or train it again") from error
    if not isinstance(config, dict):
        raise UsageError(f"{trial / CONFIG} holds no settings; move the trial away or train it again")
    return read_settings(config)


def refuse_another(trial: Path, config: Mapping[str, Any]) -> None:
    """Refuse to replace a trial that was trained with another seed, other settings or other data.

    Raises:
        UsageError: the folder holds one.
    """
    if (trial / CONFIG).exists():
        remedy = "choose another --experiments_folder or --experiment_name"
        compared = [key for key in NOT_COMPARED if key != "seed"]
        check_same_config(read_config(trial), config, compared, what=f"the trial {trial}", remedy=remedy)


def check_config(trial: Path, now: Mapping[str, Any], compared: Iterable[str]) -> None:
    """Check that a trial was trained with the same settings, as far as `compared` names them.

    Raises:
        UsageError: it was not; the message names the differences.
    """
    saved, keys = read_config(trial), set(compared)
    ignored = {key for key in (*saved, *now) if key not in keys}
    check_same_config(saved, now, ignored, what=f"the trial {trial}", remedy="give the flags it was trained with")


def save_weights(trial: Path, weights: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `encoder.pt` and `decoder.pt` from the state dicts of those names."""
    for name, state in weights.items():
        save_checkpoint(trial / f"{name}.pt", dict(state))


def load_weights(trial: Path, networks: Mapping[str, nn.Module]) -> None:
    """Load the weights of a trial into its networks.

    Raises:
        UsageError: a file is missing, broken, or of another network.
    """
    for name, network in networks.items():
        path = trial / f"{name}.pt"
        if not path.is_file():
            raise UsageError(f"{path} is missing: this trial has no weights to evaluate; train it")
        state = load_checkpoint(path)
        try:
            network.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} does not hold the weights of this {name}; train the trial again") from error


def write_measurements(trial: Path, history: Iterable[Mapping[str, Any]], lines: Iterable[str]) -> None:
    """Write the figures of all evaluations so far, and the log's lines for them."""
    write_atomically(trial / MEASUREMENTS, pickle.dumps([dict(entry) for entry in history], protocol=4))
    write_atomically(trial / LOG, "".join(f"{line}\n" for line in lines).encode())

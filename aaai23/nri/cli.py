"""The command line of Neural Relational Inference."""

from __future__ import annotations

import functools
import logging
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aaai23.harness.config import declared, parse, refuse
from aaai23.harness.identity import finished, finished_line, identify
from aaai23.harness.shell import configure_logging, say_sample_data, say_unread
from aaai23.nri.config import NRIConfig

if TYPE_CHECKING:
    import torch

SCRIPT = "torch-nri-cli.py"
parse_arguments = functools.partial(
    parse, NRIConfig, SCRIPT, "Neural Relational Inference: find the tree behind a layout."
)


def main(argv: list[str] | None = None) -> int:
    """Train one seed, or measure the trials of a folder."""
    config, unread = parse_arguments(argv)
    refuse(config)
    identity = identify("nri", config, config.files())
    config = replace(config, experiments_folder=config.experiments_folder or f"../exp_nri/{identity.name}")
    log = configure_logging(SCRIPT)
    device = choose_device(config, log)
    print(Namespace(**flags(config)), flush=True)
    say_unread(log, config.chosen_method, unread)
    announce(config)
    say_sample_data(log, identity, config.data_dir, "the full set")
    record = finished(identity) if config.mode == "train" and not config.again else None
    if record is not None:
        log.info(finished_line(identity, record))
        say_final(record.final or {}, log)
        return 0

    from aaai23.nri import trial  # torch and its friends load only when there is work to do
    from aaai23.nri.data import check_pairs, load

    data = load(config.data_dir, config.suffix, config.timesteps, config.num_vertices, config.dims)
    check_pairs(data)
    if config.mode == "train":
        from aaai23.nri.train import run_seed

        folder = trial.trial_folder(config, identity)
        say_final(run_seed(identity, config, data, folder, device, log), log)
    else:
        from aaai23.nri.evaluate import evaluate_trials

        evaluate_trials(config, trial.experiments_folder(config, identity.name), data, device)
    return 0


def choose_device(config: NRIConfig, log: logging.Logger) -> torch.device:
    """Return where to compute: what --device says, else the GPU with --cuda True if there is one, else the CPU.

    Raises:
        UsageError: `--device cuda` without a GPU.
    """
    from aaai23.harness.loop import select_device

    device = select_device(config.device or ("auto" if config.cuda else "cpu"))
    if config.cuda and config.device is None and device.type == "cpu":
        log.warning("--cuda True: torch finds no usable GPU here, computing on the CPU")
    return device


def flags(config: NRIConfig) -> dict[str, Any]:
    """Return all settings by the names of their flags, in the order of the alphabet."""
    known = declared(NRIConfig)
    found = {it.flags[0].lstrip("-").replace("-", "_"): getattr(config, name) for name, it in known.items()}
    return dict(sorted(found.items()))


def announce(config: NRIConfig) -> None:
    """Print what the authors' code prints about its networks."""
    encoder = "factor graph MLP" if config.factor else "MLP"
    for line in (f"Using {encoder} encoder.", "Using learned interaction net decoder.", "Using Adam."):
        print(line, flush=True)


def say_final(final: Mapping[str, Any], log: logging.Logger) -> None:
    """Log the final metrics of a run."""
    from aaai23.nri.train import describe

    for name, title in (("val", "Validation"), ("test", "Test")):
        log.info(f"{title} {describe(final, name)}")
    log.info("Experiment completed.")

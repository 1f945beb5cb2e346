"""The command line of Learning to Explain."""

from __future__ import annotations

import functools
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aaai23.harness.config import parse, refuse
from aaai23.harness.identity import Identity, finished, finished_line, identify
from aaai23.harness.record import figure
from aaai23.harness.shell import configure_logging, say_sample_data, say_unread
from aaai23.l2x.config import PRESETS, L2XConfig

SCRIPT = "l2x-cli.py"
parse_arguments = functools.partial(
    parse, L2XConfig, SCRIPT, "Learning to Explain: rate a review from K of its words.", presets=PRESETS
)


def main(argv: list[str] | None = None) -> int:
    """Train and measure all reruns."""
    config, unread = parse_arguments(argv)
    refuse(config)
    identity = identify("l2x", config, config.files())
    log = configure_logging(SCRIPT)
    say_unread(log, config.method, unread)
    say_sample_data(log, identity, config.data_dir, "BeerAdvocate")
    reruns = [replace(config, seed=seed) for seed in range(config.seed, config.seed + config.reruns)]
    identities = [replace(identity, seed=rerun.seed) for rerun in reruns]
    records = [None if config.again else finished(it) for it in identities]
    train = trainer(reruns, identities, log) if None in records else None
    finals = []
    for rerun, it, record in zip(reruns, identities, records, strict=True):
        if record is not None:
            log.info(finished_line(it, record))
            export_finished(rerun, it)
            final: Mapping[str, Any] = record.final or {}
        else:
            assert train is not None
            final = train(it, rerun)
        log_seed(log, rerun.seed, final)
        finals.append(final)
    log_summary(log, finals)
    log.info("Experiment completed.")
    return 0


def trainer(
    reruns: Sequence[L2XConfig], identities: Sequence[Identity], log: logging.Logger
) -> Callable[[Identity, L2XConfig], Mapping[str, Any]]:
    """Read the data; return what trains and measures one rerun, and returns its final metrics."""
    from aaai23.harness.checkpoint import check_export  # torch and its friends load only if there is work
    from aaai23.harness.loop import select_device
    from aaai23.l2x.data import load
    from aaai23.l2x.train import run_seed

    for rerun, it in zip(reruns, identities, strict=True):
        check_export(rerun.export(), it)
    device = select_device(reruns[0].device)
    data = load(reruns[0].data_dir, reruns[0].aspect, reruns[0].max_len, identities[0].data)
    return lambda it, rerun: run_seed(it, rerun, data, device, log)


def export_finished(rerun: L2XConfig, run: Identity) -> None:
    """Write the weights of a finished run where `--checkpoint` asks for them and they are not."""
    path = rerun.export()
    if path is not None and not path.exists():
        from aaai23.harness.checkpoint import export

        export(path, run)


def log_seed(log: logging.Logger, seed: int, final: Mapping[str, Any]) -> None:
    """Log the metrics of one seed."""
    log.info(f"[{seed}] Validation MSE: {figure(final, 'best_val_mse'):.5f}")
    log.info(f"[{seed}] Test MSE: {figure(final, 'best_test_mse'):.5f}")
    log.info(f"[{seed}] Subset precision: {figure(final, 'best_subset_prec'):.5f}")


def log_summary(log: logging.Logger, finals: Sequence[Mapping[str, Any]]) -> None:
    """Log mean and standard deviation over the seeds."""
    titles = {
        "best_subset_prec": "Subset Precision",
        "best_val_mse": "Validation MSE",
        "best_test_mse": "Test MSE",
    }
    for key, title in titles.items():
        values = [figure(final, key) for final in finals]
        mean = statistics.fmean(values)
        deviation = math.sqrt(statistics.fmean((value - mean) ** 2 for value in values))  # NaN where one is
        log.info(f"Final {title} List: {mean:.5f} ± {deviation:.5f}")

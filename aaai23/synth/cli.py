"""The command line of the measures of gradients."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aaai23.harness.config import parse, refuse
from aaai23.harness.environment import environment
from aaai23.harness.identity import Identity, finished, identify
from aaai23.harness.record import Record, metrics, one_line, plain, write_record
from aaai23.harness.shell import configure_logging, say_unread
from aaai23.synth.config import MEASURES, QUICK, SynthConfig

SCRIPT = "synth-cli.py"


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[SynthConfig, list[str]]:
    """Return the configuration that a command line asks for, and the flags that its measure does not read."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--measure")
    description = f"Gradients beside exact ones: {SCRIPT} MEASURE [flags], a measure of {', '.join(MEASURES)}."
    presets = dict.fromkeys(MEASURES, QUICK) if "--quick" in words else {}
    return parse(SynthConfig, SCRIPT, description, words, presets)


def main(argv: list[str] | None = None) -> int:
    """Measure, and draw what was measured."""
    config, unread = parse_arguments(argv)
    refuse(config)
    identity = identify("synth", config, [])
    log = configure_logging(SCRIPT)
    say_unread(log, config.method, unread)
    record = None if config.again else finished(identity)
    if record is None:
        record = measure(identity, config, log)
    else:
        log.info(f"{identity.file('.json')} is finished; --again measures anew")
    from aaai23.synth.plots import draw

    for path in draw(identity, record):
        log.info(f"{path}")
    return 0


def measure(identity: Identity, config: SynthConfig, log: logging.Logger) -> Record:
    """Take a measure, and leave its record.

    Raises:
        UsageError: no estimator has such a name, or the record cannot be written.
    """
    from aaai23.errors import UsageError
    from aaai23.harness.loop import select_device
    from aaai23.synth.bench import ESTIMATORS, Bench
    from aaai23.synth.measures import MEASURES, needed

    if config.only and not any(name.startswith(tuple(config.only)) for name in ESTIMATORS):
        raise UsageError(f"--only {' '.join(config.only)}: no estimator begins so; they are {', '.join(ESTIMATORS)}")
    record = Record(
        task=identity.task,
        name=identity.name,
        seed=identity.seed,
        method=identity.method,
        sample_data=False,
        settings=dict(identity.settings),
        data=identity.data,
        launch=plain({**config.launch(), "command": shlex.join(sys.argv), "environment": environment()}),
    )
    start = time.monotonic()
    try:
        for entry in MEASURES[config.method](Bench(config, select_device(config.device))):
            record.history.append(metrics(entry))
            log.info(describe(entry))
        record.final = metrics(needed(record.history)) if config.method == "samples" else {}
        record.status = "finished"
    except BaseException as error:
        record.status, record.error = "failed", one_line(error)
        raise
    finally:
        record.timing = {"seconds": round(time.monotonic() - start, 3)}
        write_record(identity.file(".json"), record)
    for key, value in record.final.items():
        log.info(f"cosine of 0.9, {key} {'not reached' if value is None else f'{value:.0f}'}")
    return record


def describe(entry: Mapping[str, Any]) -> str:
    """Return an entry as a line: metrics with their standard errors."""
    words = []
    for key, value in entry.items():
        if not key.endswith("_se"):
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            words.append(f"{key} {text}" + (f" ± {entry[key + '_se']:.2g}" if f"{key}_se" in entry else ""))
    return ", ".join(words)

#!/usr/bin/env python3
"""Print the command lines of the discrete variational autoencoder: all methods, ten seeds each.

./experiments/generate_vae_aimle_cmd.py
./experiments/generate_vae_aimle_cmd.py --methods aimle imle --format slurm --gpus 1 --time 04:00:00 | sbatch
"""

import argparse
from collections.abc import Iterator
from typing import Any

import sweep

TASK = "vae"
SCRIPT = "torch-vae-cli.py"

# the published command; ten codes for each image in all methods, because the published test loss depends on them
COMMON = {"-b": 100, "-K": 10, "--code-m": 20, "--code-n": 20, "--imle-samples": 10}
NOISE = {"--imle-noise": "sog", "--imle-temperature": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "aimle": {
        **NOISE,
        "--imle-lambda": 0.0,
        "--aimle-symmetric": sweep.SWITCH,
        "--aimle-target": "adaptive",
        "--init-temperature": 0.0,
        "--gradient-scaling": sweep.SWITCH,
        "--aimle-beta-update-momentum": 0.0,
        "--aimle-beta-update-step": 0.001,
        "--aimle-target-norm": 10.0,
    },
    "imle": {**NOISE, "--imle-lambda": 10.0},
    "ste": {"--ste-noise": "sog", "--ste-temperature": 0.0},
    "gumbel-softmax": {"--init-temperature": 1.0, "--min-temperature": 0.5, "--anneal-rate": 0.00003},
}


def flags_of(method: str, epochs: int = 100) -> dict[str, Any]:
    """Return the flags of a method; 100 epochs are published."""
    return {"-e": epochs, **COMMON, "-M": method, **METHODS[method]}


def settings(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, flags) of each chosen setting."""
    length = "" if args.epochs == 100 else f"e{args.epochs}"
    for method in args.methods:
        name = sweep.job_name(method, args, length)
        yield name, flags_of(method, args.epochs)


def main(argv: list[str] | None = None) -> int:
    """Print the lines."""
    flags = sweep.parser("Command lines of the discrete variational autoencoder, one per seed.", TASK)
    add = flags.add_argument_group("settings").add_argument
    add("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), help="methods; all by default")
    add("--epochs", type=sweep.positive_int, default=100, help="passes over the images (default 100, as published)")
    return sweep.main(flags, TASK, lambda args: sweep.jobs_of(settings(args), TASK, SCRIPT, args), argv)


if __name__ == "__main__":
    raise SystemExit(main())

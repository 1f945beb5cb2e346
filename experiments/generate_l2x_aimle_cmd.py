#!/usr/bin/env python3
"""Print the command lines of learning to explain: four aspects, all methods, ten seeds each.

./experiments/generate_l2x_aimle_cmd.py
./experiments/generate_l2x_aimle_cmd.py --aspects 3 --methods aimle imletopk --format slurm --time 02:00:00 | sbatch
"""

import argparse
from collections.abc import Iterator
from typing import Any

import sweep

TASK = "l2x"
SCRIPT = "l2x-cli.py"

# aspect: words that are selected
SUBSET_SIZES = {0: (10,), 1: (5, 10, 15), 2: (10,), 3: (10,)}
# what all published lines share
COMMON = {"-b": 40, "-k": 3, "-H": 250, "-m": 350, "-r": 1}
METHODS: dict[str, dict[str, Any]] = {
    "aimle": {
        "--aimle-symmetric": sweep.SWITCH,
        "--aimle-target": "adaptive",
        "--imle-samples": 1,
        "--imle-noise": "gumbel",
        "--imle-input-temperature": 1.0,
        "--imle-output-temperature": 1.0,
        "--imle-lambda": 0.0,
        "--gradient-scaling": sweep.SWITCH,
        "--aimle-beta-update-momentum": 0.0,
        "--aimle-beta-update-step": 0.0001,
        "--aimle-target-norm": 1.0,
    },
    # temperatures of 1 and of 10 were both published; imletopk is the second
    "imle": {
        "--imle-samples": 1,
        "--imle-noise": "sog",
        "--imle-input-temperature": 1.0,
        "--imle-output-temperature": 1.0,
        "--imle-lambda": 1000.0,
    },
    "imletopk": {
        "--imle-samples": 1,
        "--imle-noise": "sog",
        "--imle-input-temperature": 10.0,
        "--imle-output-temperature": 10.0,
        "--imle-lambda": 1000.0,
    },
    "ste": {"--ste-noise": "sog", "--ste-temperature": 0.0},
    "sst": {"--sst-temperature": 0.1},
    "softsub": {"--softsub-temperature": 0.5},
    "l2x": {},  # its temperature of 0.1 is no flag
}


def flags_of(aspect: int, k: int, method: str, epochs: int = 20) -> dict[str, Any]:
    """Return the flags of a setting; 20 epochs are published."""
    return {"-a": aspect, "-e": epochs, **COMMON, "-K": k, "-M": method, **METHODS[method]}


def settings(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, flags) of each chosen setting."""
    length = "" if args.epochs == 20 else f"e{args.epochs}"
    for choice in sweep.grid(aspect=args.aspects, k=(5, 10, 15), method=args.methods):
        aspect, k, method = choice["aspect"], choice["k"], choice["method"]
        if k in (args.select_k or SUBSET_SIZES[aspect]):
            name = sweep.job_name(f"a{aspect}_K{k}_{method}", args, length)
            yield name, flags_of(aspect, k, method, args.epochs)


def main(argv: list[str] | None = None) -> int:
    """Print the lines."""
    flags = sweep.parser("Command lines of learning to explain, one per seed.", TASK)
    add = flags.add_argument_group("settings").add_argument
    add(
        "--aspects",
        nargs="+",
        type=sweep.number(int, 0, 10**9),
        choices=tuple(SUBSET_SIZES),
        default=tuple(SUBSET_SIZES),
        help="aspects",
    )
    add("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), help="methods; all by default")
    add(
        "--select-k",
        nargs="+",
        type=sweep.positive_int,
        choices=(5, 10, 15),
        help="words that are selected, where not as published",
    )
    add("--epochs", type=sweep.positive_int, default=20, help="passes over the reviews (default 20, as published)")
    return sweep.main(flags, TASK, lambda args: sweep.jobs_of(settings(args), TASK, SCRIPT, args), argv)


if __name__ == "__main__":
    raise SystemExit(main())

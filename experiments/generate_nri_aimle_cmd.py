#!/usr/bin/env python3
"""Print the command lines of neural relational inference: the four published settings of AIMLE, ten seeds each.

./experiments/generate_nri_aimle_cmd.py
./experiments/generate_nri_aimle_cmd.py --baselines --format slurm --gpus 1 --time 08:00:00 | sbatch
"""

import argparse
import os
from collections.abc import Iterator
from typing import Any

import sweep

TASK = "nri"
SCRIPT = "torch-nri-cli.py"

# what all published lines share
COMMON = {
    "--sst": "tree",
    "--relaxation": "exp_family_entropy",
    "--max_range": 15,
    "--symmeterize_logits": True,
    "--eps_for_finitediff": 1.0,
    "--cuda": True,
    "--use_cpp_for_sampling": True,
    "--hard": True,
    "--st": True,
    "--temp": 0.1,
}
LENGTHS = {
    10: {"--suffix": "_novar_1skip_10t_1r_graph10", "--timesteps": 10, "--prediction_steps": 9},
    20: {"--suffix": "_novar_1skip_20t_1r_graph10", "--timesteps": 20, "--prediction_steps": 10},
}
AIMLE = {
    "--method": "aimle",
    "--aimle-target": "adaptive",
    "--imle-lambda": 0.0,
    "--imle-lambda-update-step": 0.001,
    "--imle-noise": "sog",
    "--imle-samples": 1,
}
CENTRAL: dict[str, Any] = {**AIMLE, "--aimle-symmetric": sweep.SWITCH}
# (T, label): what differs, as published
PUBLISHED: dict[tuple[int, str], dict[str, Any]] = {
    (10, "aimle_central"): {**CENTRAL, "--lr": 0.0005, "--imle-noise-temperature": 0.1},
    (10, "aimle_forward"): {**AIMLE, "--lr": 0.0001, "--imle-noise-temperature": 1.0},
    (20, "aimle_central"): {**CENTRAL, "--lr": 0.0005, "--imle-noise-temperature": 1.0},
    (20, "aimle_forward"): {**AIMLE, "--lr": 0.0005, "--imle-noise-temperature": 0.1},
}


def baselines(timesteps: int) -> dict[tuple[int, str], dict[str, Any]]:
    """Return the settings of SST, I-MLE and STE; keys as in PUBLISHED.

    None were published with AIMLE's. These are ours, as near to those of AIMLE as the methods allow; I-MLE's lambda
    is to be chosen on validation graphs.
    """
    noise = {"--imle-noise": "sog", "--imle-samples": 1, "--imle-noise-temperature": 0.1 if timesteps == 10 else 1.0}
    methods: dict[str, dict[str, Any]] = {
        "sst": {"--method": "sst"},
        "imle_lambda1": {"--method": "imle", "--imle-lambda": 1.0, **noise},
        "imle_lambda10": {"--method": "imle", "--imle-lambda": 10.0, **noise},
        "imle_lambda100": {"--method": "imle", "--imle-lambda": 100.0, **noise},
        "ste": {"--method": "ste", **noise},
    }
    return {(timesteps, label): {"--lr": 0.0005, **flags} for label, flags in methods.items()}


def flags_of(timesteps: int, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of a setting, with those that all of its length share."""
    return {**LENGTHS[timesteps], **COMMON, **flags}


def settings(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, flags) of each chosen setting."""
    methods = args.methods or ["aimle", *(("sst", "imle", "ste") if args.baselines else ())]
    for (timesteps, label), flags in {**PUBLISHED, **baselines(10), **baselines(20)}.items():
        if timesteps not in args.timesteps or flags["--method"] not in methods:
            continue
        length = "" if args.iterations is None else f"i{args.iterations}"
        name = sweep.job_name(f"T{timesteps}_{label}", args, length)
        # a trial lies beside its record; the script looks for it from experiments/
        trials = {"--experiments_folder": os.path.join("..", args.results_dir, TASK, name)}
        steps = {} if args.iterations is None else {"--num_iterations": args.iterations}
        yield name, {**flags_of(timesteps, flags), **steps, **trials}


def main(argv: list[str] | None = None) -> int:
    """Print the lines."""
    flags = sweep.parser("Command lines of neural relational inference, one per seed.", TASK)
    add = flags.add_argument_group("settings").add_argument
    add("--baselines", action="store_true", help="SST, I-MLE and STE too, with settings of ours")
    add("--methods", nargs="+", choices=("aimle", "sst", "imle", "ste"), help="these methods and no others")
    add(
        "--timesteps",
        nargs="+",
        type=sweep.positive_int,
        choices=tuple(LENGTHS),
        default=tuple(LENGTHS),
        help="numbers of frames T",
    )
    add("--iterations", type=sweep.positive_int, help="training steps, where not the published 50000")
    return sweep.main(flags, TASK, lambda args: sweep.jobs_of(settings(args), TASK, SCRIPT, args), argv)


if __name__ == "__main__":
    raise SystemExit(main())

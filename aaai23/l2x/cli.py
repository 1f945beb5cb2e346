"""The command line of Learning to Explain."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aaai23.arguments import (
    ArgumentParser,
    add_run_arguments,
    config_of,
    default_name,
    non_negative_float,
    positive_float,
    positive_int,
)
from aaai23.errors import UsageError
from aaai23.record import NOT_SETTINGS, is_finished, read_record, record_path
from aaai23.shell import configure_logging, run_cli

if TYPE_CHECKING:
    import logging

SCRIPT = "l2x-cli.py"
METHOD_NAMES = ("aimle", "imle", "imletopk", "ste", "sst", "softsub", "l2x")
NOT_IN_NAME = (*NOT_SETTINGS, "reruns", "checkpoint", "data_dir")


def parser() -> ArgumentParser:
    """Return the parser of the script's flags."""
    result = ArgumentParser(prog=SCRIPT, description="Learning to Explain: rate a review from K of its words.")
    _add_task_arguments(result)
    _add_method_arguments(result)
    add_run_arguments(result)
    return result


def _add_task_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("task").add_argument
    add("--aspect", "-a", type=int, choices=range(5), default=1, help="0 appearance, 1 aroma, 2 palate, 3 taste")
    add("--epochs", "-e", type=positive_int, default=20, help="passes over the training reviews")
    add("--batch-size", "-b", type=positive_int, default=40, help="reviews a step")
    add("--kernel-size", "-k", type=positive_int, default=3, help="words that a convolution of the selector sees")
    add("--hidden-dims", "-H", type=positive_int, default=250, help="width of the predictor")
    add("--max-len", "-m", type=positive_int, default=350, help="words of a review that are read")
    add("--select-k", "-K", type=positive_int, default=10, help="words that are selected")
    add("--checkpoint", "-c", type=Path, default=Path("models/model.pt"), help="with several reruns one file a seed")
    add("--reruns", "-r", type=positive_int, default=10, help="number of seeds, from --seed up")
    add("--max-iterations", type=positive_int, help="end training after this many steps")
    add("--mask-padding", action="store_true", help="select words only; as published, padding can be selected")
    add("--debug", "-D", action="store_true", help="log the loss of every step")


def _add_method_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("method").add_argument
    noises = ("none", "sog", "gumbel")
    add("--method", "-M", choices=METHOD_NAMES, default="imle", help="imletopk: imle with its published settings")
    add("--aimle-symmetric", action="store_true", help="central instead of forward differences")
    add("--aimle-target", choices=("standard", "adaptive"), default="standard", help="where lambda comes from")
    add("--imle-noise", choices=noises, default="sog", help="noise of aimle and imle")
    add("--imle-samples", type=positive_int, default=1, help="solutions for each review; imle, aimle and ste")
    add("--imle-input-temperature", type=non_negative_float, default=0.0, help="noise of the forward pass")
    add("--imle-output-temperature", type=non_negative_float, default=10.0, help="noise of the target pass")
    add("--imle-lambda", type=non_negative_float, default=1000.0, help="lambda; for the adaptive target the first beta")
    add("--aimle-beta-update-step", type=non_negative_float, default=1e-4, help="how fast beta moves")
    add("--aimle-beta-update-momentum", type=non_negative_float, default=0.0, help="how much of its last move is kept")
    add("--aimle-target-norm", type=positive_float, default=1.0, help="wanted non-zero entries of a gradient")
    add("--gradient-scaling", action="store_true", help="divide by lambda; the adaptive target always does")
    add("--sst-temperature", type=non_negative_float, default=0.1, help="of method sst")
    add("--softsub-temperature", type=non_negative_float, default=0.5, help="of method softsub")
    add("--ste-noise", choices=noises, default="sog", help="noise of method ste")
    add("--ste-temperature", type=non_negative_float, default=0.0, help="noise of method ste")


def check(args: Namespace) -> None:
    """Refuse settings that cannot work together.

    Raises:
        UsageError: says which, and what to do.
    """
    if args.select_k > args.max_len:
        raise UsageError(f"--select-k {args.select_k} words of --max-len {args.max_len}: select fewer words")
    for method in ("sst", "softsub"):
        if args.method == method and getattr(args, f"{method}_temperature") == 0:
            raise UsageError(f"--{method}-temperature must be above 0 with --method {method}")
    if args.method in ("sst", "softsub", "l2x") and args.imle_samples != 1:
        raise UsageError(f"--method {args.method} draws one sample: leave --imle-samples at 1")


def checkpoint_path(path: Path, seed: int, reruns: int) -> Path:
    """Return a seed's own checkpoint: the path itself for a single rerun, else with the seed before its ending."""
    return path if reruns == 1 else path.with_name(f"{path.stem}.seed{seed}{path.suffix}")


def log_seed(log: logging.Logger, seed: int, final: dict[str, float]) -> None:
    """Log the figures of one seed."""
    log.info(f"[{seed}] Validation MSE: {final['best_val_mse']:.5f}")
    log.info(f"[{seed}] Test MSE: {final['best_test_mse']:.5f}")
    log.info(f"[{seed}] Subset precision: {final['best_subset_prec']:.5f}")


def log_summary(log: logging.Logger, finals: Sequence[dict[str, float]]) -> None:
    """Log mean and standard deviation over the seeds."""
    titles = {
        "best_subset_prec": "Subset Precision",
        "best_val_mse": "Validation MSE",
        "best_test_mse": "Test MSE",
    }
    for key, title in titles.items():
        values = [final[key] for final in finals]
        log.info(f"Final {title} List: {statistics.fmean(values):.5f} ± {statistics.pstdev(values):.5f}")


def finished(
    path: Path, epochs: int, config: Mapping[str, Any], not_compared: Sequence[str]
) -> dict[str, float] | None:
    """Return the final figures of a run that has gone as far as `epochs`, else None.

    Raises:
        UsageError: it had other settings.
    """
    if not is_finished(path, config, not_compared):
        return None
    record = read_record(path)
    return record["final"] if record["config"]["epochs"] >= epochs else None


def main(argv: list[str] | None = None) -> int:
    """Train and measure all reruns."""
    args = parser().parse_args(argv)
    check(args)
    args.name = args.name or default_name(vars(args), f"{args.method}_a{args.aspect}_K{args.select_k}", NOT_IN_NAME)
    log = configure_logging(SCRIPT)

    from aaai23.l2x.data import load  # torch and its friends load only when there is work to do
    from aaai23.l2x.train import NOT_COMPARED, run_seed
    from aaai23.run import select_device

    device = select_device(args.device)
    data = load(args.data_dir, args.aspect, args.max_len)
    if data.sample_data:
        log.info(f"{args.data_dir} holds sample data, a stand-in for BeerAdvocate: no figure below is a published one")
    finals = []
    for seed in range(args.seed, args.seed + args.reruns):
        record = record_path(args.results_dir, "l2x", args.name, seed)
        final = finished(record, args.epochs, config_of(args), NOT_COMPARED) if args.resume else None
        if final is None:
            path = checkpoint_path(args.checkpoint, seed, args.reruns)
            final = dict(run_seed(args, data, seed, path, device, log))
        log_seed(log, seed, final)
        finals.append(final)
    log_summary(log, finals)
    log.info("Experiment completed.")
    return 0


def entry() -> None:
    """Run from the shell, with its exit codes."""
    run_cli(main, SCRIPT)

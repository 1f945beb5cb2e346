"""The command line of Learning to Explain."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
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
from aaai23.fingerprint import fingerprint
from aaai23.l2x import settings
from aaai23.l2x.settings import NOT_COMPARED, NOT_IN_NAME
from aaai23.record import finished_line, finished_record, record_path
from aaai23.sample_data import is_sample
from aaai23.shell import configure_logging, run_cli

if TYPE_CHECKING:
    import logging

SCRIPT = "l2x-cli.py"
METHOD_NAMES = ("aimle", "imle", "imletopk", "ste", "sst", "softsub", "l2x")


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
    add("--checkpoint", "-c", type=Path, help="beside the record if not given; with several reruns one file a seed")
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


def checkpoint_path(args: Namespace) -> Path:
    """Return a seed's own checkpoint: that of the command line, with the seed before its ending if it has several."""
    path = args.checkpoint
    if path is None:
        return record_of(args).with_suffix(".pt")
    return path if args.reruns == 1 else path.with_name(f"{path.stem}.seed{args.seed}{path.suffix}")


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


def data_files(args: Namespace) -> list[Path]:
    """Return the files that a command line reads.

    Raises:
        UsageError: one is missing.
    """
    return settings.data_files(args.data_dir, args.aspect)


def record_of(args: Namespace) -> Path:
    """Return the path of a seed's record."""
    return record_path(args.results_dir, "l2x", args.name, args.seed)


def finished(args: Namespace) -> dict[str, Any] | None:
    """Return the record of a seed that is finished and had all the epochs that are asked for now, else None.

    Args:
        args: the parsed command line, with a name, the seed of this rerun, and the fingerprint of its data.

    Raises:
        UsageError: the finished run had other settings or other data.
    """
    record = finished_record(record_of(args), config_of(args), NOT_COMPARED)
    return record if record is not None and record["config"]["epochs"] >= args.epochs else None


def main(argv: list[str] | None = None) -> int:
    """Train and measure all reruns."""
    args = parser().parse_args(argv)
    check(args)
    args.data = fingerprint(data_files(args))
    args.name = args.name or default_name(vars(args), f"{args.method}_a{args.aspect}_K{args.select_k}", NOT_IN_NAME)
    log = configure_logging(SCRIPT)
    if is_sample(args.data_dir):
        log.info(f"{args.data_dir} holds sample data, a stand-in for BeerAdvocate: no figure below is a published one")
    reruns = [Namespace(**{**vars(args), "seed": seed}) for seed in range(args.seed, args.seed + args.reruns)]
    records = [None if args.again else finished(rerun) for rerun in reruns]
    finals = []
    train = None
    for rerun, record in zip(reruns, records, strict=True):
        if record is not None:
            log.info(finished_line(record_of(rerun), record))
            final = record["final"]
        else:
            train = train or trainer(args, log)
            final = train(rerun)
        log_seed(log, rerun.seed, final)
        finals.append(final)
    log_summary(log, finals)
    log.info("Experiment completed.")
    return 0


def trainer(args: Namespace, log: logging.Logger) -> Callable[[Namespace], dict[str, float]]:
    """Read the data; return what trains and measures one rerun, and returns its final figures."""
    from aaai23.l2x.data import load  # torch and its friends load only when there is work to do
    from aaai23.l2x.train import run_seed
    from aaai23.run import select_device

    device = select_device(args.device)
    data = load(args.data_dir, args.aspect, args.max_len, args.data)
    return lambda rerun: dict(run_seed(rerun, data, checkpoint_path(rerun), device, log))


def entry() -> None:
    """Run from the shell, with its exit codes."""
    run_cli(main, SCRIPT)

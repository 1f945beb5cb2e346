"""The command line of the discrete VAE."""

from __future__ import annotations

from argparse import Namespace
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
from aaai23.dvae import settings
from aaai23.dvae.settings import NOT_COMPARED, NOT_IN_NAME
from aaai23.errors import UsageError
from aaai23.fingerprint import fingerprint
from aaai23.record import finished_line, finished_record, record_path
from aaai23.sample_data import is_sample
from aaai23.shell import configure_logging, run_cli

if TYPE_CHECKING:
    import logging

    from aaai23.dvae.data import MNIST

SCRIPT = "torch-vae-cli.py"
METHOD_NAMES = ("aimle", "imle", "ste", "gumbel-softmax")


def parser() -> ArgumentParser:
    """Return the parser of the script's flags."""
    result = ArgumentParser(
        prog=SCRIPT,
        description="Discrete VAE: encode an image as M rows of N bits, K of each row set.",
        epilog="Record, checkpoint and pictures go to RESULTS_DIR/vae/NAME/.",
    )
    _add_task_arguments(result)
    _add_method_arguments(result)
    add_run_arguments(result)
    return result


def _add_task_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("task").add_argument
    add("--epochs", "-e", type=positive_int, default=100, help="passes over the training images")
    add("--batch-size", "-b", type=positive_int, default=100, help="images a step")
    add("--input-dim", type=positive_int, default=784, help="pixels of an image")
    add("--select-k", "-K", type=positive_int, default=10, help="ones in a row of a code; always 1 in gumbel-softmax")
    add("--code-m", type=positive_int, default=20, help="rows of a code")
    add("--code-n", type=positive_int, default=20, help="entries of a row")
    add("--max-iterations", type=positive_int, help="end training after this many steps")


def _add_method_arguments(result: ArgumentParser) -> None:
    add = result.add_argument_group("method").add_argument
    noises = ("none", "sog", "gumbel")
    add("--method", "-M", choices=METHOD_NAMES, default="imle", help="how gradients pass through the choice of bits")
    add("--aimle-symmetric", action="store_true", help="central instead of forward differences")
    add("--aimle-target", choices=("standard", "adaptive"), default="standard", help="where lambda comes from")
    add("--aimle-beta-update-step", type=non_negative_float, default=1e-4, help="how fast beta moves")
    add("--aimle-beta-update-momentum", type=non_negative_float, default=0.0, help="how much of its last move is kept")
    add("--aimle-target-norm", type=positive_float, default=1.0, help="wanted non-zero entries of a gradient")
    add("--imle-noise", choices=noises, default="sog", help="noise of aimle and imle")
    add("--imle-samples", type=positive_int, default=1, help="codes for each image; all methods")
    add("--imle-temperature", type=non_negative_float, default=10.0, help="noise of aimle and imle, both passes")
    add("--imle-lambda", type=non_negative_float, default=10.0, help="lambda; for the adaptive target the first beta")
    add("--gradient-scaling", action="store_true", help="divide by lambda; the adaptive target always does")
    add("--ste-noise", choices=noises, default="sog", help="noise of method ste")
    add("--ste-temperature", type=non_negative_float, default=0.0, help="noise of method ste")
    add("--init-temperature", type=non_negative_float, default=1.0, help="of gumbel-softmax, in the first 1000 steps")
    add("--min-temperature", type=positive_float, default=0.5, help="of gumbel-softmax, at the end")
    add("--anneal-rate", type=non_negative_float, default=3e-5, help="how fast the temperature falls with each step")
    add("--hard", action="store_true", help="gumbel-softmax passes one-hot rows on, not relaxed ones")


def check(args: Namespace) -> None:
    """Refuse settings that cannot work together.

    Raises:
        UsageError: says which, and what to do.
    """
    if args.method == "gumbel-softmax" and args.init_temperature == 0:
        raise UsageError("--init-temperature must be above 0 with --method gumbel-softmax, such as 1.0")
    if args.method != "gumbel-softmax" and args.select_k > args.code_n:
        raise UsageError(f"--select-k {args.select_k} of a row's --code-n {args.code_n} entries: select fewer")


def check_data(args: Namespace, data: MNIST) -> None:
    """Refuse images of another size than the command line says.

    Raises:
        UsageError: names the right flag.
    """
    height, width = data.image_size
    if height * width != args.input_dim:
        raise UsageError(f"{args.data_dir} has images of {height} x {width} pixels: give --input-dim {height * width}")


def warn(args: Namespace, log: logging.Logger) -> None:
    """Say what is allowed but will disappoint."""
    if args.method in ("aimle", "imle") and args.aimle_target == "standard" and args.imle_lambda == 0:
        log.warning("--imle-lambda 0 with the standard target gives the encoder no gradient of the reconstruction")


def data_files(args: Namespace) -> list[Path]:
    """Return the files that a command line reads.

    Raises:
        UsageError: one is missing.
    """
    return settings.data_files(args.data_dir)


def record_of(args: Namespace) -> Path:
    """Return the path of a run's record."""
    return record_path(args.results_dir, "vae", args.name, args.seed)


def finished(args: Namespace) -> dict[str, Any] | None:
    """Return the record of this run if it is finished and had all the epochs that are asked for now, else None.

    Args:
        args: the parsed command line, with a name, and with the fingerprint of its data.

    Raises:
        UsageError: the finished run had other settings or other data.
    """
    record = finished_record(record_of(args), config_of(args), NOT_COMPARED)
    return record if record is not None and record["config"]["epochs"] >= args.epochs else None


def main(argv: list[str] | None = None) -> int:
    """Train and measure."""
    args = parser().parse_args(argv)
    check(args)
    label = f"{args.method}_M{args.code_m}_N{args.code_n}_K{args.select_k}"
    paths = data_files(args)
    args.data = fingerprint(paths)
    args.name = args.name or default_name(vars(args), label, NOT_IN_NAME)
    log = configure_logging(SCRIPT)
    warn(args, log)
    if is_sample(paths[0].parent):
        log.info(f"{args.data_dir} holds sample data, a stand-in for MNIST: no figure below is a published one")
    record = None if args.again else finished(args)
    if record is not None:
        log.info(finished_line(record_of(args), record))
        log.info(f"Average Test Loss: {record['final']['test_loss']:.5f}")
        log.info("Experiment completed.")
    else:
        train(args, log)
    return 0


def train(args: Namespace, log: logging.Logger) -> None:
    """Train and measure a run that is not finished."""
    from aaai23.dvae.data import load  # torch and its friends load only when there is work to do
    from aaai23.dvae.train import run_seed
    from aaai23.run import select_device

    device = select_device(args.device)
    data = load(args.data_dir, device)
    check_data(args, data)
    run_seed(args, data, record_of(args).with_suffix(".pt"), device, log)


def entry() -> None:
    """Run from the shell, with its exit codes."""
    run_cli(main, SCRIPT)

"""Flags that the tasks share, and types of arguments that say what they expect.

Nothing here imports torch, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from aaai23.record import NOT_SETTINGS, config_digest, plain

_N = TypeVar("_N", int, float)


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit code 2, and whose help names the defaults.

    Flags cannot be abbreviated: a command line kept in a paper must not change its meaning when a flag is added.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print the error and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines; shows defaults, except where the default is to do nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def add_run_arguments(
    parser: argparse.ArgumentParser,
    *,
    data_dir: str = "data",
    seed: int = 0,
    device: str = "auto",
    results_dir: str = "results",
) -> None:
    """Add the flags of a run to `parser`: data, seed, name, resuming or starting again, device, precision, results.

    Args:
        parser: the task's parser.
        data_dir: default of --data-dir.
        seed: default of --seed.
        device: default of --device.
        results_dir: default of --results-dir.
    """
    add = parser.add_argument_group("run").add_argument
    add("--data-dir", type=Path, default=Path(data_dir), help="folder of the data")
    add("--seed", type=seed_number, default=seed, help="seed; with several runs the first one's")
    add("--name", help="folder of the records; made from the settings if not given")
    start = parser.add_mutually_exclusive_group().add_argument
    start("--resume", action="store_true", help="continue from the checkpoint")
    start("--again", action="store_true", help="start anew; replaces this run's record and checkpoint")
    add("--device", choices=("auto", "cpu", "cuda"), default=device, help="where to compute")
    add("--precision", choices=("float32", "bf16", "tf32"), default="float32", help="of the networks; tf32: GPUs alone")
    add("--results-dir", type=Path, default=Path(results_dir), help="folder of all records")


def default_name(config: Mapping[str, Any], label: str, ignore: Iterable[str] = NOT_SETTINGS) -> str:
    """Return `label-xxxxxx`, six hex digits of a hash of the settings: other settings, another name.

    Args:
        config: the settings, as JSON can hold them; their order does not matter.
        label: what a reader should see first, such as the method.
        ignore: keys that do not count, such as the seed.
    """
    return f"{label}-{config_digest(config, ignore)[:6]}"


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the parsed flags as a record and a checkpoint hold them."""
    return plain(vars(args), words=True)


def true_or_false(text: str) -> bool:
    """Return the truth value that `text` spells: true, yes, 1 or false, no, 0, in any case.

    Raises:
        argparse.ArgumentTypeError: it spells neither.
    """
    word = text.strip().lower()
    if word in ("true", "yes", "1"):
        return True
    if word in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")


def _number(kind: Callable[[str], _N], low: float, high: float, expected: str) -> Callable[[str], _N]:
    """Return an argument type: a number in [low, high], which the message calls `expected`."""

    def parse(text: str) -> _N:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:  # NaN fails the comparison too
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


_LARGEST = sys.float_info.max
positive_int = _number(int, 1, _LARGEST, "a whole number of at least 1")
non_negative_int = _number(int, 0, _LARGEST, "a whole number of at least 0")
seed_number = _number(int, 0, 2**32 - 1, "a whole number from 0 to 4294967295")
finite_float = _number(float, -_LARGEST, _LARGEST, "a number")
positive_float = _number(float, 5e-324, _LARGEST, "a number above 0")
non_negative_float = _number(float, 0.0, _LARGEST, "a number of at least 0")
probability = _number(float, 0.0, 1.0, "a number from 0 to 1")

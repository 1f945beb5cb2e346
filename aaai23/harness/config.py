"""Settings, each declared once: its type, default, flags and help, which methods read it, and what it is for.

A task's configuration is a dataclass whose fields are made by `setting`. The command line is built from it, and only
a task's cli.py sees more than the dataclass. Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from aaai23.errors import UsageError

Role = Literal["setting", "length", "launch"]
_N = TypeVar("_N", int, float)


@dataclass(frozen=True)
class Setting:
    """What is known of one field.

    Args:
        flags: as on the command line, the long one first.
        help: one line.
        group: title of the flag's group in `--help`.
        methods: which methods read it; None: all.
        role: a setting says what is computed; a length how long, and may grow on resuming; launch is where and how.
        argparse: further options of `add_argument`.
    """

    flags: tuple[str, ...]
    help: str
    group: str
    methods: tuple[str, ...] | None
    role: Role
    argparse: Mapping[str, Any]


def setting(
    default: Any,
    *flags: str,
    help: str,
    group: str = "task",
    methods: tuple[str, ...] | None = None,
    role: Role = "setting",
    **options: Any,
) -> Any:
    """Return a dataclass field that is a flag too; arguments as those of `Setting` and of `add_argument`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(flags, help, group, methods, role, options)})


length = functools.partial(setting, role="length")
launch = functools.partial(setting, role="launch")

SWITCH: dict[str, Any] = {"action": "store_true"}
"""Options of a flag that takes no value."""


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit code 2.

    Flags cannot be abbreviated: a command line kept in a paper must not change its meaning when a flag is added.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print the error and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if arg_strings == ["--"] and action.option_strings:  # `--flag=--`, for which argparse has no value at all
            self.error(f"argument {'/'.join(action.option_strings)}: expected a value, got '--'")
        return super()._get_values(action, arg_strings)


# ---- types of arguments, which say what they expect


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


def number(kind: type[_N], low: _N, high: _N, *others: _N) -> Callable[[str], _N]:
    """Return an argument type: a number from `low` to `high`, or one of `others`, in digits that all programs read."""
    names = {int: "a whole number", float: "a number"}
    expected = "".join(f"{other:g} or " for other in others) + f"{names[kind]} from {low} to {high}"

    def parse(text: str) -> _N:
        try:
            value = kind(text) if text.isascii() and "_" not in text else None
        except ValueError:
            value = None
        if value is None or not (low <= value <= high or value in others):  # NaN fails the comparison too
            raise argparse.ArgumentTypeError(f"expected {expected}, got {_shown(text)}")
        return value

    return parse


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


# What is beyond these has no square, or no inverse of it, in single precision; and no machine has room or time for it.
_SMALL, _LARGE, _MANY = 1e-30, 1e30, 10**9
positive_int = number(int, 1, _MANY)
whole_number = number(int, -_MANY, _MANY)  # what it may be is checked by whoever reads it
seed_number = number(int, 0, 2**32 - 1)
positive_float = number(float, _SMALL, _LARGE)
positive_or_infinite = number(float, _SMALL, _LARGE, math.inf)
non_negative_float = number(float, _SMALL, _LARGE, 0.0)
probability = number(float, 0.0, 1.0)


def path_text(text: str) -> str:
    """Return `text` if a path can be spelled so.

    Raises:
        argparse.ArgumentTypeError: it is empty, or a name in it is too long for any file system.
    """
    if not text or "\0" in text or any(len(os.fsencode(name)) > 255 for name in text.split("/")):
        raise argparse.ArgumentTypeError(f"expected a path of names of at most 255 bytes, got {_shown(text)}")
    return text


def path(text: str) -> Path:
    """Return the path that `text` spells; raises as `path_text` does."""
    return Path(path_text(text))


def folder_name(text: str) -> str:
    """Return `text` if it is the name of a folder, and of no other place.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if text in ("", ".", "..") or not text.isprintable() or set(text) & set("/\\") or len(text.encode()) > 255:
        remedy = "use a few letters, digits and .-_="
        raise argparse.ArgumentTypeError(f"{_shown(text)} is not a plain folder name; {remedy}")
    return text


# ---- configurations


_run = functools.partial(launch, group="run")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The flags of every run; a task adds its own, `method` among them."""

    data_dir: Path = _run(Path("data"), "--data-dir", type=path, help="folder of the data")
    seed: int = _run(0, "--seed", type=seed_number, help="seed; with several runs the first one's")
    name: str | None = _run(
        None, "--name", type=folder_name, help="folder of the records; made from the settings if not given"
    )
    resume: bool = _run(False, "--resume", **SWITCH, help="continue from the checkpoint")
    again: bool = _run(False, "--again", **SWITCH, help="start anew; replaces this run's record and checkpoint")
    device: Any = _run("auto", "--device", choices=("auto", "cpu", "cuda"), help="where to compute")
    precision: str = setting(
        "float32", "--precision", choices=("float32", "bf16", "tf32"), help="tf32: GPUs alone", group="run"
    )
    results_dir: Path = _run(Path("results"), "--results-dir", type=path, help="folder of all records")

    @property
    def chosen_method(self) -> str:
        """The method that the flags choose, as tables call it; every task has a field `method`."""
        return str(getattr(self, "method"))  # noqa: B009

    @property
    def label(self) -> str:
        """What a reader of a folder's name should see first."""
        return self.chosen_method

    def reads(self, name: str) -> bool:
        """Whether the chosen method reads a setting."""
        methods = declared(type(self))[name].methods
        return methods is None or self.chosen_method in methods

    def settings(self) -> dict[str, Any]:
        """Return what decides the metrics: the settings and lengths that the chosen method reads."""
        known = declared(type(self))
        return {name: getattr(self, name) for name, it in known.items() if it.role != "launch" and self.reads(name)}

    def launch(self) -> dict[str, Any]:
        """Return where and how the run was started."""
        return {name: getattr(self, name) for name, it in declared(type(self)).items() if it.role == "launch"}

    def refusals(self) -> Iterable[str]:
        """Yield what is wrong with these settings, alone or together, and what to do."""
        return ()


C = TypeVar("C", bound=Config)


def refuse(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises:
        UsageError: says which, and what to do.
    """
    for reason in config.refusals():
        raise UsageError(reason)


def declared(kind: type[Config]) -> dict[str, Setting]:
    """Return the settings of a configuration by the names of their fields."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(kind) if "setting" in field.metadata}


def defaults(kind: type[Config]) -> dict[str, Any]:
    """Return the defaults of a configuration."""
    return {field.name: field.default for field in dataclasses.fields(kind) if "setting" in field.metadata}


def parser(kind: type[Config], prog: str, description: str) -> ArgumentParser:
    """Return a parser of a configuration's flags, whose namespace holds those that were given and no other."""
    result = ArgumentParser(prog=prog, description=description, argument_default=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    known, default = declared(kind), defaults(kind)
    last = {"method": 1, "run": 2}  # Python puts a base's fields first
    for name, it in sorted(known.items(), key=lambda item: last.get(item[1].group, 0)):
        group = groups.setdefault(it.group, None) or result.add_argument_group(it.group)
        groups[it.group] = group
        shown = "" if default[name] is None or default[name] is False else f" (default: {default[name]})"
        group.add_argument(*it.flags, dest=name, help=(it.help + shown).replace("%", "%%"), **it.argparse)
    return result


def parse(
    kind: type[C],
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    presets: Mapping[str, Mapping[str, Any]] = {},
) -> tuple[C, list[str]]:
    """Return the configuration that a command line asks for, and the flags in it that the chosen method does not read.

    Args:
        kind: the task's configuration.
        prog: the script's file name.
        description: what the script does.
        argv: the words of the command line; None for the process's own.
        presets: method -> defaults of its own.
    """
    flags = parser(kind, prog, description)
    given = vars(flags.parse_args(argv))
    if given.get("resume") and given.get("again"):
        flags.error("--resume goes on from an earlier start and --again starts anew: give one of them")
    values = {**defaults(kind), **presets.get(given.get("method", ""), {}), **given}
    config = kind(**values)
    known = declared(kind)
    return config, [known[name].flags[0] for name in given if not config.reads(name)]

"""From settings to command lines: one line per run, with its record and its log known before it starts.

The generators beside this file are pages of data; this one knows shells and clusters. It speaks to the scripts in
`cli/` as command lines, and asks their own modules whether a run is finished. Standard library only, as far as these
load without torch.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package beside this folder, wherever else it may be installed
from aaai23.harness.config import ArgumentParser, number, path_text, positive_int  # noqa: E402

ARRAY_LIMIT = 1000  # tasks of an array that Slurm accepts unless its administrator says otherwise
CLIS = {"l2x": "aaai23.l2x.cli", "vae": "aaai23.dvae.cli", "nri": "aaai23.nri.cli"}
SWITCH = None
"""The value of a flag that takes none."""


@dataclass(frozen=True)
class Job:
    """One run of one seed.

    Args:
        task: folder of the records: l2x, vae or nri.
        script: file name in `cli/`.
        name: folder of the runs that differ in their seed only.
        seed: of the run.
        flags: flag -> value; SWITCH for a flag without one. Name, seed, resuming and folders are added to them.
        results_dir: folder of all records, as seen from the repository's root.
        logs: folder of all logs; beside the records if None.
        extra: further words of the command line; a flag that is given twice counts as given last.
    """

    task: str
    script: str
    name: str
    seed: int
    flags: Mapping[str, Any] = field(default_factory=dict)
    results_dir: str = "results"
    logs: str | None = None
    extra: tuple[str, ...] = ()

    @property
    def record(self) -> PurePosixPath:
        """Where the run's record lies, seen from the root."""
        return PurePosixPath(self.results_dir, self.task, self.name, f"seed{self.seed}.json")

    @property
    def log(self) -> PurePosixPath:
        """Where the run's output goes, seen from the root."""
        return PurePosixPath(self.logs or self.results_dir, self.task, self.name, f"seed{self.seed}.log")

    def arguments(self) -> list[str]:
        """Return the words after the script."""
        run = {"--name": self.name, "--seed": self.seed, "--resume": SWITCH, "--results-dir": self.results_dir}
        return [*words({**self.flags, **run}), *self.extra]


def words(flags: Mapping[str, Any]) -> list[str]:
    """Return flags as words of a command line."""
    return [str(word) for pair in flags.items() for word in pair if word is not SWITCH]


def config_of(task: str, arguments: Sequence[str]) -> Any:
    """Return the configuration that a task's script makes of its arguments."""
    return importlib.import_module(CLIS[task]).parse_arguments(arguments)[0]


def grid(**axes: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the axes' values as a dict; the last axis moves fastest.

    Example:
        >>> list(grid(aspect=(0, 1), seed=range(2)))[1]
        {'aspect': 0, 'seed': 1}
    """
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values))


def command(job: Job, python: str = "python3", group: str | None = None) -> str:
    """Return the run as one line for any POSIX shell, to be run from the repository's root.

    It makes the log's folder, resumes or skips what is done, appends to the log, and has the run's exit code.

    Args:
        job: the run.
        python: the interpreter.
        group: W&B's group; the scripts choose the job's name if None.

    Raises:
        ValueError: an argument holds a line break, or the name of a folder is too long.
    """
    for name in {*job.record.parts, *job.log.parts}:
        length = len(os.fsencode(name))
        if length > 255:
            told = f"a folder {name[:20]}... would have a name of {length} bytes, more than the 255 that can be"
            raise ValueError(f"{told}: it is made of the setting and the last folder of --data-dir; shorten that")
    grouping = "" if group is None else f"WANDB_RUN_GROUP={shlex.quote(group)} "
    run = shlex.join([python, f"./cli/{job.script}", *job.arguments()])
    log, folder = shlex.quote(str(job.log)), shlex.quote(str(job.log.parent))
    line = f"mkdir -p {folder} && {grouping}PYTHONPATH=. {run} >> {log} 2>&1"
    if len(line.splitlines()) != 1:
        raise ValueError(f"an argument of {job.name} holds a line break; a run must fit on one line")
    return line


def pending(jobs: Iterable[Job], root: Path = ROOT) -> list[Job]:
    """Return the runs that are not finished: failed, killed, still running, never started.

    So is a run whose record is finished, but of other settings or other data, or whose data are not here to compare:
    its script decides. A line on stderr says so.
    """
    from aaai23.errors import UsageError
    from aaai23.harness.files import digest_of
    from aaai23.harness.identity import finished, identify

    digest = functools.cache(digest_of)  # the runs of a sweep share their files
    waiting, told = [], set()
    for job in jobs:
        record = None
        try:
            if (root / job.record).exists():
                config = config_of(job.task, job.arguments())
                places = {"results_dir": root / config.results_dir, "data_dir": root / config.data_dir}
                config = dataclasses.replace(config, **places)
                record = finished(identify(job.task, config, config.files(), digest))
        except UsageError as error:
            told.add(str(error))
        if record is None:
            waiting.append(job)
    for line in sorted(told):
        print(line, file=sys.stderr)
    return waiting


def slurm_script(lines: Sequence[str], name: str, logs: Path | str, options: Mapping[str, Any], root: Path) -> str:
    """Return a script for `sbatch`: an array, one task a line.

    A task that is killed or requeued resumes when it starts again, because its line does. A task has its line's
    exit code. Slurm's own messages, such as that of a time limit, go to `logs/<name>-<job>_<task>.out`.

    Args:
        lines: what `command` returns.
        name: of the job.
        logs: an existing folder: Slurm writes no message into a missing one.
        options: further options of sbatch; those that are None are left out. `max_parallel` limits the tasks that
            run at once.
        root: the repository's root, on the cluster.
    """
    most = options.get("max_parallel")
    given = {key: value for key, value in options.items() if key != "max_parallel" and value is not None}
    header = {
        "job-name": name,
        "array": f"0-{len(lines) - 1}" + (f"%{most}" if most else ""),
        "requeue": SWITCH,
        "open-mode": "append",
        "output": f'"{str(logs).replace("%", "%%")}/%x-%A_%a.out"',
        **given,
    }
    directives = [f"#SBATCH --{key}" + ("" if value is SWITCH else f"={value}") for key, value in header.items()]
    body = [
        f"cd {shlex.quote(str(root))} || exit 1",
        "mapfile -t lines <<'END_OF_LINES'",
        *lines,
        "END_OF_LINES",
        "line=${lines[$SLURM_ARRAY_TASK_ID]}",
        'echo "$(date) $(hostname) start ${SLURM_RESTART_COUNT:-0}: $line"',
        'exec bash -c "$line"',
    ]
    return "\n".join(["#!/bin/bash", *directives, *body])


def parser(description: str, task: str) -> ArgumentParser:
    """Return a parser with the flags that all generators share.

    Args:
        description: what the lines reproduce.
        task: name of the task, W&B's group and Slurm's job.
    """
    result = ArgumentParser(
        description=description,
        epilog="Lines run from the repository's root, and folders are seen from there. What follows -- is added to "
        "each line: further flags of the script.",
        allow_abbrev=False,
    )
    add = result.add_argument_group("runs").add_argument
    add("--seeds", type=number(int, 1, 10_000), default=10, help="number of seeds, from 0 up (default 10)")
    add("--pending", action="store_true", help="leave out runs whose record says finished")
    add("--data-dir", type=_word, default="data", help="folder of the data (default data)")
    add("--results-dir", type=_word, default="results", help="folder of all records (default results)")
    add("--logs", type=_word, help="folder of all logs; beside the records if not given")
    add("--python", type=_word, default="python3", help="interpreter of the runs (default python3)")
    add("--group", type=_word, default=f"{task}-sweep", help=f"group of the runs in W&B (default {task}-sweep)")
    add = result.add_argument_group("format").add_argument
    add("--format", choices=("lines", "slurm"), default="lines", help="lines for a shell, or a script for sbatch")
    add("--time", type=_slurm_word, help="slurm: time limit of a run, such as 04:00:00")
    add("--mem", type=_slurm_word, help="slurm: memory of a run, such as 8G")
    add("--cpus", type=positive_int, help="slurm: CPU cores of a run")
    add("--gpus", type=positive_int, help="slurm: GPUs of a run")
    add("--partition", type=_slurm_word, help="slurm: where to run")
    add("--max-parallel", type=positive_int, help="slurm: runs at the same time")
    return result


def _word(text: str) -> str:
    if not path_text(text).isprintable():
        raise argparse.ArgumentTypeError(f"expected text on one line, got {text!r}")
    return text


def _slurm_word(text: str) -> str:
    if not re.fullmatch(r"[\w.,:+-]+", text):
        raise argparse.ArgumentTypeError(f"expected one word as sbatch takes it, got {text!r}")
    return text


def job_name(label: str, args: argparse.Namespace, length: str = "") -> str:
    """Return a name that differs wherever the runs do: other data, length or added flags have another folder.

    Args:
        label: the setting.
        args: the parsed flags.
        length: says how long the runs are, where that is not as published.
    """
    folder = re.sub(r"[^\w.-]", "-", Path(args.data_dir).name)
    parts = [label, length, "" if folder == "data" else folder]
    name = "_".join(part for part in parts if part)
    return f"{name}-{hashlib.sha256(shlex.join(args.extra).encode()).hexdigest()[:6]}" if args.extra else name


def jobs_of(settings: Iterable[tuple[str, Mapping[str, Any]]], task: str, script: str, args: Any) -> Iterator[Job]:
    """Yield the runs of all seeds of (name, flags) pairs."""
    for name, flags in settings:
        for seed in range(args.seeds):
            given = {**flags, "--data-dir": args.data_dir}
            yield Job(task, script, name, seed, given, args.results_dir, args.logs, tuple(args.extra))


def write(jobs: Iterable[Job], task: str, args: argparse.Namespace) -> str:
    """Return the runs in the wanted format, "" if there are none; makes the folder of Slurm's messages."""
    chosen = pending(jobs) if args.pending else list(jobs)
    lines = [command(job, args.python, args.group) for job in chosen]
    if args.format == "lines" or not lines:
        return "\n".join(lines)
    if len(lines) > ARRAY_LIMIT:
        print(f"{len(lines)} runs: many clusters allow {ARRAY_LIMIT} in an array; choose fewer", file=sys.stderr)
    logs = ROOT / (args.logs or args.results_dir) / "slurm"
    if {'"', "\\"} & set(str(logs)):
        raise ValueError(f"Slurm has no spelling for {logs}, with a quote or a backslash in it; choose other --logs")
    logs.mkdir(parents=True, exist_ok=True)
    options = {
        "time": args.time,
        "mem": args.mem,
        "cpus-per-task": args.cpus,
        "gres": args.gpus and f"gpu:{args.gpus}",
        "partition": args.partition,
        "max_parallel": args.max_parallel,
    }
    return slurm_script(lines, f"{task}-sweep", logs, options, ROOT)


def main(
    flags: ArgumentParser, task: str, build: Callable[[argparse.Namespace], Iterable[Job]], argv: list[str] | None
) -> int:
    """Print what `build` makes of the command line; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    cut = given.index("--") if "--" in given else len(given)
    args = flags.parse_args(given[:cut], argparse.Namespace(extra=given[cut + 1 :]))
    for name in ("time", "mem", "cpus", "gpus", "partition", "max_parallel"):
        if args.format == "lines" and getattr(args, name) is not None:
            flags.error(f"--{name.replace('_', '-')} needs --format slurm")
    try:
        text = write(build(args), task, args)
    except ValueError as error:
        flags.error(str(error))
    except OSError as error:
        flags.error(f"cannot make the folder {error.filename}: {error.strerror}; choose other --logs")
    if not text:
        print("nothing to run", file=sys.stderr)
        return 0
    say(text)
    return 0


def say(text: str) -> None:
    """Print to stdout; a reader that has gone, as `| head` does, has seen what it wanted.

    Letters that stdout has no code for are escaped.

    Raises:
        SystemExit: there is no room for it.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        print(text, flush=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise SystemExit(f"cannot print: {error.strerror}") from None

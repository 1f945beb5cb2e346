"""Hostile input by generation, and the one property that every start of a script has.

A start is right, or refused: exit code 2, one line that names the flag or the file, nothing half-written. A run that
fails by its numbers ends with exit code 1 and one line; its record says so.
"""

import gzip
import json
import os
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aaai23.dvae import cli as vae
from aaai23.dvae.config import VAEConfig
from aaai23.harness.config import declared
from aaai23.harness.record import read_record
from aaai23.l2x import cli as l2x
from aaai23.l2x.config import L2XConfig
from aaai23.l2x.sample import write_sample
from aaai23.nri import cli as nri
from aaai23.nri.config import NRIConfig
from aaai23.nri.simulate import write
from tests.reference.data import write_digits

SEED = 14
CLIS = {"l2x": l2x, "vae": vae, "nri": nri}
CONFIGS = {"l2x": L2XConfig, "vae": VAEConfig, "nri": NRIConfig}
LINES = {
    "l2x": "-a 3 -r 1 -e 1 --max-iterations 1 -b 4 -m 10 -K 2 -H 3 -M aimle --imle-noise gumbel",
    "vae": "-e 1 --max-iterations 1 -b 4 --input-dim 196 --code-m 2 --code-n 3 -K 1 -M aimle",
    "nri": "--seed 0 --suffix _s --num_vertices 3 --timesteps 4 --prediction_steps 3 --num_iterations 1 --max-steps 1 "
    "--batch_size 4 --encoder_hidden 3 --decoder_hidden 3 --eval_batch_size 4 --method aimle --imle-lambda 1 "
    "--experiments_folder ../trials",
}

NUMBERS = (
    *("", " ", "0", "-0", "-1", "+1", "2", "0.5", "1e308", "-1e308", "1e309", "1e-308", "5e-324", "1e30", "1e38"),
    *("nan", "inf", "-inf", "Infinity", "NaN", "9" * 20, "-" + "9" * 20, "9" * 5000, "0." + "9" * 5000, "4294967295"),
    *("4294967296", "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "1000000000", "1e9"),
    *(
        "\uff11\uff10",
        "1_0",
        "\u0661",
        "\u00bd",
        "0x10",
        "0b1",
        "1j",
        "1,5",
        " 1",
        "1 ",
        "1\n",
        "\t1",
        "1e",
        "e1",
        "--1",
    ),
    *("true", "False", "None", "[1]", "1.", ".5", "1.0", "\x00", "\udcff", "a" * 300),
)
TEXTS = (
    *("", " ", ".", "..", "../../..", "/", "//", "a/..", "a/b", "./a", "a/", "~", "-", "--", "-x", "*", "?", "[", "\\"),
    *("a" * 255, "a" * 256, "a" * 300, "\u00e9" * 200, "a/" * 3000, "b/" + "a" * 256, "\udcff", "a\nb", "a\tb", "\x7f"),
    *("\u202e", "\u2028", "%s%n%d", "$(touch x)", "`x`", "'", '"', "; rm x", "/dev/null", "/dev/full", "/dev/zero"),
    *("/proc/self/mem", "/nonexistent/x", "pipe", "a.pt", "nul.json", "seed0.json", "True", "cpu:0", "cuda:99"),
)


def write_data(folder):
    """Write small data of all tasks below a folder."""
    write_sample(folder / "l2x", 0, 20, 6, 3)
    write_digits(folder / "vae", 12, 6)
    (folder / "nri").mkdir()
    write(folder / "nri", 4, nb_vertices=3, sizes=(8, 4, 4))
    for path in (folder / "nri").glob("*.npy"):
        path.rename(path.with_name(re.sub("_novar_.*", "_s.npy", path.name)))
    return folder


@dataclass(frozen=True)
class Ended:
    """How a start ended."""

    task: str
    words: tuple[str, ...]
    code: int
    err: str
    fault: str | None


def start(task, words, run, names=()):
    """Start a script in the working folder, whose data lie in `data`, and judge the end.

    Args:
        task: the script's.
        words: after those of LINES.
        run: of the module `cli` and all words: exit code, output, errors.
        names: what an error line may name: one of these.
    """
    before = snapshot()
    line = [*LINES[task].split(), "--data-dir", f"data/{task}", "--device", "cpu", *words]
    try:
        code, _, err = run(CLIS[task], line)
    except BaseException as error:  # in a process this would be a traceback too
        code, err = -1, f"Traceback: {type(error).__name__}: {error}"
    return Ended(task, tuple(words), code, err, fault(code, err, before, names))


def snapshot():
    """Return every file below the working folder, with its time; data and caches apart."""
    return {
        path: path.stat().st_mtime_ns
        for path in Path().rglob("*")
        if path.is_file() and path.parts[0] != "data" and path.suffix != ".lock"
    }


def fault(code, err, before, names):
    """Return what an end breaks of the property, None if nothing."""
    remains = [str(path) for path in Path().rglob(".*.tmp")]
    if remains:
        return f"half-written: {remains}"
    if "Traceback" in err or code not in (0, 1, 2):
        return "traceback"
    written = [
        path
        for path in Path("results").rglob("seed*.json")
        if path.is_file() and before.get(path) != path.stat().st_mtime_ns
    ]
    statuses = {read_record(path).status for path in written}
    if code == 0:
        return None if statuses <= {"finished"} else f"exit 0, records {statuses}"
    if err.count("\n") != 1:
        return f"{err.count(chr(10))} lines"
    if not statuses <= {"failed"}:
        return f"exit {code}, records {statuses}"
    if code == 1:
        return None if statuses == {"failed"} else "exit 1 without a run"
    if names and not any(name in err for name in names):
        return "names neither flag nor file"
    return None


def values_of(it):
    """Return hostile values for a flag."""
    kind = it.argparse.get("type")
    if it.argparse.get("action") == "store_true":
        return ()
    if "choices" in it.argparse or kind is None or kind is Path or kind.__name__ != "parse":
        return TEXTS + NUMBERS[::4]
    return NUMBERS + TEXTS[::6]


def flag_cases(count):
    """Return `count` pairs (task, words): each flag with hostile values, in an order of chance."""
    cases = [
        (task, (f"{flag}={value}" if flag.startswith("--") else f"{flag}{value}",))
        for task, config in CONFIGS.items()
        for it in declared(config).values()
        for flag in it.flags[:1]
        for value in values_of(it)
    ]
    random.Random(SEED).shuffle(cases)
    return cases[:count]


# ---- damage to data


def damages(path):
    """Yield (name, deed) of each kind of damage to a file; a deed takes the path and a source of chance."""
    yield from BYTES.items()
    if path.suffix == ".npy":
        yield from ARRAYS.items()
    elif "ubyte" in path.name:
        yield from IDX.items()
    else:
        yield from TEXT.items()


def _cut(path, chance):
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def _flip(path, chance):
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 8, 64))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _flip_head(path, chance):
    content = bytearray(path.read_bytes())
    content[chance.randrange(min(128, len(content)))] = chance.randrange(256)
    path.write_bytes(content)


def _append(path, chance):
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.choice((1, 7, 1000))))


def _noise(path, chance):
    path.write_bytes(chance.randbytes(chance.choice((1, 100, 10_000))))


def _pipe(path, chance):
    path.unlink()
    os.mkfifo(path)


def _folder(path, chance):
    path.unlink()
    path.mkdir()


def _device(path, chance):
    path.unlink()
    path.symlink_to(chance.choice(("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom")))


def _loop(path, chance):
    path.unlink()
    path.symlink_to(path.name)


def _sparse(path, chance):
    with open(path, "r+b") as file:
        file.truncate(8 * 2**30)


def _zeros(path, chance):
    path.write_bytes(b"")
    with open(path, "r+b") as file:
        file.truncate(chance.choice((1, 2**20, 8 * 2**30)))


def _gone(path, chance):
    path.unlink()


BYTES = {
    "cut": _cut,
    "flip": _flip,
    "flip head": _flip_head,
    "append": _append,
    "noise": _noise,
    "pipe": _pipe,
    "folder": _folder,
    "device": _device,
    "loop": _loop,
    "sparse": _sparse,
    "zeros": _zeros,
    "gone": _gone,
    "empty": lambda path, chance: path.write_bytes(b""),
    "doubled": lambda path, chance: path.write_bytes(path.read_bytes() * 2),
}


def _line(change):
    def deed(path, chance):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        place = chance.randrange(len(lines))
        lines[place] = change(lines[place], chance)
        path.write_text("".join(lines), encoding="utf-8", errors="surrogatepass")

    return deed


def _word(word):
    def change(line, chance):
        words = line.split(" ")
        words[chance.randrange(len(words))] = word
        return " ".join(words)

    return _line(change)


def _reorder(path, chance):
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    chance.shuffle(lines)
    path.write_text("".join(lines), encoding="utf-8")


TEXT = {
    **{f"word {word!r}": _word(word) for word in ("", "nan", "1e308", "9" * 20, "x\ty", "\ud800", "\x00", "-1", "\n")},
    "line twice": _line(lambda line, chance: line * 2),
    "line gone": _line(lambda line, chance: ""),
    "line empty": _line(lambda line, chance: "\n"),
    "line long": _line(lambda line, chance: line.strip() * 100_000),
    "line deep": _line(lambda line, chance: "[" * 100_000 + "\n"),
    "line deep object": _line(lambda line, chance: '{"x": ' + "[" * 100_000 + "\n"),
    "line number": _line(lambda line, chance: "9" * 5000 + "\n"),
    "ranges": _line(lambda line, chance: json.dumps({"x": ["a"], "3": chance.choice(RANGES)}) + "\n"),
    "tokens": _line(lambda line, chance: json.dumps({"x": chance.choice(RANGES), "3": []}) + "\n"),
    "cr": lambda path, chance: path.write_bytes(path.read_bytes().replace(b"\n", b"\r")),
    "crlf": lambda path, chance: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")),
    "utf-16": lambda path, chance: path.write_text(path.read_text(), encoding="utf-16"),
    "reordered": _reorder,
}
RANGES = (
    None,
    1,
    "a",
    [1],
    [[0]],
    [[0, 1e308]],
    [[0, 10**30]],
    [[2, 1]],
    [[-1, 1]],
    [["0", "1"]],
    {},
    [[True, 1]],
    [[]],
)


def _idx(*head):
    def deed(path, chance):
        content = path.read_bytes()
        path.write_bytes(b"".join(number.to_bytes(4, "big") for number in head) + content[4 * len(head) :])

    return deed


def _gzip(change):
    def deed(path, chance):
        content = path.read_bytes()
        path.unlink()
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(content))
        change(packed, chance)

    return deed


IDX = {
    **{f"idx {head}": _idx(*head) for head in ((0,), (0x801,), (0x803,), (0xD03,), (0x803, 0), (0x803, 2**32 - 1))},
    "idx sizes": _idx(0x803, 2**31, 2**31, 2**31),
    "gzip": _gzip(lambda path, chance: None),
    "gzip cut": _gzip(_cut),
    "gzip flip": _gzip(_flip),
    "gzip append": _gzip(_append),
    "gzip pipe": _gzip(_pipe),
}


def _array(change):
    def deed(path, chance):
        array = np.load(path)
        path.unlink()
        with open(path, "wb") as file:
            np.save(file, change(array, chance))

    return deed


def _poke(value):
    def change(array, chance):
        array.reshape(-1)[chance.randrange(array.size)] = value
        return array

    return _array(change)


def _head(text):
    def deed(path, chance):
        head = text.encode().ljust(118) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(8 * 3 * 2 * 4 * 8))

    return deed


ARRAYS = {
    **{f"value {value}": _poke(value) for value in (np.nan, np.inf, 1e308, -1e308, 1e-308, 2, -3)},
    **{
        f"type {kind}": _array(lambda array, chance, kind=kind: array.astype(kind))
        for kind in ("i8", "i1", "u1", "?", "f2", "f4", ">f8", "c16", "U", "S3", "O")
    },
    "transposed": _array(lambda array, chance: array.T),
    "fortran": _array(lambda array, chance: np.asfortranarray(array)),
    "flat": _array(lambda array, chance: array.reshape(-1)),
    "none": _array(lambda array, chance: array[:0]),
    "one": _array(lambda array, chance: array[:1]),
    "constant": _array(lambda array, chance: np.zeros_like(array)),
    "scalar": _array(lambda array, chance: np.float64(1)),
    "negative shape": _head("{'descr': '<f8', 'fortran_order': False, 'shape': (-8, 4, 2, 3), }"),
    "huge shape": _head("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 20 + ", 4, 2, 3), }"),
    "large shape": _head("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 4, 2, 3), }"),
    "true shape": _head("{'descr': '<f8', 'fortran_order': False, 'shape': (True, 4, 2, 3), }"),
    "float shape": _head("{'descr': '<f8', 'fortran_order': False, 'shape': (8.0, 4, 2, 3), }"),
    "text shape": _head("{'descr': '<f8', 'fortran_order': False, 'shape': 'x', }"),
    "no shape": _head("{'descr': '<f8', 'fortran_order': False, }"),
    "fields": _head("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (8, 4, 2, 3), }"),
    "objects": _head("{'descr': '|O', 'fortran_order': False, 'shape': (8, 4, 2, 3), }"),
    "odd type": _head("{'descr': ('<f8', (2,)), 'fortran_order': False, 'shape': (8, 4, 2, 3), }"),
    "no type": _head("{'descr': 7, 'fortran_order': False, 'shape': (8, 4, 2, 3), }"),
    "code": _head("__import__('os').abort()"),
    "open head": _head("{'descr': ((((("),
    "deep head": _head("[" * 100),
}


def file_cases(folder, count):
    """Return `count` triples (file below `folder`, name of the damage, deed): each kind for each file at least once."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pt")
    files = [path for path in files if path.name != "SAMPLE_DATA.txt"]
    cases = [(path, name, deed) for path in files for name, deed in damages(path)]
    random.Random(SEED).shuffle(cases)
    return (cases * (1 + count // len(cases)))[:count]


# ---- damage to records


VALUES = (
    *(None, True, False, 0, -1, 7, 0.5, 1e308, -1e308, 1e-320, 10**400, 9**20, float("nan"), float("inf")),
    *("", "abc", "../..", "\ud800", "a" * 300, "\x00", "<b>|`", "1", "inf", "finished"),
    *([], [1], [[]], [None], {}, {"a": 1}, {"": None}, [{"epoch": None}], [{"epoch": 1}], [{"epoch": 1e308}]),
    *({"seconds": "abc"}, {"seconds": -1}, {"environment": []}, [{"epoch": 1, "loss": "x"}], [{"epoch": True}]),
)


def places(value, path=()):
    """Yield where a JSON value, and whatever is in it, lies."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def damage_record(content, chance):
    """Return the text of a record that was damaged in one to three ways."""
    content = json.loads(json.dumps(content))
    for _ in range(chance.choice((1, 1, 2, 3))):
        path = chance.choice([path for path in places(content) if path])
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        if chance.random() < 0.15:
            parent.pop(path[-1])
        elif chance.random() < 0.1 and isinstance(parent, dict):
            parent["unknown"] = parent.pop(path[-1])
        else:
            parent[path[-1]] = chance.choice(VALUES)
        if not content:
            break
    text = json.dumps(content)
    odd = chance.random()
    if odd < 0.05:
        text = text[: chance.randrange(len(text))]
    elif odd < 0.08:
        text = chance.choice(
            ("", "[" * 100_000, '{"a":' * 100_000, "null", "[]", "7", '"x"', "\ufeff" + text, text * 2)
        )
    elif odd < 0.1:
        text = text.replace("1", "9" * 20, 1)
    return text

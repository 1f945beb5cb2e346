"""Hostile flags, files and records: refused in one line that names them, or right. See `corpus`."""

import contextlib
import gzip
import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.lines import GENERATORS, tables  # noqa: F401
from tests.robustness import corpus


@contextlib.contextmanager
def seconds(number):
    """Interrupt what takes longer: a read of a pipe never ends."""

    def late(*_):
        raise TimeoutError(f"took more than {number} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(number)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def clear():
    for folder in ("results", "experiments", "trials"):
        shutil.rmtree(folder, ignore_errors=True)


def faults(ends):
    return [(it.task, [word[:80] for word in it.words], it.fault, it.err[-200:]) for it in ends if it.fault]


NUMBER = pytest.mark.parametrize("number", [40, pytest.param(1000, marks=pytest.mark.slow)])
FILES = pytest.mark.parametrize("number", [30, pytest.param(400, marks=pytest.mark.slow)])
RECORDS = pytest.mark.parametrize("number", [40, pytest.param(2000, marks=pytest.mark.slow)])


@NUMBER
def test_a_hostile_flag_is_named_or_its_run_is_right(place, run, number):
    ends = []
    for task, words in corpus.flag_cases(number):
        with seconds(60):
            ends.append(corpus.start(task, words, run))
        clear()
    assert faults(ends) == [] and {it.code for it in ends} >= {0, 2}


@FILES
def test_a_damaged_file_is_named_or_its_run_is_right(place, run, originals, number):
    ends = []
    for path, name, damage in corpus.file_cases(originals, number):
        task = path.parts[0]
        damage(Path("data", path), random.Random(f"{corpus.SEED} {path} {name} {len(ends)}"))
        with seconds(60):
            ends.append(corpus.start(task, (), run, names=(path.name, f"data/{task}")))
        ends[-1] = corpus.Ended(task, (str(path), name), ends[-1].code, ends[-1].err, ends[-1].fault)
        clear()
        shutil.rmtree(f"data/{task}")
        shutil.copytree(originals / task, f"data/{task}")
    assert faults(ends) == [] and {it.code for it in ends} >= {0, 2}


@RECORDS
def test_a_damaged_record_is_left_out_of_tables_and_refused_by_its_run(place, run, capsys, number):
    import collect_results

    records = {}
    for task in corpus.CLIS:
        assert corpus.start(task, (), run).code == 0
        (path,) = Path("results", task).glob("*/seed0.json")
        records[path] = (task, json.loads(path.read_text()), path.with_suffix(".pt").read_bytes())
    chance, ends = random.Random(corpus.SEED), []
    for count in range(number):
        path = chance.choice(list(records))
        task, whole, checkpoint = records[path]
        damaged = corpus.damage_record(whole, chance).encode(errors="surrogatepass")
        path.write_bytes(damaged)
        assert collect_results.main(["results", *["--csv"] * (count % 2)]) == 0
        capsys.readouterr()
        if count % 10 == 0:
            ends.append(corpus.start(task, ["--resume"] * (count // 10 % 2), run))
            assert ends[-1].code != 2 or path.read_bytes() == damaged  # it stays as it was
            path.with_suffix(".pt").write_bytes(checkpoint)
        path.write_text(json.dumps(whole))
    assert faults(ends) == []


@pytest.mark.parametrize(
    ("task", "words", "told"),
    [
        ("l2x", ["--seed", "4294967295", "-r", "2"], "--reruns 2: the last seed would be beyond 4294967295"),
        ("l2x", ["-H", "１０"], "--hidden-dims/-H: expected a whole number from 1 to 1000000000, got '１０'"),
        ("l2x", ["-H", "1_0"], "got '1_0'"),
        ("l2x", ["-H", "1000000000"], "tried to allocate 800000000000 bytes; choose smaller ones"),
        ("vae", ["--code-m", "1000000000"], "choose smaller ones"),
        ("nri", ["--encoder_hidden", "1000000000"], "choose smaller ones"),
        ("nri", ["--experiment_name", "../../.."], "--experiment_name: '../../..' is not a plain folder name"),
        ("nri", ["--lr", "1e308"], "--lr: expected a number from 1e-30 to 1e+30, got '1e308'"),
        ("nri", ["--method=--"], "--method: expected a value"),
        ("vae", ["--data-dir", "a" * 256], "--data-dir: expected a path of names of at most 255 bytes"),
        ("vae", ["--data-dir", "a/" * 3000], "File name too long"),
        ("l2x", ["-c", ".."], "--checkpoint .. is a folder: name a file"),
    ],
)
def test_what_once_was_a_traceback_says_what_to_do(place, run, task, words, told):
    it = corpus.start(task, words, run)
    assert it.code == 2 and told in it.err and it.fault is None, it.err


def test_a_bomb_is_refused_by_its_header_or_by_what_any_data_set_holds(place, run, monkeypatch):
    images = Path("data/vae/train-images-idx3-ubyte")
    content = images.read_bytes()
    packed = Path(f"{images}.gz")
    images.unlink()
    packed.write_bytes(gzip.compress(content) + gzip.compress(bytes(2**23)))
    with monkeypatch.context() as patch:
        patch.setattr("aaai23.harness.files.LARGEST_UNPACKED", 2**22)
        it = corpus.start("vae", (), run)
    assert it.code == 2 and f"{packed} cannot be read: it unpacks to more than" in it.err, it.err
    packed.write_bytes(gzip.compress(content[:4] + (2**31).to_bytes(4, "big") + content[8:]))
    it = corpus.start("vae", (), run)
    assert it.code == 2 and f"{packed} is too large: its header says 2147483648 x 14 x 14" in it.err, it.err


@pytest.mark.parametrize("kind", ["i8", "i1", "?"])
def test_positions_that_are_no_floats_are_refused_by_name(place, run, kind):
    path = Path("data/nri/data_train_s.npy")
    np.save(path, np.load(path).astype(kind))
    it = corpus.start("nri", (), run)
    assert it.code == 2 and str(path) in it.err and "positions are floats" in it.err


@pytest.mark.parametrize("task", ["l2x", "vae", "nri"])
@pytest.mark.parametrize("change", ["no seal", "history", "step"])
def test_a_checkpoint_that_was_edited_by_hand_is_refused_and_stays(place, run, task, change):
    import torch

    from aaai23.harness.checkpoint import save

    assert corpus.start(task, (), run).code == 0
    (path,) = Path("results", task).glob("*/seed0.pt")
    record = path.with_suffix(".json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running", "final": None}))
    state = torch.load(path, weights_only=True)
    if change == "no seal":
        torch.save(state, path)
    else:
        save(path, {**state, change: "abc"})
    before = path.read_bytes()
    it = corpus.start(task, ["--resume"], run)
    assert it.code == 2 and str(path) in it.err and it.fault is None, it.err
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", ["json", "pt", "lock"])
def test_a_pipe_in_the_place_of_a_runs_own_file_is_refused_or_passed(place, run, suffix):
    assert corpus.start("vae", (), run).code == 0
    (record,) = Path("results/vae").glob("*/seed0.json")
    for name in ("json", "pt"):
        record.with_suffix(f".{name}").unlink()
    os.mkfifo(record.with_suffix(f".{suffix}"))
    with seconds(30):
        it = corpus.start("vae", (), run)
    assert it.code == (0 if suffix == "lock" else 2) and it.fault is None, it.err


WORDS = (*corpus.NUMBERS, *corpus.TEXTS)
SWEEP_FLAGS = ("seeds", "data-dir", "results-dir", "logs", "python", "group", "time", "mem", "cpus", "max-parallel")


@pytest.mark.parametrize("task", GENERATORS)
def test_a_generator_prints_lines_or_refuses_in_one(task, place, capsys, monkeypatch):
    monkeypatch.setattr("sweep.ROOT", place)
    for flag in SWEEP_FLAGS:
        for word in random.Random(f"{task} {flag}").sample(WORDS, 8):
            try:
                code = GENERATORS[task].main(["--seeds", "1", "--format", "slurm", f"--{flag}={word}"])
            except SystemExit as stop:
                code = stop.code
            out, err = capsys.readouterr()
            assert code in (0, 2), (flag, word)
            assert out if code == 0 else (err.count("\n") == 1 and flag in err) or "--logs" in err, (flag, word, err)


def test_a_folder_whose_name_would_be_too_long_is_said_by_the_generator(capsys):
    folder = "d" * 245
    with pytest.raises(SystemExit) as stop:
        GENERATORS["l2x"].main(["--data-dir", f"data/{folder}"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "more than the 255 that can be" in err and err.count("\n") == 1

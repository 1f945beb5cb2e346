"""Kills at each point of a write and at random moments: what remains is whole, and a resumed run is the same run."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from aaai23.harness.record import read_record
from tests.robustness.corpus import CLIS, LINES
from tests.robustness.forks import die_at, fork, script, text, wait

LONGER = {
    "l2x": "-e 3 --max-iterations 15",
    "vae": "-e 3 --max-iterations 9",
    "nri": "--num_iterations 4 --max-steps 4 --eval_every 1",
}


def line(task, name, *words):
    folder = ["--experiments_folder", f"../trials-{name}"] if task == "nri" else []
    places = ["--data-dir", f"data/{task}", "--device", "cpu", "--name", name, *folder]
    return [*LINES[task].split(), *LONGER[task].split(), *places, *words]


def record(task, name):
    return read_record(Path("results", task, name, "seed0.json"))


def whole(task):
    """Return the record of a run that is not killed."""
    assert wait(fork(script(CLIS[task], line(task, "whole")))) == 0, text("err.txt")
    found = record(task, "whole")
    assert found.status == "finished" and len(found.history) >= 3
    return found


def check(task, name, uninterrupted):
    """See that a killed run left nothing broken, and becomes the same run when it goes on."""
    for path in Path("results", task, name).glob("seed0.json"):
        read_record(path)
    assert wait(fork(script(CLIS[task], line(task, name, "--resume")))) == 0, text("err.txt")
    found = record(task, name)
    assert (found.history, found.final) == (uninterrupted.history, uninterrupted.final)
    assert not list(Path("results", task, name).glob(".*.tmp"))


def points(task, number, step=1):
    """Kill a run with a signal at each fsync and replace, and let it go on; returns how many points there are."""
    uninterrupted = whole(task)
    point = 0
    while True:

        def work():
            die_at(point, lambda: os.kill(os.getpid(), number))  # noqa: B023
            script(CLIS[task], line(task, f"at{point}"))()  # noqa: B023

        code = wait(fork(work))
        if code == 0:
            return point
        assert code == (-number if number == signal.SIGKILL else 128 + number), text("err.txt")
        if number != signal.SIGKILL:
            for path in Path("results", task, f"at{point}").glob("seed0.json"):
                assert read_record(path).status == "failed"
        check(task, f"at{point}", uninterrupted)
        point += step


def test_a_run_that_is_killed_at_a_point_of_a_write_goes_on_to_the_same_metrics(place):
    assert points("vae", signal.SIGKILL, step=6) > 10


def test_a_run_that_is_told_to_end_at_a_point_of_a_write_says_so_in_its_record(place):
    assert points("vae", signal.SIGTERM, step=9) > 10


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("task", CLIS)
def test_every_point_of_a_write_holds(place, task, number):
    assert points(task, number) > 10


@pytest.mark.slow
@pytest.mark.parametrize("task", CLIS)
def test_a_run_that_is_killed_at_a_random_moment_goes_on_to_the_same_metrics(place, task):
    begun = time.monotonic()
    uninterrupted = whole(task)
    took = time.monotonic() - begun
    chance, killed = random.Random(14), 0
    for attempt in range(34):
        child = fork(script(CLIS[task], line(task, f"r{attempt}")))
        time.sleep(chance.random() * took)
        os.kill(child, signal.SIGKILL)
        killed += wait(child) == -signal.SIGKILL
        check(task, f"r{attempt}", uninterrupted)
    assert killed > 20


@pytest.mark.slow
def test_memory_and_open_files_stay_flat_over_many_steps(place):
    import resource

    from tests.aaai23.harness.runs import run_of

    measured = []
    with run_of(".", epochs=5000) as run:
        for step in run.steps(range(1, 5001)):
            run.log(loss=1 / step)
            if step % 1000 == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                measured.append((pages * resource.getpagesize(), len(os.listdir("/proc/self/fd"))))
        run.finish(best=0.0)
    files = {files for _, files in measured}
    assert len(files) == 1 and measured[-1][0] - measured[1][0] < 2**25, measured  # the history alone grows

"""Standard output that is closed, full or ASCII; signals at any moment."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from aaai23.harness.record import read_record
from aaai23.harness.shell import run_cli
from tests.aaai23.harness.runs import outcome, run_of
from tests.aaai23.harness.runs import start as start_process
from tests.experiments.lines import tables  # noqa: F401
from tests.robustness.corpus import CLIS, LINES
from tests.robustness.forks import fork, script, text, wait


def line(task, *words):
    return [*LINES[task].split(), "--data-dir", f"data/{task}", "--device", "cpu", *words]


def record(task):
    (path,) = Path("results", task).glob("*/seed0.json")
    return read_record(path)


@pytest.mark.parametrize("task", CLIS)
def test_a_run_goes_on_where_its_letters_cannot_be_printed(place, task):
    assert wait(fork(script(CLIS[task], line(task)), encoding="ascii")) == 0, text("err.txt")
    assert record(task).status == "finished" and text("err.txt") == ""
    assert "\\xb1" in text("out.txt") or task == "nri"


@pytest.mark.parametrize("task", CLIS)
def test_a_run_that_can_print_nothing_ends_in_order(place, task):
    assert wait(fork(script(CLIS[task], line(task)), out=None, err=None)) == 0, text("err.txt")
    assert record(task).status == "finished"
    assert wait(fork(script(CLIS[task], line(task, "--again")), out="/dev/full")) == 1
    assert text("err.txt").count("\n") == 1 and "No space left on device; free some space" in text("err.txt")


def test_a_path_that_is_no_utf_8_is_written_into_the_record_and_the_log_as_text(place):
    os.rename(b"data/vae", b"data/\xff")
    words = [*LINES["vae"].split(), "--data-dir", os.fsdecode(b"data/\xff"), "--device", "cpu"]
    assert wait(fork(script(CLIS["vae"], words))) == 0, text("err.txt")
    assert record("vae").launch["data_dir"] == "data/\\udcff" and "data/\\udcff holds sample data" in text("out.txt")


def test_a_table_is_printed_in_ascii_and_says_that_a_disk_is_full(place):
    import collect_results

    assert wait(fork(script(CLIS["vae"], line("vae")))) == 0
    work = lambda: sys.exit(collect_results.main(["results"]))  # noqa: E731
    assert wait(fork(work, out="table.txt", encoding="ascii")) == 0 and "\\xb1" in text("table.txt")
    assert wait(fork(lambda: run_cli(lambda _: work(), "x.py"), out="/dev/full", err="said.txt")) in (0, 1)
    assert "Traceback" not in text("said.txt")


ENDINGS = {signal.SIGHUP: "hung up", signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def slow_run(number=None):
    """Return a program whose run waits in its second step; with a number it sends itself this signal."""

    def main(argv):
        with run_of(".") as run:
            for step in run.steps([1, 2]):
                run.log(loss=1.0)
                if step == 2:
                    Path("ready").touch()
                    time.sleep(60)

    return lambda: run_cli(main, "x.py")


@pytest.mark.parametrize("second", [None, 0.0, 0.001, 0.02])
@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_and_a_second_one_end_a_run_in_order(place, number, second):
    child = fork(slow_run())
    while not Path("ready").exists():
        time.sleep(0.002)
    os.kill(child, number)
    if second is not None:
        time.sleep(second)
        os.kill(child, signal.SIGINT)
    code = wait(child)
    assert code == 128 + number or (second is not None and code == 130)
    assert text("err.txt") in {f"x.py: {ending}\n" for ending in ENDINGS.values()}
    found = read_record("l2x/x/seed0.json")
    assert (found.status, found.error) == ("failed", text("err.txt")[6:-1])
    assert not list(Path().rglob(".*.tmp"))


def test_who_asked_not_to_be_hung_up_is_not(place):
    def work():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        slow_run()()

    child = fork(work)
    while not Path("ready").exists():
        time.sleep(0.002)
    os.kill(child, signal.SIGHUP)
    time.sleep(0.1)
    assert read_record("l2x/x/seed0.json").status == "running"
    os.kill(child, signal.SIGTERM)
    assert wait(child) == 143


@pytest.mark.parametrize("became", ["raise", "raise ImportError('odd')", "raise SystemError"])
def test_an_interruption_of_an_import_is_one_line_whatever_it_became(place, became, monkeypatch):
    Path("slow_to_load.py").write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    {became}\n"
    )
    monkeypatch.syspath_prepend(".")
    assert wait(fork(lambda: run_cli("slow_to_load", "x.py"))) == 130
    assert text("err.txt") == "x.py: interrupted\n"


def test_the_second_of_two_runs_says_who_holds_the_place(place):
    with run_of("."):

        def work():
            run_cli(lambda _: run_of(".").__enter__() and 0, "x.py")

        for _ in range(2):  # the third learns it too
            assert wait(fork(work)) == 2
        assert all(f"seed0.json (process {os.getpid()} on " in it for it in text("err.txt").splitlines())
        assert json.loads(Path("l2x/x/seed0.json").read_text())["status"] == "running"


@pytest.mark.slow
@pytest.mark.parametrize("task", CLIS)
def test_an_interruption_of_a_script_that_starts_shows_no_traceback(place, task):
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    path = Path(__file__).parents[2] / "cli" / CLIS[task].SCRIPT
    for delay in (0.3, 0.5, 1.0, 1.5, 2.0, 3.0):
        process = start_process(code, place, path, *line(task, "--again"))
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        code_of_end, _, err = outcome(process)
        assert code_of_end in (0, 130), (delay, err)
        assert "Traceback" not in err or "site.py" in err, (delay, err)  # before a line of ours is read

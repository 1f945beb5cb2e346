"""What scripts do at the shell: exit codes, log lines, progress, the process's settings."""

import errno
import logging
import os
import signal
import subprocess
import sys

import pytest

from aaai23.errors import UsageError
from aaai23.harness import shell
from aaai23.harness.record import read_record
from aaai23.harness.shell import configure_logging, progress
from tests.aaai23.harness.runs import outcome, start


@pytest.mark.parametrize(
    ("given", "spin"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_a_process_is_tuned_where_the_user_has_not_done_it(given, spin):
    code = (
        "from aaai23.harness.shell import tune_process as tune; tune(); import os; print(os.getenv('GOMP_SPINCOUNT'))"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in names} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(spin)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the GNU C library alone has this")
@pytest.mark.parametrize(("given", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_stays_with_the_process_unless_the_user_says_otherwise(given, kept):
    code = """
import resource, torch
from aaai23.harness.shell import tune_process
tune_process()
torch.ones(24_000_000)  # more than is asked for below: small objects may settle in what is free
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 1000) == kept  # 64 MB are 15,625 pages of 4 KB


def test_a_signal_ends_a_run_in_order(tmp_path):
    code = """
        import sys, time
        from aaai23.harness.shell import run_cli
        from tests.aaai23.harness.runs import run_of
        def main(argv):
            with run_of("results", files=[], seed=int(sys.argv[-1])) as run:
                for step in run.steps([1, 2]):
                    if step == 2:
                        print("ready", flush=True)
                        time.sleep(60)
                    run.log(loss=1.0)
        run_cli(main, "l2x-cli.py")
    """
    endings = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}
    processes = {number: start(code, tmp_path, int(number)) for number in endings}
    for number, (exit_code, error) in endings.items():
        assert processes[number].stdout.readline() == "ready\n"
        processes[number].send_signal(number)
        code, _, err = outcome(processes[number])
        assert (code, err) == (exit_code, f"l2x-cli.py: {error}\n")
        found = read_record(tmp_path / "results" / "l2x" / "x" / f"seed{int(number)}.json")
        assert (found.status, found.error) == ("failed", error)
        assert found.history == [{"epoch": 1, "loss": 1.0}]


def test_a_second_sigterm_does_not_cut_the_end_short(tmp_path):
    code = """
        import os, signal
        from aaai23.harness.shell import run_cli
        def main(argv):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                print("cleaned up")
        run_cli(main, "x.py")
    """
    assert outcome(start(code, tmp_path)) == (143, "cleaned up\n", "x.py: terminated\n")


@pytest.mark.parametrize(
    ("raised", "exit_code", "line"),
    [
        (UsageError("no file\nhere"), 2, "x.py: error: no file here\n"),
        (FloatingPointError("loss is nan at iteration 3"), 1, "x.py: error: loss is nan at iteration 3\n"),
        (OSError(errno.ENOSPC, "No space left"), 1, "x.py: error: No space left; free some space\n"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "x.py: error: the package torch is missing; `make test` once, then `. .venv/bin/activate`\n",
        ),
    ],
)
def test_errors_that_the_user_can_mend_are_one_line(capsys, raised, exit_code, line):
    def main(argv):
        assert argv is None
        raise raised

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        shell.run_cli(main, "x.py")
    assert (caught.value.code, capsys.readouterr().err) == (exit_code, line)
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_errors_show_their_traceback_and_success_is_zero(capsys):
    with pytest.raises(SystemExit) as caught:
        shell.run_cli(lambda argv: 1 // 0, "x.py")
    assert caught.value.code == 1
    assert "Traceback" in (err := capsys.readouterr().err) and "ZeroDivisionError" in err
    for returned, exit_code in ((None, 0), (0, 0), (3, 3)):
        with pytest.raises(SystemExit) as caught:
            shell.run_cli(lambda argv: returned, "x.py")  # noqa: B023
        assert caught.value.code == exit_code


def test_a_reader_that_goes_away_ends_the_program_quietly(tmp_path):
    code = """
        from aaai23.harness.shell import configure_logging, run_cli
        def main(argv):
            logger = configure_logging("x.py")
            while True:
                logger.info("line")
        run_cli(main, "x.py")
    """
    process = start(code, tmp_path)
    assert process.stdout.readline() == "INFO:x.py:line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1


def test_help_does_not_wait_for_torch(tmp_path):
    code = """
        import sys
        import aaai23.harness.config, aaai23.harness.record, aaai23.harness.shell, aaai23.harness.tracking
        print([name for name in ("torch", "numpy", "wandb", "tqdm") if name in sys.modules])
    """
    assert outcome(start(code, tmp_path)) == (0, "[]\n", "")


def test_log_lines_have_the_published_form(capsys):
    for _ in range(2):
        logger = configure_logging("l2x-cli.py")
    logger.info("Epoch 1/20\tLoss %.4f ± %.4f", 0.05, 0.02)
    logger.debug("not shown")
    assert capsys.readouterr() == ("INFO:l2x-cli.py:Epoch 1/20\tLoss 0.0500 ± 0.0200\n", "")
    assert logger is logging.getLogger("l2x-cli.py")
    logging.getLogger("aaai23.l2x.data").info("Reading")
    assert capsys.readouterr() == ("INFO:l2x-cli.py:Reading\n", "")


def test_progress_is_silent_when_piped_and_passes_everything_on(capsys):
    assert list(progress(range(5), "Epoch 1/20")) == list(range(5))
    assert list(progress(iter("ab"), "x", total=2)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")

"""The JAIR benchmark: its page shows what the records say, runs are done once, and methods learn what can be learnt."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import jair

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "jair.md").read_text()
PROGRAM = "python -m benchmarks.jair"
SHOWN = [line.strip() for line in PAGE.splitlines() if line.startswith(f"    {PROGRAM}") and "--data-dir" not in line]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ninety days whose values are linear in the features, of which the benchmark learns from sixty."""
    generator = np.random.default_rng(0)
    features = generator.normal(2.0, 3.0, (90 * 48, 9))
    values = 300 + 40 * features[:, 1] - 20 * features[:, 2]
    parts = {
        "X_1gtrain": features[:2880],
        "X_1gtest": features[2880:],
        "y_train": values[:2880],
        "y_test": values[2880:],
    }
    np.savez(tmp_path / "Data.npz", weights=np.array([3, 5, 7] * 16), **parts)
    for name, number in (("TRAINING", 60), ("VALIDATION", 10), ("BATCH", 20), ("EPOCHS", 6)):
        monkeypatch.setattr(jair, name, number)
    return tmp_path


@pytest.mark.parametrize("command", SHOWN)
def test_the_tables_of_the_page_are_what_its_commands_print(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert jair.main(shlex.split(command.removeprefix(PROGRAM))) == 0
    printed = capsys.readouterr().out.splitlines()
    missing = set(printed) - set(PAGE.splitlines())
    assert len(printed) > 3 * len(jair.METHODS) and not missing, "\n".join(missing)


def test_features_are_standardised_by_the_first_days_and_the_days_number_is_left_out(folder):
    data = jair.load(folder)
    assert data.features.shape == (90, 48, 8) and data.values.shape == (90, 48)
    torch.testing.assert_close(data.features[:60].mean((0, 1)), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(data.features[:60].flatten(0, 1).std(0, correction=0), torch.ones(8))


def test_the_solver_finds_what_scipys_milp_finds(folder):
    pytest.importorskip("scipy")
    assert jair.check(jair.load(folder), 60) < 1e-9


@pytest.mark.parametrize("method", jair.METHODS)
def test_every_method_learns(method, folder, monkeypatch):
    data, settings = jair.load(folder), jair.METHODS[method].at(120)
    lr = settings.pop("lr")
    make = jair.METHODS[method].make
    before = jair.regret(make(**settings), 120, 0, 0.0, data)
    after = jair.regret(make(**settings), 120, 0, lr, data)
    assert after[1] < before[1] / 2, (before, after)


def test_runs_are_written_as_they_end_and_not_done_again(folder, monkeypatch, capsys):
    monkeypatch.setattr(jair, "EPOCHS", 1)
    path = folder / "record.json"
    line = ["--methods", "two-stage", "spo+", "--capacities", "60", "--seeds", "2", "--record", str(path)]
    real = jair.regret

    def interrupted(make, capacity, seed, lr, data):
        if seed == 1:
            raise KeyboardInterrupt
        return real(make, capacity, seed, lr, data)

    monkeypatch.setattr(jair, "regret", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jair.main([*line, "--data-dir", str(folder)])
    done = []
    monkeypatch.setattr(jair, "regret", lambda *args: done.append(args) or real(*args))
    assert jair.main([*line, "--data-dir", str(folder)]) == 0
    assert len(done) == 3
    printed = capsys.readouterr().out
    assert jair.main(line) == 0 and len(done) == 3
    assert capsys.readouterr().out == printed and "| spo+ | " in printed


def test_tuning_takes_the_best_of_validation_and_counts_on_fresh_seeds(folder, monkeypatch, capsys):
    asked = []

    def regret(make, capacity, seed, lr, data):
        asked.append((lr, seed))
        return lr + 100 * (lr == min(draws) and seed > 0), lr  # the least is lucky with one seed

    monkeypatch.setattr(jair, "regret", regret)
    draws = [jair.METHODS["bare"].draw(number)["lr"] for number in range(jair.DRAWS)]
    line = ["--tuned", "--methods", "bare", "--capacities", "60", "--record", str(folder / "record.json")]
    assert jair.main([*line, "--data-dir", str(folder)]) == 0
    best = sorted(draws)[:5]
    rounds = [(lr, 0) for lr in draws], [(lr, seed) for lr in best for seed in (1, 2)]
    assert asked == [*rounds[0], *rounds[1], *((best[1], seed) for seed in range(10, 20))]
    assert f"| bare | {best[1]:.2f} ± 0.00 | " in capsys.readouterr().out
    assert len(set(draws)) == jair.DRAWS and jair.RATE[0] <= min(draws) < max(draws) <= jair.RATE[1]

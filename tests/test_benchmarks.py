"""What the benchmark of PyEPO rests on: quick solvers answer as its own models do."""

import pytest

from benchmarks import pyepo as benchmark


@pytest.mark.parametrize("kind", benchmark.PROBLEMS)
def test_quick_models_decide_as_pyepos_models_whatever_the_signs(kind):
    pytest.importorskip("pyepo")
    pytest.importorskip("ortools")
    problem = benchmark.PROBLEMS[kind](0)
    costs = problem.costs[:10]
    for row in (*costs, *(costs - costs.mean(1, keepdim=True))):
        problem.model.setObj(row)
        problem.quick.setObj(row)
        values = [problem.model.solve()[1], problem.quick.solve()[1], (problem.solver(row[None])[0] * row).sum().item()]
        assert values == pytest.approx([values[0]] * 3, abs=1e-3)


def test_without_pyepo_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    assert benchmark.main([]) == 0
    assert capsys.readouterr().out == "left out: pip install pyepo ortools\n"

"""What benchmarks rest on: quick solvers answer as PyEPO's own models do, and candidates are what they say."""

from functools import partial

import pytest
import torch

from benchmarks import candidates
from benchmarks import pyepo as benchmark
from imle.aimle import aimle
from imle.noise import GumbelNoiseDistribution
from imle.solvers import select_k


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


@pytest.fixture(scope="module")
def problems():
    return candidates.listed(4, structure="subsets", n=6, k=2)


@pytest.mark.parametrize(
    "name", [name for name in candidates.CANDIDATES if "from 1" not in name and "=0.5" not in name]
)
def test_a_candidate_has_a_better_gradient_than_none_at_the_calls_that_it_may_make(name, problems, monkeypatch):
    monkeypatch.setattr(candidates, "REPEATS", 200)
    candidate, solved = candidates.CANDIDATES[name], []

    def solve(theta):
        solved.append(len(theta))
        return select_k(theta, 2)

    assert problems.error(candidate, 30) < 0.9
    layer = candidate.estimator(
        target_distribution=candidate.target(), noise_distribution=candidate.noise(), symmetric_perturbation=True
    )(solve)
    layer(torch.randn(5, 6, requires_grad=True)).square().sum().backward()
    assert sum(solved) == 5 * candidate.calls


def test_the_closed_form_with_the_librarys_numbers_is_the_librarys(problems):
    torch.manual_seed(0)
    ours = problems.error(candidates.Candidate(candidates.ClosedForm), 6)
    torch.manual_seed(0)
    assert problems.error(candidates.CANDIDATES["auto"], 6) == ours


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_antithetic_noise_is_gumbels_in_pairs(samples):
    torch.manual_seed(0)
    eps = candidates.AntitheticGumbel().sample(torch.Size((4000, samples, 3)))
    assert eps.shape == (4000, samples, 3)
    assert eps.mean().item() == pytest.approx(0.5772, abs=0.05) and eps.std().item() == pytest.approx(1.2825, abs=0.05)
    quantiles = (-(-eps).exp()).exp()
    pairs = samples // 2 * 2
    assert torch.allclose(quantiles[:, :pairs:2] + quantiles[:, 1:pairs:2], torch.ones(1), atol=1e-5)


def test_known_marginals_give_the_gradient_that_a_list_of_all_solutions_gives():
    structure = candidates.k_subsets(2)
    known = candidates.known(3, structure, 6)
    listed = candidates.listed(3, structure="subsets", n=6, k=2)
    listed = candidates.Problems(listed.problems.family, known.problems.theta, known.problems.b, None)
    assert torch.allclose(known.gradients, listed.exact(), atol=1e-6)


def test_a_task_runs_with_a_candidate_in_place_of_its_target(monkeypatch):
    from aaai23 import methods
    from aaai23.dvae import cli

    found = []

    def script(flags):
        settings = methods.MethodSettings(noise="gumbel", nb_samples=4, target="adaptive")
        layer = methods.METHODS["aimle"](candidates.k_subsets(2), settings)
        found.append((flags, layer))
        return 0

    monkeypatch.setattr(methods, "aimle", aimle)
    monkeypatch.setattr(cli, "main", script)
    assert candidates.main(["--task", "vae", "auto", "-e", "4"]) == 0
    ((flags, layer),) = found
    assert flags == ["-e", "4"]
    theta = torch.randn(3, 6)
    gradients = []
    for solve in (
        layer,
        aimle(
            partial(select_k, k=2),
            nb_samples=4,
            noise_distribution=GumbelNoiseDistribution(),
            target_distribution=candidates.AutoTargetDistribution(),
        ),
    ):
        torch.manual_seed(1)
        at = theta.clone().requires_grad_()
        (solve(at) * torch.arange(6.0)).sum().backward()
        gradients.append(at.grad)
    assert torch.allclose(gradients[0], 2 * gradients[1])  # the root of S, on which the published results rest

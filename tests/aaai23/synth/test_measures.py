"""The measure: what it says of gradients that are known, and that every estimator stands under it."""

import math

import pytest
import torch

from aaai23.synth.bench import ESTIMATORS, Bench, moments
from aaai23.synth.cli import parse_arguments
from aaai23.synth.measures import MEASURES, needed
from imle.auto import AutoTargetDistribution

CPU = torch.device("cpu")
STRUCTURES = {"subsets": "-n 5 -k 2", "trees": "-n 4", "paths": "-n 3", "rankings": "-n 4", "knapsacks": "-n 6"}


def bench(line="bias-variance --seeds 6"):
    return Bench(parse_arguments(line.split())[0], CPU)


@pytest.fixture(scope="module")
def subsets():
    return bench("bias-variance -n 5 -k 2 --seeds 6")


def test_exact_gradients_have_no_error_and_empty_ones_the_error_of_a_guess():
    exact = torch.randn(3, 4)
    found = moments(exact.unsqueeze(1).expand(3, 5, 4), exact)
    assert all(abs(found[key]) < 1e-5 for key in ("error", "bias", "variance")) and found["nonzero"] == 4
    found = moments(torch.zeros(3, 5, 4), exact)
    assert found["error"] == 1 and found["nonzero"] == 0 and math.isnan(found["bias"])
    assert moments(-exact.unsqueeze(1), exact)["error"] == pytest.approx(2)


def test_bias_does_not_count_the_noise_of_the_mean():
    torch.manual_seed(0)
    exact = torch.nn.functional.normalize(torch.randn(200, 10), dim=1)
    g = exact.unsqueeze(1) + 2 * torch.randn(200, 200, 10)
    plain = 1 - torch.cosine_similarity(g.mean(1), exact).mean()
    found = moments(g, exact)
    assert plain > 0.05 and abs(found["bias"]) < 0.02


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        *(("aimle central c=1", 3), ("aimle forward c=1", 2), ("imle lambda=1", 2), ("ste", 1), ("identity", 1)),
        *(("sfe loo", 1), ("perturbed loo", 1), ("simple", 0), ("exact score loo", 0), ("sst tau=0.5", 0)),
    ],
)
def test_cost_is_counted_in_calls_of_the_solver(subsets, name, calls):
    build, target = ESTIMATORS[name]
    for samples in (2, 5):
        gradients = build(subsets.family, subsets.noise, samples, target())
        assert subsets.take(gradients, 3)[1] == calls * samples


def test_a_gradient_is_of_its_own_problem_however_rows_are_cut(subsets, monkeypatch):
    gradients = ESTIMATORS["blackbox lambda=2.5"][0](subsets.family, subsets.noise, 1, None)
    whole, _ = subsets.take(gradients, 7)
    monkeypatch.setattr("aaai23.synth.bench.NUMBERS_AT_ONCE", 20)
    assert torch.equal(subsets.take(gradients, 7)[0], whole) and (whole == whole[:, :1]).all()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("loss", ["separable", "coupled"])
def test_every_estimator_points_the_right_way(structure, loss):
    it = bench(f"lambda --structure {structure} {STRUCTURES[structure]} --seeds 4 --settle 60 --loss {loss}")
    found = {}
    for name, (build, _) in ESTIMATORS.items():
        if name.startswith("blackbox"):  # a single gradient without noise points where it likes
            continue
        target = it.settled(name)
        gradients = build(it.family, it.noise, 16, target) or build(it.family, it.noise, 1, target)
        if gradients is not None:
            g, _ = it.take(gradients, 40)
            found[name] = torch.cosine_similarity(g.mean(1), it.exact).mean().item()
    assert len(found) > 11 and min(found.values()) > (0.2 if loss == "separable" else 0.05), found


@pytest.mark.parametrize(("name", "samples"), [("exact score", 1), ("exact score loo", 4)])
def test_score_functions_of_known_probabilities_are_unbiased(subsets, name, samples):
    g, _ = subsets.take(ESTIMATORS[name][0](subsets.family, subsets.noise, samples, None), 4000)
    error = g.std(dim=1) / math.sqrt(4000)
    assert ((g.mean(1) - subsets.exact).abs() < 5 * error + 1e-6).all()


def test_the_adaptive_rule_settles_at_its_count_and_is_frozen_there():
    it = bench("lambda -n 10 -k 5 --seeds 32 --settle 250")
    target = it.settled("aimle central c=2")
    found = it.measured(ESTIMATORS["aimle central c=2"][0](it.family, it.noise, 1, target), 50)
    assert found["nonzero"] == pytest.approx(2, abs=0.3)
    beta = target.beta
    it.take(ESTIMATORS["aimle central c=2"][0](it.family, it.noise, 1, target), 3)
    assert target.beta == beta > 0


def test_what_is_needed_lies_between_two_numbers_of_samples():
    def curve(name, *errors):
        return [
            {"estimator": name, "samples": 10**n, "calls": 3 * 10**n, "error": error} for n, error in enumerate(errors)
        ]

    found = needed([*curve("a", 0.3, 0.2, 0.0), *curve("b", 0.4, 0.3), *curve("c", 0.1, 0.05)])
    assert found["a: samples"] == pytest.approx(10**1.5) and found["a: calls"] == pytest.approx(3 * 10**1.5)
    assert found["b: samples"] is None and found["c: calls"] == 3


def entries(line):
    it = bench(line)
    return list(MEASURES[it.config.method](it))


def test_optimisers_go_down_with_simple_gradients_and_spend_what_they_may():
    found = entries("optimise -n 5 -k 2 --seeds 6 --steps 20 --only simple ste --calls 4")
    for name, optimiser in {(entry["estimator"], entry["optimiser"]) for entry in found}:
        curve = [entry for entry in found if (entry["estimator"], entry["optimiser"]) == (name, optimiser)]
        assert curve[0]["step"] == 0 and curve[-1]["regret"] < curve[0]["regret"]
        assert curve[-1]["calls"] == (0 if name == "simple" else 4 * curve[-1]["step"])
        assert name != "simple" or curve[-1]["regret"] < 0.5 * curve[0]["regret"]


def test_beta_comes_down_from_above_and_up_from_below():
    found = entries("adapt --seeds 32 --steps 60 --beta-update-step 0.01")
    traces = {start: [it["beta"] for it in found if it["start"] == start] for start in (0.0, 1e-6, 1.0, 1e6)}
    assert traces[0.0][-1] > 0.1 and traces[1e-6][-1] > 0.1
    assert traces[1.0][-1] < 0.9 and traces[1e6][-1] == pytest.approx(1e6, abs=1)


def test_more_samples_have_less_error_and_larger_steps_more_bias():
    found = entries("samples -n 5 -k 2 --seeds 16 --max-samples 30 --only exact")
    errors = [it["error"] for it in found if it["estimator"] == "exact score"]
    assert errors == sorted(errors, reverse=True) and len(errors) == 4
    found = entries("lambda -n 5 -k 2 --seeds 16 --repeats 100 --settle 10 --only simple")
    central = [it for it in found if it["estimator"] == "central"]
    assert central[-1]["bias"] > central[6]["bias"] + 0.1 and central[0]["nonzero"] < 0.2 < 2 < central[-1]["nonzero"]


def test_noise_is_nearer_to_the_exponential_family_than_chance_for_one_of_n():
    gumbel, sog = entries("noise -n 5 -k 1 --seeds 4 --reference-draws 20000")
    assert gumbel["total_variation"] == pytest.approx(gumbel["floor"], rel=0.5)
    gumbel, sog = entries("noise -n 8 -k 4 --seeds 4 --reference-draws 20000")
    assert sog["total_variation"] > 2 * gumbel["total_variation"] > 4 * gumbel["floor"]


def test_the_lambda_of_the_rule_without_numbers_is_that_of_so_many_samples_and_of_the_noise():
    it, quiet = (bench(f"lambda -n 10 -k 5 --seeds 64 --noise {noise}") for noise in ("gumbel", "sog"))
    one, many = (it.perturbation_size(AutoTargetDistribution(), samples) for samples in (1, 100))
    assert one / many == pytest.approx(10, rel=0.2)
    assert one > 1.2 * quiet.perturbation_size(AutoTargetDistribution(), 1)

"""The examples run from end to end, and what they train learns within a few steps."""

import functools
import importlib.util
import re
from pathlib import Path

import pytest
import torch

from benchmarks import jair, learning
from benchmarks.learning import decision_loss
from imle.aimle import AIMLE
from imle.noise import GumbelNoiseDistribution as Gumbel
from imle.solvers import select_k
from imle.ste import ste

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path.stem for path in ROOT.glob("examples/*.py"))


def example(name):
    """Return an example as a module; nothing is left on the path."""
    spec = importlib.util.spec_from_file_location(f"examples.{name}", ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_examples_are_those_of_the_page():
    page = (ROOT / "docs/examples.md").read_text(encoding="utf-8")
    for name in EXAMPLES:
        assert f"examples/{name}.py" in page and (ROOT / f"docs/examples/{name}.png").stat().st_size < 60_000
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_one_page_and_runs_from_end_to_end(name, tmp_path, capsys):
    text = (ROOT / f"examples/{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120 and f"python examples/{name}.py" in text
    module = example(name)
    curves = module.main(["--seeds", "1", "--steps", "1", "--picture", str(tmp_path / "picture.png")])
    assert set(module.METHODS) <= set(curves) and len(capsys.readouterr().out.splitlines()) == len(curves)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_three_of_twelve_items_are_found_far_more_often_than_by_chance():
    curve = example("choose_features").train("aimle", steps=200)
    assert abs(curve[0] - 3 / 12) < 0.15 and curve[-1] > 0.45


def test_ways_across_a_terrain_come_near_the_best():
    curve, (_, best, found) = example("cross_terrain").train("aimle, told ways", steps=50, maps=200)
    assert curve[-1] < curve[0] / 2
    assert best[0, 0] == best[-1, -1] == found[0, 0] == found[-1, -1] == 1


def test_tours_are_the_shortest_and_their_regret_falls():
    module = example("plan_tours")
    times = module.make(3, 0, None)[1].numpy()
    for row in times:
        z = module.shortest_tour(row)
        degrees = sum(z[pairs == city].sum() for pairs in module.PAIRS for city in range(module.CITIES))
        assert z.sum() == module.CITIES and degrees == 2 * module.CITIES
        assert abs(z @ row - row[module.LEGS].sum(axis=1).min()) < 1e-5
    curve = module.train("aimle, one stage", steps=100, days=200)
    assert curve[-1] < curve[0] / 3


def test_the_reciprocal_rank_of_relevant_documents_rises():
    curve = example("rank_documents").train("aimle on MRR", steps=75, queries=500)
    by_chance = sum(1 / rank for rank in range(1, 17)) / 16
    assert curve[-1] > 1.6 * by_chance and curve[-1] > curve[0]


def test_experts_specialise():
    curve = example("mix_experts").train("aimle", steps=300)
    assert curve[-1] < 0.8 < curve[0]


def test_latent_trees_are_recovered():
    curve = example("latent_trees").train("aimle", steps=100)
    assert curve[0] < 0.4 and curve[-1] > 0.6


def first_gradient(module, samples, monkeypatch, seeds=6):
    """Return the gradient of what the first step of aimle trains, a mean over seeds, with S samples straight through.

    Its dy is that of the identity, so that nothing but the loss and the reduction can make the gradient grow with S.
    """

    def through(solver=None, *, sample_reduction="mean", nb_samples=1, **options):
        options |= {"nb_samples": samples, "sample_reduction": sample_reduction, "noise_distribution": Gumbel()}
        return ste(solver, **options)

    for name, value in vars(module).copy().items():
        estimator = getattr(value, "estimator", None)
        if isinstance(estimator, AIMLE):
            told = {"_is_minimization": estimator._is_minimization}
            made = through(value.solver, sample_reduction=estimator.sample_reduction, **told)
            monkeypatch.setattr(module, name, made)
            module.METHODS.update({method: made for method, function in module.METHODS.items() if function is value})
    monkeypatch.setattr(module, "aimle", through)
    gradients = []

    def note(optimiser, closure=None):
        gradients.append(torch.cat([p.grad.flatten() for group in optimiser.param_groups for p in group["params"]]))

    monkeypatch.setattr(torch.optim.Adam, "step", note)
    method = next(method for method in module.METHODS if method.startswith("aimle"))
    for seed in range(seeds):
        module.train(method, seed, steps=0)
    return torch.stack(gradients).mean(dim=0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_gradient_of_an_example_does_not_grow_with_the_number_of_samples(name):
    found = []
    for samples in (1, 16):
        with pytest.MonkeyPatch.context() as patch:
            found.append(first_gradient(example(name), samples, patch).norm().item())
    assert 0.5 < found[0] / found[1] < 2.0  # noise; the wrong reduction is off by 16


def test_the_gradient_of_the_tutorial_does_not_grow_with_the_number_of_samples():
    (block,) = re.findall(r"## In a network.*?```python\n(.*?)```", (ROOT / "docs/start.md").read_text(), re.DOTALL)
    found = []
    for samples in (1, 16):
        text = block.replace("nb_samples=4", f"nb_samples={samples}").replace("interleave(4", f"interleave({samples}")
        assert text.count(str(samples)) >= 2
        through = functools.partial(ste, noise_distribution=Gumbel())
        with pytest.MonkeyPatch.context() as patch:
            gradients = []
            patch.setattr(
                torch.optim.Adam, "step", lambda it, g=gradients: g.append(it.param_groups[0]["params"][0].grad)
            )
            patch.setattr(torch.optim.Adam, "zero_grad", lambda it: [p.__setattr__("grad", None) for p in params(it)])
            exec(text.replace("range(100)", "range(20)"), {"torch": torch, "aimle": through})
        found.append(torch.stack(gradients).mean(dim=0).norm().item())
    assert 0.5 < found[0] / found[1] < 2.0


@pytest.mark.parametrize("kind", ["regret", "L1"])
def test_the_gradient_of_the_benchmarks_loss_does_not_grow_with_the_number_of_samples(kind):
    found = []
    for samples in (1, 16):
        torch.manual_seed(0)
        theta, costs = torch.randn(200, 8, requires_grad=True), torch.rand(200, 8)
        options = {"nb_samples": samples, "sample_reduction": "sum", "noise_distribution": Gumbel()}
        decide = ste(functools.partial(select_k, k=3), **options)
        decision_loss(decide, kind, minimises=False)(theta, costs, select_k(costs, 3)).backward()
        found.append(theta.grad.mean(dim=0).norm().item())
    assert 0.5 < found[0] / found[1] < 2.0
    four = learning.DEFAULTS["aimle(nb_samples=4)"]().sample_reduction, jair.METHODS["four"].make().sample_reduction
    assert four == ("sum", "sum")


def params(optimiser):
    return [p for group in optimiser.param_groups for p in group["params"]]

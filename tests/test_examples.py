"""The examples run from end to end, and what they train learns within a few steps."""

import importlib.util
from pathlib import Path

import pytest

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

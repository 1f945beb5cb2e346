"""Measuring models, and the trials that are trained and measured: what is in their folders, and what is refused."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aaai23.errors import UsageError
from aaai23.nri.evaluate import measure
from aaai23.nri.model import build
from aaai23.nri.simulate import write
from aaai23.nri.trial import begin, read_config
from imle.solvers import spanning_tree_edges
from tests.aaai23.nri.runs import ADAPTIVE, data_of, evaluate, identity_of, record, train, trial_of

EVAL = f"{ADAPTIVE} --mode eval --seed 9"


# Measuring


def test_evaluation_moves_no_random_number_and_repeats_itself(parse):
    config = parse(ADAPTIVE)
    model, split = build(config), data_of(config)["valid"]
    state = torch.get_rng_state()
    first = measure(model, split, config, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == measure(model, split, config, seed=1) != measure(model, split, config, seed=2)
    assert first["elbo"] == pytest.approx(-first["nll"] - first["kl"])
    assert first["nll"] == pytest.approx(first["mse"] * 5 * 2 / (2 * config.var), rel=1e-4)  # frames, dims


def test_evaluation_does_not_depend_on_how_it_is_cut_up(parse):
    config = parse("--method ste --edge_metric_num_samples 3")
    model, split = build(config), data_of(config)["valid"]
    whole = measure(model, split, config, seed=1)
    config = replace(config, eval_batch_size=5, eval_edge_metric_bs=20)
    cut_up = measure(model, split, config, seed=1)
    assert cut_up.pop("edge_reading") == whole.pop("edge_reading")
    assert cut_up == pytest.approx(whole, rel=1e-4)


def test_edges_are_measured_with_gumbel_noise_over_many_samples(parse):
    config = parse("--edge_metric_num_samples 500 --eval_edge_metric_bs 7")
    model, split = build(config), data_of(config)["valid"]
    thetas = {split.positions[i].numpy().tobytes(): edges for i, edges in enumerate(split.edges)}
    model.logits = lambda inputs: torch.stack([thetas[graph.numpy().tobytes()] for graph in inputs])
    found = measure(model, split, config, seed=1, bound=False)
    theta = split.edges.repeat_interleave(500, dim=0)
    gumbel = -torch.log(-torch.log(torch.rand(theta.shape, dtype=torch.float64)))
    right = (spanning_tree_edges(theta + gumbel) * theta).sum(1).mean().item() / 4
    assert 0.5 < right < 0.9
    assert found["precision"] == pytest.approx(right, abs=0.02) and found["recall"] == pytest.approx(right, abs=0.02)
    assert found["acc"] == pytest.approx(1 - 2 * 0.4 * (1 - right), abs=0.02)


# Trials


def test_trial_folders_are_named_as_published(parse):
    config = parse("--lr 0.0001 --temp 0.1 --seed 3 --experiments_folder ../exp_nri/f")
    assert str(trial_of(config)) == "experiments/../exp_nri/f/lr0.0001_temp0.1_encwd0.0_decwd0.0_3"
    assert str(trial_of(parse("--experiment_name e --add_timestamp False"))) == "experiments/trials/e"


def test_a_named_trial_with_its_time_is_found_again_on_resuming(parse):
    started = parse("--experiment_name [e]")
    assert trial_of(started).name.startswith("[e]_20")
    for time, config in ((2020, started), (2021, started), (2022, parse("--seed 5")), (2023, parse("--sst topk"))):
        begin(Path(f"experiments/trials/[e]_{time}-01-01_00-00-00"), identity_of(config))
    for flags, found in (("", "[e]_2021"), ("--seed 5", "[e]_2022"), ("--sst topk", "[e]_2023")):
        assert trial_of(parse(f"--experiment_name [e] --resume {flags}")).name == f"{found}-01-01_00-00-00"
    for flags in ("--experiment_name [e] --resume --seed 6", "--experiment_name [e]", "--experiment_name e --resume"):
        assert not trial_of(parse(flags)).exists()


def test_a_trial_of_other_settings_is_not_replaced(parse):
    train(parse("--max-steps 1"))
    with pytest.raises(UsageError, match=r"sst 'tree' .now 'topk'.*--experiments_folder"):
        train(parse("--max-steps 1 --sst topk --name another"))


def test_a_trial_that_cannot_be_written_is_refused_before_a_record_is_replaced(parse):
    config = parse("--max-steps 1")
    train(config)
    before = record(config)
    Path("experiments/file").touch()
    for place in ("--sst topk", "--experiments_folder file"):
        with pytest.raises(UsageError, match="experiments/"):
            train(parse(f"--max-steps 1 --again {place}"))
        assert record(config) == before
    assert sorted(path.name for path in trial_of(config).iterdir()) == [
        "decoder.pt",
        "encoder.pt",
        "log.txt",
        "train_and_val_measurements.pkl",
        "train_config.json",
    ]


def test_a_run_that_is_refused_leaves_no_trial_without_weights(parse):
    train(parse("--max-steps 1"))
    with pytest.raises(UsageError, match="--resume goes on"):
        train(parse("--max-steps 2 --experiments_folder elsewhere"))
    assert not list(Path("experiments/elsewhere").glob("*/*"))


def test_a_trial_elsewhere_has_the_best_weights_of_a_run_that_goes_on(parse):
    wild = "--lr 0.3"  # nothing is better than the start
    train(parse(f"{wild} --max-steps 4"))
    final = train(parse(f"{wild} --resume --experiments_folder elsewhere"))
    found = evaluate(parse("--mode eval --experiments_folder elsewhere"))
    assert found["test"]["elbo"].tolist() == [final["test_elbo"]]


# Measuring trials


@pytest.fixture
def finals(parse):
    """The final metrics of two trials that are there to be measured."""
    return [train(parse(f"{ADAPTIVE} --seed {seed} --max-steps 2")) for seed in (1, 2)]


@pytest.fixture
def measured(monkeypatch):
    """Which measurements of splits were made: the seeds of their trials."""
    seeds = []

    def counting(model, split, config, seed, **options):
        seeds.append(seed)
        return measure(model, split, config, seed, **options)

    monkeypatch.setattr("aaai23.nri.evaluate.measure", counting)
    return seeds


def same(a, b):
    """Compare what `evaluate` returns."""
    return all(np.array_equal(a[split][key], b[split][key]) for split in a for key in a[split])


def test_measuring_trials_returns_an_array_of_one_number_per_trial(parse, finals):
    config = parse(EVAL)
    found = evaluate(config)
    assert list(found) == ["valid", "test"]
    for split, name in (("valid", "val"), ("test", "test")):
        assert list(found[split]) == ["elbo", "acc", "precision", "recall"]
        for key, values in found[split].items():
            assert values.tolist() == pytest.approx([final[f"{name}_{key}"] for final in finals])
            assert values.dtype == ("float64" if key == "elbo" else "float32")
    measured = record(config, "nri-eval")
    assert [entry["edge_reading"] for entry in measured.history] == [final["edge_reading"] for final in finals]
    assert measured.final["test_elbo"] == pytest.approx(sum(final["test_elbo"] for final in finals) / 2)
    assert measured.method == "aimle" and "num_iterations" not in measured.settings


def test_trials_are_measured_once(parse, finals, measured, capsys):
    first = evaluate(parse(EVAL))
    assert measured == [1, 1, 2, 2]
    capsys.readouterr()
    for text in (EVAL, f"{EVAL} --num_iterations 99"):  # what is there has no length
        assert same(evaluate(parse(text)), first)
    assert len(measured) == 4 and "all_measurements {'valid'" in capsys.readouterr().out
    assert same(evaluate(parse(f"{EVAL} --again")), first) and len(measured) == 8


def test_measurements_that_were_interrupted_go_on(parse, finals, monkeypatch):
    whole = evaluate(parse(f"{EVAL} --name whole"))
    calls = []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr("aaai23.nri.evaluate.measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(parse(EVAL))
    assert len(record(parse(EVAL), "nri-eval").history) == 1
    with pytest.raises(UsageError, match="--resume goes on from there, --again starts anew"):
        evaluate(parse(EVAL))
    assert same(evaluate(parse(f"{EVAL} --resume")), whole) and len(calls) == 6


def test_weights_that_have_changed_are_measured_anew(parse, finals, measured):
    first = evaluate(parse(EVAL))
    again = train(parse(f"{ADAPTIVE} --seed 2 --max-steps 6 --resume"))
    with pytest.raises(UsageError, match=r"read other data.*--again"):
        evaluate(parse(EVAL))
    found = evaluate(parse(f"{EVAL} --again"))
    assert found["test"]["elbo"].tolist() == [first["test"]["elbo"][0], again["test_elbo"]]
    train(parse(f"{ADAPTIVE} --seed 3 --max-steps 2"))
    assert len(evaluate(parse(f"{EVAL} --again"))["test"]["elbo"]) == 3


def test_trials_of_other_data_are_measured_with_a_warning(parse, finals, tmp_path, caplog):
    evaluate(parse(EVAL))
    assert "other data" not in caplog.text
    write(tmp_path / "other", 6, nb_vertices=5, sizes=(70, 20, 10), seed=1)
    config = parse(f"{EVAL} --name y", folder=tmp_path / "other")
    with caplog.at_level(logging.WARNING):
        evaluate(config)
    assert [message.partition(" was ")[2] for message in caplog.messages] == [
        "trained on other data than it is measured on"
    ] * 2
    assert record(config, "nri-eval").data != record(parse(f"{ADAPTIVE} --seed 1")).data


def test_weights_that_are_not_finite_have_no_metrics(parse, finals):
    path = trial_of(parse(f"{ADAPTIVE} --seed 1")) / "decoder.pt"
    state = torch.load(path)
    state["out_fc3.bias"][0] = math.nan
    torch.save(state, path)
    config = parse(EVAL)
    elbo = evaluate(config)["test"]["elbo"]
    assert np.isnan(elbo[0]) and elbo[1] == finals[1]["test_elbo"]
    assert record(config, "nri-eval").final["test_elbo"] is None


@pytest.mark.parametrize("content", ["", "[1]", '{"lr": 0.1}', '{"settings": 3}'])
def test_a_trial_that_does_not_say_whose_it_is_is_named(parse, content):
    config = parse("--max-steps 1")
    train(config)
    assert read_config(trial_of(config))["settings"]["sst"] == "tree"
    (trial_of(config) / "train_config.json").write_text(content)
    for again in (lambda: evaluate(parse("--mode eval")), lambda: train(parse("--max-steps 1 --again"))):
        with pytest.raises(UsageError, match=r"train_config\.json .*move the trial away"):
            again()


def test_measurements_lie_beside_the_trials(parse, finals):
    found = evaluate(parse(EVAL))
    saved = json.loads(Path("experiments/trials/all_measurements.json").read_text())
    assert list(saved) == [trial_of(parse(f"{ADAPTIVE} --seed {seed}")).name for seed in (1, 2)]
    assert [entry["test_acc"] for entry in saved.values()] == pytest.approx(found["test"]["acc"].tolist())

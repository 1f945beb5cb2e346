"""What a run's trees mean to its decoder, measured from its record and checkpoint."""

import json

import pytest

from benchmarks import plateau
from tests.aaai23.nri.runs import ADAPTIVE, train


def test_errors_along_the_encoders_trees_are_those_of_the_record(parse, five_vertices, tmp_path, capsys):
    train(parse(f"{ADAPTIVE} --num_iterations 4"))
    (path,) = tmp_path.glob("results/nri/x/seed*.json")
    capsys.readouterr()
    assert plateau.main([str(path), "--data-dir", str(five_vertices)]) == 0
    rows = {line[:38].strip(): line[38:].split() for line in capsys.readouterr().out.splitlines()[2:]}
    last = json.loads(path.read_text())["history"][-1]
    assert float(rows["the encoder's"][1]) == pytest.approx(last["val_nll"], abs=0.06)
    assert rows["true"][0] == "1.000"
    assert float(rows["any"][0]) < 0.7


def test_a_decoder_is_held_while_the_encoder_learns(parse, five_vertices, tmp_path, capsys, monkeypatch):
    train(parse(f"{ADAPTIVE} --num_iterations 1"))
    (path,) = tmp_path.glob("results/nri/x/seed*.json")
    monkeypatch.setattr(plateau, "DECODER_STEPS", 2)
    monkeypatch.setattr(plateau, "ENCODER_STEPS", 2)
    optimisers = []
    adam = plateau.torch.optim.Adam
    monkeypatch.setattr(
        plateau.torch.optim,
        "Adam",
        lambda learning, **options: optimisers.append(learning) or adam(learning, **options),
    )
    capsys.readouterr()
    assert plateau.main([str(path), "--data-dir", str(five_vertices), "--learn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "2"] * 3
    held, learning = (len(parameters) for parameters in optimisers[1:])
    assert 0 < held < learning

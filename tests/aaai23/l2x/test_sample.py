import itertools
import json
import os
import statistics
import subprocess
import sys

import numpy as np
import pytest

from aaai23.errors import UsageError
from aaai23.harness.files import MARKER
from aaai23.l2x import sample
from aaai23.l2x.data import load

SIZES = {"reviews": 300, "heldout": 60, "annotated": 40}
NAMES = {f"reviews.aspect{a}.{part}.txt" for a in range(4) for part in ("train", "heldout")}
NAMES |= {"annotations.json", "review+wiki.filtered.200.txt", MARKER}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sample"
    sample.write_sample(path, seed=3, **SIZES)
    return path


@pytest.fixture(scope="module")
def reviews():
    return sample.make_reviews(3, 2000, 100, 100)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in NAMES}


def test_the_reader_accepts_every_aspect_and_knows_it_is_sample_data(folder):
    for aspect in range(4):
        data = load(folder, aspect)
        assert data.sample_data
        assert data.train.tokens.shape == (300, 350) and data.heldout.tokens.shape == (60, 350)
        assert data.annotated.relevant.shape == (40, 350) and data.embedding.shape[1] == 200


def test_exactly_the_files_of_the_four_formats_and_the_marker_are_written(folder):
    assert {path.name for path in folder.iterdir()} - {".cache"} == NAMES
    assert [path.name for path in folder.parent.iterdir()] == ["sample"]
    assert "sample data" in (folder / MARKER).read_text()


def test_held_out_and_annotated_reviews_have_words_that_training_lacks(folder):
    data = load(folder, 0)
    unknown = (data.heldout.tokens == 2).sum() / (data.heldout.tokens != 0).sum()
    assert 0.001 < unknown < 0.05
    lines = (folder / "annotations.json").read_text().splitlines()
    known = set((folder / "reviews.aspect0.train.txt").read_text().split())
    assert any(word not in known for line in lines for word in json.loads(line)["x"])


def test_most_training_words_have_a_vector_and_rare_ones_have_none(folder):
    data = load(folder, 0)
    without = (data.embedding[3:] == 0).all(dim=1).float().mean()
    assert 0.0 < without < 0.5
    vectors = (folder / "review+wiki.filtered.200.txt").read_text().splitlines()
    assert {"gorgeous", "dull", "silky", "tasty"} < {line.partition(" ")[0] for line in vectors}


def test_each_review_has_five_ratings_in_the_unit_interval_and_readable_words(folder):
    for line in (folder / "reviews.aspect2.train.txt").read_text().splitlines():
        ratings, text = line.split("\t")
        assert len(ratings.split()) == 5 and all(0 <= float(rating) <= 1 for rating in ratings.split())
        assert all(word.isascii() and word == word.lower() for word in text.split())
        assert " a a" not in text and " a e" not in text


def graded(aspect):
    return sample.word_lists()[f"graded {sample.ASPECTS[aspect]}"]


def test_no_graded_word_belongs_to_two_aspects_or_to_anything_else():
    lists = sample.word_lists()
    of_grades = {name for name in lists if name.startswith(("graded", "generic"))}
    grades = [grade.split() for name in of_grades for grade in lists[name]]
    others = [
        word for name in lists.keys() - of_grades if "names" not in name for word in " ".join(lists[name]).split()
    ]
    words = list(itertools.chain.from_iterable(grades))
    assert len(words) == len(set(words)) == 5 * 5 * 6 + 10
    assert not set(words) & set(others)


def test_the_annotated_ranges_are_the_sentences_of_the_aspect(folder):
    for line in (folder / "annotations.json").read_text().splitlines():
        record = json.loads(line)
        tokens, covered = record["x"], np.zeros(len(record["x"]), dtype=int)
        for aspect in range(5):
            inside = np.zeros(len(tokens), dtype=bool)
            for start, end in record[str(aspect)]:
                assert tokens[end - 1] in (".", "!") and not {".", "!"} & set(tokens[start : end - 1])
                assert start == 0 or tokens[start - 1] in (".", "!")
                inside[start:end] = True
            covered += inside
            lexicon = set(" ".join(graded(aspect)).split())
            assert all(inside[i] for i, token in enumerate(tokens) if token in lexicon)
        assert covered.max() == 1 and covered.min() == 0


def test_ratings_of_aspects_are_correlated_as_in_life(reviews):
    ratings = np.array([review.ratings for review in reviews[0]])
    correlations = np.corrcoef(ratings.T)[np.triu_indices(5, 1)]
    assert correlations.min() > 0.45 and correlations.max() < 0.65
    assert np.allclose(ratings.std(axis=0), 0.2, atol=0.05)


def test_an_aspects_own_words_tell_its_rating_and_others_words_tell_less(reviews):
    ratings = np.array([review.ratings for review in reviews[0]])
    grades = np.array([[mean_grade(review, aspect) for aspect in range(5)] for review in reviews[0]])
    correlation = np.corrcoef(ratings.T, grades.T)[:5, 5:]
    own, others = np.diag(correlation), correlation[~np.eye(5, dtype=bool)]
    assert own.min() > 0.85 and others.max() < 0.65


def mean_grade(review, aspect):
    words = [set(grade.split()) for grade in graded(aspect)]
    found = [g for token in review.tokens for g, grade in enumerate(words) if token in grade]
    return statistics.mean(found) if found else 2.0


def test_lengths_vary_and_some_reviews_are_longer_than_350_tokens(reviews):
    lengths = np.array([len(review.tokens) for review in reviews[0]])
    assert 90 < lengths.mean() < 160 and lengths.min() < 70
    assert 0.002 < (lengths > 350).mean() < 0.05


def test_every_aspect_takes_about_a_sixth_of_a_review(reviews):
    for aspect in range(5):
        shares = [
            sum(end - start for start, end in review.ranges(aspect)) / len(review.tokens) for review in reviews[0]
        ]
        assert 0.12 < statistics.mean(shares) < 0.25


def test_sentences_come_in_any_order(reviews):
    first = [review.sentences[0][0] for review in reviews[0]]
    assert {about: first.count(about) > 200 for about in [None, *range(5)]} == dict.fromkeys([None, *range(5)], True)


def test_the_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    command = [sys.executable, "-m", "aaai23.l2x.sample", "--output", str(tmp_path / "again"), "--seed", "3"]
    command += ["--reviews", "300", "--heldout", "60", "--annotated", "40"]
    shown = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True, capture_output=True, text=True
    )
    assert "Sample data" in shown.stdout
    assert contents(tmp_path / "again") == contents(folder)


def test_another_seed_gives_other_reviews():
    assert sample.make_reviews(0, 5, 5, 5) != sample.make_reviews(1, 5, 5, 5)


def test_older_sample_data_is_replaced_whole(tmp_path):
    sample.write_sample(tmp_path / "s", seed=0, reviews=20, heldout=2, annotated=1)
    (tmp_path / "s" / ".cache").mkdir()
    sample.write_sample(tmp_path / "s", seed=1, reviews=20, heldout=2, annotated=1)
    assert {path.name for path in (tmp_path / "s").iterdir()} == NAMES | {".cache"}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_files_that_are_not_sample_data_are_never_overwritten(tmp_path):
    (tmp_path / "annotations.json").write_text("precious")
    with pytest.raises(UsageError, match=r"annotations.json is not sample data"):
        sample.write_sample(tmp_path, **SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["annotations.json"]


def test_the_sample_data_of_other_tasks_in_the_same_folder_stay(tmp_path):
    (tmp_path / MARKER).touch()
    (tmp_path / "mnist").mkdir()
    sample.write_sample(tmp_path, reviews=20, heldout=2, annotated=1)
    assert {path.name for path in tmp_path.iterdir()} == NAMES | {"mnist"}


def test_a_failure_on_the_way_leaves_the_older_data_and_nothing_else(tmp_path, monkeypatch):
    sample.write_sample(tmp_path / "s", reviews=20, heldout=2, annotated=1)
    before = contents(tmp_path / "s")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "_vector_lines", fail)
    with pytest.raises(KeyboardInterrupt):
        sample.write_sample(tmp_path / "s", seed=1, reviews=20, heldout=2, annotated=1)
    assert contents(tmp_path / "s") == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_bad_input_on_the_command_line_is_exit_code_two(tmp_path, capsys):
    assert sample.main(["--output", str(tmp_path / "s"), "--reviews", "3"]) == 2
    (tmp_path / "file").touch()
    assert sample.main(["--output", str(tmp_path / "file")]) == 2
    assert sample.main(["--output", str(tmp_path / "file" / "below")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "20 reviews" in errors[0] and "cannot write" in errors[1]


@pytest.mark.parametrize("words", ["--seed 99999999999999999999", "--reviews 99999999999999999999", "--heldout 1_0"])
def test_what_is_no_number_of_a_script_is_named(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        sample.main(["--output", str(tmp_path / "s"), *words.split()])
    assert end.value.code == 2
    assert f"{words.split()[0]}: expected a whole number" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()

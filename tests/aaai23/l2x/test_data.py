import errno
import json
import logging
import os

import numpy as np
import pytest
import torch

from aaai23.errors import UsageError
from aaai23.harness.files import MARKER
from aaai23.l2x.data import load, split_heldout

TRAIN = "reviews.aspect1.train.txt"
HELDOUT = "reviews.aspect1.heldout.txt"
ANNOTATIONS = "annotations.json"
VECTORS = "review+wiki.filtered.200.txt"


def vector_line(word, value, size=200):
    return f"{word} " + " ".join([f"{value:.2f}"] * size)


def annotation(tokens, **ranges):
    return json.dumps({"x": tokens.split(), "1": [], **ranges})


@pytest.fixture
def folder(tmp_path):
    """Three training reviews (words the=3 beer=4 is=5 good=6 bad=7), two held out, two annotated."""
    write(tmp_path, TRAIN, "0.1 0.8 0.3", "the beer is good", "0.1 0.2 0.3", "the beer is bad", "1 0 1", "bad bad")
    write(tmp_path, HELDOUT, "0.5 0.5 0.5", "good ale", "0.5 1.0 0.5", "the good the bad the unseen")
    lines = [annotation("the beer smells good", **{"1": [[1, 2], [3, 4]]}), annotation("bad", **{"1": [[0, 1]]})]
    (tmp_path / ANNOTATIONS).write_text("\n".join(lines) + "\n")
    vectors = [vector_line("good", 0.5), vector_line("ale", 0.25), vector_line("bad", -0.5)]
    (tmp_path / VECTORS).write_text("\n".join(vectors) + "\n")
    return tmp_path


def write(folder, name, *ratings_and_reviews):
    pairs = zip(ratings_and_reviews[::2], ratings_and_reviews[1::2])
    (folder / name).write_text("".join(f"{ratings}\t{review}\n" for ratings, review in pairs))


def assert_same(a, b):
    for part in ("train.tokens", "train.ratings", "heldout.tokens", "heldout.ratings", "embedding"):
        assert torch.equal(get(a, part), get(b, part)), part
    assert torch.equal(a.annotated.tokens, b.annotated.tokens)
    assert torch.equal(a.annotated.relevant, b.annotated.relevant)


def get(data, path):
    for name in path.split("."):
        data = getattr(data, name)
    return data


def test_reviews_have_ids_from_three_in_order_of_appearance_are_padded_in_front_and_rated_by_their_aspect(folder):
    data = load(folder, 1, max_len=5)
    assert data.train.tokens.tolist() == [[0, 3, 4, 5, 6], [0, 3, 4, 5, 7], [0, 0, 0, 7, 7]]
    assert torch.equal(data.train.ratings, torch.tensor([0.8, 0.2, 0.0]))
    assert data.train.ratings.dtype == torch.float32 and not data.sample_data


def test_long_reviews_keep_their_first_tokens_and_words_beyond_have_ids(folder):
    data = load(folder, 1, max_len=2)
    assert data.train.tokens.tolist() == [[3, 4], [3, 4], [7, 7]]
    assert data.heldout.tokens.tolist() == [[6, 2], [3, 6]]  # good, whose place in training is beyond


def test_unknown_words_are_two_in_heldout_reviews_and_zero_in_annotations(folder):
    data = load(folder, 1, max_len=6)
    assert data.heldout.tokens.tolist() == [[0, 0, 0, 0, 6, 2], [3, 6, 3, 7, 3, 2]]
    assert data.annotated.tokens.tolist() == [[0, 0, 3, 4, 0, 6], [0, 0, 0, 0, 0, 7]]


def test_ranges_shift_with_the_padding_and_are_cut_with_the_review(folder):
    assert load(folder, 1, max_len=5).annotated.relevant.int().tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 1]]
    assert load(folder, 1, max_len=3).annotated.relevant.int().tolist() == [[0, 1, 0], [0, 0, 1]]


def test_ranges_beyond_the_review_are_cut(folder):
    (folder / ANNOTATIONS).write_text(annotation("the beer", **{"1": [[1, 9], [4, 9]]}))
    assert load(folder, 1, max_len=3).annotated.relevant.int().tolist() == [[0, 0, 1]]


def test_words_without_a_vector_and_special_words_have_zeros(folder):
    with (folder / VECTORS).open("a") as file:
        file.write(vector_line("<UNK>", 9.0) + "\n")
    embedding = load(folder, 1).embedding
    assert embedding.shape == (8, 200) and embedding.dtype == torch.float32
    assert embedding.mean(dim=1).tolist() == [0.0] * 6 + [0.5, -0.5]


def test_a_no_break_space_belongs_to_its_word(folder):
    word = "smooth\u00a0ale"
    write(folder, TRAIN, "0 0 0", f"{word} good")
    (folder / VECTORS).write_text(vector_line(word, 0.75) + "\n")
    (folder / ANNOTATIONS).write_text(annotation("good", **{"1": [[0, 1]]}))
    data = load(folder, 1, max_len=2)
    assert data.train.tokens[0].tolist() == [3, 4] and data.embedding[3].mean() == 0.75


def test_the_marker_file_makes_it_sample_data(folder):
    (folder / MARKER).touch()
    assert load(folder, 1).sample_data


def test_the_line_end_is_no_part_of_a_word_in_any_style(folder):
    plain, text = load(folder, 1, max_len=5), (folder / TRAIN).read_text()
    (folder / TRAIN).write_bytes(text.replace("\n", "\r\n").encode())
    assert_same(load(folder, 1, max_len=5), plain)


# ---- files that belong together


@pytest.mark.parametrize("name", [TRAIN, HELDOUT, ANNOTATIONS, VECTORS])
def test_a_byte_order_mark_changes_nothing(folder, name):
    plain = load(folder, 1, max_len=5)
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert_same(load(folder, 1, max_len=5), plain)


def test_of_a_repeated_word_the_first_vector_counts_with_one_warning(folder, caplog, capfd):
    plain = load(folder, 1, max_len=5)
    with (folder / VECTORS).open("a") as file:
        file.writelines(vector_line(word, 7.0) + "\n" for word in ("good", "bad", "good"))
    caplog.clear()
    assert_same(load(folder, 1, max_len=5), plain)
    repeats = [record.message for record in caplog.records if "repeats" in record.message]
    assert repeats == [f"{folder / VECTORS} repeats 3 of its words: the first vector of each is taken"]
    assert "duplicate" not in capfd.readouterr().err


def said(folder, caplog):
    """Return what a load says of each share of words: file, share, level."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load(folder, 1)
    lines = [(record.message.split("%"), record.levelname) for record in caplog.records if "% of the" in record.message]
    return [(rest.split()[4], float(share), level) for (share, rest), level in lines]


def test_shares_of_words_that_other_files_know_are_said_and_warned_about_below_a_half(folder, caplog):
    # by hand: good 1 and bad 3 of ten words have a vector; 6 of 8; 4 of 5
    expected = [(TRAIN, 40.0, "WARNING"), (HELDOUT, 75.0, "INFO"), (ANNOTATIONS, 80.0, "INFO")]
    assert said(folder, caplog) == expected
    assert said(folder, caplog) == expected  # from the cache too
    with (folder / VECTORS).open("a") as file:
        file.write(vector_line("the", 0.1) + "\n")
    assert said(folder, caplog)[0] == (TRAIN, 60.0, "INFO")
    write(folder, HELDOUT, "0.5 0.5 0.5", "GOOD ALE good", "0.5 1.0 0.5", "THE GOOD")
    assert said(folder, caplog)[1] == (HELDOUT, 20.0, "WARNING")


@pytest.mark.parametrize("name", [HELDOUT, ANNOTATIONS, VECTORS])
def test_a_file_none_of_whose_words_another_one_knows_is_refused(folder, name):
    text = (folder / name).read_text()
    (folder / name).write_text(text.upper().replace('"X"', '"x"'))
    for _ in range(2):  # neither does the cache let it pass
        with pytest.raises(UsageError, match=r"none of the words in .*: these files do not belong together"):
            load(folder, 1)


def test_annotations_that_mark_nothing_are_warned_about(folder, caplog):
    (folder / ANNOTATIONS).write_text(annotation("the beer", **{"1": []}))
    load(folder, 1)
    assert "marks no words for aspect 1" in caplog.text


# ---- errors

GOOD = "0.1 0.2 0.3\tgood beer"
BAD_REVIEWS = {
    "0.1 0.2 0.3 good beer": "no tab",
    "0.1 much 0.3\tgood beer": "ratings are numbers",
    "0.1\tgood beer": "1 ratings, but aspect 1 needs at least 2",
    "0.1 1.2 0.3\tgood beer": "1.2, outside",
    "0.1 -0.2 0.3\tgood beer": "-0.2, outside",
    "0.1 nan 0.3\tgood beer": "nan, outside",
    "0.1 0.2 0.3\t ": "the review is empty",
    "": "no tab",
}


@pytest.mark.parametrize("name", [TRAIN, HELDOUT])
@pytest.mark.parametrize("line, reason", BAD_REVIEWS.items())
def test_a_malformed_review_is_named_by_file_and_line(folder, name, line, reason):
    (folder / name).write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    assert_usage_error(folder, f"{folder / name}:2: ", reason)


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(folder):
    (folder / TRAIN).write_bytes(f"{GOOD}\n{GOOD}".encode() + b" \xff\n")
    assert_usage_error(folder, f"{folder / TRAIN}:2: ", "not UTF-8")


BAD_ANNOTATIONS = {
    "{": "not JSON",
    "[1, 2]": "JSON object",
    '{"1": []}': "no key 'x'",
    '{"x": ["good"], "0": []}': "no key '1', only ['0', 'x']",
    '{"x": "good", "1": []}': "not a list of words",
    '{"x": [], "1": []}': "not a list of words",
    '{"x": ["good", 3], "1": []}': "not a list of words",
    '{"x": ["good"], "1": 3}': "not a list of [start, end) pairs",
    '{"x": ["good"], "1": [3]}': "not a list of [start, end) pairs",
    '{"x": ["good"], "1": [[0, 1, 2]]}': "not a list of [start, end) pairs",
    '{"x": ["good"], "1": [[1, 0]]}': "not a list of [start, end) pairs",
    '{"x": ["good"], "1": [[-1, 1]]}': "not a list of [start, end) pairs",
    '{"x": ["good"], "1": [[0.0, 1.0]]}': "not a list of [start, end) pairs",
}


@pytest.mark.parametrize("line, reason", BAD_ANNOTATIONS.items())
def test_a_malformed_annotation_is_named_by_file_and_line(folder, line, reason):
    good = annotation("good beer", **{"1": [[0, 1]]})
    (folder / ANNOTATIONS).write_text(f"{good}\n{good}\n{line}\n")
    assert_usage_error(folder, f"{folder / ANNOTATIONS}:3: ", reason)


BAD_VECTORS = {
    vector_line("beer", 1, 199): "199 numbers after the word, not 200",
    vector_line("beer", 1, 201): "201 numbers after the word, not 200",
    vector_line("beer", 1, 199) + " x": "'x' in the vector of 'beer' is not a number",
    vector_line("beer", 1, 199) + " nan": "'nan' in the vector of 'beer' is not a number",
    vector_line("beer", 1, 199) + " 1e99": "'1e99' in the vector of 'beer' is not a number",
    "": "0 numbers after the word",
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("line, reason", BAD_VECTORS.items())
def test_a_malformed_vector_is_named_by_file_and_line(folder, line, reason):
    (folder / VECTORS).write_text("\n".join([vector_line("good", 1), line, vector_line("bad", 1)]) + "\n")
    assert_usage_error(folder, f"{folder / VECTORS}:2: ", reason)


def test_vectors_of_another_size_are_refused_at_line_one(folder):
    (folder / VECTORS).write_text(vector_line("good", 1, 100) + "\n" + vector_line("bad", 1, 100) + "\n")
    assert_usage_error(folder, f"{folder / VECTORS}:1: ", "100 numbers after the word, not 200")


def test_a_header_line_is_refused_with_a_hint(folder):
    (folder / VECTORS).write_text("1 200\n" + vector_line("good", 1) + "\n")
    assert_usage_error(folder, f"{folder / VECTORS}:1: ", "a header line has to go")


@pytest.mark.parametrize("name", [TRAIN, HELDOUT, ANNOTATIONS, VECTORS])
def test_a_missing_file_says_how_to_get_it_and_an_empty_one_is_refused(folder, name):
    (folder / name).write_text("")
    assert_usage_error(folder, f"{folder / name} is empty", "again")
    (folder / name).unlink()
    assert_usage_error(folder, f"{folder / name} is missing", "./get_data.sh l2x")
    assert_usage_error(folder, f"{folder / name} is missing", "./get_data.sh sample")


@pytest.mark.parametrize("aspect, max_len", [(-1, 5), (1, 0)])
def test_impossible_arguments_are_refused(folder, aspect, max_len):
    with pytest.raises(UsageError, match="aspects start at 0, max_len at 1"):
        load(folder, aspect, max_len)


def assert_usage_error(folder, start, reason):
    with pytest.raises(UsageError) as caught:
        load(folder, 1)
    message = str(caught.value)
    assert message.startswith(start) and reason in message and "\n" not in message


# ---- cache


@pytest.fixture
def no_parsing(monkeypatch):
    """Makes any read of the sources fail, so that only a cache can serve."""

    def switch_on():
        def fail(*_):
            raise AssertionError("the sources were read again")

        monkeypatch.setattr("aaai23.l2x.data._read_reviews", fail)
        monkeypatch.setattr("aaai23.l2x.data._read_vectors", fail)

    return switch_on


def test_a_second_load_takes_the_same_from_the_cache(folder, no_parsing):
    fresh = load(folder, 1, max_len=5)
    no_parsing()
    assert_same(load(folder, 1, max_len=5), fresh)


def test_another_length_does_not_take_the_cache_of_this_one(folder):
    assert load(folder, 1, max_len=5).train.tokens.shape == (3, 5)
    assert load(folder, 1, max_len=2).train.tokens.shape == (3, 2)


@pytest.mark.parametrize("name", [TRAIN, HELDOUT, ANNOTATIONS, VECTORS])
def test_a_changed_file_is_read_again(folder, name):
    before = load(folder, 1, max_len=5)
    path = folder / name
    stat = path.stat()
    if name == VECTORS:
        path.write_text(path.read_text().replace("0.50", "0.75"))
    else:
        path.write_text(path.read_text().replace("good", "fine"))
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after = load(folder, 1, max_len=5)
    with pytest.raises(AssertionError):
        assert_same(after, before)
    (folder / ".cache").rename(folder / "elsewhere")
    assert_same(after, load(folder, 1, max_len=5))


@pytest.mark.parametrize("name", [TRAIN, HELDOUT, ANNOTATIONS, VECTORS])
def test_a_file_that_is_changed_in_size_and_time_by_nothing_is_read_again(folder, name):
    before, path = load(folder, 1, max_len=5), folder / name
    stat = path.stat()
    change = ("0.50", "0.75") if name == VECTORS else ("good", "fine")
    path.write_text(path.read_text().replace(*change))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    after = load(folder, 1, max_len=5)
    with pytest.raises(AssertionError):
        assert_same(after, before)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    """Changes one rating where it lies in the file; torch.load alone would not notice."""
    content, ratings = path.read_bytes(), np.array([0.8, 0.2, 0.0], dtype=np.float32).tobytes()
    assert content.count(ratings) == 1
    path.write_bytes(content.replace(ratings, np.array([0.8, 0.9, 0.0], dtype=np.float32).tobytes()))


def other_format(path):
    torch.save([1, 2, 3], path)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, other_format, empty])
def test_a_damaged_cache_is_made_again(folder, damage, no_parsing):
    fresh = load(folder, 1, max_len=5)
    damage(folder / ".cache" / "aspect1.5.pt")
    assert_same(load(folder, 1, max_len=5), fresh)
    no_parsing()
    assert_same(load(folder, 1, max_len=5), fresh)


def test_the_vectors_are_read_once_for_all_aspects(folder, no_parsing, monkeypatch):
    load(folder, 1)
    for name in (TRAIN, HELDOUT):
        (folder / name.replace("1", "2")).write_bytes((folder / name).read_bytes())
    (folder / ANNOTATIONS).write_text(json.dumps({"x": ["good"], "2": [[0, 1]]}))
    monkeypatch.setattr("aaai23.l2x.data._read_vectors", lambda *_: pytest.fail("read again"))
    assert load(folder, 2).embedding[6].mean() == 0.5


def test_a_read_only_folder_is_read_without_a_cache_and_one_line_says_so(folder, caplog):
    folder.chmod(0o555)
    try:
        with caplog.at_level(logging.WARNING):
            data = load(folder, 1, max_len=5)
        assert not (folder / ".cache").exists()
    finally:
        folder.chmod(0o755)
    assert [record.message for record in caplog.records if "without a cache" in record.message]
    assert len([record for record in caplog.records if "cache" in record.message]) == 1
    assert_same(data, load(folder, 1, max_len=5))


def test_a_cache_that_cannot_be_written_leaves_nothing_behind(folder, monkeypatch, caplog):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    assert load(folder, 1, max_len=5).train.tokens.shape == (3, 5)
    assert list((folder / ".cache").iterdir()) == []
    assert "no space left" in caplog.text


# ---- split


@pytest.mark.parametrize("n", [2, 11, 10_000])
@pytest.mark.parametrize("seed", [0, 9])
def test_the_split_is_that_of_scikit_learn_with_validation_first(n, seed):
    from sklearn.model_selection import train_test_split

    validation, test = split_heldout(n, seed)
    expected = train_test_split(list(range(n)), test_size=0.5, random_state=seed)
    assert [validation.tolist(), test.tolist()] == expected
    assert sorted([*validation, *test]) == list(range(n)) and len(test) - len(validation) == n % 2


def test_one_review_cannot_be_split():
    with pytest.raises(UsageError, match="1 held-out reviews cannot be halved"):
        split_heldout(1, 0)

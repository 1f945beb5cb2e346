"""BeerAdvocate as Learning to Explain reads it: reviews with ratings, annotated reviews, word vectors.

Four files make a data set; `config` names them. What is read is cached in `.cache` inside the data folder.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aaai23.errors import UsageError
from aaai23.harness import checkpoint
from aaai23.harness.files import fingerprint, is_sample, open_regular
from aaai23.l2x.config import EMBEDDING_SIZE, data_files

logger = logging.getLogger(__name__)

PAD, START, UNKNOWN = 0, 1, 2
SPECIAL_WORDS = {"<PAD>": PAD, "<START>": START, "<UNK>": UNKNOWN}
BYTE_ORDER_MARK = "\ufeff"
LARGEST = float(np.finfo(np.float32).max)
LONGEST_LINE = 2**22
CACHE_FORMAT = 3  # raise it when what the cache holds changes

Content = dict[str, Any]  # of tensors and strings, what a cache entry holds


@dataclass(frozen=True)
class Reviews:
    """Reviews padded in front: `tokens` [N, T] int32 word ids, `ratings` [N] float32 in [0, 1]."""

    tokens: Tensor
    ratings: Tensor


@dataclass(frozen=True)
class Annotations:
    """Annotated reviews: `tokens` [A, T] int32; `relevant` [A, T] bool, true where a range covers it."""

    tokens: Tensor
    relevant: Tensor


@dataclass(frozen=True)
class L2XData:
    """One aspect of a data set; `embedding` [V, 200] float32 has a row for each word id.

    `heldout` is one piece here: `split_heldout` halves it. `sample_data` is true for the made-up stand-in.
    """

    train: Reviews
    heldout: Reviews
    annotated: Annotations
    embedding: Tensor
    sample_data: bool


def load(data_dir: Path | str, aspect: int, max_len: int = 350, contents: str | None = None) -> L2XData:
    """Return reviews, annotations and word vectors for an aspect: 0 appearance, 1 aroma, 2 palate, 3 taste.

    A word's id is 3 or more, in order of first appearance in the training file (whole reviews count, also
    beyond `max_len`); 0 is padding, 1 is kept for a start symbol, 2 is an unknown word. A review keeps its
    first `max_len` tokens and is padded in front. A word unseen in training is 2 in held-out reviews and 0 in
    annotated ones: an odd pair, kept because the published subset precision counts that way. A word without
    a vector, like the three special words, has a row of zeros. Ranges that pass a review's end are cut there.

    The log says how many words of one file another one knows, and warns where that is less than a half.

    The first read leaves a cache in `data_dir/.cache`, which serves until a source's content changes. A folder that
    nobody may write to is left as it is, and read afresh each time.

    Args:
        data_dir: the folder of the four files.
        aspect: a number.
        max_len: tokens of a review that are kept.
        contents: the fingerprint of `data_files(data_dir, aspect)`, where the caller has it.

    Raises:
        UsageError: a file is missing, empty or malformed (the message names file and line), or knows no word of
            another one.
    """
    data_dir = Path(data_dir)
    if aspect < 0 or max_len < 1:
        raise UsageError(f"aspect {aspect} with at most {max_len} tokens: aspects start at 0, max_len at 1")
    sources = data_files(data_dir, aspect)
    cache = _folder_of_cache(data_dir)
    content = _cached(
        cache,
        f"aspect{aspect}.{max_len}",
        contents or fingerprint(sources),
        lambda: _read_all(sources, aspect, max_len, cache),
    )
    _check_shares(sources, content["shares"].tolist())
    if not content["relevant"].any():
        logger.warning(f"{sources[2]} marks no words for aspect {aspect}: subset precision can only be 0")
    return L2XData(
        train=Reviews(content["train"], content["train_ratings"]),
        heldout=Reviews(content["heldout"], content["heldout_ratings"]),
        annotated=Annotations(content["annotated"], content["relevant"]),
        embedding=content["embedding"],
        sample_data=is_sample(data_dir),
    )


def split_heldout(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the validation and of the test half of n held-out reviews, as the paper does.

    They are what scikit-learn's `train_test_split(range(n), test_size=0.5, random_state=seed)` returns: the
    first array is validation, the second is test (one longer when n is odd).

    Raises:
        UsageError: n is less than 2.
    """
    if n < 2:
        raise UsageError(f"{n} held-out reviews cannot be halved into validation and test; at least 2 are needed")
    from sklearn.model_selection import train_test_split

    validation, test = train_test_split(np.arange(n), test_size=0.5, random_state=seed)
    return validation, test


# ---- reviews


def _read_all(sources: Sequence[Path], aspect: int, max_len: int, cache: Path | None) -> Content:
    train, heldout, annotations, vectors = sources
    ids: defaultdict[bytes, int] = defaultdict(None, {word.encode(): i for word, i in SPECIAL_WORDS.items()})
    ids.default_factory = ids.__len__  # a new word takes the next free id
    train_tokens, train_ratings = _read_reviews(train, aspect, max_len, ids.__getitem__)
    ids.default_factory = None
    heldout_tokens, heldout_ratings = _read_reviews(heldout, aspect, max_len, lambda word: ids.get(word, UNKNOWN))
    words = [word.decode() for word in ids]
    annotated, relevant, annotated_words = _read_annotations(
        annotations, aspect, max_len, dict(zip(words, ids.values()))
    )
    # An entry of their own: gensim is slow on a large file, and the vectors serve every aspect.
    table = _cached(cache, "vectors", fingerprint([vectors]), lambda: _read_vectors(vectors))
    embedding = _embed(words, table["words"].split("\n"), table["matrix"])
    of_training, of_heldout = train_tokens[train_tokens != PAD], heldout_tokens[heldout_tokens != PAD]
    shares = [
        embedding.any(dim=1)[of_training].double().mean().item(),
        (of_heldout != UNKNOWN).double().mean().item(),
        (annotated != PAD).sum().item() / annotated_words,
    ]
    return {
        "shares": torch.tensor(shares, dtype=torch.float64),
        "embedding": embedding,
        "train": train_tokens,
        "train_ratings": train_ratings,
        "heldout": heldout_tokens,
        "heldout_ratings": heldout_ratings,
        "annotated": annotated,
        "relevant": relevant,
    }


def _check_shares(sources: Sequence[Path], shares: Sequence[float]) -> None:
    """Say what shares of the words in training, held-out and annotated reviews the file beside them knows.

    Raises:
        UsageError: one is 0.
    """
    train, heldout, annotations, vectors = sources
    pairs = (
        (train, f"have a vector in {vectors.name}"),
        (heldout, f"are in {train.name}"),
        (annotations, f"are in {train.name}"),
    )
    for share, (path, known) in zip(shares, pairs, strict=True):
        if not share:
            raise UsageError(f"none of the words in {path} {known}: these files do not belong together; get them anew")
        line = f"{share:.1%} of the words in {path.name} {known}"
        if share < 0.5:
            logger.warning(f"{line}: do these files belong together?")
        else:
            logger.info(line)


def _read_reviews(path: Path, aspect: int, max_len: int, word_id: Callable[[bytes], int]) -> tuple[Tensor, Tensor]:
    rows, ratings = [], []
    for place, line in _lines(path):
        head, tab, body = line.partition(b"\t")
        if not tab:
            raise UsageError(f"{place}: no tab between ratings and review")
        ratings.append(_rating(head, aspect, place))
        # Bytes split at ASCII blanks only: a no-break space stays inside its word, as it does in the vectors.
        row = np.fromiter(map(word_id, body.split()), dtype=np.int32)
        if not row.size:
            raise UsageError(f"{place}: the review is empty")
        rows.append(row[:max_len])
    return _pad_in_front(rows, max_len), torch.tensor(ratings, dtype=torch.float32)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield `file:line`, for messages, and the line; without the mark that some editors begin a file with."""
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            place = f"{path}:{number}"
            if len(line) == LONGEST_LINE:
                raise UsageError(f"{place}: the line is longer than {LONGEST_LINE:,} bytes")
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise UsageError(f"{place}: not UTF-8 text ({error.reason} at byte {error.start})") from error
            yield place, line.removeprefix(BYTE_ORDER_MARK.encode()) if number == 1 else line


def _rating(head: bytes, aspect: int, place: str) -> float:
    try:
        ratings = [float(number) for number in head.split()]
    except ValueError as error:
        raise UsageError(f"{place}: ratings are numbers before the tab, found {_show(head)}") from error
    if len(ratings) <= aspect:
        raise UsageError(f"{place}: {len(ratings)} ratings, but aspect {aspect} needs at least {aspect + 1}")
    if not 0.0 <= ratings[aspect] <= 1.0:
        raise UsageError(f"{place}: the rating of aspect {aspect} is {ratings[aspect]}, outside [0, 1]")
    return ratings[aspect]


def _show(text: bytes, width: int = 40) -> str:
    shown = text.decode(errors="replace").strip()
    return repr(shown if len(shown) <= width else shown[:width] + "...")


def _pad_in_front(rows: Sequence[Sequence | np.ndarray], max_len: int) -> Tensor:
    padded = np.full((len(rows), max_len), PAD, dtype=np.int32)
    for i, row in enumerate(rows):
        padded[i, max_len - len(row) :] = row
    return torch.from_numpy(padded)


# ---- annotations


def _read_annotations(path: Path, aspect: int, max_len: int, vocabulary: dict[str, int]) -> tuple[Tensor, Tensor, int]:
    rows, masks = [], []
    for place, line in _lines(path):
        tokens, ranges = _annotation(line, aspect, place)
        mask = np.zeros(len(tokens), dtype=bool)
        for start, end in ranges:
            mask[start:end] = True
        rows.append([vocabulary.get(token, PAD) for token in tokens[:max_len]])
        masks.append(mask[:max_len])
    return _pad_in_front(rows, max_len), _pad_in_front(masks, max_len).bool(), sum(map(len, rows))


def _annotation(line: bytes, aspect: int, place: str) -> tuple[list[str], list[list[int]]]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise UsageError(f"{place}: an annotated review is a JSON object, found {_show(line)}")
    for key in ("x", str(aspect)):
        if key not in record:
            raise UsageError(f"{place}: no key {key!r}, only {sorted(record)}")
    tokens, ranges = record["x"], record[str(aspect)]
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise UsageError(f"{place}: 'x' is not a list of words")
    if not isinstance(ranges, list) or not all(map(_is_range, ranges)):
        raise UsageError(f"{place}: '{aspect}' is not a list of [start, end) pairs with 0 <= start <= end")
    return tokens, ranges


def _is_range(pair: object) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(bound) is int for bound in pair):
        return False
    return 0 <= pair[0] <= pair[1]


# ---- word vectors


def _read_vectors(path: Path) -> Content:
    from gensim.models import KeyedVectors

    logging.getLogger("gensim").setLevel(logging.ERROR)  # it would warn of each repeated word
    logger.info("Reading word vectors from %s; the next start takes them from a cache", path)
    for _ in _lines(path):  # gensim would read a line of any length
        pass
    try:
        vectors = KeyedVectors.load_word2vec_format(str(path), binary=False, no_header=True)
        words = [word for word in vectors.index_to_key if word is not None]  # None in place of each repeated one
        matrix = torch.from_numpy(np.array(vectors.vectors[: len(words)], dtype=np.float32))
        if matrix.shape[1] != EMBEDDING_SIZE or not matrix.isfinite().all():
            raise ValueError(f"vectors {list(matrix.shape)}")
    except (ValueError, EOFError, IndexError, OSError) as error:
        _blame_line(path)
        raise UsageError(f"{path}: gensim cannot read it ({error})") from error
    repeated = len(vectors.index_to_key) - len(words)
    if repeated:
        logger.warning("%s repeats %d of its words: the first vector of each is taken", path, repeated)
    return {"words": "\n".join(words).removeprefix(BYTE_ORDER_MARK), "matrix": matrix}


def _blame_line(path: Path) -> None:
    """Raise an error that names the first line which is not a word and its 200 numbers."""
    for place, line in _lines(path):
        word, *numbers = line.rstrip().split(b" ")
        if len(numbers) != EMBEDDING_SIZE:
            hint = "; a header line has to go" if place.endswith(":1") and len(numbers) == 1 else ""
            raise UsageError(f"{place}: {len(numbers)} numbers after the word, not {EMBEDDING_SIZE}{hint}")
        for number in numbers:
            if not _is_finite(number):
                raise UsageError(f"{place}: {_show(number)} in the vector of {_show(word)} is not a number")


def _is_finite(number: bytes) -> bool:
    try:
        return abs(float(number)) <= LARGEST  # false for nan
    except ValueError:
        return False


def _embed(words: list[str], vector_words: list[str], matrix: Tensor) -> Tensor:
    """Return the vectors of `words`, [V, 200]; zeros where a word has none or is a special one."""
    rows = dict(zip(vector_words, range(len(vector_words))))
    for word in SPECIAL_WORDS:
        rows.pop(word, None)
    index = torch.from_numpy(np.fromiter((rows.get(word, -1) for word in words), np.int64, len(words)))
    embedding = matrix[index.clamp(min=0)]
    embedding[index < 0] = 0.0
    return embedding


# ---- cache


def _folder_of_cache(data_dir: Path) -> Path | None:
    """Return the folder of the cache; None, and a warning, where nobody may write: for root, writing would succeed."""
    if data_dir.stat().st_mode & 0o222:
        return data_dir / ".cache"
    logger.warning("Going on without a cache, %s is read-only", data_dir)
    return None


def _cached(folder: Path | None, name: str, contents: str, build: Callable[[], Content]) -> Content:
    """Return what `build` makes of sources of these contents, kept in the folder; damaged entries are made anew."""
    if folder is None:
        return build()
    path, fingerprint = folder / f"{name}.pt", f"{CACHE_FORMAT} {contents}"
    if path.exists():
        try:
            entry = checkpoint.load(path, sealed=True)
            if entry.get("fingerprint") == fingerprint:
                return entry["content"]
        except UsageError as error:
            logger.info("The cache is made again: %s", error)
    content = build()
    try:
        checkpoint.save(path, {"fingerprint": fingerprint, "content": content})
    except (UsageError, OSError) as error:
        logger.warning("Going on without a cache: %s", error)
    return content

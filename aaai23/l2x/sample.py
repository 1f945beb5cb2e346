"""Sample data: made-up beer reviews in BeerAdvocate's four formats, which may not be redistributed itself.

A review has ratings for five aspects, drawn with a common factor as people's ratings have one, and sentences in
random order. Each sentence is on one aspect, whose rating its graded words carry, or on none. So the words that
predict an aspect's rating best are those of its own sentences, and these are annotated.
"""

import itertools
import json
import random
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aaai23.errors import UsageError
from aaai23.harness.config import ArgumentParser, path, positive_int, seed_number
from aaai23.harness.files import claim_folder
from aaai23.harness.shell import run_cli
from aaai23.l2x.config import (
    ANNOTATIONS_FILE,
    EMBEDDING_SIZE,
    HELDOUT_FILE,
    TRAIN_FILE,
    VECTORS_FILE,
)

ASPECTS = ("appearance", "aroma", "palate", "taste", "overall")
TRAINED_ASPECTS = range(4)  # as in BeerAdvocate, "overall" has ratings and ranges, but no files of its own
CORRELATION = 0.55  # between the ratings of two aspects, before rounding
RATING_MEAN, RATING_STD = 0.62, 0.2
WORD_NOISE = 0.1  # spread of a graded word's level around its aspect's rating
MEAN_SENTENCES, LENGTH_SPREAD = 1.4, 0.55  # sentences per aspect; log-normal spread between reviews
MIN_REVIEWS = 20
GENERIC_SHARE = 0.15  # of the graded words, those of any aspect
UNSEEN_SHARE = 0.2  # of the names in held-out and annotated reviews, those that training never has
TYPO_SHARE = 0.01  # of the long words in held-out and annotated reviews, those with a letter doubled


def word_lists() -> dict[str, list[str]]:
    """Return the lines of each part of words.txt."""
    lists: dict[str, list[str]] = {}
    lines = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines()
    for line in (line for line in lines if line and not line.startswith("#")):
        if line.startswith("["):
            part = lists.setdefault(line.strip("[]"), [])
        else:
            part.append(line)
    return lists


@dataclass(frozen=True)
class Review:
    """Ratings of the five aspects, and sentences, each with the aspect it is on (None: filler)."""

    ratings: tuple[float, ...]
    sentences: tuple[tuple[int | None, list[str]], ...]

    @property
    def tokens(self) -> list[str]:
        """All words in order."""
        return list(itertools.chain.from_iterable(words for _, words in self.sentences))

    def ranges(self, aspect: int) -> list[list[int]]:
        """Return the [start, end) positions of the sentences on this aspect."""
        ends = list(itertools.accumulate(len(words) for _, words in self.sentences))
        spans = zip(self.sentences, [0, *ends], ends)
        return [[start, end] for (about, _), start, end in spans if about == aspect]


def write_sample(
    folder: Path | str, seed: int = 0, reviews: int = 4000, heldout: int = 1000, annotated: int = 200
) -> None:
    """Write sample data into a folder: reviews and held-out reviews of four aspects, annotations, word vectors.

    The same arguments give the same bytes. Everything is written aside and moved into place whole; older sample
    data are replaced.

    Args:
        folder: made when missing.
        seed: of the reviews and of the vectors.
        reviews: number of training reviews, at least 20; the four aspects have the same ones.
        heldout: number of held-out reviews, at least 2.
        annotated: number of annotated reviews, at least 1.

    Raises:
        UsageError: a number is too small, or the folder has such files that are not sample data.
    """
    folder = Path(folder)
    if reviews < MIN_REVIEWS or heldout < 2 or annotated < 1:
        raise UsageError(f"sample data needs {MIN_REVIEWS} reviews, 2 held out and 1 annotated, or more")
    texts = [TRAIN_FILE.format(aspect=aspect) for aspect in TRAINED_ASPECTS]
    heldout_texts = [HELDOUT_FILE.format(aspect=aspect) for aspect in TRAINED_ASPECTS]
    claim_folder(folder, [*texts, *heldout_texts, ANNOTATIONS_FILE, VECTORS_FILE])
    try:
        train, held_out, marked = make_reviews(seed, reviews, heldout, annotated)
        with tempfile.TemporaryDirectory(prefix=".sample-", dir=folder) as name:
            aside = Path(name)
            for train_file, heldout_file in zip(texts, heldout_texts):
                _write_lines(aside / train_file, map(_review_line, train))
                _write_lines(aside / heldout_file, map(_review_line, held_out))
            _write_lines(aside / ANNOTATIONS_FILE, map(_annotation_line, marked))
            _write_lines(aside / VECTORS_FILE, _vector_lines(train, seed))
            for path in sorted(aside.iterdir()):
                path.replace(folder / path.name)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}") from error


def make_reviews(
    seed: int, train: int, heldout: int, annotated: int
) -> tuple[list[Review], list[Review], list[Review]]:
    """Return so many training, held-out and annotated reviews; only the last two have words that training lacks."""
    rng = random.Random(seed)
    lists = word_lists()
    starts, ends = (lists[f"{part} of names"][0].split() for part in ("starts", "ends"))
    names = [start + end for start in starts for end in ends]
    rng.shuffle(names)
    unseen, seen = names[: len(names) // 5], names[len(names) // 5 :]
    writer, stranger = _Writer(rng, lists, seen), _Writer(rng, lists, seen, unseen)
    return (
        [writer.review() for _ in range(train)],
        [stranger.review() for _ in range(heldout)],
        [stranger.review() for _ in range(annotated)],
    )


class _Writer:
    """Write reviews with words from these lists."""

    def __init__(
        self,
        rng: random.Random,
        lists: dict[str, list[str]],
        names: list[str],
        unseen_names: list[str] | None = None,
    ):
        """`unseen_names`: given, they are used too, and words are mistyped now and then."""
        self.rng, self.names, self.unseen_names = rng, names, unseen_names
        self.clauses, self.fillers = lists["clauses"], lists["fillers"]
        self.openings = [lists[f"openings {aspect}"] for aspect in ASPECTS]
        self.graded = [[words.split() for words in lists[f"graded {aspect}"]] for aspect in ASPECTS]
        self.generic, self.nouns, self.details, (self.adverbs,) = (
            [words.split() for words in lists[part]] for part in ("generic", "nouns", "details", "adverbs")
        )

    def review(self) -> Review:
        ratings = self.ratings()
        mean = MEAN_SENTENCES * self.rng.lognormvariate(-(LENGTH_SPREAD**2) / 2, LENGTH_SPREAD)
        sentences: list[tuple[int | None, list[str]]] = []
        for aspect, rating in enumerate(ratings):
            sentences += [(aspect, self.sentence(aspect, rating)) for _ in range(self.count(mean))]
        sentences += [(None, self.fill(self.rng.choice(self.fillers))) for _ in range(self.count(mean))]
        self.rng.shuffle(sentences)
        return Review(ratings, tuple(sentences))

    def ratings(self) -> tuple[float, ...]:
        """Draw correlated ratings in twentieths: a common factor and one of each aspect, both normal."""
        common = self.rng.gauss(0, CORRELATION**0.5)
        scores = (common + self.rng.gauss(0, (1 - CORRELATION) ** 0.5) for _ in ASPECTS)
        return tuple(round(20 * min(max(RATING_MEAN + RATING_STD * z, 0.0), 1.0)) / 20 for z in scores)

    def count(self, mean: float) -> int:
        """Draw a number of sentences, at least one, around the mean."""
        whole = int(mean)
        return max(1, whole + (self.rng.random() < mean - whole) + self.rng.choice((-1, 0, 0, 1)))

    def sentence(self, aspect: int, rating: float) -> list[str]:
        parts = [self.rng.choice(self.openings[aspect])] if self.rng.random() < 0.5 else []
        parts.append(self.rng.choice(self.clauses))
        if self.rng.random() < 0.5:
            parts += [self.rng.choice((", and", "; also")), self.rng.choice(self.clauses)]
        return self.fill(" ".join([*parts, "." if self.rng.random() < 0.9 else "!"]), aspect, rating)

    def fill(self, template: str, aspect: int = 0, rating: float = 0.0) -> list[str]:
        """Return the template's words with the slots filled, "a" or "an" as it fits."""
        slots = {
            "N": lambda: self.rng.choice(self.nouns[aspect]),
            "S": lambda: self.graded_word(aspect, rating),
            "D": lambda: self.rng.choice(self.details[aspect]),
            "A": lambda: self.rng.choice(self.adverbs),
            "P": self.name,
        }
        words = [slots[word]() if word in slots else word for word in template.split()]
        for i, following in enumerate(words[1:]):
            if words[i] == "a" and following[0] in "aeiou":
                words[i] = "an"
        return words if self.unseen_names is None else list(map(self.typed, words))

    def typed(self, word: str) -> str:
        """Return the word, mistyped once in a while."""
        if len(word) < 5 or self.rng.random() > TYPO_SHARE:
            return word
        place = self.rng.randrange(1, len(word))
        return word[:place] + word[place - 1 :]

    def graded_word(self, aspect: int, rating: float) -> str:
        grade = min(max(int(5 * self.rng.gauss(rating, WORD_NOISE)), 0), 4)
        generic = self.rng.random() < GENERIC_SHARE
        return self.rng.choice(self.generic[grade] if generic else self.graded[aspect][grade])

    def name(self) -> str:
        """Draw a name: the first ones of the list are frequent, the last ones rare."""
        names = self.names
        if self.unseen_names is not None and self.rng.random() < UNSEEN_SHARE:
            names = self.unseen_names
        return names[int(len(names) * self.rng.random() ** 2)]


def _review_line(review: Review) -> str:
    return f"{' '.join(f'{rating:.2f}' for rating in review.ratings)}\t{' '.join(review.tokens)}"


def _annotation_line(review: Review) -> str:
    ranges = {str(aspect): review.ranges(aspect) for aspect in range(len(ASPECTS))}
    return json.dumps({"x": review.tokens, "y": review.ratings, **ranges})


def _vector_lines(reviews: Sequence[Review], seed: int) -> Iterable[str]:
    """Yield each word with its vector, trained by gensim on the reviews; words seen less than 3 times have none."""
    from gensim.models import Word2Vec

    model = Word2Vec(
        [review.tokens for review in reviews],
        vector_size=EMBEDDING_SIZE,
        window=10,  # reaches into neighbouring sentences: words of one grade are alike across aspects too
        sample=1e-4,  # skips most of the frequent words, which would get the longest vectors
        min_count=3,
        epochs=5,
        seed=seed + 1,  # gensim takes 0 for "no seed"
        workers=1,  # more would race
        hashfxn=_hash,
    )
    for word, vector in zip(model.wv.index_to_key, model.wv.vectors):
        yield f"{word} {' '.join(f'{x:.5f}' for x in vector)}"


def _hash(text: str) -> int:
    """Return the same for the same text in every process, as `hash` does not."""
    return zlib.crc32(text.encode())


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and returns the exit code."""
    parser = ArgumentParser(prog="python -m aaai23.l2x.sample", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=path, default=Path("data/sample"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=seed_number, default=0, help="default: %(default)s")
    parser.add_argument("--reviews", type=positive_int, default=4000, help="for training (default: %(default)s)")
    parser.add_argument("--heldout", type=positive_int, default=1000, help="default: %(default)s")
    parser.add_argument("--annotated", type=positive_int, default=200, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        write_sample(args.output, args.seed, args.reviews, args.heldout, args.annotated)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Sample data (made up, not BeerAdvocate) is in {args.output}: {args.reviews} training reviews.")
    return 0


if __name__ == "__main__":
    run_cli(main, "aaai23.l2x.sample")

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


# Graded words of an aspect, from the worst fifth of ratings to the best. No word belongs to two aspects.
GRADED = (
    (
        "ugly muddy swampy drab lifeless unsightly",
        "dull dingy patchy faded scummy cloudy",
        "plain standard clear translucent modest regular",
        "bright attractive handsome lively frothy pretty",
        "gorgeous stunning beautiful radiant brilliant picturesque",
    ),
    (
        "rancid foul skunky putrid rotten sulfuric",
        "musty stale faint muted dusty papery",
        "mild subtle simple grassy earthy herbal",
        "fragrant inviting floral pleasant fresh aromatic",
        "heavenly intoxicating divine captivating enchanting perfumed",
    ),
    (
        "watery slimy gritty chalky abrasive sludgy",
        "thin prickly syrupy sticky fizzy flabby",
        "medium moderate middling even adequate soft",
        "smooth creamy rounded crisp slick full",
        "silky velvety luscious luxurious pillowy satiny",
    ),
    (
        "disgusting vile soapy metallic undrinkable vinegary",
        "bland cloying astringent hollow weak medicinal",
        "decent straightforward typical fair passable tame",
        "tasty flavorful balanced rich juicy satisfying",
        "delicious exquisite superb mouthwatering complex sublime",
    ),
    (
        "awful terrible horrible pointless dreadful regrettable",
        "disappointing forgettable underwhelming mediocre overpriced tiresome",
        "okay average acceptable unremarkable serviceable reasonable",
        "enjoyable recommended likeable solid worthwhile impressive",
        "outstanding amazing phenomenal unforgettable world-class masterful",
    ),
)
# Words of any aspect, by the same five grades: only their sentence tells what they are about.
GENERIC = ("bad nasty", "poor meh", "fine alright", "good nice", "great excellent")
GENERIC_SHARE = 0.15

NOUNS = (
    "head lacing foam color hue clarity collar retention",
    "nose aroma smell scent bouquet whiff",
    "mouthfeel body carbonation texture feel weight",
    "taste flavor aftertaste profile sweetness bitterness",
    "beer brew drinkability ale experience offering",
)
INGREDIENTS = (
    "caramel toffee citrus pine coffee chocolate banana clove honey bread biscuit grapefruit apple cherry vanilla "
    "oak smoke pepper molasses raisin plum toast lemon malt hops yeast"
)
DETAILS = (
    "amber copper gold straw ruby mahogany chestnut black orange tan ivory brown bubbles rings sediment",
    INGREDIENTS,
    "tongue lips throat sip gulp swallow warmth alcohol tingle bite",
    INGREDIENTS,
    "price style evening purchase six-pack session shelf occasion",
)
ADVERBS = "very quite rather really fairly somewhat truly"

# N noun, S graded word, D detail, A adverb, P proper name, and other words as they stand.
CLAUSES = (
    "A S and S N",
    "a S , S N",
    "S N , S N and D",
    "the N is A S and S",
    "its N is S , S and A S",
    "a S N with S D",
    "N : S , S , S",
    "a S and S N of D and S D",
    "both N and N seem S",
)
OPENINGS = (
    ("it pours D ,", "in the glass ,", "it looks S ,"),
    ("it smells S ,", "on the nose ,", "i smell D and D ,"),
    ("it feels S in the mouth ,", "going down ,", "on the tongue ,"),
    ("it tastes A S ,", "up front D , then", "i taste D ,"),
    ("overall ,", "all in all ,", "for the D ,"),
)
FILLERS = (
    "i had this one at a bar in P with a friend from P .",
    "bottle from P , shared with my neighbour on a cold night .",
    "we stopped by the P brewery after a long drive and bought two bottles .",
    "served in a tulip glass at cellar temperature .",
    "thanks to P for sending this in a trade .",
    "this was on tap next to the P and something else from P .",
    "i reviewed this from notes taken last summer in P .",
    "my brother brought it back from a trip to P .",
    "the label says it was bottled in the spring by P .",
    "i drank it while watching the game with P and eating a burger .",
    "picked up at the store on P street , best before date still months away .",
    "not my first from P , and i have another one in the fridge .",
    "we had it with roast chicken and potatoes .",
    "the bottle holds twelve ounces and has a brown cap .",
)
NAME_STARTS = (
    "stone mill river oak iron red black fox bear wolf crow hawk salmon elk moose cedar maple birch ash elm snow "
    "winter summer north south west east green white silver"
)
NAME_ENDS = (
    "bridge creek field wood gate hill ford brook dale ridge harbor haven point rock lake water barn yard crest bend "
    "cliff shore vale moor well tower path land meadow park"
)
UNSEEN_SHARE = 0.2  # of the names in held-out and annotated reviews, those that training never has
TYPO_SHARE = 0.01  # of the long words in held-out and annotated reviews, those with a letter doubled


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
    names = [start + end for start in NAME_STARTS.split() for end in NAME_ENDS.split()]
    rng.shuffle(names)
    unseen, seen = names[: len(names) // 5], names[len(names) // 5 :]
    writer, stranger = _Writer(rng, seen), _Writer(rng, seen, unseen)
    return (
        [writer.review() for _ in range(train)],
        [stranger.review() for _ in range(heldout)],
        [stranger.review() for _ in range(annotated)],
    )


class _Writer:
    """Write reviews with words from the tables above."""

    def __init__(self, rng: random.Random, names: list[str], unseen_names: list[str] | None = None):
        """`unseen_names`: given, they are used too, and words are mistyped now and then."""
        self.rng, self.names, self.unseen_names = rng, names, unseen_names
        self.graded = [[words.split() for words in grades] for grades in GRADED]
        self.generic = [words.split() for words in GENERIC]
        self.nouns, self.details = [n.split() for n in NOUNS], [d.split() for d in DETAILS]
        self.adverbs = ADVERBS.split()

    def review(self) -> Review:
        ratings = self.ratings()
        mean = MEAN_SENTENCES * self.rng.lognormvariate(-(LENGTH_SPREAD**2) / 2, LENGTH_SPREAD)
        sentences: list[tuple[int | None, list[str]]] = []
        for aspect, rating in enumerate(ratings):
            sentences += [(aspect, self.sentence(aspect, rating)) for _ in range(self.count(mean))]
        sentences += [(None, self.fill(self.rng.choice(FILLERS))) for _ in range(self.count(mean))]
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
        parts = [self.rng.choice(OPENINGS[aspect])] if self.rng.random() < 0.5 else []
        parts.append(self.rng.choice(CLAUSES))
        if self.rng.random() < 0.5:
            parts += [self.rng.choice((", and", "; also")), self.rng.choice(CLAUSES)]
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

"""Which flags count for what, and the four files of BeerAdvocate. Nothing here imports torch."""

from pathlib import Path

from aaai23.errors import UsageError
from aaai23.record import NOT_COMPARED as SHARED_NOT_COMPARED
from aaai23.record import NOT_SETTINGS

NOT_IN_NAME = (*NOT_SETTINGS, "reruns", "checkpoint", "data_dir")
"""Flags that are no part of a run's default name."""
NOT_COMPARED = (*SHARED_NOT_COMPARED, "checkpoint", "reruns", "epochs")
"""Flags that say how long or how often, not what: a resumed run may differ in them."""
TRAIN_FILE = "reviews.aspect{aspect}.train.txt"
HELDOUT_FILE = "reviews.aspect{aspect}.heldout.txt"
ANNOTATIONS_FILE = "annotations.json"
VECTORS_FILE = "review+wiki.filtered.200.txt"
EMBEDDING_SIZE = 200  # numbers after a word; the selector's first convolution has this many input channels


def data_files(data_dir: Path, aspect: int) -> list[Path]:
    """Return what is read for an aspect: training reviews, held-out reviews, annotated reviews, word vectors.

    Raises:
        UsageError: a file is missing or empty.
    """
    names = (TRAIN_FILE, HELDOUT_FILE, ANNOTATIONS_FILE, VECTORS_FILE)
    files = [data_dir / name.format(aspect=aspect) for name in names]
    for path in files:
        if not path.is_file():
            raise UsageError(
                f"{path} is missing: get BeerAdvocate with `./get_data.sh l2x`, or make sample data with "
                f"`./get_data.sh sample` and read it with `--data-dir data/sample`"
            )
        if path.stat().st_size == 0:
            raise UsageError(f"{path} is empty; fetch or make it again")
    return files

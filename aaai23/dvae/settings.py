"""Which flags count for what, and the four files of MNIST. Nothing here imports torch."""

from pathlib import Path

from aaai23.errors import UsageError
from aaai23.record import NOT_COMPARED as SHARED_NOT_COMPARED
from aaai23.record import NOT_SETTINGS

NOT_IN_NAME = (*NOT_SETTINGS, "data_dir")
"""Flags that are no part of a run's default name."""
NOT_COMPARED = (*SHARED_NOT_COMPARED, "epochs")
"""Flags that say how long, not what: a resumed run may differ in them."""
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
REMEDY = "./get_data.sh vae downloads MNIST, ./get_data.sh sample makes sample data"


def present_files(folder: Path) -> list[Path]:
    """Return which of FILES are in `folder`, plain or gzipped."""
    paths = [folder / f"{name}{suffix}" for name in FILES for suffix in ("", ".gz")]
    return [path for path in paths if path.exists()]


def data_files(data_dir: Path) -> list[Path]:
    """Return the four files, in the order of FILES, in `data_dir`, or in its folder `mnist` if it has none itself.

    Raises:
        UsageError: a file is missing.
    """
    folder = next((folder for folder in (data_dir, data_dir / "mnist") if present_files(folder)), None)
    if folder is None:
        raise UsageError(f"{data_dir} has no MNIST files ({TRAIN_IMAGES}.gz and three more); {REMEDY}")
    return [_find(folder, name) for name in FILES]


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise UsageError(f"{folder / name}.gz is missing; {REMEDY}")

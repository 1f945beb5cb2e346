"""Small data sets for the tests of several folders."""

from pathlib import Path

from aaai23.dvae.config import FILES
from aaai23.dvae.sample import idx_bytes, make_digits
from aaai23.harness.files import MARKER


def write_digits(folder: Path, nb_train: int, nb_test: int, invert: bool = False) -> Path:
    """Write the first digits of the sample data, every other row and column of them: images of 14 x 14 pixels."""
    folder.mkdir(parents=True)
    (train, train_labels), (test, test_labels) = make_digits()
    train, test = train[:, ::2, ::2], test[:, ::2, ::2]
    if invert:
        train, test = 255 - train, 255 - test
    for name, content in zip(FILES, (train[:nb_train], train_labels[:nb_train], test[:nb_test], test_labels[:nb_test])):
        (folder / name).write_bytes(idx_bytes(content))
    (folder / MARKER).touch()
    return folder

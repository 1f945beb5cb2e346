"""Sample data: a stand-in for MNIST in its four files, made from the small digits that scikit-learn brings along.

    python -m aaai23.dvae.sample --output data/sample/mnist

The digits are those of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI), 8 x 8 pixels.
They are enlarged to 20 x 20 and centred by mass on 28 x 28, as those of MNIST are.
"""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from aaai23.dvae.config import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    present_files,
)
from aaai23.harness.config import ArgumentParser
from aaai23.harness.files import claim_folder, write_atomically
from aaai23.harness.shell import run_cli

NB_TEST = 297
SHIFTS = ((0, 0), (-1, 1), (1, -1), (1, 1))  # pixels; each training digit is there once with each of them
BOX, MARGIN = 20, 4  # a digit's box, and what surrounds it: 28 pixels in all
MAX_CENTRING = MARGIN - 1  # leaves room for a shift

Split = tuple[Tensor, Tensor]  # images uint8 [N, 28, 28], labels uint8 [N]


def make_digits() -> tuple[Split, Split]:
    """Return training and test images with their labels; no digit is in both, and each call gives the same."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    images = _enlarge(torch.as_tensor(bundled.images, dtype=torch.float32) / 16)
    labels = torch.as_tensor(bundled.target, dtype=torch.uint8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:NB_TEST], order[NB_TEST:]
    shifted = torch.cat([images[train].roll(shift, dims=(1, 2)) for shift in SHIFTS])
    return (shifted, labels[train].repeat(len(SHIFTS))), (images[test], labels[test])


def write_sample(folder: Path | str) -> None:
    """Write the four files, gzipped, and the marker that names them sample data.

    Each file appears whole, the marker first: a process that dies on the way leaves nothing that could be taken
    for MNIST.

    Raises:
        UsageError: the folder has such files that are not sample data, or cannot be written.
    """
    folder = Path(folder)
    (train_images, train_labels), (test_images, test_labels) = make_digits()
    claim_folder(folder, [path.name for path in present_files(folder)])
    for name, content in (
        (TRAIN_IMAGES, train_images),
        (TRAIN_LABELS, train_labels),
        (TEST_IMAGES, test_images),
        (TEST_LABELS, test_labels),
    ):
        write_atomically(folder / f"{name}.gz", gzip.compress(idx_bytes(content), mtime=0))


def idx_bytes(content: Tensor) -> bytes:
    """Return a uint8 tensor of any shape as an IDX file holds it."""
    header = struct.pack(f">{1 + content.dim()}I", 0x0800 + content.dim(), *content.shape)
    return header + content.contiguous().numpy().tobytes()


def _enlarge(digits: Tensor) -> Tensor:
    """Return digits in [0, 1], [N, 8, 8], as bytes [N, 28, 28] whose centre of mass is in the middle."""
    boxes = F.interpolate(digits.unsqueeze(1), size=(BOX, BOX), mode="bicubic").squeeze(1)
    images = F.pad(boxes.clamp(0, 1), (MARGIN,) * 4)
    position = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    off_centre = torch.stack([images.sum(2) @ position, images.sum(1) @ position], dim=1)
    off_centre = off_centre / images.sum((1, 2)).unsqueeze(1)
    moves = (-off_centre).round().int().clamp(-MAX_CENTRING, MAX_CENTRING).tolist()
    centred = torch.stack([image.roll(move, dims=(0, 1)) for image, move in zip(images, moves)])
    return (centred * 255).round().to(torch.uint8)


def main(argv: Sequence[str] | None = None) -> None:
    """Write sample data where the command line says."""
    parser = ArgumentParser(prog="python -m aaai23.dvae.sample", description="Make sample data in MNIST's format.")
    parser.add_argument("--output", type=Path, default=Path("data/sample/mnist"), help="folder of the files")
    folder = parser.parse_args(argv).output
    write_sample(folder)
    print(f"Sample data (scikit-learn's digits, not MNIST) is in {folder}.")


if __name__ == "__main__":
    run_cli(main, "aaai23.dvae.sample")

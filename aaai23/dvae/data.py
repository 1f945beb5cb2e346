"""MNIST, or any data set in the same four files (such as Fashion-MNIST), read whole into memory."""

import gzip
import logging
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aaai23.dvae.config import REMEDY, data_files
from aaai23.errors import UsageError
from aaai23.harness.files import LARGEST_UNPACKED, is_sample, open_regular

_LOGGER = logging.getLogger(__name__)
_IMAGES_MAGIC, _LABELS_MAGIC = 0x0803, 0x0801  # bytes, in three dimensions and in one


@dataclass(frozen=True)
class MNIST:
    """Images as bytes, `train` and `test` uint8 [N, H*W], each of `image_size` (H, W).

    Bytes take a quarter of the memory of floats; `intensities` scales a batch. `sample_data` is true for the
    made-up stand-in.
    """

    train: Tensor
    test: Tensor
    image_size: tuple[int, int]
    sample_data: bool


def load(data_dir: Path | str, device: torch.device | str = "cpu") -> MNIST:
    """Return the images in `data_dir`, or in its folder `mnist` if it has none itself, on `device`.

    The files are those of Y. LeCun's page, gzipped (`.gz`) or not. Labels are read to see that they belong to the
    images, and not kept.

    Raises:
        UsageError: a file is missing, cut short, damaged or of another kind, or the files do not fit together.
    """
    train_images, train_labels, test_images, test_labels = data_files(Path(data_dir))
    folder = train_images.parent
    train = _read_images(train_images, train_labels)
    test = _read_images(test_images, test_labels)
    height, width = train.shape[1:]
    if test.shape[1:] != train.shape[1:]:
        sizes = f"training images are {height} x {width}, test images {test.shape[1]} x {test.shape[2]}"
        raise UsageError(f"{folder} mixes two data sets: {sizes}; {REMEDY}")
    _check_pair(folder, train, test)
    return MNIST(
        train=train.flatten(1).to(device),
        test=test.flatten(1).to(device),
        image_size=(height, width),
        sample_data=is_sample(folder),
    )


def _check_pair(folder: Path, train: Tensor, test: Tensor) -> None:
    """Warn of test images that are far brighter or darker than the training images, as those of another data set."""
    mean, other = (images.sum().item() / images.numel() for images in (train, test))
    if not 2 / 3 * mean <= other <= 3 / 2 * mean:
        _LOGGER.warning(
            f"the mean pixel of the training images in {folder} is {mean:.0f}, of the test images {other:.0f}: "
            "do these files belong together?"
        )


def intensities(images: Tensor) -> Tensor:
    """Return images of bytes, uint8 [B, P], as float32 in [0, 1]."""
    return images / 255


def _read_images(images_file: Path, labels_file: Path) -> Tensor:
    """Return images [N, H, W] that have N labels."""
    images, labels = _read_idx(images_file, _IMAGES_MAGIC), _read_idx(labels_file, _LABELS_MAGIC)
    if len(images) != len(labels):
        counts = f"{len(images)} images in {images_file.name}, {len(labels)} labels in {labels_file.name}"
        raise UsageError(f"{images_file.parent} mixes two data sets: {counts}; {REMEDY}")
    return images


def _read_idx(path: Path, magic: int) -> Tensor:
    """Return what an IDX file of bytes holds: a number that tells its kind, each dimension's size, the bytes."""
    header = struct.Struct(f">{1 + magic % 256}I")  # the last byte of the magic number counts the dimensions
    head = _read_bytes(path, header.size)
    if len(head) < header.size:
        raise UsageError(f"{path} is cut short: {len(head)} bytes; delete it, then {REMEDY}")
    found, *shape = header.unpack_from(head)
    if found != magic:
        kind = "images" if magic == _IMAGES_MAGIC else "labels"
        raise UsageError(f"{path} is no IDX file of {kind}: it starts with {found:08x}, not {magic:08x}")
    size = math.prod(shape)
    if not size:
        raise UsageError(f"{path} is empty: its header says {' x '.join(map(str, shape))}")
    if size > LARGEST_UNPACKED:
        raise UsageError(
            f"{path} is too large: its header says {' x '.join(map(str, shape))}; delete it, then {REMEDY}"
        )
    content = _read_bytes(path, header.size + size + 1)
    if len(content) != header.size + size:
        more = "more" if len(content) > header.size + size else len(content)
        problem = f"{more} bytes where its header promises {header.size + size}"
        raise UsageError(f"{path} is cut short or damaged: {problem}; delete it, then {REMEDY}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header.size).view(shape)


def _read_bytes(path: Path, most: int) -> bytearray:
    """Return the first bytes of the content, unpacked; writable, as torch wants its memory."""
    try:
        with open_regular(path) as file:
            return bytearray((gzip.open(file) if path.suffix == ".gz" else file).read(most))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = str(error).rstrip(".")
        raise UsageError(f"{path} is no whole gzip file ({reason}); delete it, then {REMEDY}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error

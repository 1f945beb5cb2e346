"""MNIST, or any data set in the same four files (such as Fashion-MNIST), read whole into memory."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aaai23.errors import UsageError
from aaai23.sample_data import is_sample

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

_IMAGES_MAGIC, _LABELS_MAGIC = 0x0803, 0x0801  # bytes, in three dimensions and in one
_REMEDY = "./get_data.sh vae downloads MNIST, ./get_data.sh sample makes sample data"


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
    folder = _find_folder(Path(data_dir))
    train = _read_images(folder, TRAIN_IMAGES, TRAIN_LABELS)
    test = _read_images(folder, TEST_IMAGES, TEST_LABELS)
    height, width = train.shape[1:]
    if test.shape[1:] != train.shape[1:]:
        sizes = f"training images are {height} x {width}, test images {test.shape[1]} x {test.shape[2]}"
        raise UsageError(f"{folder} mixes two data sets: {sizes}; {_REMEDY}")
    return MNIST(
        train=train.flatten(1).to(device),
        test=test.flatten(1).to(device),
        image_size=(height, width),
        sample_data=is_sample(folder),
    )


def intensities(images: Tensor) -> Tensor:
    """Return images of bytes, uint8 [B, P], as float32 in [0, 1]."""
    return images / 255


def present_files(folder: Path) -> list[Path]:
    """Return which of FILES are in `folder`, plain or gzipped."""
    paths = [folder / f"{name}{suffix}" for name in FILES for suffix in ("", ".gz")]
    return [path for path in paths if path.exists()]


def _find_folder(data_dir: Path) -> Path:
    for folder in (data_dir, data_dir / "mnist"):
        if present_files(folder):
            return folder
    raise UsageError(f"{data_dir} has no MNIST files ({TRAIN_IMAGES}.gz and three more); {_REMEDY}")


def _read_images(folder: Path, images_name: str, labels_name: str) -> Tensor:
    """Return images [N, H, W] that have N labels."""
    images = _read_idx(_find(folder, images_name), _IMAGES_MAGIC)
    labels = _read_idx(_find(folder, labels_name), _LABELS_MAGIC)
    if len(images) != len(labels):
        counts = f"{len(images)} images in {images_name}, {len(labels)} labels in {labels_name}"
        raise UsageError(f"{folder} mixes two data sets: {counts}; {_REMEDY}")
    return images


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise UsageError(f"{folder / name}.gz is missing; {_REMEDY}")


def _read_idx(path: Path, magic: int) -> Tensor:
    """Return what an IDX file of bytes holds: a number that tells its kind, each dimension's size, the bytes."""
    content = _read_bytes(path)
    header = struct.Struct(f">{1 + magic % 256}I")  # the last byte of the magic number counts the dimensions
    if len(content) < header.size:
        raise UsageError(f"{path} is cut short: {len(content)} bytes; delete it, then {_REMEDY}")
    found, *shape = header.unpack_from(content)
    if found != magic:
        kind = "images" if magic == _IMAGES_MAGIC else "labels"
        raise UsageError(f"{path} is no IDX file of {kind}: it starts with {found:08x}, not {magic:08x}")
    size = math.prod(shape)
    if not size:
        raise UsageError(f"{path} is empty: its header says {' x '.join(map(str, shape))}")
    if len(content) != header.size + size:
        problem = f"{len(content)} bytes where its header promises {header.size + size}"
        raise UsageError(f"{path} is cut short or damaged: {problem}; delete it, then {_REMEDY}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header.size).view(shape)


def _read_bytes(path: Path) -> bytearray:
    """Return the content, unpacked; writable, as torch wants its memory."""
    try:
        content = path.read_bytes()
        return bytearray(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = str(error).rstrip(".")
        raise UsageError(f"{path} is no whole gzip file ({reason}); delete it, then {_REMEDY}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error

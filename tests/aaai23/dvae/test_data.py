"""The reader of MNIST's files, against files made by hand, and the sample data."""

import gzip
import struct

import pytest
import torch

from aaai23.dvae.config import FILES, TEST_IMAGES, TRAIN_IMAGES, TRAIN_LABELS
from aaai23.dvae.data import intensities, load
from aaai23.dvae.sample import NB_TEST, SHIFTS, main, make_digits, write_sample
from aaai23.errors import UsageError
from aaai23.harness.files import MARKER
from aaai23.harness.shell import run_cli

SHAPES = ((5, 4, 3), (5,), (2, 4, 3), (2,))


def idx(shape, content, kind=0x08):
    return bytes([0, 0, kind, len(shape)]) + b"".join(struct.pack(">I", size) for size in shape) + bytes(content)


def counting(shape, start=0):
    return [(start + i) % 256 for i in range(torch.Size(shape).numel())]


def write_files(folder, suffix=".gz", shapes=SHAPES):
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, shape) in enumerate(zip(FILES, shapes)):
        content = idx(shape, counting(shape, start=100 * i))
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "mnist"
    main(["--output", str(folder)])
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reader_returns_the_bytes_of_the_images_row_by_row(tmp_path, suffix):
    data = load(write_files(tmp_path, suffix))
    assert data.train.dtype == data.test.dtype == torch.uint8
    assert data.train.tolist() == torch.tensor(counting((5, 4, 3))).view(5, 12).tolist()
    assert data.test.tolist() == torch.tensor(counting((2, 4, 3), start=200)).view(2, 12).tolist()
    assert data.image_size == (4, 3)
    assert data.sample_data is False


def test_intensities_are_floats_from_0_to_1():
    values = intensities(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
    torch.testing.assert_close(values, torch.tensor([[0.0, 0.2, 1.0]]))


@pytest.mark.parametrize("below", ["", "mnist"])
def test_files_are_found_in_the_data_folder_and_in_its_folder_mnist(tmp_path, below):
    write_files(tmp_path / below)
    assert len(load(tmp_path).train) == len(load(str(tmp_path)).train) == 5


def test_files_in_the_data_folder_come_before_those_in_its_folder_mnist(tmp_path):
    write_files(tmp_path, shapes=((3, 2, 2), (3,), (1, 2, 2), (1,)))
    write_files(tmp_path / "mnist")
    assert load(tmp_path).train.shape == (3, 4)


def test_test_images_far_brighter_than_the_training_images_are_warned_about(tmp_path, caplog):
    write_files(tmp_path)
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(idx((5, 4, 3), [20] * 60)))
    for grey, warned in ((20, False), (29, False), (31, True), (14, False), (13, True), (235, True)):
        (tmp_path / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(idx((2, 4, 3), [grey] * 24)))
        caplog.clear()
        load(tmp_path)
        assert (f"training images in {tmp_path} is 20, of the test images {grey}" in caplog.text) == warned


def test_the_marker_beside_the_files_makes_them_sample_data(tmp_path):
    (write_files(tmp_path / "mnist") / MARKER).touch()
    assert load(tmp_path).sample_data is True


def break_file(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def remove(name):
    return lambda folder: (folder / f"{name}.gz").unlink()


def replace(name, content):
    return lambda folder: (folder / f"{name}.gz").write_bytes(gzip.compress(content))


IMAGES = f"{TRAIN_IMAGES}.gz"
BROKEN = {
    "missing images": (remove(TEST_IMAGES), rf"{TEST_IMAGES}.gz is missing; ./get_data.sh vae .* sample"),
    "missing labels": (remove(TRAIN_LABELS), rf"{TRAIN_LABELS}.gz is missing"),
    "cut gzip": (break_file(IMAGES, lambda content: content[:-12]), rf"{IMAGES} is no whole gzip file .*delete it"),
    "changed byte": (break_file(IMAGES, lambda content: content[:-8] + b"0000" + content[-4:]), "no whole gzip file"),
    "no gzip": (break_file(IMAGES, lambda content: b"<html>"), rf"{IMAGES} is no whole gzip file"),
    "empty file": (break_file(IMAGES, lambda content: b""), rf"{IMAGES} is cut short: 0 bytes; delete it"),
    "cut header": (replace(TRAIN_IMAGES, idx((5, 4, 3), [])[:10]), rf"{IMAGES} is cut short: 10 bytes"),
    "cut bytes": (replace(TRAIN_IMAGES, idx((5, 4, 3), range(59))), r"75 bytes where its header promises 76"),
    "more bytes": (replace(TRAIN_IMAGES, idx((5, 4, 3), range(61))), r"more bytes where its header promises 76"),
    "floats": (replace(TRAIN_IMAGES, idx((5, 4, 3), range(60), kind=0x0D)), "no IDX file of images.* 00000d03"),
    "labels as images": (replace(TRAIN_IMAGES, idx((60,), range(60))), r"no IDX file of images: .* not 00000803"),
    "images as labels": (replace(TRAIN_LABELS, idx((5, 1, 1), range(5))), r"no IDX file of labels: .* not 00000801"),
    "no images": (replace(TRAIN_IMAGES, idx((0, 4, 3), [])), rf"{IMAGES} is empty: its header says 0 x 4 x 3"),
    "other labels": (replace(TRAIN_LABELS, idx((4,), range(4))), r"5 images in .*, 4 labels in"),
    "other size": (replace(TEST_IMAGES, idx((2, 3, 4), range(24))), "training images are 4 x 3, test images 3 x 4"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, case):
    spoil, message = BROKEN[case]
    spoil(write_files(tmp_path))
    with pytest.raises(UsageError, match=message) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_data_gets_told_how_to_fill_it(tmp_path, folder):
    with pytest.raises(UsageError, match=r"has no MNIST files .*get_data.sh vae .*get_data.sh sample"):
        load(tmp_path / folder)


def test_a_folder_in_a_file_s_place_cannot_be_read(tmp_path):
    write_files(tmp_path, suffix="")
    (tmp_path / TRAIN_IMAGES).unlink()
    (tmp_path / TRAIN_IMAGES).mkdir()
    with pytest.raises(UsageError, match=rf"{TRAIN_IMAGES} cannot be read"):
        load(tmp_path)


def test_sample_data_look_like_mnist_to_the_reader(sample):
    data = load(sample.parent)
    assert data.sample_data
    assert data.image_size == (28, 28)
    assert data.test.shape == (NB_TEST, 784)
    assert len(data.train) == len(SHIFTS) * (1797 - NB_TEST)
    assert data.train.min() == 0
    assert data.train.max() == 255
    assert 0.1 < intensities(data.train).mean() < 0.2  # MNIST: 0.13


def test_sample_digits_are_centred_and_have_an_empty_border():
    _, (images, _) = make_digits()
    images = images.float()
    position = torch.arange(28.0) - 13.5
    for axis in (1, 2):
        off_centre = images.sum(axis) @ position / images.sum((1, 2))
        assert off_centre.abs().max() < 0.51
    assert images[:, [0, -1]].max() == images[:, :, [0, -1]].max() == 0


def test_no_sample_digit_is_in_training_and_in_test():
    def corner(images):  # the same for all shifts of a digit
        return {tuple(image[ink.any(1)][:, ink.any(0)].flatten().tolist()) for image, ink in zip(images, images > 0)}

    (train, _), (test, _) = make_digits()
    assert len(corner(train)) == 1797 - NB_TEST
    assert len(corner(test)) == NB_TEST
    assert not corner(train) & corner(test)


def test_sample_labels_belong_to_their_digits():
    (train, train_labels), (test, test_labels) = make_digits()
    assert set(test_labels.tolist()) == set(range(10))
    nearest = torch.cdist(test.flatten(1).float(), train.flatten(1).float()).argmin(1)
    assert (train_labels[nearest] == test_labels).float().mean() > 0.95


def test_sample_data_are_the_same_each_time(sample, tmp_path):
    write_sample(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted([MARKER, *(f"{name}.gz" for name in FILES)])
    assert all((tmp_path / name).read_bytes() == (sample / name).read_bytes() for name in written)
    assert "sample data" in (tmp_path / MARKER).read_text()


def test_sample_data_replace_sample_data_only(sample, tmp_path):
    real = write_files(tmp_path / "real", suffix="")
    before = {path.name: path.read_bytes() for path in real.iterdir()}
    with pytest.raises(UsageError, match=r"not sample data; name another folder"):
        write_sample(real)
    assert {path.name: path.read_bytes() for path in real.iterdir()} == before
    (tmp_path / MARKER).touch()
    (tmp_path / IMAGES).write_bytes(b"half of it")
    write_sample(tmp_path)
    assert (tmp_path / IMAGES).read_bytes() == (sample / IMAGES).read_bytes()


def test_sample_command_ends_with_one_line_and_code_2_where_it_must_not_write(tmp_path, capsys):
    write_files(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda _: main(["--output", str(tmp_path)]), "aaai23.dvae.sample")
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "not sample data" in line

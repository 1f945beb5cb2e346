"""Whether data are the same: their contents decide, and nothing else."""

import gzip
import os

import pytest

from aaai23.errors import UsageError
from aaai23.fingerprint import fingerprint


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "images", tmp_path / "labels"]
    for path in paths:
        path.write_text(f"the content of {path.name}")
    return paths


def test_names_places_times_and_packing_do_not_count(files, tmp_path):
    before = fingerprint(files)
    (tmp_path / "moved").mkdir()
    moved = [tmp_path / "moved" / f"other-{path.name}.gz" for path in files]
    for path, target in zip(files, moved, strict=True):
        target.write_bytes(gzip.compress(path.read_bytes(), mtime=1))
        os.utime(target, (1, 1))
    assert fingerprint(moved) == before and len(before) == 16


def test_one_changed_byte_counts_though_size_and_time_stay(files):
    before, stat = fingerprint(files), files[1].stat()
    files[1].write_text(files[1].read_text().replace("labels", "labelz"))
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files[1].stat().st_size == stat.st_size
    assert fingerprint(files) != before


def test_files_that_change_places_are_other_data(files):
    assert fingerprint(files) != fingerprint(reversed(files))


def test_a_broken_archive_counts_as_it_is_and_an_unreadable_file_is_named(files, tmp_path):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    other = tmp_path / "other.gz"
    other.write_bytes(cut.read_bytes()[:-1])
    assert fingerprint([cut]) != fingerprint([other])
    with pytest.raises(UsageError, match="cannot be read"):
        fingerprint([tmp_path])

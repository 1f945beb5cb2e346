"""Files that are written whole or not at all, and fingerprints of data."""

import errno
import gzip
import os
from pathlib import Path

import pytest

from aaai23.errors import UsageError
from aaai23.harness.checkpoint import load, save
from aaai23.harness.files import fingerprint, write_atomically


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


def test_a_file_name_of_the_greatest_length_can_be_written(tmp_path):
    save(tmp_path / ("x" * 255), {"epoch": 1})
    with pytest.raises(UsageError, match="name too long"):
        save(tmp_path / ("x" * 256), {"epoch": 1})


def test_an_unwritable_path_is_named_and_a_failed_save_leaves_no_trace(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write .*model\.pt"):
        save(tmp_path / "file" / "model.pt", {})
    save(tmp_path / "model.pt", {"step": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*model\.pt"):
        save(tmp_path / "model.pt", {"step": 2})
    assert load(tmp_path / "model.pt") == {"step": 1}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "model.pt"]


def test_all_bytes_have_left_the_process_when_the_disk_is_told_to_keep_them(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    write_atomically(tmp_path / "file", b"five!")
    assert sizes == [5]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_be_told_to_keep_its_files_is_used_without(tmp_path, monkeypatch, number):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    save(tmp_path / "model.pt", {"step": 1})
    assert load(tmp_path / "model.pt") == {"step": 1}


def test_a_disk_error_on_the_last_step_of_writing_is_not_passed_over(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UsageError, match="Input/output error"):
        save(tmp_path / "model.pt", {"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "model.pt"
    link.symlink_to(tmp_path / "elsewhere" / "real.pt")
    for step in (1, 2):  # the target is missing, then there
        save(link, {"step": step})
        assert link.is_symlink() and load(tmp_path / "elsewhere" / "real.pt") == {"step": step}
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["real.pt"]


def test_what_is_no_regular_file_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(os.devnull)
    for path in (Path(os.devnull), tmp_path / "pipe", tmp_path / "folder", tmp_path / "link"):
        before = path.stat()
        for use in (lambda path: save(path, {"step": 1}), load):
            with pytest.raises(UsageError, match=f"{path} stays: it is a device, a pipe or a folder"):
                use(path)
        assert path.stat().st_mode == before.st_mode

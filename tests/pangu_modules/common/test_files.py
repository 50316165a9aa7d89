"""Atomic writers: what a failure leaves, what is replaced, and the rights of new files."""

from __future__ import annotations

import os

import pytest

from pangu_modules.common.cache import cache_folder, cached
from pangu_modules.common.files import atomic_file, atomic_files, atomic_folder, write_atomically


def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "deep" / "file.txt", "old")
    assert path.read_text() == "old"
    assert path.stat().st_mode & 0o777 == (tmp_path / "deep").stat().st_mode & 0o666

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_a_model_folder_is_replaced_whole_and_other_folders_never(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target, holding="config.json", replace=True) as folder:
        (folder / "config.json").write_text("1")
    with pytest.raises(IsADirectoryError), atomic_folder(target, holding="config.json", replace=True) as folder:
        folder.write_text("fails in the middle")
    assert (target / "config.json").read_text() == "1"
    with atomic_folder(target, holding="config.json", replace=True) as folder:
        (folder / "config.json").write_text("3")
    assert (target / "config.json").read_text() == "3"
    with atomic_folder(target, holding="config.json", replace=False) as folder:
        (folder / "config.json").write_text("4")
    assert (target / "config.json").read_text() == "3"
    (target / "config.json").rename(target / "thesis.tex")
    with (
        pytest.raises(FileExistsError, match=r"holds no config\.json"),
        atomic_folder(target, holding="config.json", replace=True),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_file_appears_only_when_its_block_ends(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.name == path.name
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with pytest.raises(IsADirectoryError), atomic_file(path) as temporary:
        temporary.parent.write_text("fails in the middle")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


def test_files_join_a_folder_and_leave_the_others(tmp_path):
    (tmp_path / "other").write_text("stays")
    with pytest.raises(IsADirectoryError), atomic_files(tmp_path) as folder:
        folder.write_text("fails in the middle")
    assert [entry.name for entry in tmp_path.iterdir()] == ["other"]
    with atomic_files(tmp_path) as folder:
        (folder / "one").write_text("1")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "other"]


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX files")
def test_files_written_for_their_owner_alone_are_opened_to_readers(tmp_path):
    for number, mask in enumerate((0o022, 0o077)):
        before = os.umask(mask)
        try:
            with atomic_file(tmp_path / f"file{number}") as temporary:
                temporary.touch(0o600)
            with atomic_folder(tmp_path / f"folder{number}", holding="x", replace=True) as folder:
                (folder / "x").touch(0o600)
        finally:
            os.umask(before)
        modes = [(tmp_path / name).stat().st_mode & 0o777 for name in (f"file{number}", f"folder{number}/x")]
        assert modes == [0o666 & ~mask] * 2


def test_the_cache_is_made_once_and_may_hold_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PANGU_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path

    def make(path):
        path.mkdir()
        (path / "entry").write_text("made")

    assert (cached("folder", make) / "entry").read_text() == "made"
    assert cached("folder", lambda path: pytest.fail("made twice")) == tmp_path / "folder"

"""Files are whole or absent."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from clearn.errors import UserError
from clearn.files import fsync_folder, write_atomic


@pytest.mark.parametrize("content", ["", "héllo\n", b"\x00\xff", "x" * 100_000])
def test_content_arrives_and_nothing_else(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_atomic(path, "before")
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(path.parent) == ["a.txt"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_failure_keeps_the_old_file_and_leaves_no_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, full)
    with pytest.raises(UserError) as caught:
        write_atomic(path, "new")
    assert str(tmp_path) in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_death_in_the_middle_keeps_the_old_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    class Death(BaseException):
        pass

    def die(*args: Any) -> None:
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(os, name, die)
        with pytest.raises(Death):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    write_atomic(path, "newer")
    assert path.read_text() == "newer"


def test_bytes_reach_the_disk_before_the_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def watched_replace(source: Path, target: Path) -> None:
        assert Path(source).read_text() == "new"
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_atomic(tmp_path / "a", "new")
    assert calls == ["file", "rename", "folder"]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write to .*file.sub \(Not a directory\)"):
        write_atomic(tmp_path / "file" / "sub" / "a", "x")
    assert (tmp_path / "file").read_text() == "mine"


def test_fsync_folder_wants_a_folder(tmp_path: Path) -> None:
    fsync_folder(tmp_path)
    with pytest.raises(OSError, match="missing"):
        fsync_folder(tmp_path / "missing")

"""Checkpoints are whole or absent."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from clearn.errors import UserError
from clearn.run.checkpoint import Checkpoints


def _state(value: int) -> dict[str, object]:
    return {"weights": torch.full((1000,), float(value)), "nested": {"step": value, "list": [1.5]}}


def test_newest_is_loaded_and_older_ones_are_dropped(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.load() is None
    for value in range(4):
        checkpoints.save(_state(value))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded["nested"] == {"step": 3, "list": [1.5]}
    assert torch.equal(loaded["weights"], torch.full((1000,), 3.0))
    assert [path.name[:8] for path in checkpoints.paths()] == ["00000002", "00000003"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_checkpoint_falls_back_with_a_warning(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(1))
    newest = checkpoints.save(_state(2))
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncate": content[:-7], "flip": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        loaded = checkpoints.load()
    assert loaded is not None
    assert loaded["nested"]["step"] == 1


def test_all_damaged_means_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(1)).write_bytes(b"junk")
    with pytest.warns(UserWarning, match="damaged .* the start of the run"):
        assert checkpoints.load() is None


def test_damaged_checkpoint_does_not_count_among_those_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(_state(1))
    checkpoints.save(_state(2)).write_bytes(b"junk")
    with pytest.warns(UserWarning, match="damaged .* the one before it"):
        checkpoints.load()
    checkpoints.save(_state(3)).write_bytes(b"junk")
    with pytest.warns(UserWarning, match="damaged .* the one before it"):
        loaded = checkpoints.load()
    assert loaded is not None
    assert loaded["nested"]["step"] == 1
    assert len(list(tmp_path.glob("*.damaged"))) == 2  # put aside, not deleted


def test_half_written_temporary_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(1))
    (tmp_path / ".00000001.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded["nested"]["step"] == 1
    checkpoints.save(_state(2))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_full_disk_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(1))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write to .* \(No space left on device\)"):
        checkpoints.save(_state(2))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded["nested"]["step"] == 1
    assert len(list(tmp_path.iterdir())) == 1

"""Checkpoints that are either whole or absent."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import IO, Any

import torch

from clearn.errors import UserError
from clearn.files import fsync_folder

_NAME = re.compile(r"(\d{8})-([0-9a-f]{32})\.ckpt")


class _Hashing:
    """A binary file that remembers the digest of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


class Checkpoints:
    """The last good checkpoints of a run, newest last.

    A file's name carries the digest of its content: `<number>-<sha256, 32 digits>.ckpt`. It gets
    that name by one rename after its bytes have reached the disk, so that a killed process leaves
    a whole checkpoint or none, and a damaged one is recognised.

    Args:
        folder: Where the files are; made when missing.
        keep: How many to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def save(self, state: dict[str, Any]) -> Path:
        """Write `state` as the newest checkpoint, then drop those beyond `keep`.

        Raises:
            UserError: The folder cannot be written to, or the disk is full.
        """
        paths = self.paths()
        number = int(paths[-1].name[:8]) + 1 if paths else 0
        temporary = self.folder / f".{number:08d}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                hashing = _Hashing(file)
                torch.save(state, hashing)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            path = self.folder / f"{number:08d}-{hashing.digest.hexdigest()[:32]}.ckpt"
            os.replace(temporary, path)
            fsync_folder(self.folder)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
            if not isinstance(cause, OSError):
                raise
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"checkpoint: cannot write to {self.folder} ({cause.strerror}); the last good "
                "checkpoint is kept: make room or allow writing there, then resume"
            ) from error
        self._drop_all_but(self.keep)
        return path

    def finish(self) -> None:
        """Drop all but the newest, which a finished run cannot have to fall back from."""
        self._drop_all_but(1)

    def _drop_all_but(self, count: int) -> None:
        for old in self.paths()[:-count]:
            old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or None.

        Warns of each damaged one it passes, and puts it aside: it must not count among those kept.
        """
        paths = self.paths()
        while paths:
            path = paths.pop()
            match = _NAME.fullmatch(path.name)
            assert match is not None
            with path.open("rb") as file:
                digest = _digest(file)
            if digest[:32] == match[2]:
                return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
            instead = "the one before it" if paths else "the start of the run"
            warnings.warn(
                f"checkpoint {path} is damaged and now ends in .damaged; falling back to {instead}",
                stacklevel=2,
            )
            path.rename(path.with_suffix(".damaged"))
        return None


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()

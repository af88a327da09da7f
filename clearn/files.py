"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from clearn.errors import UserError


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a loss of power, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`, replacing what was there, or leave what was there untouched.

    The bytes reach the disk under a name of this process's own and get theirs by one rename, so
    that a killed process leaves the old file or the new one. Missing folders are made.

    Raises:
        UserError: The folder cannot be written to, or the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path.parent, error, temporary) from error


def cannot_write(folder: Path, error: OSError, leftover: Path | None = None) -> UserError:
    """The error for a folder that cannot be written to; removes a half-written `leftover`."""
    if leftover is not None:
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)
    return UserError(
        f"folder: cannot write to {folder} ({error.strerror or error}); make room, allow writing "
        "there, or name another folder, then run the same command again"
    )

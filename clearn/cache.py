"""Decode once: images as one memory-mapped uint8 array, shared by all processes of a machine."""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from clearn.errors import UserError
from clearn.images import Images

_BLOCK = 64  # images a thread decodes at a time
_CHECKSUM_BYTES = 4


def cache_folder() -> Path:
    """Where decoded data is kept: `$CLEARN_CACHE`, else `~/.cache/clearn`."""
    return Path(os.environ.get("CLEARN_CACHE") or Path.home() / ".cache" / "clearn")


def decode_once(images: Images, *, workers: int) -> Tensor:
    """All images as uint8 `[N, C, H, W]`: from the cache when they are in it, decoded otherwise.

    The file is a plain .npy array with its CRC-32 behind it. It is written under a lock to a
    temporary name, forced to the disk and renamed, and its length and checksum are tested
    whenever it is opened. Images without a key are decoded into memory.

    Args:
        images: What to decode.
        workers: Threads that decode, >= 1.

    Raises:
        UserError: The cache cannot be written.
    """
    key = images.key()
    if key is None:
        return torch.cat(list(_decoded(images, workers)))
    path = cache_folder() / "images" / f"{key}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not _is_whole(path):
                _write(path, images, workers)
            # Copy on write: torch wants writable memory, and the file stays as it is.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError as error:
        size = len(images) * int(np.prod(images.shape)) / 2**20
        raise UserError(
            f"cache: {path} cannot be written: {error.strerror or error}; free {size:.0f} MiB or "
            "set $CLEARN_CACHE to another folder"
        ) from error
    return torch.from_numpy(array)


def _decoded(images: Images, workers: int) -> Iterator[Tensor]:
    """Blocks of decoded images in order, with a line on stderr when it takes long."""
    started = shown = time.monotonic()
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        # Few blocks are under way at a time, so that a slow disk does not fill the memory.
        blocks = [range(len(images))[i : i + _BLOCK] for i in range(0, len(images), _BLOCK)]
        for first in range(0, len(blocks), 4 * workers):
            for block in pool.map(images.__getitem__, blocks[first : first + 4 * workers]):
                yield block
                done += len(block)
            if time.monotonic() - shown > 5:
                shown = time.monotonic()
                left = (shown - started) * (len(images) / done - 1)
                print(
                    f"decoding images: {done} of {len(images)}, {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )


def _write(path: Path, images: Images, workers: int) -> None:
    partial = path.with_suffix(".partial")  # one writer at a time: the caller holds the lock
    header = {
        "descr": "|u1",
        "fortran_order": False,
        "shape": (len(images), *images.shape),
    }
    try:
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            checksum = 0
            for block in _decoded(images, workers):
                data = block.numpy().data
                checksum = zlib.crc32(data, checksum)
                file.write(data)
            file.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Whether a file is there, has the length its header asks for, and the right checksum."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            left = int(np.prod(shape)) * dtype.itemsize
            if os.fstat(file.fileno()).st_size != file.tell() + left + _CHECKSUM_BYTES:
                return False
            checksum = 0
            while left:
                data = file.read(min(left, 2**22))
                checksum = zlib.crc32(data, checksum)
                left -= len(data)
            return file.read() == checksum.to_bytes(_CHECKSUM_BYTES, "little")
    except (FileNotFoundError, ValueError):
        return False

"""Decode once: images as one memory-mapped uint8 array, shared by all processes of a machine."""

from __future__ import annotations

import math
import os
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
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
    temporary name, forced to the disk and renamed; its length and checksum are tested whenever
    it is opened, and it is made again when they are wrong. Images without a key are decoded into
    memory.

    Args:
        images: What to decode.
        workers: Threads that decode, >= 1.

    Raises:
        UserError: An image cannot be read or the cache not be written.
    """
    key = images.key()
    shape = (len(images), *images.shape)
    if key is None:
        data = torch.empty(shape, dtype=torch.uint8)
        for place, block in zip(torch.split(data, _BLOCK), _decoded(images, workers), strict=True):
            place.copy_(block)
        return data
    path = cache_folder() / "images" / f"{key}.npy"
    header = _header(shape)
    try:
        if not _is_whole(path, header, math.prod(shape)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not _is_whole(path, header, math.prod(shape)):  # another process was faster
                    _write(path, header, _decoded(images, workers))
        # Copy on write: torch wants writable memory, and the file stays as it is.
        return torch.from_numpy(np.memmap(path, np.uint8, "c", len(header), shape))
    except OSError as error:
        raise UserError(
            f"cache: {path} cannot be used: {error.strerror or error}; free "
            f"{math.prod(shape) / 2**20:.0f} MiB there or set $CLEARN_CACHE to another folder"
        ) from error


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


def _header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of uint8 begins with."""
    file = BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def _write(path: Path, header: bytes, blocks: Iterator[Tensor]) -> None:
    """Write a file that is whole or not there; the caller holds the lock."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(header)
            checksum = 0
            for block in blocks:
                data = block.numpy().data
                checksum = zlib.crc32(data, checksum)
                file.write(data)
            file.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_whole(path: Path, header: bytes, left: int) -> bool:
    """Whether there is a file of `header`, `left` bytes of data and their checksum."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != len(header) + left + _CHECKSUM_BYTES or file.read(len(header)) != header:
                return False
            checksum = 0
            while left:
                data = file.read(min(left, 2**22))
                checksum = zlib.crc32(data, checksum)
                left -= len(data)
            return file.read() == checksum.to_bytes(_CHECKSUM_BYTES, "little")
    except FileNotFoundError:
        return False

"""Writing the file of a mask archive so that at any moment a whole archive is there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from clearn.kernels import _layout as layout
from clearn.kernels._layout import Block, Header, Superblock
from clearn.kernels._payload import Payload


def lay_out(
    start: int, before: tuple[int, int], coded: Sequence[tuple[Payload, bytes]], tasks: int
) -> tuple[Block, bytes]:
    """A block that begins at byte `start`, and its bytes."""
    payloads = tuple(payload for payload, _ in coded)
    checksums = tuple(crc32(data) for _, data in coded)
    directory = layout.pack_directory(before, payloads, checksums, tasks)
    at = (start + sum(payload.coded for payload in payloads), crc32(directory))
    data = b"".join([*(data for _, data in coded), directory])
    return Block(before, at, payloads, checksums, tasks), data


def publish(file: BinaryIO, start: int, data: bytes, superblock: Superblock) -> None:
    """Write `data` at byte `start`, and when they are on the disk the superblocks."""
    file.seek(start)
    file.write(data)
    file.truncate()
    _flush(file)
    for offset in layout.COPIES:  # one of them is whole at any moment
        file.seek(offset)
        file.write(superblock.pack())
        _flush(file)


def write_file(
    path: Path,
    header: Header,
    tasks: Iterable[int],
    blocks: Iterable[Sequence[tuple[Payload, bytes]]],
) -> None:
    """Write a whole archive of blocks of so many tasks."""
    packed, total = header.pack(), 0
    size, last = layout.HEADER_OFFSET + len(packed), (0, 0)
    with _replacing(path) as file:
        file.write(bytes(layout.HEADER_OFFSET) + packed)
        for count, coded in zip(tasks, blocks, strict=True):
            block, data = lay_out(size, last, coded, count)
            file.write(data)
            size, last, total = block.end, block.directory, total + count
        summary = Superblock(total, size, (len(packed), crc32(packed)), last)
        publish(file, size, b"", summary)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of what is at `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            _flush(file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # so that the new name outlasts a loss of power
        finally:
            os.close(folder)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())

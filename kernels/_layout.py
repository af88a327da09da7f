r"""The file of a mask archive, version 1: its parts as bytes, and the checks on reading them.

All numbers are little endian. Bytes beyond the published size do not count.

    offset 0      superblock, 48 bytes, and zeros
    offset 512    the same superblock once more, and zeros
    offset 560    header
    then          blocks, each the payloads of all tensors in the order of the header (see
                  `_payload`), and behind them its directory

    superblock    magic "\x89clmask\n"; version u16; u16 0; tasks u32; published size u64; bytes
                  and CRC-32 of the header u32 u32; offset u64 and CRC-32 u32 of the last
                  directory (0 0 without tasks); CRC-32 of the 44 bytes before it u32
    header        block size N u8 (1..16); codec u8 (0 huffman, 1 ans); tensors u32; per tensor:
                  bytes of its name u16, name in UTF-8, dimensions u8, sizes u64 each
    directory     tasks u8 (N, fewer in the last block only); offset u64 and CRC-32 u32 of the
                  directory of the block before (0 0 in the first); per tensor: kind u8 (place in
                  `_payload.KINDS`), bytes of the payload u64, of its codebook u32, bits of the
                  code u64, n times the entropy in bits f64, CRC-32 of the payload u32

So one mask is read by the superblock, the header, as many directories as there are blocks, and one
payload. Appending a task writes a block, with a directory that points to the one before, behind
the published size, and then publishes it by writing one superblock after the other. A superblock
of another version keeps its size, magic and version, and the place of its CRC-32.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from clearn.kernels._payload import CODECS, KINDS, Payload

MAGIC = b"\x89clmask\n"
VERSION = 1
COPIES = (0, 512)
MAX_BLOCK = 16
MAX_ELEMENTS = 1 << 34

_SUPERBLOCK = struct.Struct("<8sHHIQIIQI")
_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<BBI")
_DIRECTORY = struct.Struct("<BQI")
_ENTRY = struct.Struct("<BQIQdI")
SUPERBLOCK_BYTES = _SUPERBLOCK.size + _CHECKSUM.size
HEADER_OFFSET = COPIES[-1] + SUPERBLOCK_BYTES


@dataclass(frozen=True)
class Superblock:
    """What is published.

    Attributes:
        tasks: Number of tasks.
        size: Bytes of the file that count.
        header: Bytes and CRC-32 of the header.
        last: Offset and CRC-32 of the last directory.
    """

    tasks: int
    size: int
    header: tuple[int, int]
    last: tuple[int, int]

    def pack(self) -> bytes:
        """The superblock as bytes."""
        body = _SUPERBLOCK.pack(MAGIC, VERSION, 0, self.tasks, self.size, *self.header, *self.last)
        return body + _CHECKSUM.pack(crc32(body))


@dataclass(frozen=True)
class Header:
    """What an archive is made for.

    Attributes:
        block: Tasks per block, N.
        codec: One of `CODECS`.
        shapes: Of the tensors, by name, in order.
    """

    block: int
    codec: str
    shapes: Mapping[str, tuple[int, ...]]

    def check(self) -> None:
        """Refuse what cannot be archived.

        Raises:
            ValueError: A value is out of its range.
        """
        if isinstance(self.block, bool) or self.block not in range(1, MAX_BLOCK + 1):
            raise ValueError(
                f"block: {self.block!r} is not valid: expected 1 to {MAX_BLOCK} tasks per block"
            )
        if self.codec not in CODECS:
            raise ValueError(f"codec: {self.codec!r} is not valid: expected {' or '.join(CODECS)}")
        for name, shape in self.shapes.items():
            if not name.isprintable() or len(name.encode()) >= 1 << 16:
                raise ValueError(f"tensor name {name[:50]!r} is not valid: expected printable text")
            if len(shape) >= 1 << 8 or not all(0 <= size <= MAX_ELEMENTS for size in shape):
                raise ValueError(f"{name}: shape {list(shape)[:8]} is not valid")
            if math.prod(shape) > MAX_ELEMENTS:
                raise ValueError(
                    f"{name}: shape {list(shape)} has more than {MAX_ELEMENTS} elements, which "
                    "is as many as an archive takes"
                )

    def pack(self) -> bytes:
        """The header as bytes."""
        parts = [_HEADER.pack(self.block, CODECS.index(self.codec), len(self.shapes))]
        for name, shape in self.shapes.items():
            text = name.encode()
            parts += [struct.pack("<H", len(text)), text]
            parts.append(struct.pack(f"<B{len(shape)}Q", len(shape), *shape))
        return b"".join(parts)


@dataclass(frozen=True)
class Block:
    """One version of a block.

    Attributes:
        before: Offset and CRC-32 of the directory of the block before it.
        directory: Offset and CRC-32 of its own directory.
        payloads: Of the tensors, in the order of the header.
        checksums: CRC-32 of the payloads.
    """

    before: tuple[int, int]
    directory: tuple[int, int]
    payloads: tuple[Payload, ...]
    checksums: tuple[int, ...]
    tasks: int

    @property
    def start(self) -> int:
        """Offset of the first payload."""
        return self.directory[0] - sum(payload.coded for payload in self.payloads)

    @property
    def end(self) -> int:
        """Offset behind the directory."""
        return self.directory[0] + directory_bytes(len(self.payloads))

    def offset(self, index: int) -> int:
        """Where the payload of the tensor with that index begins."""
        return self.start + sum(payload.coded for payload in self.payloads[:index])


def directory_bytes(tensors: int) -> int:
    """Bytes of a directory."""
    return _DIRECTORY.size + tensors * _ENTRY.size


def read_superblock(start: bytes) -> Superblock:
    """The newer of the two superblocks that are whole; they differ only where a writer was stopped.

    Args:
        start: The first `HEADER_OFFSET` bytes of a file, or all there are.

    Raises:
        ValueError: The file is no archive, is cut off or damaged, or of a newer version.
    """
    copies = [start[offset : offset + SUPERBLOCK_BYTES] for offset in COPIES]
    if not any(copy.startswith(MAGIC) for copy in copies):
        raise ValueError("is not a mask archive")
    found = []
    for copy in copies:
        if len(copy) < SUPERBLOCK_BYTES or not copy.startswith(MAGIC):
            continue
        body, (checksum,) = copy[: _SUPERBLOCK.size], _CHECKSUM.unpack(copy[_SUPERBLOCK.size :])
        if crc32(body) != checksum:
            continue
        _, version, _, tasks, size, *pairs = _SUPERBLOCK.unpack(body)
        if version != VERSION:
            raise ValueError(
                f"is of version {version}, and this version of clearn reads {VERSION}; "
                "install a newer clearn"
            )
        found.append(Superblock(tasks, size, (pairs[0], pairs[1]), (pairs[2], pairs[3])))
    if not found:
        raise ValueError("is cut off or damaged: neither of its superblocks is whole")
    return max(found, key=lambda superblock: superblock.tasks)


def parse_header(data: bytes) -> Header:
    """The header from its bytes.

    Raises:
        ValueError: They are not those of a valid header.
    """
    try:
        block, codec, tensors = _HEADER.unpack_from(data)
        at, shapes = _HEADER.size, {}
        for _ in range(tensors):
            (length,) = struct.unpack_from("<H", data, at)
            name = data[at + 2 : at + 2 + length].decode()
            (dimensions,) = struct.unpack_from("<B", data, at + 2 + length)
            shapes[name] = struct.unpack_from(f"<{dimensions}Q", data, at + 3 + length)
            at += 3 + length + 8 * dimensions
        header = Header(block, CODECS[codec], shapes)
        header.check()
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"its header is not valid: {error}") from error
    if at != len(data) or len(shapes) != tensors:
        raise ValueError("its header is not valid: sizes or names do not add up")
    return header


def pack_directory(
    before: tuple[int, int], payloads: Sequence[Payload], checksums: Sequence[int], tasks: int
) -> bytes:
    """A directory as bytes."""
    parts = [_DIRECTORY.pack(tasks, *before)]
    for payload, checksum in zip(payloads, checksums, strict=True):
        numbers = (payload.coded, payload.codebook, payload.code_bits, payload.entropy_bits)
        parts.append(_ENTRY.pack(KINDS.index(payload.kind), *numbers, checksum))
    return b"".join(parts)


def parse_directory(data: bytes, at: tuple[int, int], elements: Sequence[int], tasks: int) -> Block:
    """A block from the bytes of its directory.

    Args:
        data: The directory.
        at: Its offset and CRC-32.
        elements: Of the tensors.
        tasks: Tasks of the block, as the number of all tasks has it.

    Raises:
        ValueError: The directory is not valid.
    """
    if crc32(data) != at[1]:
        raise ValueError(f"is damaged: the directory at byte {at[0]} fails its checksum")
    stored, *before = _DIRECTORY.unpack_from(data)
    if stored != tasks:
        raise ValueError(f"has a block of {stored} tasks where {tasks} belong")
    payloads, checksums = [], []
    for n, numbers in zip(elements, _ENTRY.iter_unpack(data[_DIRECTORY.size :]), strict=True):
        kind, coded, codebook, code_bits, entropy_bits, checksum = numbers
        if kind >= len(KINDS):
            raise ValueError(f"has a payload of an unknown kind, {kind}")
        payload = Payload(KINDS[kind], tasks, n, coded, codebook, code_bits, entropy_bits)
        payload.check()
        payloads.append(payload)
        checksums.append(checksum)
    return Block((before[0], before[1]), at, tuple(payloads), tuple(checksums), tasks)

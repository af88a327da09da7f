"""Archives that are cut off, damaged, or made to mislead: an error, and no memory or time lost."""

from __future__ import annotations

import math
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor

from clearn.kernels.archive import ArchiveError, MaskArchive
from tests.kernels import reference
from tests.kernels.reference import draw

SHAPES = {"alike": (205,), "drawn": (2, 9), "none": (12,), "empty": (0,)}
SUPERBLOCKS = (0, 512)
HEADER = 560
DIRECTORY, ENTRY = struct.Struct("<BQI"), struct.Struct("<BQIQdI")
Masks = list[dict[str, Tensor]]


def tasks() -> Masks:
    first = draw(205, p=0.3)
    return [
        {
            "alike": reference.pack(first if task % 2 else ~first),
            "drawn": reference.pack(draw(18, p=0.4, seed=task)),
            "none": reference.pack(torch.ones(12, dtype=torch.bool)),
            "empty": torch.zeros(0, dtype=torch.uint8),
        }
        for task in range(5)
    ]


@pytest.fixture(scope="module", params=["huffman", "ans"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An archive with all kinds of payloads and a dead block."""
    path = tmp_path_factory.mktemp("whole") / "a"
    archive = MaskArchive.write(path, tasks()[:4], SHAPES, block=4, codec=request.param)
    archive.append(tasks()[4])
    kinds = {block.kind for found in archive.sizes().values() for block in found.blocks}
    assert kinds == {"raw", "constant", request.param}
    return path.read_bytes()


def overwrite(path: Path, data: bytes) -> None:
    """As `write_bytes`, which waits for the disk where a file system is careful with old bytes."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(data)
        file.truncate()


def contents(path: Path) -> tuple[object, ...]:
    """All that a file says, or that it says nothing."""
    archive = MaskArchive.open(path)
    archive.sizes()
    assert archive.dead >= 0
    masks = [archive.masks(name) for name in archive.shapes]
    for found, shape in zip(masks, archive.shapes.values(), strict=True):
        n = math.prod(shape)
        assert found.shape == (archive.num_tasks, (n + 7) // 8)
        assert not n % 8 or not (found[:, -1] >> n % 8).any()
    return archive.shapes, [found.tolist() for found in masks]


def pieces(data: bytes) -> list[tuple[int, int]]:
    """Offsets of the directories, the last first, and of their first payloads."""
    (tensors,) = struct.unpack_from("<I", data, HEADER + 2)
    (at,), found = struct.unpack_from("<Q", data, 32), []
    while at and at + DIRECTORY.size + tensors * ENTRY.size <= len(data) and len(found) < 9:
        entries = ENTRY.iter_unpack(data[at + DIRECTORY.size :][: tensors * ENTRY.size])
        found.append((at, at - sum(entry[1] for entry in entries)))
        (_, at, _) = DIRECTORY.unpack_from(data, at)
    return found


def sealed(data: bytes) -> bytes:
    """The same with checksums that fit, as far as the offsets lead anywhere."""
    result = bytearray(data)
    (tensors,) = struct.unpack_from("<I", result, HEADER + 2)
    length = DIRECTORY.size + min(tensors, 100) * ENTRY.size
    before = 0, 0
    for at, start in reversed(pieces(data)):
        place = start
        for index in range(min(tensors, 100)):
            entry = at + DIRECTORY.size + index * ENTRY.size
            (_, coded, *_) = ENTRY.unpack_from(result, entry)
            if 0 <= place <= place + coded <= len(result):
                checksum = crc32(result[place : place + coded])
                struct.pack_into("<I", result, entry + ENTRY.size - 4, checksum)
            place += coded
        if before != (0, 0):
            struct.pack_into("<QI", result, at + 1, *before)
        before = at, crc32(result[at : at + length])
    for copy in SUPERBLOCKS:
        if before != (0, 0):
            struct.pack_into("<QI", result, copy + 32, *before)
        (size,) = struct.unpack_from("<I", result, copy + 24)
        struct.pack_into("<I", result, copy + 28, crc32(result[HEADER : HEADER + size]))
        struct.pack_into("<I", result, copy + 44, crc32(result[copy : copy + 44]))
    return bytes(result)


def mutations(data: bytes, number: int, kinds: int = 6) -> Iterator[bytes]:
    """The data with a few bits or bytes changed, or (of 6 kinds) pieces cut out or doubled too."""
    draws = np.random.default_rng(len(data))
    # The zeros between the two superblocks say nothing.
    places = np.array([*range(48), *range(512, len(data))])
    for _ in range(number):
        result, kind = bytearray(data), draws.integers(kinds)
        at, to = sorted(draws.choice(places, 2).tolist())
        if kind == 0:
            result[at] ^= 1 << int(draws.integers(8))
        elif kind == 1:
            for place in draws.choice(places, int(draws.integers(1, 6))):
                result[place] = int(draws.integers(256))
        elif kind == 2:
            result[at : at + 8] = int(draws.choice(NUMBERS)).to_bytes(8, "little")
        elif kind == 3:
            result[at] = int(draws.choice([0, 1, 127, 128, 255]))
        elif kind == 4:
            del result[at : min(to, at + 40)]
        else:
            result[at:at] = result[at : min(to, at + 40)]
        yield bytes(result[:to] if kind > 3 and draws.integers(4) == 0 else result)


NUMBERS = np.array([0, 1, 2**31, 2**32 - 1, 2**34, 2**40, 2**60, 2**63, 2**64 - 1], np.uint64)


def test_damage_is_seen(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    overwrite(path, whole)
    expected = contents(path)
    assert expected[1] == [[task[name].tolist() for task in tasks()] for name in SHAPES]
    refused = 0
    for data in mutations(whole, 2600):
        overwrite(path, data)
        try:
            assert contents(path) == expected
        except ArchiveError:
            refused += 1
    assert refused > 2000


def test_wrong_data_under_right_checksums_are_refused_or_are_masks(
    whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    assert sealed(whole) == whole
    refused = 0
    for data in mutations(whole, 2600, kinds=4):
        overwrite(path, sealed(data))
        try:
            contents(path)
        except ArchiveError:
            refused += 1
    assert refused > 1000


def test_a_file_cut_off_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    for size in range(len(whole)):
        overwrite(path, whole[:size])
        with pytest.raises(ArchiveError, match=r"cut off or damaged|is not a mask archive"):
            MaskArchive.open(path)


def test_a_superblock_that_is_lost_is_replaced_by_the_other(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    overwrite(path, whole)
    expected = contents(path)
    for copy in SUPERBLOCKS:
        for place in range(copy, copy + 48):
            damaged = bytearray(whole)
            damaged[place] ^= 255
            overwrite(path, damaged)
            assert contents(path) == expected


def test_a_newer_version_is_named(whole: bytes, tmp_path: Path) -> None:
    newer = bytearray(whole)
    for copy in SUPERBLOCKS:
        struct.pack_into("<H", newer, copy + 8, 2)
    (tmp_path / "a").write_bytes(sealed(bytes(newer)))
    with pytest.raises(ArchiveError, match=r"is of version 2, .* reads 1; install a newer clearn"):
        MaskArchive.open(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"\x89clmask\n", b"PK" * 1000, bytes(5000)])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"is not a mask archive|is cut off or damaged"):
        MaskArchive.open(tmp_path / "a")


def claims(whole: bytes) -> Iterator[bytes]:
    """Files that claim far more than they hold, with checksums that fit."""
    header_size = struct.unpack_from("<I", whole, 24)[0]
    name = len("alike")
    for huge in (1 << 33, 1 << 34, 1 << 60, (1 << 64) - 1):
        data = bytearray(whole)  # the shape of the first tensor
        struct.pack_into("<Q", data, HEADER + 6 + 2 + name + 1, huge)
        yield sealed(bytes(data))
        for offset in (12, 16, 24, 32):  # tasks, size, bytes of the header, last directory
            data = bytearray(whole)
            kind = "<I" if offset in (12, 24) else "<Q"
            for copy in SUPERBLOCKS:
                struct.pack_into(kind, data, copy + offset, huge & (1 << 32) - 1 or 1 << 31)
                struct.pack_into("<I", data, copy + 44, crc32(data[copy : copy + 44]))
            yield bytes(data)
        data = bytearray(whole)  # number of tensors
        struct.pack_into("<I", data, HEADER + 2, huge & (1 << 32) - 1 or 1 << 31)
        for copy in SUPERBLOCKS:
            checksum = crc32(data[HEADER : HEADER + header_size])
            struct.pack_into("<I", data, copy + 28, checksum)
            struct.pack_into("<I", data, copy + 44, crc32(data[copy : copy + 44]))
        yield bytes(data)
        for at, _ in pieces(whole):
            for place in (1, 13 + 1, 13 + 33 + 1, 13 + 13, 13 + 33 + 13):  # bytes and bits
                data = bytearray(whole)
                struct.pack_into("<Q", data, at + place, huge)
                yield sealed(bytes(data))


def test_claims_take_no_memory(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    overwrite(path, whole)
    contents(path)  # what is imported and cached is no part of the question
    for number, data in enumerate(claims(whole)):
        overwrite(path, data)
        tracemalloc.start()
        try:
            with pytest.raises(ArchiveError):
                contents(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 300_000, number


def test_few_bytes_hold_few_weights(tmp_path: Path) -> None:
    """A constant takes no code, so its size is what limits what it may stand for."""
    n, path = 1 << 24, tmp_path / "a"
    full = torch.full((n // 8,), 255, dtype=torch.uint8)
    archive = MaskArchive.write(path, [{"w": full}] * 2, {"w": (n,)})
    (block,) = archive.sizes()["w"].blocks
    assert (block.kind, block.coded) == ("constant", n >> 13)
    assert torch.equal(archive.mask(1, "w"), full)
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, HEADER + 6 + 2 + 1 + 1, n << 1)
    overwrite(path, sealed(bytes(data)))
    with pytest.raises(ArchiveError, match="sizes of a constant payload do not go with"):
        MaskArchive.open(path)

"""The mask archive: the masks of all tasks in one file, stacked and entropy coded.

Tasks are stacked in blocks of N, so that an element has one symbol of N bits per block, task 0 of
the block least significant; each tensor has its own code in each block (Kang et al. 2022, PMLR
162:10734, with N = 7). A mask alone has nothing to gain from a Huffman code, which spends a bit or
more on a symbol: the gain is in what the masks of a block share. Where there is none the tensor is
stored raw in that block, and `sizes` says so.

Appending a task rewrites no earlier block. The block that is not full is written anew behind its
old version, and then published; a process that is stopped at any moment leaves the archive as it
was or with the new task. `dead` counts the bytes of old versions, and `compact` drops them. One
process at a time may append; others may read meanwhile. `_layout` describes the file.

Shapes: n elements of a tensor, B = ceil(n / 8) bytes of its packed mask, T tasks.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import torch
from torch import Tensor

from clearn.kernels import _layout as layout
from clearn.kernels._checks import packed_size
from clearn.kernels._layout import Block, Header, Superblock
from clearn.kernels._payload import Payload, decode, encode
from clearn.kernels._writing import lay_out, publish, write_file


class ArchiveError(ValueError):
    """A file is not a whole archive, or what was given does not fit one."""


@dataclass(frozen=True)
class TensorSizes:
    """What the masks of one tensor take.

    Attributes:
        blocks: Sizes in each block: kind, bits of the code, bytes of the codebook, padding and
            entropy.
    """

    blocks: tuple[Payload, ...]

    @property
    def raw(self) -> int:
        """Bytes of the packed masks, T ceil(n / 8)."""
        return sum(block.raw for block in self.blocks)

    @property
    def coded(self) -> int:
        """Bytes in the file, codebooks and padding included."""
        return sum(block.coded for block in self.blocks)

    @property
    def entropy(self) -> float:
        """Bytes that the entropy of the symbols asks for, without any codebook."""
        return sum(block.entropy_bits for block in self.blocks) / 8


class MaskArchive:
    """Masks of tasks in a file.

    Made by `create`, `open` or `write`; nothing but the sizes is kept in memory.

    Attributes:
        path: The file.
        header: Block size, codec and shapes.
    """

    def __init__(
        self, path: Path, header: Header, superblock: Superblock, blocks: Sequence[Block]
    ) -> None:
        self.path = path
        self.header = header
        self._superblock = superblock
        self._blocks = list(blocks)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        shapes: Mapping[str, Sequence[int]],
        block: int = 7,
        codec: str = "huffman",
    ) -> MaskArchive:
        """Make an archive without tasks.

        Args:
            path: Where; nothing may be there.
            shapes: Of the tensors, by name; at most 2^34 elements each.
            block: Tasks per block, N, 1 to 16.
            codec: "huffman", or "ans", which needs the package constriction.

        Raises:
            ArchiveError: Something is there already, or a value is out of its range.
            OSError: The file cannot be written.
        """
        if os.path.lexists(path):
            raise ArchiveError(f"{path} exists; open it, remove it, or name another file")
        return cls.write(path, [], shapes, block=block, codec=codec)

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        masks: Sequence[Mapping[str, Tensor]],
        shapes: Mapping[str, Sequence[int]],
        block: int = 7,
        codec: str = "huffman",
    ) -> MaskArchive:
        """Make an archive of all tasks at once, without dead bytes.

        Replaces what is there, in one step when all of it is on the disk.

        Args:
            path: Where.
            masks: Of each task, as for `append`.
            shapes: As for `create`.
            block: As for `create`.
            codec: As for `create`.

        Raises:
            ArchiveError: A value is out of its range, or masks do not fit the shapes.
            OSError: The file cannot be written.
        """
        plain = {name: tuple(map(operator.index, shape)) for name, shape in shapes.items()}
        header = Header(block, codec, plain)
        with _errors("masks"):
            header.check()
            tasks = [_check_masks(header, task) for task in masks]
            groups = [tasks[start : start + block] for start in range(0, len(tasks), block)]
            coded = ([_encode(header, group, name) for name in header.shapes] for group in groups)
            write_file(Path(path), header, map(len, groups), coded)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> MaskArchive:
        """Open an archive.

        Reads all that is needed to find a mask, and checks it. The masks are checked when they
        are read.

        Raises:
            ArchiveError: The file is no archive, is cut off or damaged, or of a newer version.
            OSError: The file cannot be read.
        """
        with Path(path).open("rb") as file, _errors(path):
            size = os.fstat(file.fileno()).st_size
            superblock = layout.read_superblock(file.read(layout.HEADER_OFFSET))
            length, checksum = superblock.header
            if not layout.HEADER_OFFSET + length <= superblock.size <= size:
                raise ValueError(
                    f"is cut off or damaged: it claims {superblock.size} bytes and has {size}"
                )
            data = file.read(length)
            if crc32(data) != checksum:
                raise ValueError("is damaged: its header fails its checksum")
            header = layout.parse_header(data)
            blocks = _read_blocks(file, superblock, header)
        return cls(Path(path), header, superblock, blocks)

    @property
    def num_tasks(self) -> int:
        """Number of tasks, T."""
        return self._superblock.tasks

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors, by name."""
        return dict(self.header.shapes)

    @property
    def size(self) -> int:
        """Bytes of the archive, `dead` included."""
        return self._superblock.size

    @property
    def dead(self) -> int:
        """Bytes of versions of blocks that later ones have replaced; `compact` drops them."""
        live = layout.HEADER_OFFSET + self._superblock.header[0]
        return self.size - live - sum(block.end - block.start for block in self._blocks)

    def sizes(self) -> dict[str, TensorSizes]:
        """What the masks of each tensor take; superblocks, header and directories are not in it."""
        return {
            name: TensorSizes(tuple(block.payloads[index] for block in self._blocks))
            for index, name in enumerate(self.header.shapes)
        }

    def mask(self, task: int, name: str) -> Tensor:
        """The packed mask of a task, uint8 `[B]`; decodes one tensor in one block.

        Args:
            task: In 0..T - 1.
            name: Of the tensor.

        Raises:
            ArchiveError: There is no such mask, the file is damaged, or the package that decodes
                it is missing.
            OSError: The file cannot be read.
        """
        if not 0 <= task < self.num_tasks:
            raise ArchiveError(
                f"task: {task} is not valid: {self.path} holds {self.num_tasks} tasks, from 0"
            )
        index, first = divmod(task, self.header.block)
        return self._decode(index, name, first, 1)[0]

    def masks(self, name: str) -> Tensor:
        """The packed masks of all tasks, uint8 `[T, B]`; decodes each block once.

        Args:
            name: Of the tensor.

        Raises:
            ArchiveError: As `mask`.
            OSError: The file cannot be read.
        """
        parts = [self._decode(i, name, 0, block.tasks) for i, block in enumerate(self._blocks)]
        width = packed_size(math.prod(self.header.shapes[self._known(name)]))
        return torch.cat(parts) if parts else torch.empty(0, width, dtype=torch.uint8)

    def append(self, masks: Mapping[str, Tensor]) -> None:
        """Add the masks of the next task.

        Args:
            masks: Packed, uint8 `[B]` with the unused bits zero, one for each tensor.

        Raises:
            ArchiveError: The masks do not fit, the file is damaged or was changed by another
                process, or the package that codes is missing.
            OSError: The file cannot be written.
        """
        with _errors("masks"):
            new = _check_masks(self.header, masks)
        pending = self.num_tasks % self.header.block
        kept = self._blocks[:-1] if pending else self._blocks
        coded = []
        for name in self.header.shapes:
            bits = new[name][None]
            if pending:
                bits = torch.cat([self._decode(len(kept), name, 0, pending), bits])
            with _errors(self.path):
                coded.append(encode(bits, self._elements(name), self.header.codec))
        before = kept[-1].directory if kept else (0, 0)
        block, data = lay_out(self.size, before, coded, pending + 1)
        superblock = Superblock(
            self.num_tasks + 1, block.end, self._superblock.header, block.directory
        )
        with self.path.open("r+b") as file:
            self._require_unchanged(file)
            publish(file, self.size, data, superblock)
        self._superblock, self._blocks = superblock, [*kept, block]

    def compact(self) -> int:
        """Write the file anew without dead bytes, in one step; returns how many bytes that saves.

        Raises:
            ArchiveError: The file is damaged or was changed by another process.
            OSError: The file cannot be written.
        """
        with self.path.open("rb") as file:
            self._require_unchanged(file)
            before = os.fstat(file.fileno()).st_size
        coded = (
            [(payload, self._read(block, index)) for index, payload in enumerate(block.payloads)]
            for block in self._blocks
        )
        write_file(self.path, self.header, (block.tasks for block in self._blocks), coded)
        fresh = MaskArchive.open(self.path)
        self._superblock, self._blocks = fresh._superblock, fresh._blocks
        return before - self.size

    def _require_unchanged(self, file: BinaryIO) -> None:
        with _errors(self.path):
            current = layout.read_superblock(file.read(layout.HEADER_OFFSET))
        if current != self._superblock:
            raise ArchiveError(f"{self.path} was changed by another process; open it again")

    def _elements(self, name: str) -> int:
        return math.prod(self.header.shapes[name])

    def _known(self, name: str) -> str:
        if name not in self.header.shapes:
            known = ", ".join(self.header.shapes) or "none"
            raise ArchiveError(f"tensor: {name!r} is not in {self.path}; it holds: {known}")
        return name

    def _decode(self, index: int, name: str, first: int, count: int) -> Tensor:
        block, place = self._blocks[index], list(self.header.shapes).index(self._known(name))
        data = self._read(block, place)
        with _errors(f"{self.path}: block {index}, tensor {name}"):
            return decode(block.payloads[place], data, first, count)

    def _read(self, block: Block, index: int) -> bytes:
        """The bytes of a payload, checked."""
        with self.path.open("rb") as file:
            file.seek(block.offset(index))
            data = file.read(block.payloads[index].coded)
        if crc32(data) != block.checksums[index]:
            name = list(self.header.shapes)[index]
            raise ArchiveError(
                f"{self.path} is damaged or was changed by another process: tensor {name}, byte "
                f"{block.offset(index)}: the checksum does not fit"
            )
        return data


def _check_masks(header: Header, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of a task on the CPU.

    Raises:
        ValueError: They do not fit the shapes.
    """
    if set(masks) != set(header.shapes):
        missing, more = set(header.shapes) - set(masks), set(masks) - set(header.shapes)
        raise ValueError(f"missing: {sorted(missing) or 'none'}, unknown: {sorted(more) or 'none'}")
    checked = {}
    for name, shape in header.shapes.items():
        bits, n = masks[name].detach().cpu(), math.prod(shape)
        if bits.dtype != torch.uint8 or bits.shape != (packed_size(n),):
            raise ValueError(
                f"{name}: shape {list(bits.shape)} and type {bits.dtype} are not a packed mask of "
                f"{n} elements: expected [{packed_size(n)}] of torch.uint8"
            )
        if n % 8 and int(bits[-1]) >> n % 8:
            raise ValueError(f"{name}: bits beyond element {n - 1} are set; pack with pack_bits")
        checked[name] = bits
    return checked


def _encode(
    header: Header, tasks: Sequence[Mapping[str, Tensor]], name: str
) -> tuple[Payload, bytes]:
    masks = torch.stack([task[name] for task in tasks])
    return encode(masks, math.prod(header.shapes[name]), header.codec)


def _read_blocks(file: BinaryIO, superblock: Superblock, header: Header) -> list[Block]:
    """The blocks, found from the last to the first.

    Raises:
        ValueError: They are damaged, or are not where they can be.
    """
    elements = [math.prod(shape) for shape in header.shapes.values()]
    length = layout.directory_bytes(len(elements))
    floor, limit = layout.HEADER_OFFSET + superblock.header[0], superblock.size
    at, left, blocks = superblock.last, superblock.tasks, []
    while left:
        tasks = (left - 1) % header.block + 1
        if not floor <= at[0] <= limit - length:
            raise ValueError("claims more data than the file holds")
        file.seek(at[0])
        block = layout.parse_directory(file.read(length), at, elements, tasks)
        if block.start < floor:
            raise ValueError("claims more data than the file holds")
        blocks.append(block)
        at, limit, left = block.before, block.start, left - tasks
    if at != (0, 0):
        raise ValueError("has more blocks than its number of tasks needs")
    return blocks[::-1]


@contextmanager
def _errors(where: str | os.PathLike[str]) -> Iterator[None]:
    """Name the place in what goes wrong inside."""
    try:
        yield
    except ArchiveError:
        raise
    except ValueError as error:
        raise ArchiveError(f"{os.fspath(where)}: {error}") from error

"""What masks cost: the weights that tasks use, and the masks themselves, in one rule for all.

    CAP = used + m / 32

is the capacity of Kang et al. 2022 (PMLR 162:10734) as a share of a dense net's float32 weights:
`used` is the share of the maskable weights that some task selects (1 - S there, S the sparsity),
and m are the bits of all masks per weight. Published figures count m in different ways: WSN's take
a constant compression, m = (1 - .78) T, PackNet's the bits themselves, m = T, in the same table.
Here every method has all four numbers:

    cap_paper     m = .22 T
    cap_raw       m = T
    cap_entropy   m = what the entropy of the stacked symbols asks for, a bound
    cap_real      m = what a mask archive takes: code, codebooks and padding

Heads, biases, and the statistics and parameters of normalisations are in none of them; what of
these is kept once per task is to be stated beside the CAP, in bytes.

Shapes: n elements of a weight, B = ceil(n / 8) bytes of its packed mask, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clearn.kernels._checks import packed_size
from clearn.kernels._payload import Payload, encode
from clearn.kernels.archive import MaskArchive
from clearn.kernels.bitmask import count_bits, or_bits_

ALPHA = 0.78
"""The share of the mask bits that coding saves according to Kang et al. 2022, who use this one
constant for every benchmark and c."""

WEIGHT_BITS = 32
"""Of a weight: the published figures are of float32 nets."""

BLOCK = 7
"""Tasks that are stacked for coding, as published."""


def cap(used: float, mask_bits: float) -> float:
    """CAP as a share of the dense weights: may exceed 1.

    PackNet's published figures are those of used = 1 - (1 - c)^T and T bits of masks:

    >>> round(100 * cap(1 - (1 - 0.1) ** 10, 10), 2)
    96.38

    Args:
        used: Share of the weights that some task selects, in [0, 1].
        mask_bits: Bits of all masks together, per weight.
    """
    return used + mask_bits / WEIGHT_BITS


@dataclass(frozen=True)
class Capacity:
    """What a number of tasks take of a net's maskable weights.

    Attributes:
        tasks: T.
        elements: Maskable weights, n of all tensors together.
        used: Weights that some task selects.
        entropy_bits: Of all masks: the entropy of the stacked symbols, a code for each tensor and
            block.
        coded: Bytes of all masks in an archive, without its header and directories.
    """

    tasks: int
    elements: int
    used: int
    entropy_bits: float
    coded: int

    @property
    def share(self) -> float:
        """Share of the weights that some task selects; NaN when there are none."""
        return self.used / self.elements if self.elements else math.nan

    @property
    def mask_bits(self) -> dict[str, float]:
        """Bits of all masks per weight: by the `paper`, by `entropy`, `real` and `raw`."""
        n = self.elements or math.nan
        return {
            "paper": (1 - ALPHA) * self.tasks,
            "entropy": self.entropy_bits / n,
            "real": 8 * self.coded / n,
            "raw": float(self.tasks),
        }

    @property
    def metrics(self) -> dict[str, float]:
        """`cap_paper`, `cap_entropy`, `cap_real`, `cap_raw` and `sparsity` = 1 - `share`."""
        caps = {f"cap_{name}": cap(self.share, bits) for name, bits in self.mask_bits.items()}
        return caps | {"sparsity": 1 - self.share}


class Stack(NamedTuple):
    """The masks of one tensor.

    Attributes:
        elements: n.
        masks: Packed, uint8 `[T, B]`.
    """

    elements: int
    masks: Tensor


def stacks(
    masks: Iterable[Mapping[str, Tensor]], shapes: Mapping[str, Sequence[int]]
) -> list[Stack]:
    """The masks of each tensor, from those of each task.

    Args:
        masks: Of each task the packed mask, uint8 `[B]`, of each tensor by name, as
            `Subnetworks.named_masks` yields them.
        shapes: Of the tensors.
    """
    tasks = list(masks)
    found = []
    for name, shape in shapes.items():
        n = math.prod(shape)
        rows = [task[name].detach().cpu() for task in tasks]
        empty = torch.empty(0, packed_size(n), dtype=torch.uint8)
        found.append(Stack(n, torch.stack(rows) if rows else empty))
    return found


def archived(archive: MaskArchive) -> Iterator[Stack]:
    """The masks of each tensor of an archive, one at a time.

    Raises:
        ArchiveError: The file is damaged.
    """
    for name, shape in archive.shapes.items():
        yield Stack(math.prod(shape), archive.masks(name))


def capacity(tensors: Iterable[Stack], *, block: int = BLOCK, codec: str = "huffman") -> Capacity:
    """What the masks of all tasks take.

    Args:
        tensors: One or more, with equally many tasks.
        block: Tasks that are stacked for coding, 1 to 16.
        codec: Of the archive: "huffman", or "ans", which needs the package constriction.

    Raises:
        ValueError: The package that the codec needs is missing.
    """
    (found,) = _add(_measure(stack, [len(stack.masks)], block, codec) for stack in tensors)
    return found


def growth(
    tensors: Iterable[Stack], *, block: int = BLOCK, codec: str = "huffman"
) -> list[Capacity]:
    """What the masks take after each task: `[T]`.

    A block is coded anew with each of its tasks, as an archive that grows codes it.

    Args:
        tensors: As for `capacity`.
        block: As for `capacity`.
        codec: As for `capacity`.

    Raises:
        ValueError: As `capacity`.
    """
    return _add(_measure(stack, range(1, len(stack.masks) + 1), block, codec) for stack in tensors)


def _measure(stack: Stack, ends: Iterable[int], block: int, codec: str) -> Iterator[Capacity]:
    """The capacity of one tensor after each number of tasks in `ends`, which go up."""
    n, masks = stack
    used = torch.zeros(packed_size(n), dtype=torch.uint8)
    seen, whole = 0, list[Payload]()
    for end in ends:
        for row in masks[seen:end]:
            or_bits_(used, row)
        seen = end
        while len(whole) < end // block:
            start = len(whole) * block
            whole.append(encode(masks[start : start + block], n, codec)[0])
        last = masks[len(whole) * block : end]
        payloads = [*whole, encode(last, n, codec)[0]] if len(last) else whole
        entropy = sum(payload.entropy_bits for payload in payloads)
        coded = sum(payload.coded for payload in payloads)
        yield Capacity(end, n, int(count_bits(used)), entropy, coded)


def _add(tensors: Iterable[Iterable[Capacity]]) -> list[Capacity]:
    """The sums over tensors."""
    return [
        Capacity(
            tasks=parts[0].tasks,
            elements=sum(part.elements for part in parts),
            used=sum(part.used for part in parts),
            entropy_bits=sum(part.entropy_bits for part in parts),
            coded=sum(part.coded for part in parts),
        )
        for parts in zip(*map(list, tensors), strict=True)
    ]

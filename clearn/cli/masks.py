"""What a mask archive holds and takes, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from clearn.cli.show import plain_table, print_table
from clearn.compare.text import percent, size
from clearn.errors import UserError
from clearn.kernels.archive import ArchiveError, MaskArchive, TensorSizes

_WORTH = 0.05  # of the bytes: what a better code has to save to be mentioned


def print_archive(path: Path) -> None:
    """Print bytes raw, coded and asked for by the entropy, per tensor and in all, and remarks.

    Raises:
        UserError: The file is not a whole archive.
    """
    try:
        archive = MaskArchive.open(path)
    except ArchiveError as error:
        raise UserError(f"file: {error}") from error
    sizes = archive.sizes()
    table = plain_table("tensor", "weights", "raw", "coded", "entropy", "of raw", "stored as")
    for column in table.columns[1:]:
        column.no_wrap = True
        column.justify = "right"
    table.columns[0].overflow = "fold"  # a name that is cut off says nothing
    for name, found in sizes.items():
        kinds = dict.fromkeys(block.kind for block in found.blocks)
        weights = math.prod(archive.shapes[name])
        table.add_row(name, f"{weights:,}", *_bytes(found), ", ".join(kinds))
    total = TensorSizes(tuple(block for found in sizes.values() for block in found.blocks))
    weights = sum(map(math.prod, archive.shapes.values()))
    table.add_row("total", f"{weights:,}", *_bytes(total), "", style="bold")
    print_table(table)
    print(f"\n{_summary(archive, total)}")
    for remark in _remarks(archive, sizes, total):
        print(remark)


def _bytes(sizes: TensorSizes) -> tuple[str, ...]:
    ratio = sizes.coded / sizes.raw if sizes.raw else math.nan
    return size(sizes.raw), size(sizes.coded), size(sizes.entropy), f"{percent(ratio)} %"


def _summary(archive: MaskArchive, total: TensorSizes) -> str:
    tasks = f"{archive.num_tasks} task{'' if archive.num_tasks == 1 else 's'}"
    around = archive.size - archive.dead - total.coded
    return (
        f"{tasks} in blocks of {archive.header.block}, codec {archive.header.codec}. "
        f"File {size(archive.size)}: masks {size(total.coded)}, headers {size(around)}, "
        f"dead {size(archive.dead)}."
    )


def _remarks(
    archive: MaskArchive, sizes: Mapping[str, TensorSizes], total: TensorSizes
) -> Iterator[str]:
    codec = archive.header.codec.replace("huffman", "Huffman").replace("ans", "ANS")
    raw = [
        name
        for name, found in sizes.items()
        if found.raw and any(block.kind == "raw" for block in found.blocks)
    ]
    if total.raw and total.coded >= total.raw:
        yield f"{codec} does not pay: no code is smaller than the packed masks, which are stored."
    elif raw:
        yield (
            f"{codec} does not pay for {len(raw)} of {len(sizes)} tensors in all blocks or some: "
            "stored raw there."
        )
    if archive.header.codec == "huffman" and total.entropy < (1 - _WORTH) * total.coded:
        saved = 1 - total.entropy / total.coded
        yield f"The entropy is {percent(saved)} % lower; codec ans comes close to it."
    elif raw and total.entropy >= (1 - _WORTH) * total.raw:
        yield "The masks of a block share too little for any code of its symbols to gain."
    if archive.dead:
        yield "Dead: old versions of blocks. MaskArchive.compact() drops these bytes."

"""What a mask archive holds and takes, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from clearn.capacity import Capacity, archived, growth
from clearn.cli.show import plain_table, print_table
from clearn.compare import charts
from clearn.compare.text import percent, size
from clearn.errors import UserError
from clearn.figures import draw_growth
from clearn.files import write_atomic
from clearn.kernels.archive import ArchiveError, MaskArchive, TensorSizes

_WORTH = 0.05  # of the bytes: what a better code has to save to be mentioned
_SAME = 0.01  # of the bytes of a block: a difference that is none


def print_archive(path: Path) -> None:
    """Print bytes raw, coded and asked for by the entropy, per tensor and in all, and remarks.

    Raises:
        UserError: The file is not a whole archive.
    """
    archive = _open(path)
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


def print_capacity(path: Path, figure: Path | None) -> None:
    """Print what the masks take after each task, and in words how they grew; draw it on request.

    Args:
        path: The archive.
        figure: An .svg or .png file to write, or None.

    Raises:
        UserError: The file is not a whole archive or holds no masks, or the figure has another
            suffix or cannot be written.
    """
    if figure is not None and figure.suffix not in (".svg", ".png"):
        raise UserError(f"figure: {figure} is not valid: expected a name ending in .svg or .png")
    archive = _open(path)
    block = archive.header.block
    try:
        after = growth(archived(archive), block=block, codec=archive.header.codec)
    except ValueError as error:
        raise UserError(f"file: {error}") from error
    if not after or not after[-1].elements:
        weights = sum(map(math.prod, archive.shapes.values()))
        raise UserError(
            f"file: {path} holds no masks: {archive.num_tasks} tasks of a net of {weights} weights"
        )
    columns = [f"CAP {name} %" for name in after[0].mask_bits]
    table = plain_table("task", "used %", *columns, "masks")
    for column in table.columns:
        column.justify = "right"
    for each in after:
        caps = [percent(each.metrics[f"cap_{name}"]) for name in each.mask_bits]
        table.add_row(str(each.tasks), percent(each.share), *caps, size(each.coded))
    print_table(table)
    print(f"\n{_used(after)}\n{_mask_growth(after, block)}")
    if figure is not None:
        with charts.settings():
            drawn = draw_growth(after, min(block, len(after)), path.name)
            to_file = charts.to_svg if figure.suffix == ".svg" else charts.to_png
            write_atomic(figure, to_file(drawn))
        print(f"figure: {figure}")


def _used(after: Sequence[Capacity]) -> str:
    first, last = after[0], after[-1]
    return (
        f"Used weights: {percent(first.share)} % after the first task, {percent(last.share)} % "
        f"after {len(after)} tasks."
    )


def _mask_growth(after: Sequence[Capacity], block: int) -> str:
    """Whether blocks cost less the later they come, which is what makes growth sub-linear."""
    ends = [0, *(after[tasks - 1].coded for tasks in range(block, len(after) + 1, block))]
    costs = [end - start for start, end in pairwise(ends)]
    if len(costs) < 2:
        return (
            "Whether mask bytes grow sub-linearly shows from the second full block on, that is "
            f"after {2 * block} tasks; these are {len(after)}."
        )
    ratio = sum(costs[1:]) / (len(costs) - 1) / costs[0]
    grow = "sub-linearly" if ratio < 1 - _SAME else "linearly"
    if ratio > 1 + _SAME:
        grow = "faster than linearly"
    return (
        f"Mask bytes grow {grow}: blocks of {block} tasks take {', '.join(map(size, costs))}; "
        f"those after the first {percent(ratio)} % of it on average."
    )


def _open(path: Path) -> MaskArchive:
    try:
        return MaskArchive.open(path)
    except ArchiveError as error:
        raise UserError(f"file: {error}") from error


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

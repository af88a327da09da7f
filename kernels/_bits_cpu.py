"""Packed masks on the CPU, by NumPy on the memory of the tensors.

Large tensors are worked on in pieces whose intermediate results stay in the cache of one core:
pages that are touched for the first time cost more than all the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIECE = 2**16  # elements; a multiple of 8

Array = NDArray[Any]


class Format(NamedTuple):
    """How the floats of a type are laid out: sign, exponent, mantissa."""

    integer: torch.dtype  # signed, of the same size
    magnitude: int  # every bit but the sign
    infinity: int  # finite magnitudes are below, NaN above
    mantissa: int  # bits


FORMATS = {
    dtype: Format(integer, 2 ** (bits - 1) - 1, 2 ** (bits - 1) - 2**mantissa, mantissa)
    for dtype, integer, bits, mantissa in (
        (torch.float16, torch.int16, 16, 10),
        (torch.bfloat16, torch.int16, 16, 7),
        (torch.float32, torch.int32, 32, 23),
        (torch.float64, torch.int64, 64, 52),
    )
}


def pieces(n: int, size: int = PIECE) -> Sequence[slice]:
    """Consecutive slices that cover n elements: one as long as two pieces, if that is enough."""
    if n <= 2 * size:
        return (slice(0, n),) if n else ()
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def integers(tensor: Tensor) -> Array:
    """The bit patterns of floats, flat, as signed integers; shares memory when contiguous."""
    flat = tensor.detach().contiguous().view(-1)
    return np.asarray(flat.view(FORMATS[tensor.dtype].integer).numpy())


def in_bytes(piece: slice) -> slice:
    """Where the bits of a piece that starts at a multiple of 8 elements are."""
    return slice(piece.start // 8, (piece.stop + 7) // 8)


def empty(like: Tensor) -> Tensor:
    """An uninitialised contiguous tensor.

    From 32 MiB on, the C library maps fresh pages for every tensor, and touching them for the first
    time costs more than filling them. NumPy asks for huge pages there, which are touched faster.
    """
    if like.nbytes < 2**25:
        return torch.empty(like.shape, dtype=like.dtype)
    flat = np.empty(like.shape, f"i{like.element_size()}")
    return torch.from_numpy(flat).view(like.dtype)


def pack(mask: Tensor) -> Tensor:
    """As `bitmask.pack_bits`."""
    return torch.from_numpy(np.packbits(mask.contiguous().view(-1).numpy(), bitorder="little"))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """As `bitmask.unpack_bits`."""
    flat = flags(bits.contiguous().numpy(), torch.Size(shape).numel())
    return torch.from_numpy(flat).view(torch.bool).view(tuple(shape))


def flags(bits: Array, n: int) -> Array:
    """The first n bits, as 0 or 1 in a byte each."""
    return np.unpackbits(bits, count=n, bitorder="little")


def apply(weight: Tensor, bits: Tensor) -> Tensor:
    """As `bitmask.apply_bits`."""
    out = empty(weight)
    source, target, packed = integers(weight), integers(out), bits.contiguous().numpy()
    for piece in pieces(len(source)):
        keep_set(source[piece], packed[in_bytes(piece)], target[piece])
    return out


def keep_set(source: Array, bits: Array, target: Array) -> None:
    """Write the bit pattern times the bit: what is left out becomes +0, whatever it was."""
    np.multiply(source, flags(bits, len(source)), out=target)


def keep_unset_(grad: Tensor, used_bits: Tensor) -> None:
    """As `bitmask.keep_unset_`."""
    dense = grad.detach().contiguous()
    target, packed = integers(dense), used_bits.contiguous().numpy()
    for piece in pieces(len(target)):
        keep_set(target[piece], np.invert(packed[in_bytes(piece)]), target[piece])
    if dense.data_ptr() != grad.data_ptr():
        grad.copy_(dense)


def or_bits_(bits: Tensor, other: Tensor) -> None:
    """As `bitmask.or_bits_`."""
    bits.bitwise_or_(other)


def count(bits: Tensor) -> Tensor:
    """As `bitmask.count_bits`."""
    return torch.tensor(_ones(bits.contiguous().numpy()), dtype=torch.int64)


def overlap(masks: Tensor) -> Tensor:
    """As `bitmask.overlap_bits`."""
    rows = masks.contiguous().numpy()
    table = np.zeros((len(rows), len(rows)), np.int64)
    for piece in pieces(rows.shape[1]):
        for i, first in enumerate(rows[:, piece]):
            for j, second in enumerate(rows[: i + 1, piece]):
                table[i, j] += _ones(first & second)
    return torch.from_numpy(table + np.tril(table, -1).T)


def _ones(bits: Array) -> int:
    """Number of set bits."""
    return sum(
        int(np.count_nonzero(np.unpackbits(bits[piece]))) for piece in pieces(len(bits), PIECE // 8)
    )


def stack(masks: Tensor, n: int) -> Tensor:
    """As `bitmask.stack_bits`."""
    rows = masks.contiguous().numpy()
    symbols = np.empty(n, np.uint8 if len(rows) <= 8 else np.int32)
    for piece in pieces(n):
        size, part = piece.stop - piece.start, rows[:, in_bytes(piece)]
        symbols[piece] = _symbols(part[:8], size)
        if len(rows) > 8:
            symbols[piece] += _symbols(part[8:], size).astype(np.int32) << 8
    return torch.from_numpy(symbols)


def _symbols(rows: Array, n: int) -> Array:
    """One byte per element from at most eight packed rows."""
    symbols = flags(rows[-1], n)
    for bits in rows[-2::-1]:
        symbols += symbols  # NumPy has vector instructions for adding bytes, none for shifting
        symbols |= flags(bits, n)
    return symbols


def unstack(symbols: Tensor, num_tasks: int) -> Tensor:
    """As `bitmask.unstack_bits`."""
    source = symbols.contiguous().numpy()
    rows = np.empty((num_tasks, (len(source) + 7) // 8), np.uint8)
    for piece in pieces(len(source)):
        for first in range(0, num_tasks, 8):
            part = (source[piece] >> first).astype(np.uint8)
            for task in range(first, min(first + 8, num_tasks)):
                plane = part & np.uint8(1 << task - first)
                rows[task, in_bytes(piece)] = np.packbits(plane, bitorder="little")
    return torch.from_numpy(rows)


def histogram(symbols: Tensor, num_tasks: int) -> Tensor:
    """As `bitmask.symbol_histogram`."""
    size = 2**num_tasks
    for extreme in map(int, symbols.aminmax() if len(symbols) else ()):
        if not 0 <= extreme < size:
            raise ValueError(f"symbols: {extreme} is not valid: expected values in [0, {size})")
    return torch.bincount(symbols, minlength=size)

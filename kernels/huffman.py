"""Canonical Huffman codes (Huffman 1952, doi:10.1109/JRPROC.1952.273898).

In a canonical code the words of one length are consecutive numbers, in the order of their symbols,
and shorter words come first. So the lengths alone say which word belongs to which symbol, and they
are all that is stored of a code. Words stand in the data most significant bit first.

Shapes: n symbols to code, S size of the alphabet.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from bitarray import bitarray
from bitarray.util import canonical_decode, canonical_huffman
from numpy.typing import NDArray

MAX_LENGTH = 31
"""Bits of the longest word: what the decoder takes, and 5 bits per length hold."""

CHUNK = 1 << 16
"""Symbols that are coded or decoded at a time, few enough for the cache; a multiple of 8."""

_LENGTH_BITS = 5


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Lengths of an optimal code.

    Where an optimal code has words beyond `MAX_LENGTH` bits (it takes counts that grow like the
    Fibonacci numbers, over 3.5 million in all) the counts are halved until it has not; then words
    of symbols that are that rare get shorter, and the others hardly longer.

    Args:
        counts: Occurrences, >= 0, `[S]`; two or more of them > 0.

    Returns:
        Bits of the word of each symbol, `[S]`; 0 for a symbol that does not occur.

    Raises:
        ValueError: Fewer than two symbols occur, so that there is nothing to code.
    """
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise ValueError(f"counts: {len(present)} symbols occur; a code needs two or more")
    weights = counts[present]
    while True:
        _, per_length, order = canonical_huffman(dict(enumerate(weights.tolist())))
        if len(per_length) <= MAX_LENGTH + 1:
            break
        weights = (weights + 1) // 2
    lengths = np.zeros(len(counts), np.uint8)
    lengths[present[order]] = np.repeat(np.arange(len(per_length)), per_length)
    return lengths


def check_lengths(lengths: NDArray[np.uint8]) -> None:
    """Refuse lengths that are not those of a complete code, by Kraft's equality.

    Raises:
        ValueError: They are not.
    """
    words = lengths[lengths > 0].astype(np.int64)
    if len(words) < 2 or words.max() > MAX_LENGTH or (1 << MAX_LENGTH - words).sum() != 2**31:
        raise ValueError("the code lengths are not those of a Huffman code")


def pack_lengths(lengths: NDArray[np.uint8]) -> bytes:
    """The lengths in 5 bits each, `packed_size(S)` bytes."""
    bits = np.unpackbits(lengths[:, None], axis=1, count=_LENGTH_BITS, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_lengths(data: bytes, size: int) -> NDArray[np.uint8]:
    """The lengths `[size]` from `packed_size(size)` bytes; not checked to be those of a code."""
    bits = np.unpackbits(
        np.frombuffer(data, np.uint8), count=_LENGTH_BITS * size, bitorder="little"
    )
    return np.packbits(bits.reshape(size, _LENGTH_BITS), axis=1, bitorder="little")[:, 0]


def packed_size(size: int) -> int:
    """Bytes of the lengths of an alphabet of that size."""
    return (_LENGTH_BITS * size + 7) // 8


def encode(
    symbols: NDArray[np.uint8] | NDArray[np.int32], lengths: NDArray[np.uint8]
) -> tuple[bytes, int]:
    """Code symbols.

    Args:
        symbols: `[n]`, uint8 when S <= 256, else int32; only symbols that have a word.
        lengths: Of the words, `[S]`.

    Returns:
        The words one behind the other, filled up with zeros to a byte, and the number of bits.
    """
    one = _words(lengths), lengths.astype(np.int64)
    two = _pairs(*one) if len(lengths) <= 256 else None
    parts, bits, rest = [], 0, np.zeros(1, np.uint64)  # rest: bits that do not fill a word of 64
    for start in range(0, len(symbols), CHUNK):
        part = np.ascontiguousarray(symbols[start : start + CHUNK])
        units = [(rest, np.array([bits % 64]))]
        if two is not None:  # half the work
            pairs, part = part[: len(part) & ~1].view("<u2"), part[len(part) & ~1 :]
            units.append((two[0][pairs], two[1][pairs]))
        units.append((one[0][part], one[1][part]))
        values, widths = map(np.concatenate, zip(*units, strict=True))
        joined, total = _join(values, widths), int(widths.sum())
        bits += total - bits % 64
        parts.append(joined[: total // 64])
        rest = joined[total // 64 :] >> np.uint64(64 - total % 64)
    parts.append(rest << np.uint64(64 - bits % 64))
    data = b"".join(part.astype(">u8").tobytes() for part in parts)
    return data[: (bits + 7) // 8], bits


def decode(
    data: bytes, bits: int, lengths: NDArray[np.uint8], n: int
) -> Iterator[NDArray[np.uint8] | NDArray[np.int32]]:
    """Decode `n` symbols, `CHUNK` at a time.

    Args:
        data: What `encode` gave.
        bits: As `encode` gave.
        lengths: Of the words, `[S]`.
        n: Number of symbols.

    Yields:
        Symbols `[CHUNK]`, the last time fewer; uint8 when S <= 256, else int32.

    Raises:
        ValueError: The lengths are not those of a code, or the data do not hold exactly `n`
            symbols. Nothing is allocated beyond a chunk and a copy of the data.
    """
    check_lengths(lengths)
    code = bitarray(endian="big")
    code.frombytes(data)
    if not n <= bits <= len(code) < bits + 8 or code[bits:].any():
        raise ValueError(f"{len(data)} bytes do not hold {n} symbols in {bits} bits")
    del code[bits:]
    order = np.lexsort((np.arange(len(lengths)), lengths))[np.count_nonzero(lengths == 0) :]
    per_length = np.bincount(lengths[order], minlength=2)
    stream = canonical_decode(code, per_length.tolist(), order.tolist())
    wide = len(lengths) > 256
    try:
        for start in range(0, n, CHUNK):
            part = islice(stream, min(CHUNK, n - start))
            chunk = (
                np.fromiter(part, np.int32) if wide else np.frombuffer(bytearray(part), np.uint8)
            )
            if start + len(chunk) < min(start + CHUNK, n):
                raise ValueError(f"there are {start + len(chunk)} symbols")
            yield chunk
        if next(stream, None) is not None:
            raise ValueError("there are more")
    except ValueError as error:
        raise ValueError(f"{bits} bits do not hold exactly {n} symbols: {error}") from error


def _words(lengths: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The word of each symbol as a number, `[S]`."""
    words = np.zeros(len(lengths), np.uint64)
    word = last = 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)).tolist():
        length = int(lengths[symbol])
        if length:
            word <<= length - last
            words[symbol] = word
            word, last = word + 1, length
    return words


def _pairs(
    values: NDArray[np.uint64], widths: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Words of two symbols and their widths, `[65536]`, at first + 256 * second."""
    size = len(values)
    value, width = np.zeros((256, 256), np.uint64), np.zeros((256, 256), np.int64)
    value[:size, :size] = values[None, :] << widths[:, None].astype(np.uint64) | values[:, None]
    width[:size, :size] = widths[None, :] + widths[:, None]
    return value.ravel(), width.ravel()


def _join(values: NDArray[np.uint64], widths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Numbers of `widths` bits, each < 64, one behind the other in words of 64 bits.

    The first bit is the highest of the first word, and zeros follow the last.
    """
    ends = np.cumsum(widths)
    starts = ends - widths
    place = starts >> 6
    room = 64 - (starts & 63) - widths  # below 0 where a number goes on in the next word
    heads = np.where(
        room < 0,
        values >> np.maximum(-room, 0).astype(np.uint64),
        values << np.maximum(room, 0).astype(np.uint64),
    )
    words = np.zeros((int(ends[-1]) >> 6) + 1, np.uint64)
    first = np.flatnonzero(np.diff(place, prepend=-1))
    words[place[first]] = np.bitwise_or.reduceat(heads, first)
    over = np.flatnonzero(room < 0)
    words[place[over] + 1] |= values[over] << (64 + room[over]).astype(np.uint64)
    return words

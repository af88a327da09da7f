"""Exact order statistics of magnitudes on the CPU, in one pass over the data as a rule.

Magnitudes are compared as the integers their bit patterns are without the sign, which have the
same order. A bracket that is expected to hold the wanted value, around an earlier threshold or
from the order statistics of a sample, is counted and gathered in a single pass; the value is then
selected among the few inside. When the bracket does not hold it, the next, safer way is taken, so
that the result never depends on the guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from clearn.kernels._bits_cpu import FORMATS, PIECE, Array, Format, in_bytes, integers, pieces

_NEAR = 6  # a bracket around a start reaches 2^-7 to 2^-6 of it to both sides
_MANY = 2**18  # from here on a sample gives the narrower bracket, at no cost that counts
_FEW = 4096  # so few are selected from directly
_SIGMAS = 4.0  # of the sample's order statistic, to both sides


def thresholds(scores: Sequence[Tensor], counts: Sequence[int], start: Tensor | None) -> Tensor:
    """As `topc.top_c_thresholds`, with the number of scores to keep of every tensor."""
    layout = FORMATS[scores[0].dtype]
    guesses = [None] * len(scores) if start is None else integers(start).tolist()
    found = []
    for index, (score, count, guess) in enumerate(zip(scores, counts, guesses, strict=True)):
        level = _largest(integers(score), count, guess, layout)
        if level is None:
            raise ValueError(f"scores[{index}]: NaN or infinite values: expected finite scores")
        found.append(level)
    return torch.tensor(found, dtype=layout.integer).view(scores[0].dtype)


def select(scores: Tensor, threshold: Tensor) -> Tensor:
    """As `topc.select_bits`."""
    level, source = level_bits(threshold), integers(scores)
    packed = np.empty((len(source) + 7) // 8, np.uint8)
    for piece in pieces(len(source)):
        chosen = (source[piece] & FORMATS[scores.dtype].magnitude) >= level
        packed[in_bytes(piece)] = np.packbits(chosen, bitorder="little")
    return torch.from_numpy(packed)


def level_bits(threshold: Tensor) -> int:
    """The bit pattern of a threshold, 0 when it is negative; a ValueError when it is NaN."""
    layout = FORMATS[threshold.dtype]
    bits = int(threshold.view(layout.integer))
    if bits & layout.magnitude > layout.infinity:
        raise ValueError("threshold: NaN is not valid: expected a number")
    return max(bits, 0)


def _largest(bits: Array, count: int, guess: int | None, layout: Format) -> int | None:
    """The count-th largest magnitude, infinity of none, or None when one is not finite."""
    n = len(bits)
    if not n:
        return layout.infinity
    if n > _FEW:
        for low, high in _brackets(bits, count, guess, layout):
            largest, above, inside = _pass(bits, low, high, layout.magnitude)
            if largest >= layout.infinity:
                return None
            rank = above + len(inside) - count
            if 0 <= rank < len(inside):
                return int(np.partition(inside, rank)[rank])
    magnitudes = bits & layout.magnitude
    if magnitudes.max() >= layout.infinity:
        return None
    return int(np.partition(magnitudes, n - count)[n - count])


def _brackets(
    bits: Array, count: int, guess: int | None, layout: Format
) -> Iterator[tuple[int, int]]:
    """Where the value probably is, best guess first, each as [low, high)."""
    if guess is not None and len(bits) < _MANY:
        middle, width = guess & layout.magnitude, 2 ** (layout.mantissa - _NEAR)
        yield max(middle - width, 0), min(middle + width + 1, layout.infinity)
    n = len(bits)
    step = int(n ** (1 / 3))
    while math.gcd(step, n) > 1:  # else the sample would keep to some rows or columns
        step += 1
    sample = bits[::step] & layout.magnitude
    size = len(sample)
    rank = (1 - count / n) * size
    spread = 1 + _SIGMAS * (max(rank, 1) * max(size - rank, 1) / size) ** 0.5
    low, high = int(rank - spread), int(rank + spread) + 1
    ranks = np.partition(sample, [max(low, 0), min(high, size - 1)])
    yield (
        int(ranks[low]) if low > 0 else 0,
        int(ranks[high]) + 1 if high < size else layout.infinity,
    )


def _pass(bits: Array, low: int, high: int, magnitude: int) -> tuple[int, int, Array]:
    """The largest magnitude, how many reach `high`, and those in [low, high)."""
    size = min(2 * PIECE, len(bits))
    values, (reach, within) = np.empty(size, bits.dtype), np.empty((2, size), np.bool_)
    largest, above, found = 0, 0, []
    for piece in pieces(len(bits)):
        part = bits[piece]
        v, r, w = (buffer[: len(part)] for buffer in (values, reach, within))
        np.bitwise_and(part, magnitude, out=v)
        largest = max(largest, int(v.max()))
        np.greater_equal(v, high, out=r)
        above += int(np.count_nonzero(r))
        np.greater_equal(v, low, out=w)
        np.not_equal(w, r, out=w)
        found.append(v[w])
    return largest, above, np.concatenate(found)

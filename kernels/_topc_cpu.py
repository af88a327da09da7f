"""Exact order statistics of magnitudes on the CPU, in one pass over the data as a rule.

Magnitudes are compared as the integers their bit patterns are without the sign, which have the
same order. A bracket that is expected to hold the wanted value, around an earlier threshold or
from the order statistics of a sample, is counted and gathered in a single pass; the value is then
selected among the few inside. When the bracket does not hold it, the next, safer way is taken, so
that the result never depends on the guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from clearn.kernels._bits_cpu import INTEGERS, PIECE, Array, integers, pieces

MANTISSA = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}

_NARROW = 7  # a warm bracket reaches 2^-7 of the threshold, up to a factor of two, to both sides
_FEW = 4096  # so few are selected from directly
_SIGMAS = 4.0  # of the sample's order statistic, to both sides


def thresholds(scores: Sequence[Tensor], counts: Sequence[int], start: Tensor | None) -> Tensor:
    """As `topc.top_c_thresholds`, with the number of scores to keep of every tensor."""
    dtype = scores[0].dtype
    infinity = infinity_bits(dtype)
    guesses = [None] * len(scores) if start is None else integers(start).tolist()
    found = []
    for index, (score, count, guess) in enumerate(zip(scores, counts, guesses, strict=True)):
        level = _largest(integers(score), count, guess, MANTISSA[dtype], infinity)
        if level is None:
            raise ValueError(f"scores[{index}]: NaN or infinite values: expected finite scores")
        found.append(level)
    return torch.tensor(found, dtype=INTEGERS[scores[0].element_size()]).view(dtype)


def select(scores: Tensor, threshold: Tensor) -> Tensor:
    """As `topc.select_bits`."""
    level, source = level_bits(threshold), integers(scores)
    packed = np.empty((len(source) + 7) // 8, np.uint8)
    for piece in pieces(len(source)):
        chosen = (source[piece] & np.iinfo(source.dtype).max) >= level
        packed[piece.start // 8 : (piece.stop + 7) // 8] = np.packbits(chosen, bitorder="little")
    return torch.from_numpy(packed)


def infinity_bits(dtype: torch.dtype) -> int:
    """The bit pattern of infinity: finite magnitudes are below, NaN above."""
    bits = torch.finfo(dtype).bits
    return 2 ** (bits - 1) - 2 ** MANTISSA[dtype]


def level_bits(threshold: Tensor) -> int:
    """The bit pattern of a threshold, 0 when it is negative; a ValueError when it is NaN."""
    bits = int(threshold.view(INTEGERS[threshold.element_size()]))
    if bits & 2 ** (8 * threshold.element_size() - 1) - 1 > infinity_bits(threshold.dtype):
        raise ValueError("threshold: NaN is not valid: expected a number")
    return max(bits, 0)


def _largest(
    bits: Array, count: int, guess: int | None, mantissa: int, infinity: int
) -> int | None:
    """The count-th largest magnitude, infinity of none, or None when one is not finite."""
    n, sign = len(bits), np.iinfo(bits.dtype).max
    if not n:
        return infinity
    if n > _FEW:
        for low, high in _brackets(bits, count, guess, mantissa, infinity):
            largest, above, inside = _pass(bits, low, high)
            if largest >= infinity:
                return None
            if above < count <= above + len(inside):
                return int(np.partition(inside, (rank := len(inside) - count + above))[rank])
    magnitudes = bits & sign
    if magnitudes.max() >= infinity:
        return None
    return int(np.partition(magnitudes, n - count)[n - count])


def _brackets(
    bits: Array, count: int, guess: int | None, mantissa: int, infinity: int
) -> Iterator[tuple[int, int]]:
    """Where the value probably is, best guess first, each as [low, high)."""
    n, sign = len(bits), int(np.iinfo(bits.dtype).max)
    if guess is not None:
        width = 2 ** (mantissa - _NARROW)
        yield (
            min(max((guess & sign) - width, 0), infinity),
            min((guess & sign) + width + 1, infinity),
        )
    sample = bits[:: int(n ** (1 / 3))] & sign
    size = len(sample)
    middle = (n - count) / n * size
    spread = 1 + _SIGMAS * (max(middle, 1) * max(size - middle, 1) / size) ** 0.5
    low, high = int(middle - spread), int(middle + spread) + 1
    ranks = np.partition(sample, [max(low, 0), min(high, size - 1)])
    yield (
        int(ranks[low]) if low > 0 else 0,
        int(ranks[high]) + 1 if high < size else infinity,
    )


def _pass(bits: Array, low: int, high: int) -> tuple[int, int, Array]:
    """The largest magnitude, how many reach `high`, and those in [low, high)."""
    sign = np.iinfo(bits.dtype).max
    size = min(PIECE, len(bits))
    magnitude, reach = np.empty(size, bits.dtype), np.empty(size, np.bool_)
    within = np.empty(size, np.bool_)
    largest, above, found = 0, 0, []
    for piece in pieces(len(bits)):
        part = bits[piece]
        a, r, w = magnitude[: len(part)], reach[: len(part)], within[: len(part)]
        np.bitwise_and(part, sign, out=a)
        largest = max(largest, int(a.max()))
        np.greater_equal(a, high, out=r)
        above += int(np.count_nonzero(r))
        np.greater_equal(a, low, out=w)
        np.not_equal(w, r, out=w)
        found.append(a[w])
    return largest, above, np.concatenate(found)

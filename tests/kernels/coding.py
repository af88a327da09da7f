"""Huffman coding word by word and bit by bit, and masks as training leaves them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def huffman_bits(counts: Sequence[int]) -> int:
    """Bits of an optimal code: what all merges of the two rarest add up to."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return bits


def canonical_words(lengths: Sequence[int]) -> dict[int, str]:
    """Words of 0 and 1: counted up, shorter ones first, those of one length by symbol."""
    words, value, last = {}, -1, 0
    for length, symbol in sorted((length, s) for s, length in enumerate(lengths) if length):
        value = (value + 1) << (length - last)
        words[symbol] = f"{value:0{length}b}"
        last = length
    return words


def write_words(symbols: Sequence[int], words: Mapping[int, str]) -> tuple[bytes, int]:
    """The words one behind the other, the first bit of a byte its highest; and their bits."""
    text = "".join(words[symbol] for symbol in symbols)
    padded = text.ljust(-(-len(text) // 8) * 8, "0")
    return bytes(int(padded[i : i + 8], 2) for i in range(0, len(padded), 8)), len(text)


def correlated_masks(tasks: int, n: int, c: float, correlation: float = 0.98) -> Tensor:
    """Masks bool `[tasks, n]` of the top-c scores, which drift from task to task.

    Args:
        tasks: Number of tasks.
        n: Number of weights.
        c: Share of weights in each mask.
        correlation: Of the scores of one task and the next.
    """
    draws, masks = torch.Generator().manual_seed(0), []
    scores = torch.randn(n, generator=draws)
    for _ in range(tasks):
        threshold = scores.abs().kthvalue(max(1, round((1 - c) * n))).values
        masks.append(scores.abs() > threshold)
        fresh = torch.randn(n, generator=draws)
        scores = correlation * scores + (1 - correlation**2) ** 0.5 * fresh
    return torch.stack(masks)

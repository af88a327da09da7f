"""Exact top-c thresholds on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clearn.kernels import _bits_cpu


def thresholds(scores: Sequence[Tensor], counts: Sequence[int], start: Tensor | None) -> Tensor:
    """As `topc.top_c_thresholds`, with the number of scores to keep of every tensor."""
    found = scores[0].new_full((len(scores),), float("inf"))
    for index, (score, count) in enumerate(zip(scores, counts, strict=True)):
        if not torch.isfinite(score).all():
            raise ValueError(f"scores[{index}]: NaN or infinite values: expected finite scores")
        if count:
            magnitude = score.abs().view(-1)
            found[index] = magnitude.kthvalue(magnitude.numel() - count + 1).values
    return found


def select(scores: Tensor, threshold: Tensor) -> Tensor:
    """As `topc.select_bits`."""
    return _bits_cpu.pack(scores.abs() >= threshold)

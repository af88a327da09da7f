"""The masked weight on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from clearn.kernels import _bits_cpu


def forward(weight: Tensor, score: Tensor, threshold: Tensor) -> Tensor:
    """As `masked.masked_weight`."""
    return torch.where(score.abs() >= threshold, weight, weight.new_zeros(())).contiguous()


def backward(
    grad: Tensor, weight: Tensor, score: Tensor, threshold: Tensor, used_bits: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and score."""
    dweight = forward(grad, score, threshold)
    if used_bits is not None:
        _bits_cpu.keep_unset_(dweight, used_bits)
    return dweight, (grad * weight * score.sign()).contiguous()

"""The mask kernels in their straightforward form, for tests and as what benchmarks compare with.

Every function is one obvious expression per step, and holds masks as full-size tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

POWERS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


SIZES = [0, 1, 7, 8, 9, 63, 64, 65, 1_000_003]
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, p: float = 0.3, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed)) < p


def values(dtype: torch.dtype, *shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=seeded(seed)).to(dtype)


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal in shape, type and every bit, so that -0 is not +0."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
    return torch.equal(found.view(bits), expected.view(bits))


def pack(mask: Tensor) -> Tensor:
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % 8)])
    return (padded.view(-1, 8) * POWERS).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    each = bits[:, None].bitwise_and(POWERS) != 0
    return each.view(-1)[: torch.Size(shape).numel()].view(tuple(shape))


def apply(weight: Tensor, bits: Tensor) -> Tensor:
    mask = unpack(bits, weight.shape)
    return torch.where(mask, weight, torch.zeros_like(weight))


def keep_unset(grad: Tensor, used_bits: Tensor) -> Tensor:
    used = unpack(used_bits, grad.shape)
    return torch.where(used, torch.zeros_like(grad), grad)


def count(bits: Tensor) -> Tensor:
    return unpack(bits, [8 * len(bits)]).sum()


def overlap(masks: Tensor) -> Tensor:
    rows = torch.stack([unpack(bits, [8 * len(bits)]) for bits in masks]).double()
    return (rows @ rows.T).to(torch.int64)


def stack(masks: Tensor, n: int) -> Tensor:
    rows = torch.stack([unpack(bits, [n]) for bits in masks]).to(torch.int32)
    powers = 2 ** torch.arange(len(masks), dtype=torch.int32)
    symbols = (rows * powers[:, None]).sum(0)
    return symbols.to(torch.uint8 if len(masks) <= 8 else torch.int32)


def unstack(symbols: Tensor, num_tasks: int) -> Tensor:
    wide = symbols.to(torch.int32)
    return torch.stack([pack(wide // 2**task % 2 == 1) for task in range(num_tasks)])


def threshold(scores: Tensor, c: float) -> Tensor:
    """The k-th smallest |score|, by the rank as the specification of WSN states it.

    By sorting: `kthvalue` takes quadratic time on scores that fall.
    """
    magnitude = scores.detach().abs().reshape(-1)
    return magnitude.sort().values[rank(len(magnitude), c) - 1]


def rank(n: int, c: float) -> int:
    """Of the threshold among n magnitudes, from 1."""
    return 1 + round((1 - c) * (n - 1))


class Selection(torch.autograd.Function):
    """1 where the magnitude reaches the threshold, else 0; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, magnitude: Tensor, tau: Tensor) -> Tensor:
        zeros, ones = torch.zeros_like(magnitude), torch.ones_like(magnitude)
        return torch.where(magnitude < tau, zeros, ones)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def masked_weight(weight: Tensor, score: Tensor, tau: Tensor) -> Tensor:
    """Autograd gives dw = G m by the product, and ds = G w sign(s) by the product and by abs."""
    return weight * Selection.apply(score.abs(), tau)


def mask_step(weight: Tensor, score: Tensor, c: float, grad: Tensor) -> tuple[Tensor, ...]:
    """Masked weight and both gradients."""
    tau = score.detach().abs().flatten().kthvalue(rank(score.numel(), c)).values
    product = masked_weight(weight, score, tau)
    return product.detach(), *torch.autograd.grad(product, (weight, score), grad)

"""Packed masks on the CPU, by NumPy on memory shared with the tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """As `bitmask.pack_bits`."""
    flat = mask.contiguous().view(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """As `bitmask.unpack_bits`."""
    numel = int(np.prod(np.asarray(shape, np.int64)))
    flat = np.unpackbits(bits.contiguous().numpy(), count=numel, bitorder="little")
    return torch.from_numpy(flat).view(torch.bool).view(list(shape))


def apply(weight: Tensor, bits: Tensor) -> Tensor:
    """As `bitmask.apply_bits`."""
    return torch.where(unpack(bits, weight.shape), weight, weight.new_zeros(()))


def keep_unset_(grad: Tensor, used_bits: Tensor) -> None:
    """As `bitmask.keep_unset_`."""
    grad.masked_fill_(unpack(used_bits, grad.shape), 0)


def count(bits: Tensor) -> Tensor:
    """As `bitmask.count_bits`."""
    return unpack(bits, [8 * bits.numel()]).sum()


def overlap(masks: Tensor) -> Tensor:
    """As `bitmask.overlap_bits`."""
    rows = [count(a & b) for a in masks for b in masks]
    return torch.tensor(rows, dtype=torch.int64).view(len(masks), len(masks))


def stack(masks: Tensor, n: int) -> Tensor:
    """As `bitmask.stack_bits`."""
    dtype = torch.uint8 if len(masks) <= 8 else torch.int32
    symbols = torch.zeros(n, dtype=dtype)
    for task, bits in enumerate(masks):
        symbols |= unpack(bits, [n]).to(dtype) << task
    return symbols


def unstack(symbols: Tensor, num_tasks: int) -> Tensor:
    """As `bitmask.unstack_bits`."""
    return torch.stack([pack((symbols >> task & 1).bool()) for task in range(num_tasks)])


def histogram(symbols: Tensor, num_tasks: int) -> Tensor:
    """As `bitmask.symbol_histogram`."""
    return torch.bincount(symbols, minlength=2**num_tasks)

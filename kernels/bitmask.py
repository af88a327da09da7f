"""Masks of one bit per element: packing, applying, merging and counting them.

A packed mask of n elements is uint8 `[ceil(n / 8)]`; bit j of byte i (least significant first) is
element 8 i + j of the flattened mask, and the unused bits of the last byte are zero. Every function
here relies on that and keeps it. Each is an operator of `torch.library` (namespace `clearn`), so
that it runs under `torch.compile`, and has one implementation per kind of device.

Shapes: n elements, B = ceil(n / 8) bytes, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clearn.kernels import _bits_cpu as cpu
from clearn.kernels import cuda
from clearn.kernels._checks import (
    FLOATS,
    packed_size,
    require_like,
    require_mask_of,
    require_packed,
    require_type,
)
from clearn.kernels._operator import operator

MAX_TASKS = 16


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a mask.

    Args:
        mask: bool, any shape, n elements.

    Returns:
        uint8 `[B]`.

    Raises:
        ValueError: The mask is not bool.
    """
    require_type("mask", mask, torch.bool)
    return _pack_bits(mask)


def unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack a mask: the inverse of `pack_bits`.

    Args:
        bits: uint8 `[B]`.
        shape: Of the mask, with n elements.

    Returns:
        bool `shape`.

    Raises:
        ValueError: `bits` is not a packed mask of that many elements.
    """
    if any(size < 0 for size in shape):
        raise ValueError(f"shape: {list(shape)} is not valid: expected sizes >= 0")
    require_mask_of("bits", bits, math.prod(shape), bits.device)
    return _unpack_bits(bits, list(shape))


def apply_bits(weight: Tensor, bits: Tensor) -> Tensor:
    """The weight where the bit is set, +0 elsewhere; the mask is never materialised.

    Differentiable: the gradient of `weight` is the incoming one where the bit is set, +0 elsewhere.

    Args:
        weight: float32, float16, bfloat16 or float64, any shape, n elements.
        bits: uint8 `[B]`.

    Raises:
        ValueError: Types or sizes do not fit.
    """
    require_type("weight", weight, *FLOATS)
    require_mask_of("bits", bits, weight.numel(), weight.device)
    return _apply_bits(weight, bits)


def keep_unset_(grad: Tensor, used_bits: Tensor) -> Tensor:
    """Set the gradient to +0, in place, where the bit is set.

    Args:
        grad: float32, float16, bfloat16 or float64, any shape, n elements.
        used_bits: uint8 `[B]`.

    Returns:
        `grad`.

    Raises:
        ValueError: Types or sizes do not fit, or autograd is recording `grad`.
    """
    require_type("grad", grad, *FLOATS)
    require_mask_of("used_bits", used_bits, grad.numel(), grad.device)
    if grad.requires_grad and torch.is_grad_enabled():
        raise ValueError("grad: autograd records it and would not see the change: use no_grad()")
    _keep_unset_(grad, used_bits)
    return grad


def or_bits_(bits: Tensor, other: Tensor) -> Tensor:
    """Merge another mask of the same length into `bits`, in place.

    Args:
        bits: uint8 `[B]`.
        other: uint8 `[B]`.

    Returns:
        `bits`.

    Raises:
        ValueError: Types or sizes do not fit.
    """
    require_packed("bits", bits, 1)
    require_like("other", other, bits, bits.shape)
    _or_bits_(bits, other)
    return bits


def count_bits(bits: Tensor) -> Tensor:
    """Number of set bits, an int64 scalar on the device of `bits`.

    Args:
        bits: uint8 `[B]`.

    Raises:
        ValueError: `bits` is no packed mask.
    """
    require_packed("bits", bits, 1)
    return _count_bits(bits)


def overlap_bits(masks: Tensor) -> Tensor:
    """How many elements every two tasks share.

    Args:
        masks: uint8 `[T, B]`.

    Returns:
        int64 `[T, T]`; entry (i, j) is |m_i and m_j|, so the diagonal holds the sizes.

    Raises:
        ValueError: `masks` are no packed masks.
    """
    require_packed("masks", masks, 2)
    return _overlap_bits(masks)


def stack_bits(masks: Tensor, n: int) -> Tensor:
    """One symbol of T bits per element: bit t of symbol j is element j of mask t.

    Args:
        masks: uint8 `[T, B]`, T in 1..16.
        n: Number of elements.

    Returns:
        `[n]`, uint8 when T <= 8, else int32.

    Raises:
        ValueError: `masks` are no packed masks of n elements, or T is out of range.
    """
    require_packed("masks", masks, 2)
    _require_tasks(masks.shape[0])
    if n < 0:
        raise ValueError(f"n: {n} is not valid: expected a number of elements >= 0")
    require_mask_of("masks", masks[0], n, masks.device)
    return _stack_bits(masks, n)


def unstack_bits(symbols: Tensor, num_tasks: int) -> Tensor:
    """Packed masks from symbols: the inverse of `stack_bits`.

    Bits of a symbol beyond the first `num_tasks` are ignored.

    Args:
        symbols: `[n]`, uint8 when T <= 8, else int32.
        num_tasks: T, 1..16.

    Returns:
        uint8 `[T, B]`.

    Raises:
        ValueError: The symbols do not fit `num_tasks`, which is out of range or not.
    """
    _require_symbols(symbols, num_tasks)
    return _unstack_bits(symbols, num_tasks)


def symbol_histogram(symbols: Tensor, num_tasks: int) -> Tensor:
    """How often every symbol occurs.

    Args:
        symbols: `[n]`, uint8 when T <= 8, else int32, values in [0, 2^T).
        num_tasks: T, 1..16.

    Returns:
        int64 `[2^T]`.

    Raises:
        ValueError: The symbols do not fit `num_tasks`, which is out of range or not; on CUDA values
            that are out of range are not counted instead.
    """
    _require_symbols(symbols, num_tasks)
    return _symbol_histogram(symbols, num_tasks)


def _symbol_type(num_tasks: int) -> torch.dtype:
    return torch.uint8 if num_tasks <= 8 else torch.int32


def _require_tasks(num_tasks: int) -> None:
    if not 1 <= num_tasks <= MAX_TASKS:
        raise ValueError(f"tasks: {num_tasks} is not valid: expected 1 to {MAX_TASKS}")


def _require_symbols(symbols: Tensor, num_tasks: int) -> None:
    _require_tasks(num_tasks)
    require_type("symbols", symbols, _symbol_type(num_tasks))
    if symbols.ndim != 1:
        raise ValueError(f"symbols: shape {list(symbols.shape)} is not valid: expected [n]")


def _save_bits(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _apply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (bits,) = ctx.saved_tensors
    return _apply_bits(grad, bits), None


_pack_bits = operator(
    "pack_bits(Tensor mask) -> Tensor",
    cpu=cpu.pack,
    cuda=cuda.pack,
    fake=lambda mask: mask.new_empty(packed_size(mask.numel()), dtype=torch.uint8),
)
_unpack_bits = operator(
    "unpack_bits(Tensor bits, SymInt[] shape) -> Tensor",
    cpu=cpu.unpack,
    cuda=cuda.unpack,
    fake=lambda bits, shape: bits.new_empty(shape, dtype=torch.bool),
)
_apply_bits = operator(
    "apply_bits(Tensor weight, Tensor bits) -> Tensor",
    cpu=cpu.apply,
    cuda=cuda.apply,
    fake=lambda weight, bits: weight.new_empty(weight.shape),
    save=_save_bits,
    backward=_apply_backward,
)
_keep_unset_ = operator(
    "keep_unset_(Tensor(a!) grad, Tensor used_bits) -> ()",
    cpu=cpu.keep_unset_,
    cuda=cuda.keep_unset_,
    fake=lambda grad, used_bits: None,
    mutates=["grad"],
)
_or_bits_ = operator(
    "or_bits_(Tensor(a!) bits, Tensor other) -> ()",
    cpu=cpu.or_bits_,
    cuda=cuda.or_bits_,
    fake=lambda bits, other: None,
    mutates=["bits"],
)
_count_bits = operator(
    "count_bits(Tensor bits) -> Tensor",
    cpu=cpu.count,
    cuda=cuda.count,
    fake=lambda bits: bits.new_empty((), dtype=torch.int64),
)
_overlap_bits = operator(
    "overlap_bits(Tensor masks) -> Tensor",
    cpu=cpu.overlap,
    cuda=cuda.overlap,
    fake=lambda masks: masks.new_empty((masks.shape[0], masks.shape[0]), dtype=torch.int64),
)
_stack_bits = operator(
    "stack_bits(Tensor masks, SymInt n) -> Tensor",
    cpu=cpu.stack,
    cuda=cuda.stack,
    fake=lambda masks, n: masks.new_empty(n, dtype=_symbol_type(masks.shape[0])),
)
_unstack_bits = operator(
    "unstack_bits(Tensor symbols, int num_tasks) -> Tensor",
    cpu=cpu.unstack,
    cuda=cuda.unstack,
    fake=lambda symbols, num_tasks: symbols.new_empty(
        (num_tasks, packed_size(symbols.numel())), dtype=torch.uint8
    ),
)
_symbol_histogram = operator(
    "symbol_histogram(Tensor symbols, int num_tasks) -> Tensor",
    cpu=cpu.histogram,
    cuda=cuda.histogram,
    fake=lambda symbols, num_tasks: symbols.new_empty(2**num_tasks, dtype=torch.int64),
)

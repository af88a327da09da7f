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

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
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
    require_dtype("mask", mask, (torch.bool,))
    packed: Tensor = _pack_bits(mask)
    return packed


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
    require_bits("bits", bits, math.prod(shape))
    mask: Tensor = _unpack_bits(bits, list(shape))
    return mask


def apply_bits(weight: Tensor, bits: Tensor) -> Tensor:
    """The weight where the bit is set, +0 elsewhere; the mask is never materialised.

    Differentiable: the gradient of `weight` is the incoming one where the bit is set, +0 elsewhere.

    Args:
        weight: float32, float16, bfloat16 or float64, any shape, n elements.
        bits: uint8 `[B]`.

    Raises:
        ValueError: Types or sizes do not fit.
    """
    require_dtype("weight", weight, FLOATS)
    require_bits("bits", bits, weight.numel())
    masked: Tensor = _apply_bits(weight, bits)
    return masked


def keep_unset_(grad: Tensor, used_bits: Tensor) -> Tensor:
    """Set the gradient to +0, in place, where the bit is set.

    Args:
        grad: float32, float16, bfloat16 or float64, any shape, n elements.
        used_bits: uint8 `[B]`.

    Returns:
        `grad`.

    Raises:
        ValueError: Types or sizes do not fit.
    """
    require_dtype("grad", grad, FLOATS)
    require_bits("used_bits", used_bits, grad.numel())
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
    _require_packed("bits", bits, 1)
    _require_packed("other", other, 1)
    if bits.shape != other.shape:
        raise ValueError(
            f"other: {other.numel()} bytes do not go with {bits.numel()}: expected masks of the "
            "same elements"
        )
    _or_bits_(bits, other)
    return bits


def count_bits(bits: Tensor) -> Tensor:
    """Number of set bits, an int64 scalar on the device of `bits`.

    Args:
        bits: uint8 `[B]`.

    Raises:
        ValueError: `bits` is no packed mask.
    """
    _require_packed("bits", bits, 1)
    number: Tensor = _count_bits(bits)
    return number


def overlap_bits(masks: Tensor) -> Tensor:
    """How many elements every two tasks share.

    Args:
        masks: uint8 `[T, B]`.

    Returns:
        int64 `[T, T]`; entry (i, j) is |m_i and m_j|, so the diagonal holds the sizes.

    Raises:
        ValueError: `masks` are no packed masks.
    """
    _require_packed("masks", masks, 2)
    table: Tensor = _overlap_bits(masks)
    return table


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
    _require_packed("masks", masks, 2)
    _require_tasks(masks.shape[0])
    if n < 0:
        raise ValueError(f"n: {n} is not valid: expected a number of elements >= 0")
    require_bits("masks", masks[0], n)
    stacked: Tensor = _stack_bits(masks, n)
    return stacked


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
    rows: Tensor = _unstack_bits(symbols, num_tasks)
    return rows


def symbol_histogram(symbols: Tensor, num_tasks: int) -> Tensor:
    """How often every symbol occurs.

    Args:
        symbols: `[n]`, uint8 when T <= 8, else int32, values in [0, 2^T).
        num_tasks: T, 1..16.

    Returns:
        int64 `[2^T]`.

    Raises:
        ValueError: The symbols do not fit `num_tasks`, which is out of range or not.
    """
    _require_symbols(symbols, num_tasks)
    counts: Tensor = _symbol_histogram(symbols, num_tasks)
    return counts


@torch.library.custom_op("clearn::pack_bits", mutates_args=(), device_types="cpu")
def _pack_bits(mask: Tensor) -> Tensor:
    return cpu.pack(mask)


@_pack_bits.register_fake
def _(mask: Tensor) -> Tensor:
    return mask.new_empty(_bytes(mask.numel()), dtype=torch.uint8)


@torch.library.custom_op("clearn::unpack_bits", mutates_args=(), device_types="cpu")
def _unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    return cpu.unpack(bits, shape)


@_unpack_bits.register_fake
def _(bits: Tensor, shape: Sequence[int]) -> Tensor:
    return bits.new_empty(shape, dtype=torch.bool)


@torch.library.custom_op("clearn::apply_bits", mutates_args=(), device_types="cpu")
def _apply_bits(weight: Tensor, bits: Tensor) -> Tensor:
    return cpu.apply(weight, bits)


@_apply_bits.register_fake
def _(weight: Tensor, bits: Tensor) -> Tensor:
    return weight.new_empty(weight.shape)


def _save_bits(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _apply_bits_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (bits,) = ctx.saved_tensors
    return _apply_bits(grad, bits), None


_apply_bits.register_autograd(_apply_bits_backward, setup_context=_save_bits)


@torch.library.custom_op("clearn::keep_unset_", mutates_args=("grad",), device_types="cpu")
def _keep_unset_(grad: Tensor, used_bits: Tensor) -> None:
    cpu.keep_unset_(grad, used_bits)


@_keep_unset_.register_fake
def _(grad: Tensor, used_bits: Tensor) -> None:
    return None


@torch.library.custom_op("clearn::or_bits_", mutates_args=("bits",), device_types="cpu")
def _or_bits_(bits: Tensor, other: Tensor) -> None:
    bits.bitwise_or_(other)


@_or_bits_.register_fake
def _(bits: Tensor, other: Tensor) -> None:
    return None


@torch.library.custom_op("clearn::count_bits", mutates_args=(), device_types="cpu")
def _count_bits(bits: Tensor) -> Tensor:
    return cpu.count(bits)


@_count_bits.register_fake
def _(bits: Tensor) -> Tensor:
    return bits.new_empty((), dtype=torch.int64)


@torch.library.custom_op("clearn::overlap_bits", mutates_args=(), device_types="cpu")
def _overlap_bits(masks: Tensor) -> Tensor:
    return cpu.overlap(masks)


@_overlap_bits.register_fake
def _(masks: Tensor) -> Tensor:
    return masks.new_empty((masks.shape[0], masks.shape[0]), dtype=torch.int64)


@torch.library.custom_op("clearn::stack_bits", mutates_args=(), device_types="cpu")
def _stack_bits(masks: Tensor, n: int) -> Tensor:
    return cpu.stack(masks, n)


@_stack_bits.register_fake
def _(masks: Tensor, n: int) -> Tensor:
    return masks.new_empty(n, dtype=_symbol_dtype(masks.shape[0]))


@torch.library.custom_op("clearn::unstack_bits", mutates_args=(), device_types="cpu")
def _unstack_bits(symbols: Tensor, num_tasks: int) -> Tensor:
    return cpu.unstack(symbols, num_tasks)


@_unstack_bits.register_fake
def _(symbols: Tensor, num_tasks: int) -> Tensor:
    return symbols.new_empty((num_tasks, _bytes(symbols.numel())), dtype=torch.uint8)


@torch.library.custom_op("clearn::symbol_histogram", mutates_args=(), device_types="cpu")
def _symbol_histogram(symbols: Tensor, num_tasks: int) -> Tensor:
    return cpu.histogram(symbols, num_tasks)


@_symbol_histogram.register_fake
def _(symbols: Tensor, num_tasks: int) -> Tensor:
    return symbols.new_empty(2**num_tasks, dtype=torch.int64)


for _op, _on_cuda in (
    (_pack_bits, cuda.pack),
    (_unpack_bits, cuda.unpack),
    (_apply_bits, cuda.apply),
    (_keep_unset_, cuda.keep_unset_),
    (_or_bits_, cuda.or_bits_),
    (_count_bits, cuda.count),
    (_overlap_bits, cuda.overlap),
    (_stack_bits, cuda.stack),
    (_unstack_bits, cuda.unstack),
    (_symbol_histogram, cuda.histogram),
):
    _op.register_kernel("cuda", _on_cuda)


def _bytes(n: int) -> int:
    return (n + 7) // 8


def _symbol_dtype(num_tasks: int) -> torch.dtype:
    return torch.uint8 if num_tasks <= 8 else torch.int32


def require_dtype(name: str, value: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raise a ValueError when the type is none of those allowed."""
    if value.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{name}: type {value.dtype} is not valid: expected {names}")


def _require_packed(name: str, bits: Tensor, ndim: int) -> None:
    require_dtype(name, bits, (torch.uint8,))
    if bits.ndim != ndim:
        layout = "[bytes]" if ndim == 1 else "[tasks, bytes]"
        raise ValueError(f"{name}: shape {list(bits.shape)} is not valid: expected {layout}")


def require_bits(name: str, bits: Tensor, n: int) -> None:
    """Raise a ValueError when `bits` are no packed mask of n elements."""
    _require_packed(name, bits, 1)
    if bits.shape[0] != _bytes(n):
        raise ValueError(
            f"{name}: {bits.shape[0]} bytes do not hold the mask of {n} elements: expected "
            f"{_bytes(n)}"
        )


def _require_tasks(num_tasks: int) -> None:
    if not 1 <= num_tasks <= MAX_TASKS:
        raise ValueError(f"tasks: {num_tasks} is not valid: expected 1 to {MAX_TASKS}")


def _require_symbols(symbols: Tensor, num_tasks: int) -> None:
    _require_tasks(num_tasks)
    require_dtype("symbols", symbols, (_symbol_dtype(num_tasks),))
    if symbols.ndim != 1:
        raise ValueError(f"symbols: shape {list(symbols.shape)} is not valid: expected [n]")

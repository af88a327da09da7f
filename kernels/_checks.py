"""What the public functions ask of their arguments; errors name it and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def packed_size(n: int) -> int:
    """Bytes of the packed mask of n elements."""
    return (n + 7) // 8


def require_type(name: str, value: Tensor, *allowed: torch.dtype) -> None:
    """Raise a ValueError when the type is none of those allowed."""
    if value.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{name}: type {value.dtype} is not valid: expected {names}")


def require_like(name: str, value: Tensor, other: Tensor, shape: Sequence[int]) -> None:
    """Raise a ValueError unless `value` has that shape, and the type and device of `other`."""
    if (
        value.shape != torch.Size(shape)
        or value.dtype != other.dtype
        or value.device != other.device
    ):
        raise ValueError(
            f"{name}: {list(value.shape)} of {value.dtype} on {value.device} is not valid: "
            f"expected {list(shape)} of {other.dtype} on {other.device}"
        )


def require_packed(name: str, bits: Tensor, ndim: int) -> None:
    """Raise a ValueError when `bits` are no packed mask (ndim 1) or masks (ndim 2)."""
    require_type(name, bits, torch.uint8)
    if bits.ndim != ndim:
        layout = "[bytes]" if ndim == 1 else "[tasks, bytes]"
        raise ValueError(f"{name}: shape {list(bits.shape)} is not valid: expected {layout}")


def require_mask_of(name: str, bits: Tensor, n: int, device: torch.device) -> None:
    """Raise a ValueError when `bits` are no packed mask of n elements on the device."""
    require_packed(name, bits, 1)
    if bits.shape[0] != packed_size(n):
        raise ValueError(
            f"{name}: {bits.shape[0]} bytes do not hold the mask of {n} elements: expected "
            f"{packed_size(n)}"
        )
    if bits.device != device:
        raise ValueError(f"{name}: on {bits.device}: expected on {device}, as the elements are")

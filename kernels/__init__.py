"""The lowest floor: fast functions on tensors, with no idea of streams, nets or strategies.

This is the place for operations that deserve a native implementation: bit-packed masks, exact
top-c thresholds, mask archives, fused optimizer steps. Each is a plain function, tensors in,
tensors out, checked against a slow and obvious reference that lives in `tests/kernels/`. Nothing
here may import Lightning, Avalanche or any other part of clearn. Names are resolved lazily.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clearn.kernels.bitmask import (
        apply_bits,
        count_bits,
        keep_unset_,
        or_bits_,
        overlap_bits,
        pack_bits,
        stack_bits,
        symbol_histogram,
        unpack_bits,
        unstack_bits,
    )
    from clearn.kernels.cuda import check_thresholds
    from clearn.kernels.masked import masked_weight
    from clearn.kernels.tag import tag_step_
    from clearn.kernels.topc import kept, select_bits, top_c_bits, top_c_mask, top_c_thresholds

__all__ = [
    "apply_bits",
    "check_thresholds",
    "count_bits",
    "keep_unset_",
    "kept",
    "masked_weight",
    "or_bits_",
    "overlap_bits",
    "pack_bits",
    "select_bits",
    "stack_bits",
    "symbol_histogram",
    "tag_step_",
    "top_c_bits",
    "top_c_mask",
    "top_c_thresholds",
    "unpack_bits",
    "unstack_bits",
]

_MODULES = {
    "apply_bits": "bitmask",
    "check_thresholds": "cuda",
    "count_bits": "bitmask",
    "keep_unset_": "bitmask",
    "kept": "topc",
    "masked_weight": "masked",
    "or_bits_": "bitmask",
    "overlap_bits": "bitmask",
    "pack_bits": "bitmask",
    "select_bits": "topc",
    "stack_bits": "bitmask",
    "symbol_histogram": "bitmask",
    "tag_step_": "tag",
    "top_c_bits": "topc",
    "top_c_mask": "topc",
    "top_c_thresholds": "topc",
    "unpack_bits": "bitmask",
    "unstack_bits": "bitmask",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

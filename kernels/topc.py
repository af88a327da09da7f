"""The c n scores of largest magnitude: thresholds, masks and packed masks.

The rule of WSN (Kang et al., ICML 2022): per tensor, an exact order statistic; scores equal to the
threshold are all kept.

Shapes: n elements of a tensor, L tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clearn.kernels import _topc_cpu as cpu
from clearn.kernels import cuda
from clearn.kernels.bitmask import FLOATS, require_dtype, unpack_bits


def kept(n: int, c: float) -> int:
    """How many of n scores are kept: n - round((1 - c)(n - 1)), with Python's rounding.

    For c n that is far from a half that is one more than c n; of 0 scores, 0 are kept.

    Args:
        n: Number of scores, >= 0.
        c: Fraction to keep, in (0, 1].

    Raises:
        ValueError: c is out of range.
    """
    if not 0 < c <= 1:
        raise ValueError(f"c: {c} is not valid: expected a fraction in (0, 1]")
    return n - round((1 - c) * (n - 1)) if n else 0


def top_c_thresholds(scores: Sequence[Tensor], c: float, start: Tensor | None = None) -> Tensor:
    """The smallest kept |score| of every tensor, exactly, without waiting for the device.

    Args:
        scores: L >= 1 tensors of any shapes, of one type (float32, float16, bfloat16 or float64)
            and on one device.
        c: Fraction to keep, in (0, 1].
        start: Thresholds `[L]` of scores that were not very different, which makes it faster; the
            result is the same whatever they are.

    Returns:
        `[L]`, of the type and on the device of the scores; infinity for a tensor of 0 elements.

    Raises:
        ValueError: An argument is not as above, or a score is NaN or infinite (on CUDA see
            `clearn.kernels.cuda`).
    """
    kept(0, c)
    _require_scores(scores)
    if start is not None:
        _require_start(start, scores)
    found: Tensor = _top_c_thresholds([score.detach() for score in scores], float(c), start)
    return found


def top_c_mask(scores: Tensor, c: float) -> Tensor:
    """Where |score| is at least the threshold: bool, in the shape of the scores.

    Args:
        scores: As one tensor of `top_c_thresholds`.
        c: Fraction to keep, in (0, 1].

    Raises:
        ValueError: As `top_c_thresholds`.
    """
    return unpack_bits(top_c_bits(scores, c), scores.shape)


def top_c_bits(scores: Tensor, c: float) -> Tensor:
    """`top_c_mask`, packed: uint8 `[ceil(n / 8)]`."""
    return select_bits(scores, top_c_thresholds([scores], c)[0])


def select_bits(scores: Tensor, threshold: Tensor) -> Tensor:
    """Where |score| is at least the threshold, packed.

    Args:
        scores: float32, float16, bfloat16 or float64, any shape, n elements.
        threshold: Scalar tensor of the same type, on the same device.

    Returns:
        uint8 `[ceil(n / 8)]`.

    Raises:
        ValueError: Types or shapes do not fit.
    """
    require_dtype("scores", scores, FLOATS)
    require_threshold(threshold, scores)
    selected: Tensor = _select_bits(scores.detach(), threshold)
    return selected


def require_threshold(threshold: Tensor, scores: Tensor) -> None:
    """Raise a ValueError when `threshold` is no scalar that goes with the scores."""
    if threshold.ndim or threshold.dtype != scores.dtype:
        raise ValueError(
            f"threshold: shape {list(threshold.shape)} and type {threshold.dtype} are not valid: "
            f"expected a scalar tensor of {scores.dtype}"
        )


@torch.library.custom_op("clearn::top_c_thresholds", mutates_args=(), device_types="cpu")
def _top_c_thresholds(scores: Sequence[Tensor], c: float, start: Tensor | None = None) -> Tensor:
    return cpu.thresholds(scores, [kept(score.numel(), c) for score in scores], start)


@_top_c_thresholds.register_kernel("cuda")
def _(scores: Sequence[Tensor], c: float, start: Tensor | None = None) -> Tensor:
    return cuda.thresholds(scores, [kept(score.numel(), c) for score in scores], start)


@_top_c_thresholds.register_fake
def _(scores: Sequence[Tensor], c: float, start: Tensor | None = None) -> Tensor:
    return scores[0].new_empty(len(scores))


@torch.library.custom_op("clearn::select_bits", mutates_args=(), device_types="cpu")
def _select_bits(scores: Tensor, threshold: Tensor) -> Tensor:
    return cpu.select(scores, threshold)


_select_bits.register_kernel("cuda", cuda.select)


@_select_bits.register_fake
def _(scores: Tensor, threshold: Tensor) -> Tensor:
    return scores.new_empty((scores.numel() + 7) // 8, dtype=torch.uint8)


def _require_scores(scores: Sequence[Tensor]) -> None:
    if not scores:
        raise ValueError("scores: no tensors: expected at least one")
    for index, score in enumerate(scores):
        if score.dtype not in FLOATS:
            raise ValueError(
                f"scores[{index}]: type {score.dtype} is not valid: expected float32, float16, "
                "bfloat16 or float64"
            )
        if score.dtype != scores[0].dtype or score.device != scores[0].device:
            raise ValueError(
                f"scores[{index}]: {score.dtype} on {score.device} does not go with "
                f"{scores[0].dtype} on {scores[0].device}: expected one type and device"
            )


def _require_start(start: Tensor, scores: Sequence[Tensor]) -> None:
    like = scores[0]
    fits = start.dtype == like.dtype and start.device == like.device
    if start.shape != (len(scores),) or not fits:
        raise ValueError(
            f"start: {list(start.shape)} of {start.dtype} on {start.device} does not go with "
            f"{len(scores)} tensors of {like.dtype} on {like.device}"
        )

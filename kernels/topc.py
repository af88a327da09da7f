"""The c n scores of largest magnitude: thresholds, masks and packed masks.

The rule of WSN (Kang et al., ICML 2022): per tensor, an exact order statistic; scores equal to the
threshold are all kept.

Shapes: n elements of a tensor, L tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clearn.kernels import _topc_cpu as cpu
from clearn.kernels import cuda
from clearn.kernels._checks import FLOATS, packed_size, require_like, require_type
from clearn.kernels._operator import operator
from clearn.kernels.bitmask import unpack_bits


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
        ValueError: An argument is not as above, or a score is NaN or infinite; on CUDA the
            threshold of such scores is NaN, which `check_thresholds` turns into this error.
    """
    kept(0, c)
    _require_scores(scores)
    if start is not None:
        require_like("start", start, scores[0], [len(scores)])
    return _top_c_thresholds([score.detach() for score in scores], float(c), start)


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
        scores: float32, float16, bfloat16 or float64, finite, any shape, n elements.
        threshold: Scalar tensor of the same type, on the same device.

    Returns:
        uint8 `[ceil(n / 8)]`.

    Raises:
        ValueError: Types or shapes do not fit, or the threshold is NaN (on CUDA no bit is set).
    """
    require_type("scores", scores, *FLOATS)
    require_like("threshold", threshold, scores, [])
    return _select_bits(scores.detach(), threshold)


def _require_scores(scores: Sequence[Tensor]) -> None:
    if not scores:
        raise ValueError("scores: no tensors: expected at least one")
    for index, score in enumerate(scores):
        require_type(f"scores[{index}]", score, *FLOATS)
        if score.dtype != scores[0].dtype or score.device != scores[0].device:
            raise ValueError(
                f"scores[{index}]: {score.dtype} on {score.device} does not go with "
                f"{scores[0].dtype} on {scores[0].device}: expected one type and device"
            )


def _with_counts(
    thresholds: Callable[[Sequence[Tensor], Sequence[int], Tensor | None], Tensor],
) -> Callable[[Sequence[Tensor], float, Tensor | None], Tensor]:
    """The same of the fraction that is kept."""

    def of_fraction(scores: Sequence[Tensor], c: float, start: Tensor | None) -> Tensor:
        return thresholds(scores, [kept(score.numel(), c) for score in scores], start)

    return of_fraction


_top_c_thresholds = operator(
    "top_c_thresholds(Tensor[] scores, float c, Tensor? start) -> Tensor",
    cpu=_with_counts(cpu.thresholds),
    cuda=_with_counts(cuda.thresholds),
    fake=lambda scores, c, start: scores[0].new_empty(len(scores)),
)
_select_bits = operator(
    "select_bits(Tensor scores, Tensor threshold) -> Tensor",
    cpu=cpu.select,
    cuda=cuda.select,
    fake=lambda scores, threshold: scores.new_empty(packed_size(scores.numel()), dtype=torch.uint8),
)

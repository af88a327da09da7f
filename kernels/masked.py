"""The masked weight of WSN, and the gradients of weight and score in one pass.

With weight w, score s and threshold t, the masked weight is w where |s| >= t, else +0. Given its
gradient G (specification: Kang et al., ICML 2022, section 3, with the derivative of |s| kept),

    dw = G       where |s| >= t and the weight is not used by an earlier task, else +0
    ds = G w sign(s)       everywhere: the straight-through estimator drops the step alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clearn.kernels import _masked_cpu as cpu
from clearn.kernels import cuda
from clearn.kernels.bitmask import FLOATS, require_bits, require_dtype
from clearn.kernels.topc import require_threshold


def masked_weight(
    weight: Tensor, score: Tensor, threshold: Tensor, used_bits: Tensor | None = None
) -> Tensor:
    """The weight where |score| >= threshold, +0 elsewhere; differentiable in weight and score.

    Nothing of the size of the weight is saved for the backward pass but weight and score
    themselves.

    Args:
        weight: float32, float16, bfloat16 or float64, any shape, n elements.
        score: Shape and type of the weight.
        threshold: Scalar tensor of that type, one of `top_c_thresholds`.
        used_bits: Packed mask uint8 `[ceil(n / 8)]` of weights whose gradient is +0.

    Raises:
        ValueError: Types or sizes do not fit.
    """
    require_dtype("weight", weight, FLOATS)
    if score.shape != weight.shape or score.dtype != weight.dtype:
        raise ValueError(
            f"score: shape {list(score.shape)} and type {score.dtype} do not go with a weight of "
            f"{list(weight.shape)} and {weight.dtype}: expected the same"
        )
    require_threshold(threshold, score)
    if used_bits is not None:
        require_bits("used_bits", used_bits, weight.numel())
    masked: Tensor = _masked_weight(weight, score, threshold, used_bits)
    return masked


@torch.library.custom_op("clearn::masked_weight", mutates_args=(), device_types="cpu")
def _masked_weight(
    weight: Tensor, score: Tensor, threshold: Tensor, used_bits: Tensor | None = None
) -> Tensor:
    return cpu.forward(weight, score, threshold)


@_masked_weight.register_kernel("cuda")
def _(weight: Tensor, score: Tensor, threshold: Tensor, used_bits: Tensor | None = None) -> Tensor:
    return cuda.forward(weight, score, threshold)


@_masked_weight.register_fake
def _(weight: Tensor, score: Tensor, threshold: Tensor, used_bits: Tensor | None = None) -> Tensor:
    return weight.new_empty(weight.shape)


@torch.library.custom_op("clearn::masked_weight_backward", mutates_args=(), device_types="cpu")
def _masked_weight_backward(
    grad: Tensor, weight: Tensor, score: Tensor, threshold: Tensor, used_bits: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return cpu.backward(grad, weight, score, threshold, used_bits)


_masked_weight_backward.register_kernel("cuda", cuda.backward)


@_masked_weight_backward.register_fake
def _(
    grad: Tensor, weight: Tensor, score: Tensor, threshold: Tensor, used_bits: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *_masked_weight_backward(grad, *ctx.saved_tensors), None, None


_masked_weight.register_autograd(_backward, setup_context=_setup_context)

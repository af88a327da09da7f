"""The masked weight of WSN, and the gradients of weight and score in one pass.

With weight w, score s and threshold t, the masked weight is w where |s| >= t, else +0. Given its
gradient G (specification: Kang et al., ICML 2022, section 3, with the derivative of |s| kept),

    dw = G       where |s| >= t and the weight is not used by an earlier task, else +0
    ds = G w sign(s)       everywhere: the straight-through estimator drops the step alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from clearn.kernels import _masked_cpu as cpu
from clearn.kernels import cuda
from clearn.kernels._checks import FLOATS, require_like, require_mask_of, require_type
from clearn.kernels._operator import operator


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
        ValueError: Types or sizes do not fit, or the threshold is NaN (on CUDA the result is NaN).
    """
    require_type("weight", weight, *FLOATS)
    require_like("score", score, weight, weight.shape)
    require_like("threshold", threshold, weight, [])
    if used_bits is not None:
        require_mask_of("used_bits", used_bits, weight.numel(), weight.device)
    return _masked_weight(weight, score, threshold, used_bits)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *_masked_weight_backward(grad, *ctx.saved_tensors), None, None


_masked_weight: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = operator(
    "masked_weight(Tensor weight, Tensor score, Tensor threshold, Tensor? used_bits) -> Tensor",
    cpu=lambda weight, score, threshold, used_bits: cpu.forward(weight, score, threshold),
    cuda=lambda weight, score, threshold, used_bits: cuda.forward(weight, score, threshold),
    fake=lambda weight, score, threshold, used_bits: weight.new_empty(weight.shape),
    save=_save,
    backward=_backward,
)
_masked_weight_backward = operator(
    "masked_weight_backward(Tensor grad, Tensor weight, Tensor score, Tensor threshold, "
    "Tensor? used_bits) -> (Tensor, Tensor)",
    cpu=cpu.backward,
    cuda=cuda.backward,
    fake=lambda grad, weight, score, threshold, used_bits: (
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape),
    ),
)

"""The masked weight and its gradients on the CPU, in one pass over the memory each."""

from __future__ import annotations

import torch
from torch import Tensor

from clearn.kernels._bits_cpu import INTEGERS, PIECE, empty, integers, keep_set
from clearn.kernels._topc_cpu import level_bits

# PyTorch's one vectorised "a where |b| > limit, else 0" into given memory.
_where_beyond = torch.ops.aten.hardshrink_backward.grad_input


def forward(weight: Tensor, score: Tensor, threshold: Tensor) -> Tensor:
    """As `masked.masked_weight`."""
    out = empty(weight)
    _where_beyond(weight.contiguous(), score.contiguous(), _below(threshold), grad_input=out)
    return out


def backward(
    grad: Tensor, weight: Tensor, score: Tensor, threshold: Tensor, used_bits: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and score."""
    limit = _below(threshold)
    dweight, dscore = empty(weight), empty(weight)
    sign = score.new_empty(min(PIECE, score.numel()))
    unused = None if used_bits is None else used_bits.bitwise_not().numpy()
    flat = (t.contiguous().view(-1).split(PIECE) for t in (grad, weight, score, dweight, dscore))
    for index, (g, w, s, dw, ds) in enumerate(zip(*flat, strict=True)):
        _where_beyond(g, s, limit, grad_input=dw)
        if unused is not None:
            first, target = index * PIECE // 8, integers(dw)
            keep_set(target, unused[first : first + PIECE // 8], target)
        torch.mul(g, w, out=ds)
        ds.mul_(torch.sign(s, out=sign[: len(s)]))
    return dweight, dscore


def _below(threshold: Tensor) -> float:
    """The largest number below the threshold, or a negative one when that is not positive."""
    level = level_bits(threshold)
    if not level:
        return -1.0
    return float(
        torch.tensor(level - 1, dtype=INTEGERS[threshold.element_size()]).view(threshold.dtype)
    )

"""The masked weight and its gradients on the CPU, in one pass over the memory each."""

from __future__ import annotations

import torch
from torch import Tensor

from clearn.kernels._bits_cpu import FORMATS, PIECE, empty, in_bytes, integers, keep_set, pieces
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
    sign = score.new_empty(min(2 * PIECE, score.numel()))
    unused = None if used_bits is None else used_bits.bitwise_not().numpy()
    whole = [t.contiguous().view(-1) for t in (grad, weight, score, dweight, dscore)]
    for piece in pieces(score.numel()):
        g, w, s, dw, ds = (t[piece] for t in whole)
        _where_beyond(g, s, limit, grad_input=dw)
        if unused is not None:
            target = integers(dw)
            keep_set(target, unused[in_bytes(piece)], target)
        torch.mul(g, w, out=ds)
        ds.mul_(torch.sign(s, out=sign[: len(s)]))
    return dweight, dscore


def _below(threshold: Tensor) -> float:
    """The largest number below the threshold, or a negative one when that is not positive."""
    level, layout = level_bits(threshold), FORMATS[threshold.dtype]
    if not level:
        return -1.0
    return float(torch.tensor(level - 1, dtype=layout.integer).view(threshold.dtype))

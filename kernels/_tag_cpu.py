"""A step of TAG by torch's own operations: what runs on the CPU.

The directions and variances of finished tasks are read once each, by one matrix-vector product per
tensor, which runs at the speed of the memory; everything else is done for all tensors at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PIECE = 2**16  # elements of directions that are widened at once, to stay in the cache


def step(
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    variances: list[Tensor],
    directions: list[Tensor],
    past: list[Tensor],
    totals: list[Tensor],
    b: float,
    beta: float,
    decay: float,
    weight: float,
    lr: float,
    eps: float,
    by_moment: bool,
) -> None:
    """As `tag.tag_step_`."""
    torch._foreach_lerp_(moments, grads, 1 - beta)
    if decay != 1:
        torch._foreach_mul_(variances, decay)
    torch._foreach_addcmul_(variances, grads, grads, value=weight)
    counts = [rows.size(0) for rows in directions]
    if any(counts):
        weights = _weights(moments, directions, counts, b)
        own = math.exp(-b)
        roots = [
            _weighted(variance, own, rows, row) if row.size(0) else variance.clone()
            for variance, rows, row in zip(variances, past, weights, strict=True)
        ]
        torch._foreach_add_(totals, weights)
        torch._foreach_sqrt_(roots)
    else:
        roots = list(torch._foreach_sqrt(variances))
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(params, moments if by_moment else grads, roots, value=-lr)


def _weights(
    moments: list[Tensor], directions: list[Tensor], counts: list[int], b: float
) -> list[Tensor]:
    """Alpha of each tensor, `[t_p]`."""
    table = moments[0].new_zeros(len(moments), max(counts))
    rows = [
        row if count == row.size(0) else row[:count]
        for row, count in zip(table.unbind(), counts, strict=True)
    ]
    for moment, of_tasks, row in zip(moments, directions, rows, strict=True):
        if row.size(0):
            _dot(of_tasks.view(row.size(0), moment.numel()), moment.view(-1), row)
    norms = torch.stack(torch._foreach_norm(moments))
    # Without a gradient there is no direction: 0 / inf is the cosine 0 that is meant.
    norms.masked_fill_(norms == 0, math.inf)
    table.div_(norms[:, None]).clamp_(-1, 1).mul_(-b).exp_()
    return rows


def _dot(of_tasks: Tensor, moment: Tensor, out: Tensor) -> None:
    """The products of each row with the moment."""
    if of_tasks.dtype == moment.dtype:
        torch.mv(of_tasks, moment, out=out)
        return
    for first in range(0, moment.size(0), _PIECE):
        piece = slice(first, first + _PIECE)
        out.addmv_(of_tasks[:, piece].to(moment.dtype), moment[piece])


def _weighted(variance: Tensor, own: float, past: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the second moments."""
    columns = past.view(past.size(0), variance.numel()).t()
    return torch.addmv(variance.view(-1), columns, weights, beta=own).view(variance.shape)

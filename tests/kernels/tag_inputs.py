"""Tensors for the tests of a step of TAG."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NUMBERS = {"b": 2.0, "beta": 0.9, "decay": 0.99, "weight": 0.01, "lr": 0.1, "eps": 1e-8}
SIZES = [(3, 2), (5,), (), (0,), (4,)]
TASKS = [2, 0, 3, 1, 3]
# Of the parameters and of the directions.
TYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
    (torch.float64, torch.bfloat16),
]


def inputs(
    dtype: torch.dtype, tasks: Sequence[int], sizes: Sequence[Sequence[int]] = SIZES
) -> list[list[Tensor]]:
    """The lists that `tag_step_` takes, in its order."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    pairs = list(zip(tasks, sizes, strict=True))
    params, grads, moments = ([draw(*size) for size in sizes] for _ in range(3))
    variances = [draw(*size).square() for size in sizes]
    directions = [draw(t, *size) for t, size in pairs]
    for rows in directions:
        for row in rows.unbind():
            row.div_(row.norm())
    past = [draw(t, *size).square() for t, size in pairs]
    totals = [draw(t) for t in tasks]
    return [params, grads, moments, variances, directions, past, totals]

"""Tensors and streams of gradients for the tests of TAG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from clearn.optim import TAGAdagrad, TAGAdam, TAGOptimizer, TAGRMSprop

CLASSES = {"RMSprop": TAGRMSprop, "Adagrad": TAGAdagrad, "Adam": TAGAdam}
SHAPES = [(5, 3, 3, 2), (5,), (1,), (), (0, 4), (33, 7)]


def parameters(
    shapes: Sequence[Sequence[int]] = SHAPES, dtype: torch.dtype = torch.float64
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(tuple(shape), generator=generator, dtype=dtype) for shape in shapes]
    return [nn.Parameter(tensor) for tensor in drawn]


def gradients(params: Sequence[Tensor], task: int, steps: int) -> Iterator[list[Tensor]]:
    """Noise around a mean that belongs to the task: tasks are alike in some tensors, not in all."""
    generator = torch.Generator().manual_seed(100 + task)

    def draw() -> list[Tensor]:
        return [
            torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)
            for param in params
        ]

    means = draw()
    for _ in range(steps):
        yield [mean + noise for mean, noise in zip(means, draw(), strict=True)]


def take(optimizer: TAGOptimizer, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()


def train(
    optimizer: TAGOptimizer, params: Sequence[Tensor], tasks: Sequence[int], steps: int = 5
) -> None:
    """Whole tasks, from the beginning to the end of each."""
    for task in tasks:
        optimizer.begin_task()
        for grads in gradients(params, task, steps):
            take(optimizer, params, grads)
        optimizer.end_task()


def equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

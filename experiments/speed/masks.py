"""Mask kernels on the CPU against their straightforward forms, which the tests use as references.

    OMP_NUM_THREADS=1 python experiments/speed/masks.py

The mask step is the exact threshold, the masked weight, and the gradients of weight and score. The
scores walk as Adam moves them, so that a threshold of the step before is a start but no answer;
"cold" has no start. Bar: one layer of 2500 x 8192 in <= 1/3 of the time. The two layers of the
PermutedMNIST network show what a call costs, and the rest is one call each on 2500 x 8192.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import torch
from harness import interleave
from torch import Tensor

from clearn import kernels

# By its folder: other distributions install a package called `tests`.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "kernels"))
import reference

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
LARGE, SMALL = [(2500, 8192)], [(100, 784), (100, 100)]
WALK = (0, 1, 2, 3, 2, 1)  # every neighbour is one step away
TASKS = 7


class Layer:
    """Weight, upstream gradient, and the scores of four consecutive steps of Adam."""

    def __init__(self, shape: tuple[int, int]) -> None:
        bound = shape[1] ** -0.5
        self.weight = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        self.weight.requires_grad_()
        self.grad = torch.randn(shape, generator=generator)
        score = torch.empty(shape).uniform_(-bound, bound, generator=generator).requires_grad_()
        adam = torch.optim.Adam([score], lr=1e-3)
        self.scores: list[Tensor] = []
        for step in range(10):
            score.grad = torch.randn(shape, generator=generator)
            adam.step()
            if step >= 6:
                self.scores.append(score.detach().clone().requires_grad_())


def straightforward(layers: Sequence[Layer], c: float) -> Callable[[], None]:
    steps = count()

    def step() -> None:
        place = WALK[next(steps) % len(WALK)]
        for layer in layers:
            reference.mask_step(layer.weight, layer.scores[place], c, layer.grad)

    return step


def ours(layers: Sequence[Layer], c: float, *, warm: bool) -> Callable[[], None]:
    steps, start = count(), None

    def step() -> None:
        nonlocal start
        place = WALK[next(steps) % len(WALK)]
        scores = [layer.scores[place] for layer in layers]
        thresholds = kernels.top_c_thresholds(scores, c, start if warm else None)
        for layer, score, tau in zip(layers, scores, thresholds, strict=True):
            product = kernels.masked_weight(layer.weight, score, tau)
            torch.autograd.grad(product, (layer.weight, score), layer.grad)
        start = thresholds

    return step


def repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(times):
            function()

    return call


def mask_steps(name: str, shapes: list[tuple[int, int]], c: float, times: int, bar: str) -> None:
    layers = [Layer(shape) for shape in shapes]
    variants = {
        "straightforward": straightforward(layers, c),
        "clearn": ours(layers, c, warm=True),
        "clearn, cold": ours(layers, c, warm=False),
    }
    interleave(
        f"mask step, {name}, float32, c = {c}",
        {variant: repeated(step, times) for variant, step in variants.items()},
        reference="straightforward",
        bar=bar,
    )


mask_steps("2500x8192, 4 times", LARGE, 0.1, 4, "<= 0.33 (3x)")
mask_steps("2500x8192, 4 times", LARGE, 0.5, 4, "<= 0.33 (3x)")
mask_steps("100x784 and 100x100, 300 times", SMALL, 0.1, 300, "")

(SHAPE,) = LARGE
N = SHAPE[0] * SHAPE[1]
mask = torch.rand(SHAPE, generator=generator) < 0.1
weight = torch.randn(SHAPE, generator=generator)
masks = torch.randint(256, (TASKS, N // 8), generator=generator, dtype=torch.uint8)
bits = reference.pack(mask)
symbols = reference.stack(masks, N)
for name, plain, packed in [
    ("pack_bits", lambda: reference.pack(mask), lambda: kernels.pack_bits(mask)),
    (
        "unpack_bits",
        lambda: reference.unpack(bits, SHAPE),
        lambda: kernels.unpack_bits(bits, SHAPE),
    ),
    ("apply_bits", lambda: reference.apply(weight, bits), lambda: kernels.apply_bits(weight, bits)),
    (
        "keep_unset_",
        lambda: reference.keep_unset(weight, bits),
        lambda: kernels.keep_unset_(weight, bits),
    ),
    ("count_bits", lambda: reference.count(bits), lambda: kernels.count_bits(bits)),
    (
        f"overlap_bits, {TASKS} tasks",
        lambda: reference.overlap(masks),
        lambda: kernels.overlap_bits(masks),
    ),
    (
        f"stack_bits, {TASKS} tasks",
        lambda: reference.stack(masks, N),
        lambda: kernels.stack_bits(masks, N),
    ),
    (
        f"unstack_bits, {TASKS} tasks",
        lambda: reference.unstack(symbols, TASKS),
        lambda: kernels.unstack_bits(symbols, TASKS),
    ),
    (
        f"symbol_histogram, {TASKS} tasks",
        lambda: torch.bincount(symbols, minlength=2**TASKS),
        lambda: kernels.symbol_histogram(symbols, TASKS),
    ),
]:
    interleave(
        f"{name}, 2500x8192",
        {"straightforward": plain, "clearn": packed},
        reference="straightforward",
    )

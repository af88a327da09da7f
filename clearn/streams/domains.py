"""Streams that show one data set in another way in every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clearn import datasets
from clearn.split import draws, invalid
from clearn.stream import Stream
from clearn.streams.options import FILES, TASKS, Options, builder, count_tasks

Permutations = Literal["clearn", "wsn"]


@builder(*TASKS, *FILES, num_tasks=10, scenario="domain")
def PermutedMNIST(options: Options, *, permutations: Permutations = "clearn") -> Stream:
    """MNIST with the pixels in another order in every task.

    Args:
        options: The shared ones.
        permutations: Where the orders come from. clearn: our own draws; task 0 shows the pixels as
            they are. wsn: the code of WSN and GPM, which permutes task 0 too and derives each order
            from its number and its place; `order_seed` shuffles the places.
    """
    if permutations not in get_args(Permutations):
        raise invalid("permutations", repr(permutations), " or ".join(get_args(Permutations)))
    source = replace(
        datasets.mnist(options.root, options.download, options.image_size), name="PermutedMNIST"
    )
    make = _own_permutations if permutations == "clearn" else _wsn_permutations
    orders = make(source.train.shape[-1] ** 2, count_tasks(options), options.order_seed)
    domains = [
        None if order is None else PixelPermutation(torch.from_numpy(order)) for order in orders
    ]
    return Stream.from_source(source, options, domains)


@builder(*TASKS, *FILES, num_tasks=10, scenario="domain")
def RotatedMNIST(options: Options, *, angles: Sequence[float] | None = None) -> Stream:
    """MNIST turned by another angle in every task.

    Args:
        options: The shared ones.
        angles: Degrees counter-clockwise, one per task (`num_tasks` is then not used); when
            missing, task k of T is turned by 180 k / T.
    """
    source = replace(
        datasets.mnist(options.root, options.download, options.image_size), name="RotatedMNIST"
    )
    count = count_tasks(options) if angles is None else len(angles)
    if not count:
        raise invalid("angles", "[]", "at least one number of degrees")
    turns = [180 * k / count for k in range(count)] if angles is None else list(angles)
    if options.order_seed is not None:
        turns = [turns[k] for k in draws(options.order_seed, "rotations").permutation(count)]
    domains = [Rotation(float(turn)) if turn % 360 else None for turn in turns]
    return Stream.from_source(source, options, domains)


class PixelPermutation:
    """Puts the pixels of every channel of images `[B, C, H, W]` in one fixed order.

    Args:
        order: int64 `[H * W]`, a permutation: pixel i of the result is pixel `order[i]`.
    """

    def __init__(self, order: Tensor) -> None:
        self.order = order
        self._on = {order.device: order}

    def __call__(self, raw: Tensor) -> Tensor:
        """The images `raw` with their pixels reordered."""
        if raw.device not in self._on:
            self._on[raw.device] = self.order.to(raw.device)
        return raw.flatten(2).index_select(2, self._on[raw.device]).view_as(raw)


class Rotation:
    """Turns images `[B, C, H, W]` about their centre, counter-clockwise; what comes in is 0.

    Args:
        angle: In degrees.
    """

    def __init__(self, angle: float) -> None:
        self.angle = angle

    def __call__(self, raw: Tensor) -> Tensor:
        """The images `raw`, turned."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import rotate

        return rotate(raw, self.angle, InterpolationMode.BILINEAR)  # type: ignore[no-any-return]


def _own_permutations(pixels: int, count: int, seed: int | None) -> list[NDArray[np.int64] | None]:
    """Orders of the pixels of `count` tasks; the first is the natural one."""
    random = (draws(seed or 0, "permutation", index) for index in range(1, count))
    return [None, *(generator.permutation(pixels) for generator in random)]


def _wsn_permutations(pixels: int, count: int, seed: int | None) -> list[NDArray[np.int64] | None]:
    """The orders in the code of WSN (Kang et al. 2022), which took them from GPM.

    Permutation r at place i is scikit-learn's `shuffle` with `random_state` 100 r + i, which is
    NumPy's; the places of the permutations are shuffled in the same way when there is a seed.
    """
    numbers = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    return [
        np.random.RandomState(100 * number + place).permutation(pixels)
        for place, number in enumerate(numbers)
    ]

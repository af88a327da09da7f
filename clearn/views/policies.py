"""Which operations an image gets, and how strong: AutoAugment's policy for CIFAR-10, RandAugment.

AutoAugment: Cubuk, Zoph, Mané, Vasudevan and Le, "AutoAugment: Learning Augmentation Strategies
from Data", CVPR 2019. RandAugment: Cubuk, Zoph, Shlens and Le, "RandAugment: Practical automated
data augmentation with a reduced search space", NeurIPS 2020.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from clearn.views.operations import (
    OPERATIONS,
    Operation,
    autocontrast,
    brightness,
    colour,
    contrast,
    equalize,
    identity,
    invert,
    posterize,
    rotate,
    sharpness,
    shear_x,
    shear_y,
    solarize,
    translate_x,
    translate_y,
)

# Sub-policies: two operations one after the other, each with its probability and its level, 0 to
# 9; the level is 0 where the operation has no magnitude.
CIFAR10: tuple[tuple[tuple[Operation, float, int], tuple[Operation, float, int]], ...] = (
    ((invert, 0.1, 0), (contrast, 0.2, 6)),
    ((rotate, 0.7, 2), (translate_x, 0.3, 9)),
    ((sharpness, 0.8, 1), (sharpness, 0.9, 3)),
    ((shear_y, 0.5, 8), (translate_y, 0.7, 9)),
    ((autocontrast, 0.5, 0), (equalize, 0.9, 0)),
    ((shear_y, 0.2, 7), (posterize, 0.3, 7)),
    ((colour, 0.4, 3), (brightness, 0.6, 7)),
    ((sharpness, 0.3, 9), (brightness, 0.7, 9)),
    ((equalize, 0.6, 0), (equalize, 0.5, 0)),
    ((contrast, 0.6, 7), (sharpness, 0.6, 5)),
    ((colour, 0.7, 7), (translate_x, 0.5, 8)),
    ((equalize, 0.3, 0), (autocontrast, 0.4, 0)),
    ((translate_y, 0.4, 3), (sharpness, 0.2, 6)),
    ((brightness, 0.9, 6), (colour, 0.2, 8)),
    ((solarize, 0.5, 2), (invert, 0.0, 0)),
    ((equalize, 0.2, 0), (autocontrast, 0.6, 0)),
    ((equalize, 0.2, 0), (equalize, 0.6, 0)),
    ((colour, 0.9, 9), (equalize, 0.6, 0)),
    ((autocontrast, 0.8, 0), (solarize, 0.2, 8)),
    ((brightness, 0.1, 3), (colour, 0.7, 0)),
    ((solarize, 0.4, 5), (autocontrast, 0.9, 0)),
    ((translate_y, 0.9, 9), (translate_y, 0.7, 9)),
    ((autocontrast, 0.9, 0), (solarize, 0.8, 3)),
    ((equalize, 0.8, 0), (invert, 0.1, 0)),
    ((translate_y, 0.7, 9), (autocontrast, 0.9, 0)),
)
SIGNED = frozenset(
    [
        *(shear_x, shear_y, translate_x, translate_y, rotate),
        *(brightness, colour, contrast, sharpness),
    ]
)

_CODES = torch.tensor([[OPERATIONS.index(step[0]) for step in pair] for pair in CIFAR10]).T
_PROBABILITIES = torch.tensor([[step[1] for step in pair] for pair in CIFAR10]).double().T
_LEVELS = torch.tensor([[step[2] for step in pair] for pair in CIFAR10]).T
_SIGNED = torch.tensor([operation in SIGNED for operation in OPERATIONS])


def draw_autoaugment(
    count: int, height: int, width: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """For each image one sub-policy of `CIFAR10`, as operations and magnitudes.

    Returns:
        Positions in `OPERATIONS`, int64 `[2, count]`, those not to apply the identity's; and
        magnitudes, float64 `[2, count]`.
    """
    which = torch.randint(len(CIFAR10), (count,), generator=generator)
    chances = torch.rand(2, count, dtype=torch.float64, generator=generator)
    codes = _CODES[:, which]
    magnitudes = strengths(10, height, width)[codes, _LEVELS[:, which]]
    magnitudes = _signed(codes, magnitudes, generator)
    applied = chances < _PROBABILITIES[:, which]
    return codes.where(applied, OPERATIONS.index(identity)), magnitudes


def draw_randaugment(
    count: int, height: int, width: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """As `draw_autoaugment`: two operations of all but `invert`, at level 9 of 0 to 30."""
    codes = torch.randint(len(OPERATIONS) - 1, (2, count), generator=generator)
    return codes, _signed(codes, strengths(31, height, width)[codes, 9], generator)


@lru_cache
def strengths(levels: int, height: int, width: int) -> Tensor:
    """Magnitude of each operation at each level: float64 `[len(OPERATIONS), levels]`, >= 0.

    Made with float32 steps as torchvision's are, whose thresholds and shifts lie on whole numbers
    for some levels and would else be cut to another one.
    """
    table = torch.zeros(len(OPERATIONS), levels, dtype=torch.float64)
    ends = {
        shear_x: (0, 0.3),
        shear_y: (0, 0.3),
        translate_x: (0, 150 / 331 * width),
        translate_y: (0, 150 / 331 * height),
        rotate: (0, 30),
        brightness: (0, 0.9),
        colour: (0, 0.9),
        contrast: (0, 0.9),
        sharpness: (0, 0.9),
        solarize: (255, 0),
    }
    for operation, (first, last) in ends.items():
        table[OPERATIONS.index(operation)] = torch.linspace(first, last, levels)
    table[OPERATIONS.index(posterize)] = 8 - torch.linspace(0, 4, levels).round()
    return table


def _signed(codes: Tensor, magnitudes: Tensor, generator: torch.Generator | None) -> Tensor:
    """Half of the magnitudes negative, where the operation has two directions."""
    negative = torch.randint(2, codes.shape, generator=generator, dtype=torch.bool)
    return torch.where(negative & _SIGNED[codes], -magnitudes, magnitudes)

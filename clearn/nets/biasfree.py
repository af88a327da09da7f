"""Backbones whose only parameters are the weights of convolutions and linear layers.

No layer has a bias and no normalisation a scale or an offset. A method that keeps those weights
as they were for an earlier task, by masks say, keeps all that the net has learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from clearn.nets.shapes import image_shape


class TinyNet(nn.Module):
    """Four 3x3 convolutions with 160 channels, each of which halves the image; two layers of 640.

    The net for Split TinyImageNet of Winning SubNetworks (Kang et al. 2022): ReLU after each layer,
    no normalisation, no bias. On RGB images of 64x64 pixels it has 2,743,520 weights.

    Args:
        input_shape: `[C, H, W]`.

    Raises:
        UserError: The examples are not images.
    """

    num_features = 640

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        fan_in, *sides = image_shape("TinyNet", input_shape)
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [nn.Conv2d(fan_in, 160, 3, stride=2, padding=1, bias=False)]
            layers += [nn.ReLU(inplace=True)]
            fan_in = 160
            sides = [(side + 1) // 2 for side in sides]
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(160 * math.prod(sides), 640, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(640, 640, bias=False),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, 640]` of images `[B, C, H, W]`."""
        return cast("Tensor", self.layers(_fast_order(x)))


def _fast_order(x: Tensor) -> Tensor:
    """`x` in the order in which convolutions on its device are faster; later layers follow suit."""
    if x.device.type == "cpu":
        return x.contiguous(memory_format=torch.channels_last)
    return x

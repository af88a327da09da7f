"""Backbones whose only parameters are the weights of convolutions and linear layers.

No layer has a bias and no normalisation a scale or an offset. A method that keeps those weights
as they were for an earlier task, by masks say, keeps all that the net has learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from clearn.nets.norms import RowNorm
from clearn.nets.shapes import (
    Statistics,
    centring,
    check_widths,
    fast_order,
    image_shape,
    keeps_running,
)


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
        return cast("Tensor", self.layers(fast_order(x)))


class LeNetWide(nn.Module):
    """LeNet with more channels and ReLU: 5x5 convolutions with pooling, then linear layers.

    The nets of Winning SubNetworks (Kang et al. 2022): the default for CIFAR-100 Superclass, whose
    RGB images of 32x32 pixels make 2,986,500 weights; `channels` 64 and 128 with `hidden` 2500 and
    1500 for Omniglot, 24,436,400 on one channel.

    Args:
        input_shape: `[C, H, W]`.
        channels: Of each convolution; a 3x3 maximum pooling after it halves the image.
        hidden: Width of each linear layer; the last one's is the number of features.

    Raises:
        UserError: The examples are not images, or a width is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        channels: Sequence[int] = (20, 50),
        hidden: Sequence[int] = (800, 500),
    ) -> None:
        super().__init__()
        fan_in, *sides = image_shape("LeNetWide", input_shape)
        check_widths("channels", channels)
        check_widths("hidden", hidden)
        layers: list[nn.Module] = []
        for fan_out in channels:
            layers.append(nn.Conv2d(fan_in, fan_out, 5, padding=2, bias=False))
            # Before ReLU: the same numbers, a quarter of the work.
            layers += [nn.MaxPool2d(3, stride=2, padding=1), nn.ReLU(inplace=True)]
            fan_in = fan_out
            sides = [(side + 1) // 2 for side in sides]
        layers.append(nn.Flatten())
        widths = [fan_in * math.prod(sides), *hidden]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=False), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.num_features = hidden[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, num_features]` of images `[B, C, H, W]`."""
        return cast("Tensor", self.layers(fast_order(x)))


class AlexNetNorm(nn.Module):
    """Three convolutions with pooling and two layers of 2048, all of them normalised; dropout.

    The net for Split CIFAR-100 of Winning SubNetworks (Kang et al. 2022): normalisation over the
    batch, ReLU and dropout after each layer. On RGB images of 32x32 pixels it has 6,499,328
    weights. Images under 32 pixels are centred in 32x32 zeros.

    Args:
        input_shape: `[C, H, W]`.
        statistics: Of the normalisations in evaluation: running, or those of the batch. With batch,
            as in the paper, the features of an image depend on the images that come with it, and
            those of a single one are zero.

    Raises:
        UserError: The examples are not images, or the statistics are unknown.
    """

    num_features = 2048

    def __init__(self, input_shape: Sequence[int], *, statistics: Statistics = "running") -> None:
        super().__init__()
        fan_in, *sides = image_shape("AlexNetNorm", input_shape)
        padding = centring(sides)
        sides = [side + 2 * pad for side, pad in zip(sides, padding, strict=True)]
        options = {"affine": False, "track_running_stats": keeps_running(statistics)}
        layers: list[nn.Module] = []
        for fan_out, kernel, dropout in ((64, 4, 0.2), (128, 3, 0.2), (256, 2, 0.5)):
            layers += [
                nn.Conv2d(fan_in, fan_out, kernel, padding=padding, bias=False),
                nn.BatchNorm2d(fan_out, **options),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.MaxPool2d(2),
            ]
            fan_in, padding = fan_out, (0, 0)
            sides = [(side - kernel + 1) // 2 for side in sides]
        layers.append(nn.Flatten())
        widths = [fan_in * math.prod(sides), 2048, 2048]
        for fan_in, fan_out in pairwise(widths):
            layers += [
                nn.Linear(fan_in, fan_out, bias=False),
                RowNorm(fan_out, **options),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, 2048]` of images `[B, C, H, W]`."""
        return cast("Tensor", self.layers(fast_order(x)))

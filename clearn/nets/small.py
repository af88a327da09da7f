"""Small backbones: a multilayer perceptron, LeNet-5 and a small convolutional net."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from clearn.errors import UserError
from clearn.nets.shapes import centring, check_widths, fast_order, image_shape


class MLP(nn.Module):
    """Fully connected layers with ReLU, for inputs of any shape.

    Args:
        input_shape: Of one example.
        hidden: Width of each hidden layer, at least one.
        dropout: Probability of dropping a unit after each hidden layer, in [0, 1).
        bias: Whether the layers have biases.

    Raises:
        UserError: A width or the dropout is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_widths("hidden", hidden)
        if not 0 <= dropout < 1:
            raise UserError(f"net.dropout: {dropout} is not valid: expected 0 <= number < 1")
        layers: list[nn.Module] = []
        widths = [math.prod(input_shape), *hidden]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.ReLU(inplace=True)]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, num_features]` of inputs `[B, ...]`."""
        return cast("Tensor", self.layers(x.flatten(1)))


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling; 84 features.

    Images under 32 pixels are centred in 32x32 zeros, as the authors did with 28x28 digits; on
    those, with a single head for 10 classes, it has 61,706 parameters.

    Args:
        input_shape: `[C, H, W]`.

    Raises:
        UserError: The examples are not images.
    """

    num_features = 84

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        channels, *sides = image_shape("LeNet", input_shape)
        padding = centring(sides)
        pooled = [
            ((side + 2 * pad - 4) // 2 - 4) // 2 for side, pad in zip(sides, padding, strict=True)
        ]
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=padding),
            nn.MaxPool2d(2),  # before ReLU: the same numbers, a quarter of the work
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 16, 5),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(16 * math.prod(pooled), 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, 84]` of images `[B, C, H, W]`."""
        return cast("Tensor", self.layers(x))


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with 16, 32 and 64 channels, each of which halves the image.

    Made for CPUs: strides in place of pooling, and no normalisation in the first layer, whose maps
    are the largest. Group normalisation, 8 channels a group, keeps no running statistics, which
    would drift from task to task, and takes a batch of one image.

    Args:
        input_shape: `[C, H, W]`.

    Raises:
        UserError: The examples are not images.
    """

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        fan_in, *sides = image_shape("SmallCNN", input_shape)
        layers: list[nn.Module] = []
        for index, fan_out in enumerate((16, 32, 64)):
            norm = [nn.GroupNorm(fan_out // 8, fan_out)] if index else []
            conv = nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=not norm)
            layers += [conv, *norm, nn.ReLU(inplace=True)]
            fan_in = fan_out
            sides = [(side + 1) // 2 for side in sides]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.num_features = fan_in * math.prod(sides)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, 64 * ceil(H / 8) * ceil(W / 8)]` of images `[B, C, H, W]`."""
        return cast("Tensor", self.layers(fast_order(x)))

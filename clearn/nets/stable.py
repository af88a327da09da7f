"""The reduced ResNet-18 of Stable SGD and TAG, whose blocks have one convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets.norms import MapNorm
from clearn.nets.shapes import fast_order, image_shape


class StableResNet18(nn.Module):
    """ResNet-18 of width 20 with one 3x3 convolution per block.

    What the code of Stable SGD (Mirzadeh et al. 2020, arXiv 2006.06958) and of TAG (Malviya et al.
    2022, PMLR 199:366) calls a reduced ResNet-18. It is not `ReducedResNet18`, which has twice the
    convolutions and parameters. Four stages of two blocks, `width` times 1, 2, 4 and 8 channels,
    strides 1, 2, 2, 2, then means of windows of 4x4, or of all when there are fewer. With a single
    head for 100 classes on RGB images of 32x32 pixels it has 496,680 parameters, in 48 tensors.

    Args:
        input_shape: `[C, H, W]`.
        width: Channels of the first stage, >= 1.
        dropout: Probability of dropping an element after each normalisation of a block, in [0, 1).

    Raises:
        UserError: The examples are not images, or an option is out of range.
    """

    def __init__(
        self, input_shape: Sequence[int], *, width: int = 20, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, *sides = image_shape("StableResNet18", input_shape)
        if width < 1:
            raise UserError(f"net.width: {width} is not valid: expected an integer >= 1")
        if not 0 <= dropout < 1:
            raise UserError(f"net.dropout: {dropout} is not valid: expected 0 <= number < 1")
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = MapNorm(width)
        blocks = []
        fan_in = width
        for stage in range(4):
            fan_out = width * 2**stage
            blocks.append(_Block(fan_in, fan_out, 1 if stage == 0 else 2, dropout))
            blocks.append(_Block(fan_out, fan_out, 1, dropout))
            fan_in = fan_out
        self.blocks = nn.Sequential(*blocks)
        last = [-(-side // 8) for side in sides]
        self.windows = [min(4, side) for side in last]
        self.num_features = fan_in * math.prod(
            side // window for side, window in zip(last, self.windows, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, num_features]` of images `[B, C, H, W]`."""
        x = F.relu_(self.norm(fast_order(self.conv(x))))
        return F.avg_pool2d(cast("Tensor", self.blocks(x)), self.windows).flatten(1)


class _Block(nn.Module):
    """Convolution, ReLU, normalisation, shortcut, ReLU, normalisation."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.norm1 = MapNorm(fan_out)
        self.norm2 = MapNorm(fan_out)
        self.dropout = nn.Dropout(dropout)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, fan_in, H, W]` to `[B, fan_out, ceil(H / stride), ceil(W / stride)]`."""
        out = self.dropout(self.norm1(F.relu_(self.conv(x))))
        out = F.relu(out + self.shortcut(x))
        return cast("Tensor", self.dropout(self.norm2(out)))

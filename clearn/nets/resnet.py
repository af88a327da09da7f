"""ResNet-18 for small images, full and reduced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets.norms import MapNorm
from clearn.nets.shapes import Statistics, fast_order, image_shape, keeps_running


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with a stem for small images: one 3x3 convolution, no pooling.

    Four stages of two basic blocks with `width`, 2, 4 and 8 times `width` channels and strides 1,
    2, 2, 2, then the mean over all positions. With `width` 64 and a single head for 10 classes on
    RGB images it has 11,173,962 parameters.

    The net of Winning SubNetworks (Kang et al. 2022) is the one with `width` 20, `pool` 2, `affine`
    False and `statistics` batch: 640 features of images of 32x32 pixels, and no parameters but
    1,090,140 weights of convolutions on RGB.

    Args:
        input_shape: `[C, H, W]`.
        width: Channels of the first stage, >= 1.
        pool: Side of the windows whose means are the features, >= 1; missing, the mean over all
            positions.
        affine: Whether the normalisations have a scale and an offset.
        statistics: Of the normalisations in evaluation: running, or those of the batch.

    Raises:
        UserError: The examples are not images, or an option is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        width: int = 64,
        pool: int | None = None,
        affine: bool = True,
        statistics: Statistics = "running",
    ) -> None:
        super().__init__()
        channels, *sides = image_shape("ResNet18", input_shape)
        if width < 1:
            raise UserError(f"net.width: {width} is not valid: expected an integer >= 1")
        norm = partial(MapNorm, affine=affine, track_running_stats=keeps_running(statistics))
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = norm(width)
        blocks = []
        fan_in = width
        for stage in range(4):
            fan_out = width * 2**stage
            blocks.append(BasicBlock(fan_in, fan_out, stride=1 if stage == 0 else 2, norm=norm))
            blocks.append(BasicBlock(fan_out, fan_out, stride=1, norm=norm))
            fan_in = fan_out
        self.blocks = nn.Sequential(*blocks)
        self.pool = pool
        self.num_features = fan_in
        if pool is not None:
            last = [-(-side // 8) for side in sides]
            if not 1 <= pool <= min(last):
                raise UserError(
                    f"net.pool: {pool} is not valid: expected 1 to {min(last)}, for the last maps "
                    f"are {last[0]}x{last[1]}"
                )
            self.num_features *= math.prod(side // pool for side in last)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, num_features]` of images `[B, C, H, W]`; without `pool` 8 * width."""
        x = F.relu_(self.norm(fast_order(self.conv(x))))
        maps = cast("Tensor", self.blocks(x))
        if self.pool is None:
            return maps.mean(dim=(2, 3))
        return F.avg_pool2d(maps, self.pool).flatten(1)


def ReducedResNet18(input_shape: Sequence[int]) -> ResNet18:
    """ResNet-18 of width 20, the net of GEM and of much work on online streams after it.

    With a single head for 10 classes on RGB images it has 1,094,750 parameters. Lopez-Paz and
    Ranzato (2017) say "three times less feature maps"; 20 is what their released code and its
    descendants use. Those pool 4x4 windows at the end, which is the mean over all positions at
    32x32 but leaves more features on larger images; here it is always the mean, hence 160 features.

    Args:
        input_shape: `[C, H, W]`.
    """
    return ResNet18(input_shape, width=20)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(
        self, fan_in: int, fan_out: int, stride: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.norm1 = norm(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.norm2 = norm(fan_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or fan_in != fan_out:
            self.shortcut.append(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False))
            self.shortcut.append(norm(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, fan_in, H, W]` to `[B, fan_out, ceil(H / stride), ceil(W / stride)]`."""
        out = F.relu_(self.norm1(self.conv1(x)))
        # In place: neither the normalisation nor the sum needs its result in the backward pass.
        return F.relu_(self.norm2(self.conv2(out)).add_(self.shortcut(x)))

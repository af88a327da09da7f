"""A small residual net whose normalisations know nothing of other images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets.resnet import BasicBlock
from clearn.nets.shapes import check_widths, fast_order, image_shape

_GROUP = 8  # channels


class GroupResNet(nn.Module):
    """A residual net with group normalisation, made to be pre-trained and tuned on a CPU.

    A 3x3 convolution with stride 2, since maps of the full size are what costs time, then basic
    blocks (He et al. 2016) in stages of which all but the first halve the maps, then the mean over
    all positions. An image's features do not depend on the batch it is in: with few labels, and
    with views of other kinds in one step, there are no statistics that could be wrong. There are 8
    channels in a group (Wu and He 2018).

    By default it has 1,225,024 parameters on RGB images, 256 features, and 49 million
    multiplications for 32x32 pixels.

    Args:
        input_shape: `[C, H, W]`.
        widths: Channels of each stage, multiples of 8.
        blocks: Blocks of each stage, >= 1.

    Raises:
        UserError: The examples are not images, or an option is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 256),
        blocks: int = 1,
    ) -> None:
        super().__init__()
        channels, *_ = image_shape("GroupResNet", input_shape)
        check_widths("widths", widths)
        if any(width % _GROUP for width in widths):
            raise UserError(
                f"net.widths: {list(widths)} is not valid: expected multiples of {_GROUP}"
            )
        if blocks < 1:
            raise UserError(f"net.blocks: {blocks} is not valid: expected an integer >= 1")
        fan_in = widths[0]
        self.conv = nn.Conv2d(channels, fan_in, 3, stride=2, padding=1, bias=False)
        self.norm = _norm(fan_in)
        layers = []
        for stage, fan_out in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(BasicBlock(fan_in, fan_out, stride, _norm))
                fan_in = fan_out
        self.blocks = nn.Sequential(*layers)
        self.num_features = fan_in

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, num_features]` of images `[B, C, H, W]`."""
        x = F.relu_(self.norm(fast_order(self.conv(x))))
        return cast("Tensor", self.blocks(x)).mean(dim=(2, 3))


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // _GROUP, channels)

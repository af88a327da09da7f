"""What nets have in common: which inputs and options they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from clearn.errors import UserError

Statistics = Literal["running", "batch"]
"""What batch normalisation uses in evaluation: running means and variances of the batches it was
trained on, or those of the batch at hand, as in training."""


def image_shape(net: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of one example.

    Args:
        net: Name of the net, for the message.
        input_shape: Of one example.

    Raises:
        UserError: The examples are not images.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"net.name: {net} takes images [C, H, W], and the stream's examples have the shape "
            f"{list(input_shape)}; the net for those is MLP"
        )
    channels, height, width = input_shape
    return channels, height, width


def centring(sides: Sequence[int]) -> tuple[int, int]:
    """Zeros to put on either side of an image, for each of its two sides, to make it 32 pixels.

    An odd image becomes 33; one of 32 or more stays.
    """
    height, width = sides
    return max(0, 33 - height) // 2, max(0, 33 - width) // 2


def fast_order(x: Tensor) -> Tensor:
    """Maps `[B, C, H, W]` in the memory order that is faster on their device.

    On the CPU that is channels-last; the layers that follow keep to it. Not for fewer than 8
    channels, of which oneDNN's AVX2 kernels of strided 1x1 convolutions read and write past the end
    in that order (torch 2.14): wrong gradients, or a crash.
    """
    if x.device.type != "cpu" or x.shape[1] < 8:
        return x
    return x.contiguous(memory_format=torch.channels_last)


def check_widths(option: str, widths: Sequence[int]) -> None:
    """Widths of layers: at least one, each at least 1.

    Raises:
        UserError: They are not.
    """
    if not widths or any(width < 1 for width in widths):
        raise UserError(f"net.{option}: {list(widths)} is not valid: expected widths >= 1")


def keeps_running(statistics: str) -> bool:
    """Whether a batch normalisation with these `statistics` keeps running ones.

    Raises:
        UserError: The word is unknown.
    """
    if statistics not in get_args(Statistics):
        raise UserError(f"net.statistics: {statistics!r} is not valid: expected running or batch")
    return statistics == "running"

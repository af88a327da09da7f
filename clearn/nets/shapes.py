"""Which inputs a net takes."""

from __future__ import annotations

from collections.abc import Sequence

from clearn.errors import UserError


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

"""The two views of an image that semi-supervised methods compare."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.views.crops import draw_boxes, resized_crop
from clearn.views.operations import apply_, brightness
from clearn.views.policies import draw_autoaugment, draw_randaugment

Policy = Literal["autoaugment", "randaugment"]


class Views:
    """Weak and strong views of a batch of images, every image with draws of its own.

    A weak view is a random resized crop (the size stays), mirrored with probability 1/2 and with
    another brightness. A strong view is a weak one, drawn anew, and then two more operations: a
    random sub-policy of AutoAugment's for CIFAR-10, or RandAugment's (level 9 of 30). Values
    stay uint8 up to normalisation.

    Args:
        preprocess: The stream's; of it, the normalisation and `flip` are used: where its training
            images are not mirrored (digits), neither are views.
        strong: "autoaugment" or "randaugment".
        scale: Least and largest area of a crop, as shares of the image's, in (0, 1].
        brightness: b in [0, 1]: the values are multiplied by a number uniform in [1 - b, 1 + b].

    Raises:
        UserError: An option is out of range.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        *,
        strong: Policy = "autoaugment",
        scale: tuple[float, float] = (0.08, 1.0),
        brightness: float = 63 / 255,
    ) -> None:
        if strong not in get_args(Policy):
            raise UserError(
                f"views.strong: {strong!r} is not valid: expected {' or '.join(get_args(Policy))}"
            )
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(
                f"views.scale: {scale} is not valid: expected two numbers in (0, 1], the smaller "
                "first"
            )
        if not 0 <= brightness <= 1:
            raise UserError(
                f"views.brightness: {brightness} is not valid: expected a number in [0, 1]"
            )
        self.preprocess = preprocess
        self.scale = scale
        self.brightness = brightness
        self._draw = draw_autoaugment if strong == "autoaugment" else draw_randaugment

    def weak(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Weak views, normalised: float32 `[B, C, H, W]`.

        Args:
            raw: uint8 `[B, C, H, W]` with 1 or 3 channels, on any device.
            generator: Lives on the CPU; the global one when missing.

        Raises:
            UserError: `raw` are no such images, or the generator is on another device.
        """
        return self.preprocess.eval(self._weak(raw, generator))

    def strong(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Strong views; arguments, result and errors as of `weak`."""
        images = self._weak(raw, generator)
        count, _, height, width = raw.shape
        steps = self._draw(count, height, width, generator)
        for codes, magnitudes in zip(*steps, strict=True):
            apply_(images, codes, magnitudes)
        return self.preprocess.eval(images)

    def _weak(self, raw: Tensor, generator: torch.Generator | None) -> Tensor:
        """New uint8 images; everything is drawn here, whatever the options."""
        _check(raw, generator)
        count, _, height, width = raw.shape
        boxes = draw_boxes(count, height, width, self.scale, generator)
        flips = self.preprocess.draw_flips(count, generator, boxes.device) & self.preprocess.flip
        change = 2 * torch.rand(count, 1, 1, 1, dtype=torch.float64, generator=generator) - 1
        boxes, flips, change = (
            drawn.to(raw.device, non_blocking=True)
            for drawn in (boxes, flips, self.brightness * change)
        )
        return brightness(resized_crop(raw, boxes, flips), change)


def _check(raw: Tensor, generator: torch.Generator | None) -> None:
    """The images are such as the operations are defined for, the generator one to draw from."""
    if raw.dtype != torch.uint8 or raw.ndim != 4 or raw.shape[1] not in (1, 3):
        raise UserError(
            "views: need uint8 images [B, C, H, W] with 1 or 3 channels, and the examples are "
            f"{str(raw.dtype).removeprefix('torch.')} of shape {tuple(raw.shape)}; choose a "
            "stream of images"
        )
    if generator is not None and generator.device.type != "cpu":
        raise UserError(
            f"views: the generator is on {generator.device}, and which image gets which operation "
            "is drawn on the CPU, so that nothing waits for the device; give a CPU generator"
        )

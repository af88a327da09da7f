"""The operations of AutoAugment and RandAugment on whole batches, a magnitude for each image.

Every operation takes uint8 images `[n, C, H, W]` with 1 or 3 channels and float64 magnitudes
`[n, 1, 1, 1]`, and gives uint8 images of the same shape, by the rules of torchvision's
operations on tensors: where those round down, so do these. Geometry takes the nearest pixel, and
0 outside of the image. Most are described in Cubuk et al., "AutoAugment: Learning Augmentation
Strategies from Data", 2019.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clearn.views.crops import sample

Operation = Callable[[Tensor, Tensor], Tensor]


def identity(images: Tensor, magnitude: Tensor) -> Tensor:
    """The images as they are."""
    return images


def shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move each row to the left by `magnitude` times its distance from the top."""
    x, y = _places(images)
    return sample(images, x + magnitude[:, 0].float() * (y + 0.5), y, mode="nearest")


def shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move each column up by `magnitude` times its distance from the left."""
    x, y = _places(images)
    return sample(images, x, y + magnitude[:, 0].float() * (x + 0.5), mode="nearest")


def translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move to the right by `magnitude` pixels, cut to a whole number."""
    x, y = _places(images)
    return sample(images, x - magnitude[:, 0].float().trunc(), y, mode="nearest")


def translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move down by `magnitude` pixels, cut to a whole number."""
    x, y = _places(images)
    return sample(images, x, y - magnitude[:, 0].float().trunc(), mode="nearest")


def rotate(images: Tensor, magnitude: Tensor) -> Tensor:
    """Turn about the middle by `magnitude` degrees, against the clock."""
    angle = magnitude[:, 0].deg2rad()
    cos, sin = angle.cos().float(), angle.sin().float()
    x, y = _places(images)
    middle_x, middle_y = (images.shape[3] - 1) / 2, (images.shape[2] - 1) / 2
    x, y = x - middle_x, y - middle_y
    return sample(
        images, cos * x - sin * y + middle_x, sin * x + cos * y + middle_y, mode="nearest"
    )


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Multiply by `1 + magnitude`."""
    return images.float().mul_((1 + magnitude).float()).clamp_(max=255).to(torch.uint8)


def colour(images: Tensor, magnitude: Tensor) -> Tensor:
    """Away from grey by `1 + magnitude`; one channel stays as it is."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Away from the mean grey of the image by `1 + magnitude`."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Away from a smoothed image by `1 + magnitude`; its outermost pixels stay as they are."""
    if min(images.shape[2:]) <= 2:
        return images
    smooth = images.float()
    lines = smooth[..., :-2, :] + smooth[..., 1:-1, :] + smooth[..., 2:, :]
    sums = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:]
    middle = smooth[..., 1:-1, 1:-1]
    middle.copy_(middle.mul(4).add_(sums).div_(13).round_())
    return _blend(images, smooth, magnitude)


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the highest `magnitude` bits, of 8."""
    return images & (256 - 2 ** (8 - magnitude)).to(torch.uint8)


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the values from `magnitude` on."""
    bright = (images >= magnitude.ceil().to(torch.uint8)).to(torch.uint8)
    return images ^ bright.mul_(255)  # a quarter of the time of torch.where


def autocontrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch each channel to 0 to 255; a channel with one value only stays as it is."""
    low = images.amin((2, 3), keepdim=True).float()
    spread = images.amax((2, 3), keepdim=True).float() - low
    low = low.where(spread > 0, 0)
    scale = (255 / spread).where(spread > 0, 1)
    return images.float().sub_(low).mul_(scale).clamp_(max=255).to(torch.uint8)


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Make all values of each channel about equally frequent."""
    values = images.flatten(2).flatten(0, 1).long()  # [channels, pixels]
    start = torch.arange(0, 256 * len(values), 256, device=images.device)
    counts = torch.zeros(256 * len(values), dtype=torch.int64, device=images.device)
    places = (values + start.unsqueeze(1)).view(-1)
    counts.scatter_add_(0, places, torch.ones_like(places))
    counts = counts.view(-1, 256)
    brightest = counts.gather(1, values.amax(1, keepdim=True))
    # Pixels per step from one value to the next; 0 leaves a channel as it is.
    step = (values.shape[1] - brightest) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = table.where(step > 0, torch.arange(256, device=images.device))
    # From int64 to bytes before the look-up: an eighth of what it writes.
    return table.to(torch.uint8).view(-1).index_select(0, places).view(images.shape)


def invert(images: Tensor, magnitude: Tensor) -> Tensor:
    """255 minus each value."""
    return ~images


# RandAugment draws from all but the last.
OPERATIONS: tuple[Operation, ...] = (
    identity,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
    brightness,
    colour,
    contrast,
    sharpness,
    posterize,
    solarize,
    autocontrast,
    equalize,
    invert,
)


def apply_(images: Tensor, codes: Tensor, magnitudes: Tensor) -> Tensor:
    """Change each of `images` in place by its own operation, and return them.

    Args:
        images: uint8 `[B, C, H, W]`.
        codes: int64 `[B]` on the CPU, positions in `OPERATIONS`.
        magnitudes: float64 `[B]` on the CPU.
    """
    order = codes.argsort(stable=True)
    counts = codes.bincount(minlength=len(OPERATIONS)).tolist()
    values = magnitudes[order].view(-1, 1, 1, 1)
    groups = (
        torch.split(drawn.to(images.device, non_blocking=True), counts) for drawn in (order, values)
    )
    for operation, row, value in zip(OPERATIONS, *groups, strict=True):
        if operation is not identity and len(row):
            images.index_copy_(0, row, operation(images.index_select(0, row), value))
    return images


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """Columns `[W]` and rows `[H, 1]` of the pixels."""
    height, width = images.shape[2:]
    y = torch.arange(height, dtype=torch.float32, device=images.device)
    return torch.arange(width, dtype=torch.float32, device=images.device), y.unsqueeze(1)


def _grey(images: Tensor) -> Tensor:
    """Brightness of each pixel in whole numbers: float32 `[n, 1, H, W]`."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unsqueeze(2).unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor_()


def _blend(images: Tensor, other: Tensor, magnitude: Tensor) -> Tensor:
    """`other + (1 + magnitude) (images - other)`, cut to 0 to 255."""
    mixed = images.float().mul_((1 + magnitude).float()).add_(other * (-magnitude).float())
    return mixed.clamp_(0, 255).to(torch.uint8)

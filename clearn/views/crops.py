"""Random resized crops of whole batches, a box for each image.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

RATIO = (3 / 4, 4 / 3)  # of a box's width to its height
TRIES = 10
BLOCK = 1 << 18  # values of a piece


def draw_boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    generator: torch.Generator | None,
) -> Tensor:
    """Boxes in an image, each with its own area, aspect ratio and place: int64 `[4, count]`.

    The rows are top, left, height and width. Area is uniform in `scale`, as a share of the
    image's, the ratio log-uniform in `RATIO`, both before rounding to pixels; a box that does not
    fit is drawn again. After ten in vain it is the largest in the middle with a ratio in `RATIO`.
    """
    shares, ratios = torch.rand(2, TRIES, count, dtype=torch.float64, generator=generator)
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * shares)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratios = (low + (high - low) * ratios).exp()
    sizes = torch.stack([(areas / ratios).sqrt(), (areas * ratios).sqrt()]).round()
    image = torch.tensor([[height], [width]], dtype=torch.float64)
    fits = ((sizes >= 1) & (sizes <= image.unsqueeze(1))).all(0)
    # argmax takes the first of equals. All ten are drawn whether needed or not: few numbers, and
    # how many are drawn does not depend on what they are.
    first = fits.to(torch.uint8).argmax(0)
    size = sizes[:, first, torch.arange(count)]
    corner = torch.rand(2, count, dtype=torch.float64, generator=generator) * (image - size + 1)
    largest = [[min(height, round(width / RATIO[0]))], [min(width, round(height * RATIO[1]))]]
    whole = torch.tensor(largest, dtype=torch.float64)
    found = fits.any(0)
    size = torch.where(found, size, whole)
    corner = torch.where(found, corner, (image - whole) / 2).floor()
    return torch.cat([corner, size]).long()


def resized_crop(raw: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Enlarge a box of each image to the size of the image, and mirror some: uint8.

    Bilinear, pixels outside the box left out. A box is never larger than the image, so there is
    nothing for an antialiasing filter to do: this is what it gives, too.

    Args:
        raw: uint8 `[B, C, H, W]`.
        boxes: int64 `[4, B]`, top, left, height and width in pixels.
        flips: bool `[B]`, what to turn left to right afterwards.
    """
    height, width = raw.shape[2:]
    top, left, box_height, box_width = boxes.float().unsqueeze(-1)
    y = _sources(top, box_height, height)
    x = _sources(left, box_width, width)
    x = torch.where(flips.unsqueeze(-1), x.flip(-1), x)
    # Not as two products of matrices: three times slower on a CPU, and autocast halves them.
    return sample(raw, x.unsqueeze(1), y.unsqueeze(2), mode="bilinear")


def _sources(start: Tensor, size: Tensor, length: int) -> Tensor:
    """Where in the image the pixels of an enlarged line lie: `[B, length]`, pixel 0 at 0."""
    pixels = torch.arange(length, device=start.device)
    places = (pixels + 0.5) * (size / length) - 0.5
    return start + torch.minimum(places.clamp_(min=0), size - 1)


def sample(images: Tensor, x: Tensor, y: Tensor, *, mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Images made of values at other places; 0 outside: uint8, the shape of `images`.

    Args:
        images: uint8 `[n, C, H, W]`.
        x: float32, broadcasts to `[n, H, W]`: columns to look in, the first pixel's middle at 0.
        y: The same for rows.
        mode: "bilinear" or "nearest".
    """
    count, _, height, width = images.shape
    places = ((2 * x + 1) / width - 1, (2 * y + 1) / height - 1)  # from -1 to 1
    grid = torch.stack([place.expand(count, height, width) for place in places], -1)
    size = count
    if images.device.type == "cpu":  # twice as fast in pieces that need no fresh memory
        size = max(1, BLOCK // math.prod(images.shape[1:]))
    pieces = zip(torch.split(images, size), torch.split(grid, size), strict=True)
    out = [
        F.grid_sample(part.float(), places, mode=mode, align_corners=False).round_().byte()
        for part, places in pieces
    ]
    return torch.cat(out)

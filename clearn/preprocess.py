"""From stored examples to network inputs: whole batches at a time, on whatever device they are on.

Shapes: B batch, C channels, H height, W width, T tasks, D = C * H * W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clearn.errors import UserError


class Preprocess:
    """A stream's input pipeline: random crop and flip when training, then normalisation.

    uint8 examples `[B, C, H, W]` become `(raw / 255 - mean) / std`, float32 examples of any shape
    `[B, C, ...]` become `(raw - mean) / std`; both as float32. Every example gets its own crop and
    its own flip, and no step of it loops over examples.

    Args:
        mean: One number per channel, or one for all; empty leaves the values as they are.
        std: As `mean`, each > 0.
        padding: Zeros (of the raw values) put around an image before a crop of the original size
            is taken at random, in pixels; 0 for no crop.
        flip: Mirror each image left to right with probability 1/2.

    Raises:
        UserError: when lengths differ, a deviation is not positive or the padding is negative.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, padding: int = 0, flip: bool = False
    ) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.padding = padding
        self.flip = flip
        if len(self.mean) != len(self.std):
            raise UserError(f"std: {len(std)} numbers do not go with {len(mean)} numbers in mean")
        if not all(math.isfinite(value) for value in self.mean + self.std):
            raise UserError(f"mean, std: {self.mean}, {self.std} hold a number that is not finite")
        if any(value <= 0 for value in self.std):
            raise UserError(f"std: {self.std} is not valid: expected numbers > 0")
        if padding < 0:
            raise UserError(f"padding: {padding} is not valid: expected pixels >= 0")
        self._affine: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def train(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augmented and normalised: float32, the shape of `raw`.

        Args:
            raw: Examples as stored, uint8 or float32 `[B, ...]`; images are `[B, C, H, W]`.
            generator: Draws crops and flips; the global one when missing.

        Raises:
            UserError: `raw` are no images, or the numbers in `mean` do not fit their channels.
        """
        if (self.padding or self.flip) and raw.ndim != 4:
            raise UserError(
                f"padding, flip: {self.padding}, {self.flip} are for images [B, C, H, W], and the "
                f"examples have shape {tuple(raw.shape)}; leave both out"
            )
        if self.padding:
            top_left = self.draw_crops(len(raw), generator, raw.device)
            raw = crop(raw, self.padding, top_left)
        if self.flip:
            flips = self.draw_flips(len(raw), generator, raw.device)
            raw = mirror(raw, flips)
        return self.eval(raw)

    def eval(self, raw: Tensor) -> Tensor:
        """Normalised only: float32, the shape of `raw`."""
        if not self.mean and raw.dtype != torch.uint8:
            return raw.float()
        scale, shift = self._constants(raw)
        # Cast first, then in place: on a CPU a third of the time of one mixed-type addcmul.
        return raw.to(torch.float32, copy=True).mul_(scale).add_(shift)

    def fill(self, raw: Tensor, shape: Sequence[int]) -> Tensor:
        """A raw batch brought to `shape` of one example, where batches of a stream differ in it.

        Those of text do. Images and numbers never do, and are returned as they are.
        """
        return raw

    def draw_crops(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Top and left edges of `count` crops in the padded image: int64 `[2, count]`."""
        source = device if generator is None else generator.device
        size = 2 * self.padding + 1
        edges = torch.randint(size, (2, count), generator=generator, device=source)
        return edges.to(device, non_blocking=True)

    def draw_flips(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Which of `count` images to mirror: bool `[count]`."""
        source = device if generator is None else generator.device
        flips = torch.randint(2, (count,), generator=generator, device=source, dtype=torch.bool)
        return flips.to(device, non_blocking=True)

    def _constants(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, shaped to broadcast over `raw`, made once per device and type."""
        key = (raw.device, raw.dtype)
        if key not in self._affine:
            if len(self.mean) > 1 and len(self.mean) != raw.shape[1]:
                raise UserError(
                    f"mean, std: {len(self.mean)} numbers do not go with {raw.shape[1]} channels; "
                    "expected one for each, or one for all"
                )
            mean = torch.tensor(self.mean or (0.0,), dtype=torch.float64)
            std = torch.tensor(self.std or (1.0,), dtype=torch.float64)
            scale = 1 / (255 * std if raw.dtype == torch.uint8 else std)
            shape = (-1,) + (1,) * (raw.ndim - 2)
            self._affine[key] = (
                scale.view(shape).to(raw.device, torch.float32),
                (-mean / std).view(shape).to(raw.device, torch.float32),
            )
        return self._affine[key]


def crop(raw: Tensor, padding: int, top_left: Tensor) -> Tensor:
    """Cut from each zero-padded image `[C, H, W]` of `raw` the window at its own `top_left`.

    Args:
        raw: `[B, C, H, W]`.
        padding: Pixels added on every side.
        top_left: int64 `[2, B]`, each in [0, 2 * padding].
    """
    if not len(raw):
        return raw
    batch, channels, height, width = raw.shape
    padded = F.pad(raw, (padding, padding, padding, padding)).contiguous()
    stride = padded.stride()
    # A window's lines lie in one flat memory at its corner plus multiples of the strides; copying
    # whole lines is many times faster on a CPU than indexing pixels.
    device = raw.device
    corners = torch.arange(0, padded.numel(), stride[0], device=device)
    corners = corners + stride[2] * top_left[0] + top_left[1]
    planes = torch.arange(0, stride[0], stride[1], device=device)
    lines = torch.arange(0, height * stride[2], stride[2], device=device)
    starts = corners.view(-1, 1, 1) + (planes.view(-1, 1) + lines)
    cut = padded.view(-1).unfold(0, width, 1).index_select(0, starts.view(-1))
    return cut.view(batch, channels, height, width)


def mirror(raw: Tensor, flips: Tensor) -> Tensor:
    """Turn left to right those images `[B, C, H, W]` that bool `flips` `[B]` names."""
    both = torch.cat([raw, raw.flip(-1)])
    index = torch.arange(len(raw), device=raw.device) + len(raw) * flips
    return both.index_select(0, index)

"""Images that are not decoded yet: where they come from, and how they become uint8 tensors.

Shapes: C channels, H height, W width, K images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from clearn.errors import UserError

VERSION = 1  # of the decoding below: raise it when the same files come to give other pixels


class ImageSource(Protocol):
    """Images to decode, by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image: uint8 `[C, H, W]`, of any size."""
        ...

    def key(self) -> str | None:
        """Tells this content from any other, so that it is decoded once; None: do not keep it."""
        ...


class ImageFiles:
    """RGB images in files of any kind that Pillow reads (JPEG, PNG, ...).

    Args:
        root: The folder they are in.
        names: Their paths below `root`; only these are read.
    """

    def __init__(self, root: Path | str, names: Sequence[str]) -> None:
        self.root = Path(root)
        self.names = tuple(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        import numpy as np
        from PIL import Image

        path = self.root / self.names[index]
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"image: {path} cannot be read: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def key(self) -> str:
        """A hash over names, sizes and times of change."""
        digest = hashlib.sha256()
        for name in self.names:
            try:
                status = os.stat(os.path.join(self.root, name))
            except OSError as error:
                raise UserError(f"image: {self.root / name} cannot be read: {error}") from error
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class Images:
    """The images of a source at one size.

    Args:
        source: At least one image.
        image_size: Height and width in pixels, > 0: the shorter side is resized to it (bilinear,
            antialiased) and the centre is cut out. None: the images are used as they are and
            must all have the size of the first.
    """

    def __init__(self, source: ImageSource, image_size: int | None = None) -> None:
        if not len(source):
            raise UserError("images: there are none; expected at least one")
        if image_size is not None and image_size <= 0:
            raise UserError(f"image_size: {image_size} is not valid: expected pixels > 0")
        self.source = source
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image."""
        first = self._resized(0)
        return cast("tuple[int, int, int]", tuple(first.shape))

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        """Decode the images at K positions: uint8 `[K, C, H, W]`."""
        out = torch.empty(len(rows), *self.shape, dtype=torch.uint8)
        for place, row in zip(out, rows, strict=True):
            image = self._resized(row)
            if image.shape != place.shape:
                raise UserError(
                    f"image_size: image {row} is {tuple(image.shape)} and image 0 is "
                    f"{self.shape} (channels, height, width); set image_size to make them alike"
                )
            place.copy_(image)
        return out

    def key(self) -> str | None:
        """The source's content key, the size and the version of the decoding in one."""
        key = self.source.key()
        if key is None:
            return None
        return hashlib.sha256(f"{key} {self.image_size} {VERSION}".encode()).hexdigest()[:32]

    def _resized(self, row: int) -> Tensor:
        image = self.source[row]
        size = self.image_size
        if size is None or image.shape[1:] == (size, size):
            return image
        from torchvision.transforms.v2 import functional

        resized = functional.resize(image, [size], antialias=True)
        return cast("Tensor", functional.center_crop(resized, [size, size]))

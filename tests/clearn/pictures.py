"""Image files and a source in memory, for the tests of what decodes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clearn.images import ImageFiles


def write_pictures(
    root: Path, count: int, *, size: tuple[int, int] = (12, 10), name: str = "{}.png"
) -> ImageFiles:
    """Random RGB images of `(width, height)` pixels below `root`."""
    random = np.random.default_rng(0)
    names = [name.format(index) for index in range(count)]
    for path in map(root.joinpath, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return ImageFiles(root, names)


class ArraySource:
    """A source that counts how often it decodes."""

    def __init__(self, data: Tensor, key: str | None = None) -> None:
        self.data = data
        self.decoded = 0
        self._key = key

    @classmethod
    def random(cls, count: int, key: str | None = None, size: int = 8) -> ArraySource:
        generator = torch.Generator().manual_seed(0)
        shape = (count, 3, size, size)
        return cls(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), key)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        self.decoded += 1
        return self.data[index]

    def key(self) -> str | None:
        return self._key

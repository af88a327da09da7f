"""torchvision on one image at a time, with draws that are given."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional
from torchvision.transforms.autoaugment import _apply_op

from clearn.views import operations
from clearn.views.operations import OPERATIONS, Operation

NAMES = {
    operations.identity: "Identity",
    operations.shear_x: "ShearX",
    operations.shear_y: "ShearY",
    operations.translate_x: "TranslateX",
    operations.translate_y: "TranslateY",
    operations.rotate: "Rotate",
    operations.brightness: "Brightness",
    operations.colour: "Color",
    operations.contrast: "Contrast",
    operations.sharpness: "Sharpness",
    operations.posterize: "Posterize",
    operations.solarize: "Solarize",
    operations.autocontrast: "AutoContrast",
    operations.equalize: "Equalize",
    operations.invert: "Invert",
}


def pictures(count: int, shape: tuple[int, ...] = (3, 16, 16), seed: int = 0) -> Tensor:
    """Noise of all contrasts, from one grey to black and white."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    lowest = (1 - spread) * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.rand(count, *shape, generator=generator).pow(2)
    return (255 * (lowest + spread * noise)).round().to(torch.uint8)


def operate(images: Tensor, operation: Operation, magnitudes: Tensor) -> Tensor:
    """One operation, as torchvision's AutoAugment calls it, a magnitude for each image."""
    name, nearest = NAMES[operation], InterpolationMode.NEAREST
    pairs = zip(images, magnitudes.tolist(), strict=True)
    return torch.stack([_apply_op(image, name, value, nearest, None) for image, value in pairs])


def apply(images: Tensor, codes: Tensor, magnitudes: Tensor) -> Tensor:
    """An operation for each image."""
    out = [
        operate(image, OPERATIONS[code], magnitude)
        for image, code, magnitude in zip(
            images.split(1), codes.tolist(), magnitudes.split(1), strict=True
        )
    ]
    return torch.cat(out)


def resized_crop(raw: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """A box for each image."""
    out = []
    for image, box, flip in zip(raw, boxes.T.tolist(), flips.tolist(), strict=True):
        view = functional.resized_crop(image, *box, size=list(raw.shape[2:]), antialias=True)
        out.append(functional.hflip(view) if flip else view)
    return torch.stack(out)

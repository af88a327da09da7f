"""Strong views of a batch against torchvision's transforms, one image at a time.

    OMP_NUM_THREADS=1 python experiments/speed/views.py

128 random images of 32 x 32 and 64 x 64: random resized crop, horizontal flip, brightness, one of
AutoAugment's sub-policies for CIFAR-10, normalisation. For information also torchvision's
transforms on the batch as a whole, which draw once for all images and so give another thing. Bar:
<= 0.2x the loop's CPU seconds.
"""

from __future__ import annotations

import torch
from harness import interleave
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

from clearn.preprocess import Preprocess
from clearn.views import Views

torch.set_num_threads(1)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
REPEATS = 20  # batches a measurement
VIEWS = Views(Preprocess(MEAN, STD, flip=True))


def images(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (128, 3, size, size), dtype=torch.uint8, generator=generator)


def ours(raw: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(REPEATS):
        VIEWS.strong(raw, generator)


def one_by_one(raw: Tensor, transform: nn.Module) -> None:
    torch.manual_seed(0)
    for _ in range(REPEATS):
        torch.stack([transform(image) for image in raw])


def one_for_all(raw: Tensor, transform: nn.Module) -> None:
    torch.manual_seed(0)
    for _ in range(REPEATS):
        transform(raw)


for SIZE in (32, 64):
    RAW = images(SIZE)
    EACH = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=63 / 255),
            transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(MEAN, STD),
        ]
    )
    ALL = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=63 / 255),
            v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    interleave(
        f"strong views of 128 images 3x{SIZE}x{SIZE}, 20 batches",
        {
            "torchvision, one by one": lambda raw=RAW, each=EACH: one_by_one(raw, each),
            "torchvision v2, one draw for all": lambda raw=RAW, all_=ALL: one_for_all(raw, all_),
            "clearn Views": lambda raw=RAW: ours(raw),
        },
        reference="torchvision, one by one",
        rounds=5,
        bar="<= 0.20",
    )

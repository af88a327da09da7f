"""CIFAR and SVHN: small photographs in files that torchvision reads.

Nothing here unpickles what it has not checked: CIFAR's pickles are read by torchvision after their
MD5 sums were compared.
"""

from __future__ import annotations

from pathlib import Path

import torch

from clearn.datasets.files import data_root, fetch, natural, resize
from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.sources import Source, from_tensors

CIFAR10_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_STATISTICS = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
SUPERCLASSES: tuple[tuple[int, ...], ...] = (
    (4, 30, 55, 72, 95),  # aquatic mammals
    (1, 32, 67, 73, 91),  # fish
    (54, 62, 70, 82, 92),  # flowers
    (9, 10, 16, 28, 61),  # food containers
    (0, 51, 53, 57, 83),  # fruit and vegetables
    (22, 39, 40, 86, 87),  # household electrical devices
    (5, 20, 25, 84, 94),  # household furniture
    (6, 7, 14, 18, 24),  # insects
    (3, 42, 43, 88, 97),  # large carnivores
    (12, 17, 37, 68, 76),  # large man-made outdoor things
    (23, 33, 49, 60, 71),  # large natural outdoor scenes
    (15, 19, 21, 31, 38),  # large omnivores and herbivores
    (34, 63, 64, 66, 75),  # medium-sized mammals
    (26, 45, 77, 79, 99),  # non-insect invertebrates
    (2, 11, 35, 46, 98),  # people
    (27, 29, 44, 78, 93),  # reptiles
    (36, 50, 65, 74, 80),  # small mammals
    (47, 52, 56, 59, 96),  # trees
    (8, 13, 48, 58, 90),  # vehicles 1
    (41, 69, 81, 85, 89),  # vehicles 2
)
"""The fine labels of each coarse label of CIFAR-100."""


def cifar(
    classes: int,
    root: str | None,
    download: bool,
    image_size: int | None,
    augment: bool,
    *,
    scrambled: bool = False,
) -> Source:
    """CIFAR-10 or CIFAR-100 (fine labels) as torchvision keeps them.

    `scrambled` takes the bytes of an image, which lie plane by plane, for bytes that lie pixel by
    pixel, and leaves the pixels without normalisation and augmentation.
    """
    from torchvision import datasets

    kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    folder = data_root(root) / kind.base_folder

    def get() -> None:
        kind(data_root(root), download=True)

    for file, _ in (*kind.train_list, *kind.test_list, (kind.meta["filename"], None)):
        if not (folder / file).is_file():
            fetch(get if download else None, folder, file, f"CIFAR-{classes}")
    try:
        # The files are pickles: torchvision compares their MD5 sums before it reads them.
        train, test = (kind(data_root(root), train=part) for part in (True, False))
    except RuntimeError as error:
        raise _damaged(folder, error) from error
    x, x_test = (
        torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)
    )
    if scrambled:
        x, x_test = (part.view(-1, 32, 32, 3).permute(0, 3, 1, 2) for part in (x, x_test))
    x, x_test = (resize(part.contiguous(), image_size) for part in (x, x_test))
    statistics = CIFAR10_STATISTICS if classes == 10 else CIFAR100_STATISTICS
    return from_tensors(
        x,
        train.targets,
        x_test,
        test.targets,
        name=f"SplitCIFAR{classes}",
        preprocess=Preprocess((), ())
        if scrambled
        else natural(*statistics, size=x.shape[-1], augment=augment),
        class_names=train.classes,
    )


def svhn(root: str | None, download: bool) -> Source:
    """Street View House Numbers, cropped digits, as torchvision keeps them, in `SVHN`."""
    from torchvision import datasets

    folder = data_root(root) / "SVHN"

    def get() -> None:
        for part in ("train", "test"):
            datasets.SVHN(folder, split=part, download=True)

    for part in ("train", "test"):
        file = datasets.SVHN.split_list[part][1]
        if not (folder / file).is_file():
            fetch(get if download else None, folder, file, "SVHN")
    try:
        train, test = (datasets.SVHN(folder, split=part) for part in ("train", "test"))
    except RuntimeError as error:
        raise _damaged(folder, error) from error
    return from_tensors(train.data, train.labels, test.data, test.labels, name="SVHN")


def _damaged(folder: Path, error: Exception) -> UserError:
    """What torchvision's complaint about a checksum means."""
    return UserError(
        f"stream.root: the files in {folder} are damaged ({error}); remove them and get them "
        "again, for example with --stream.download true"
    )

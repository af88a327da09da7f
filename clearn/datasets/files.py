"""What all data sets of files share: where they are, what is said when they are not, and images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearn.cache import cache_folder
from clearn.errors import UserError
from clearn.images import ImageFiles
from clearn.preprocess import Preprocess
from clearn.sources import Source
from clearn.store import open_images

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets are: `root`, else `$CLEARN_DATA`, else `data` in the cache folder."""
    return Path(root or os.environ.get("CLEARN_DATA") or cache_folder() / "data").expanduser()


def list_classes(root: Path, folders: Sequence[str]) -> tuple[list[str], list[int]]:
    """Names below `root` of the images in `folders`, sorted in each, and their labels 0, 1, ...

    Raises:
        UserError: A folder is missing or holds no image.
    """
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        try:
            files = sorted(
                entry.name
                for entry in os.scandir(root / folder)
                if entry.name.lower().endswith(EXTENSIONS)
            )
        except OSError as error:
            raise UserError(
                f"stream.root: {root / folder} cannot be read ({error.strerror}); expected a "
                "folder of images"
            ) from error
        if not files:
            raise UserError(
                f"stream.root: {root / folder} holds no image; expected {', '.join(EXTENSIONS)}"
            )
        names += [f"{folder}/{file}" for file in files]
        labels += [label] * len(files)
    return names, labels


def natural(mean: Sequence[float], std: Sequence[float], *, size: int, augment: bool) -> Preprocess:
    """For photographs: crops after padding by an eighth of the size (4 for 32), and mirrors."""
    return Preprocess(mean, std, padding=size // 8 if augment else 0, flip=augment)


def open_files(
    name: str,
    folder: Path,
    train: tuple[list[str], list[int]],
    test: tuple[list[str], list[int]],
    *,
    names: Sequence[str],
    statistics: tuple[Sequence[float], Sequence[float]],
    image_size: int | None,
    augment: bool,
    budget_gib: float,
    workers: int | None,
) -> Source:
    """A data set of image files, each part a list of files and one of labels."""
    stores = [
        open_images(
            ImageFiles(folder, files),
            image_size=image_size,
            budget_gib=budget_gib,
            workers=workers,
        )
        for files, _ in (train, test)
    ]
    return Source(
        name=name,
        train=stores[0],
        train_labels=torch.tensor(train[1]),
        test=stores[1],
        test_labels=torch.tensor(test[1]),
        preprocess=natural(*statistics, size=stores[0].shape[-1], augment=augment),
        class_names=tuple(names),
    )


def resize(x: Tensor, image_size: int | None) -> Tensor:
    """Square uint8 images `[N, H, W]` or `[N, C, H, W]` at another size (bilinear, antialiased).

    Raises:
        UserError: The size is not positive.
    """
    if image_size is None or x.shape[-1] == image_size:
        return x
    if image_size < 1:
        raise UserError(f"stream.image_size: {image_size} is not valid: expected pixels >= 1")
    from torchvision.transforms.v2 import functional

    size = [image_size, image_size]
    return torch.cat(
        [functional.resize(part, size, antialias=True) for part in torch.split(x, 4096)]
    )


def fetch(
    download: Callable[[], Any] | None,
    folder: Path,
    file: str,
    name: str,
    *,
    by_download: bool = True,
) -> None:
    """Download what is missing, or say what is missing, where, and how to get it.

    Raises:
        UserError: There is nothing to download with, or it failed.
    """
    ways = "put it there by hand, or name the folder of your data with --stream.root or CLEARN_DATA"
    if download is None:
        first = "download it with --stream.download true, " if by_download else ""
        raise UserError(
            f"stream.root: {name} needs {file} in {folder}, which is missing; {first}{ways}"
        )
    try:
        download()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"stream.download: {name} needs {file} in {folder}, and downloading it failed "
            f"({' '.join(str(error).split())}); go online, {ways}"
        ) from error

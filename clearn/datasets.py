"""The data sets that streams are made of: bundled, or read from a data root.

Nothing here unpickles what it has not checked: MNIST is plain numbers, images are images, and
CIFAR's pickles are read by torchvision after their MD5 sums were compared.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clearn._avalanche import download_tiny_imagenet
from clearn.cache import cache_folder
from clearn.errors import UserError
from clearn.images import ImageFiles
from clearn.preprocess import Preprocess
from clearn.sources import Source, from_tensors
from clearn.split import draws, stratified
from clearn.store import open_images

MNIST_STATISTICS = (0.1307,), (0.3081,)
FASHION_STATISTICS = (0.2860,), (0.3530,)
CIFAR10_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_STATISTICS = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
TINY_STATISTICS = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FASHION_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets are: `root`, else `$CLEARN_DATA`, else `data` in the cache folder."""
    return Path(root or os.environ.get("CLEARN_DATA") or cache_folder() / "data").expanduser()


def digits(image_size: int | None = None) -> Source:
    """scikit-learn's 1797 digits: 8x8 grey images, their 17 levels spread over 0 to 255.

    A fifth of every class, drawn once and for all, is the test set.
    """
    from sklearn.datasets import load_digits

    bundled = load_digits()
    x = torch.from_numpy(np.rint(bundled.images * (255 / 16)).astype(np.uint8))
    y = torch.from_numpy(bundled.target).long()
    test = stratified(y, 0.2, draws(0, "digits"))
    pieces = (resize(x[~test], image_size), y[~test], resize(x[test], image_size), y[test])
    return from_tensors(*pieces, name="SplitDigits")


def mnist(
    root: str | None, download: bool, image_size: int | None = None, *, fashion: bool = False
) -> Source:
    """MNIST or Fashion-MNIST from their four IDX files, packed or not, in `MNIST/raw`."""
    name = "FashionMNIST" if fashion else "MNIST"
    folder = data_root(root) / name / "raw"

    def fetch() -> None:
        from torchvision import datasets

        getattr(datasets, name)(data_root(root), download=True)

    files = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    present = [find_idx(folder, file) for file in files]
    if None in present:
        _fetch(fetch if download else None, folder, f"{files[present.index(None)]}.gz", name)
    x, y, x_test, y_test = (read_idx(folder, file) for file in files)
    mean, std = FASHION_STATISTICS if fashion else MNIST_STATISTICS
    return from_tensors(
        resize(x, image_size),
        y,
        resize(x_test, image_size),
        y_test,
        name="SplitFMNIST" if fashion else "SplitMNIST",
        preprocess=Preprocess(mean, std),
        class_names=FASHION_NAMES if fashion else None,
    )


def cifar(
    classes: int, root: str | None, download: bool, image_size: int | None, augment: bool
) -> Source:
    """CIFAR-10 or CIFAR-100 (fine labels) as torchvision keeps them."""
    from torchvision import datasets

    kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    folder = data_root(root) / kind.base_folder

    def fetch() -> None:
        kind(data_root(root), download=True)

    for file, _ in (*kind.train_list, *kind.test_list, (kind.meta["filename"], None)):
        if not (folder / file).is_file():
            _fetch(fetch if download else None, folder, file, f"CIFAR-{classes}")
    try:
        # The files are pickles: torchvision compares their MD5 sums before it reads them.
        train, test = (kind(data_root(root), train=part) for part in (True, False))
    except RuntimeError as error:
        raise UserError(
            f"stream.root: the files in {folder} are damaged ({error}); remove them and get them "
            "again, for example with --stream.download true"
        ) from error
    x, x_test = (
        resize(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), image_size)
        for part in (train, test)
    )
    statistics = CIFAR10_STATISTICS if classes == 10 else CIFAR100_STATISTICS
    return from_tensors(
        x,
        train.targets,
        x_test,
        test.targets,
        name=f"SplitCIFAR{classes}",
        preprocess=natural(*statistics, size=x.shape[-1], augment=augment),
        class_names=train.classes,
    )


def natural(mean: Sequence[float], std: Sequence[float], *, size: int, augment: bool) -> Preprocess:
    """For photographs: crops after padding by an eighth of the size (4 for 32), and mirrors."""
    return Preprocess(mean, std, padding=size // 8 if augment else 0, flip=augment)


def tiny_imagenet(
    root: str | None,
    download: bool,
    image_size: int | None,
    augment: bool,
    budget_gib: float,
    workers: int | None,
) -> Source:
    """Tiny-ImageNet: 200 classes in order of their WordNet ids, tested on its `val` images."""
    folder = data_root(root) / "tiny-imagenet-200"
    for file in ("train", "wnids.txt", "val/val_annotations.txt"):
        if not (folder / file).exists():
            fetch = (lambda: download_tiny_imagenet(data_root(root))) if download else None
            _fetch(fetch, folder, file, "Tiny-ImageNet")
    wnids = sorted((folder / "wnids.txt").read_text().split())
    train, labels = list_classes(folder, [f"train/{wnid}/images" for wnid in wnids])
    test, test_labels = [], []
    for line in (folder / "val/val_annotations.txt").read_text().splitlines():
        file, wnid = line.split("\t")[:2]
        test.append(f"val/images/{file}")
        test_labels.append(wnids.index(wnid))
    words = {}
    if (folder / "words.txt").is_file():
        lines = (folder / "words.txt").read_text().splitlines()
        words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return _images(
        "SplitTinyImageNet",
        folder,
        (train, labels),
        (test, test_labels),
        names=[words.get(wnid, wnid).split(",")[0] for wnid in wnids],
        statistics=TINY_STATISTICS,
        image_size=image_size,
        augment=augment,
        budget_gib=budget_gib,
        workers=workers,
    )


def imagenet(
    root: str | None,
    num_classes: int | None,
    image_size: int | None,
    augment: bool,
    budget_gib: float,
    workers: int | None,
) -> Source:
    """Folders of class folders: `train/<class>/*` and `val/<class>/*`, in order of their names.

    They are looked for in the data root itself and in `imagenet` below it.
    """
    roots = (data_root(root), data_root(root) / "imagenet")
    folder = next((path for path in roots if (path / "train").is_dir()), roots[1])
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            _fetch(None, folder, part, "ImageNet", by_download=False)
    names = sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir())
    if num_classes is not None and not 1 <= num_classes <= len(names):
        raise UserError(
            f"stream.num_classes: {num_classes} is not valid: expected 1 to {len(names)}, the "
            f"number of folders in {folder / 'train'}"
        )
    names = names[:num_classes]
    return _images(
        "SplitImageNet",
        folder,
        *(list_classes(folder, [f"{part}/{name}" for name in names]) for part in ("train", "val")),
        names=names,
        statistics=IMAGENET_STATISTICS,
        image_size=image_size,
        augment=augment,
        budget_gib=budget_gib,
        workers=workers,
    )


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


def _images(
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


def find_idx(folder: Path, name: str) -> Path | None:
    """The IDX file called `name`, plain or packed with gzip; None when it is not there."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(folder: Path, name: str) -> Tensor:
    """The bytes of an IDX file as uint8, in the shape that its header tells.

    The format: two zeros, 8 for unsigned bytes, the number of axes; the length of each axis as a
    big-endian 32-bit number; the values.

    Raises:
        UserError: The file is not of this format, or cut off.
    """
    path = find_idx(folder, name)
    assert path is not None
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"stream.root: {path} cannot be read: {error}") from error
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", content[4:start]) if len(content) >= start else ()
    if not shape or len(content) != start + math.prod(shape):
        raise UserError(
            f"stream.root: {path} is damaged: expected an IDX file of unsigned bytes; remove it "
            "and get it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


def _fetch(
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

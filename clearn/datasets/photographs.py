"""Photographs: CIFAR and ImageNet.

Nothing here unpickles what it has not checked: CIFAR's pickles are read by torchvision after their
MD5 sums were compared.
"""

from __future__ import annotations

import os

import torch

from clearn._avalanche import download_tiny_imagenet
from clearn.datasets.files import data_root, fetch, list_classes, natural, open_files, resize
from clearn.errors import UserError
from clearn.sources import Source, from_tensors

CIFAR10_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_STATISTICS = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
TINY_STATISTICS = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar(
    classes: int, root: str | None, download: bool, image_size: int | None, augment: bool
) -> Source:
    """CIFAR-10 or CIFAR-100 (fine labels) as torchvision keeps them."""
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
            get = (lambda: download_tiny_imagenet(data_root(root))) if download else None
            fetch(get, folder, file, "Tiny-ImageNet")
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
    return open_files(
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
            fetch(None, folder, part, "ImageNet", by_download=False)
    names = sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir())
    if num_classes is not None and not 1 <= num_classes <= len(names):
        raise UserError(
            f"stream.num_classes: {num_classes} is not valid: expected 1 to {len(names)}, the "
            f"number of folders in {folder / 'train'}"
        )
    names = names[:num_classes]
    return open_files(
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

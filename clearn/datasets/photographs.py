"""Photographs in files of their own: ImageNet, its relatives, and birds."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from clearn._avalanche import download_tiny_imagenet
from clearn.datasets.files import data_root, fetch, list_classes, open_files
from clearn.errors import UserError
from clearn.sources import Source

TINY_STATISTICS = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def mini_imagenet(
    root: str | None, image_size: int | None, augment: bool, budget_gib: float, workers: int | None
) -> Source:
    """MiniImageNet with 500 training and 100 test images of each of its 100 classes.

    As the few-shot class-incremental literature has it: all images in `miniimagenet/images`, and
    `train.csv` and `test.csv` in `miniimagenet/split` or `miniimagenet`, with the columns
    `filename` and `label`. Classes are numbered in the order in which `train.csv` names them.
    """
    folder = data_root(root) / "miniimagenet"
    tables = folder / "split" if (folder / "split").is_dir() else folder
    for path in (folder / "images", tables / "train.csv", tables / "test.csv"):
        if not path.exists():
            fetch(None, path.parent, path.name, "miniImageNet", by_download=False)
    rows = {part: _read_csv(tables / f"{part}.csv") for part in ("train", "test")}
    names = list(dict.fromkeys(label for _, label in rows["train"]))
    numbers = {name: number for number, name in enumerate(names)}
    for _, label in rows["test"]:
        if label not in numbers:
            raise UserError(
                f"stream.root: {tables / 'test.csv'} has the label {label!r}, which train.csv has "
                "not; expected the same classes in both"
            )
    train, test = (
        ([file for file, _ in rows[part]], [numbers[label] for _, label in rows[part]])
        for part in ("train", "test")
    )
    return open_files(
        "miniImageNet",
        folder / "images",
        train,
        test,
        names=names,
        statistics=IMAGENET_STATISTICS,
        image_size=image_size,
        augment=augment,
        budget_gib=budget_gib,
        workers=workers,
    )


def _read_csv(path: Path) -> list[tuple[str, str]]:
    """File name and label of every row of a table with these columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise UserError(
                f"stream.root: {path} has the columns {', '.join(reader.fieldnames or ())}; "
                "expected filename and label"
            )
        rows = [(row["filename"], row["label"]) for row in reader]
    if not rows or any(not file or not label for file, label in rows):
        raise UserError(f"stream.root: {path} is damaged: expected a file name and a label a row")
    return rows


def cub200(
    root: str | None, image_size: int | None, augment: bool, budget_gib: float, workers: int | None
) -> Source:
    """Caltech-UCSD Birds 200-2011 with its own split: 5994 training and 5794 test images.

    In `CUB_200_2011` as it is packed: `images/` and the tables `images.txt`,
    `image_class_labels.txt` and `train_test_split.txt`.
    """
    folder = data_root(root) / "CUB_200_2011"
    tables = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    for file in ("images", *tables):
        if not (folder / file).exists():
            fetch(None, folder, file, "CUB-200-2011", by_download=False)
    files, labels, parts = (_read_table(folder / file) for file in tables)
    if not files.keys() == labels.keys() == parts.keys():
        raise UserError(
            f"stream.root: {', '.join(tables)} in {folder} do not number the same images; remove "
            "them and get them again"
        )
    for number, said in labels.items():
        if not said.isdecimal() or int(said) < 1 or parts[number] not in ("0", "1"):
            raise UserError(
                f"stream.root: {tables[1]} and {tables[2]} in {folder} say {said!r} and "
                f"{parts[number]!r} of image {number}; expected a label from 1, and 1 for training "
                "or 0 for testing"
            )
    train: tuple[list[str], list[int]] = ([], [])
    test: tuple[list[str], list[int]] = ([], [])
    names: dict[int, str] = {}
    for number, file in files.items():
        label = int(labels[number]) - 1
        names[label] = file.partition("/")[0].partition(".")[2].replace("_", " ")
        chosen = train if parts[number] == "1" else test
        chosen[0].append(file)
        chosen[1].append(label)
    return open_files(
        "CUB200",
        folder / "images",
        train,
        test,
        names=[names.get(label, str(label)) for label in range(1 + max(names))],
        statistics=IMAGENET_STATISTICS,
        image_size=image_size,
        augment=augment,
        budget_gib=budget_gib,
        workers=workers,
    )


def _read_table(path: Path) -> dict[int, str]:
    """What a table with a number and a value a line says, by number."""
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines()]
        return {int(number): value.strip() for number, value in lines}
    except ValueError as error:
        raise UserError(
            f"stream.root: {path} is damaged: expected a number and a value a line"
        ) from error

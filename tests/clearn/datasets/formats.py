"""Small data sets in the genuine formats of their files."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SVHN


def write_idx(path: Path, data: np.ndarray, *, packed: bool) -> None:
    header = struct.pack(f">BBBB{data.ndim}I", 0, 0, 8, data.ndim, *data.shape)
    content = header + data.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        Path(f"{path}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_mnist(root: Path, name: str, *, packed: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    written = {}
    for part, count in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
            write_idx(root / name / "raw" / f"{part}-{kind}-ubyte", data, packed=packed)
            written[f"{part}-{kind}"] = data
    return written


def write_cifar(root: Path, kind: Any, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    key = "labels" if classes == 10 else "fine_labels"

    def write(name: str, content: Any) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for part in ("train_list", "test_list"):
        listed = []
        for name, _ in getattr(kind, part):
            data = random.integers(0, 256, (2 * classes, 3072), dtype=np.uint8)
            labels = [index % classes for index in range(2 * classes)]
            listed.append([name, write(name, {"data": data, key: labels})])
        monkeypatch.setattr(kind, part, listed)
    names = {kind.meta["key"]: [f"class {index}" for index in range(classes)]}
    md5 = write(kind.meta["filename"], names)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})


def save(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_tiny(root: Path) -> Path:
    folder = root / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]  # the order of the file is not the order of the classes
    for number, wnid in enumerate(wnids):
        for index in range(4):
            mode = "L" if index == 3 else "RGB"
            save(
                folder / f"train/{wnid}/images/{wnid}_{index}.JPEG", 10 * number + index, mode=mode
            )
    lines = []
    for index in range(6):
        save(folder / f"val/images/val_{index}.JPEG", 100 + index)
        lines.append(f"val_{index}.JPEG\t{wnids[index % 3]}\t0\t0\t9\t9\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("n01\ttench, Tinca tinca\nn02\tgoldfish\n")
    return folder


def decoded(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def write_imagenet(folder: Path, classes: int = 4) -> None:
    for index in range(classes):
        for part, count in (("train", 3), ("val", 2)):
            for number in range(count):
                save(folder / part / f"c{index}" / f"{number}.jpg", 10 * index + number, (20, 30))
        (folder / "train" / f"c{index}" / "notes.txt").write_text("no picture")


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 training and 10 test images; the label of a 0 is 10."""
    (root / "SVHN").mkdir()
    random = np.random.default_rng(0)
    listed = dict(SVHN.split_list)
    for part, count in (("train", 20), ("test", 10)):
        path = root / "SVHN" / listed[part][1]
        x = random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(path, {"X": x, "y": (np.arange(count)[:, None] % 10 + 1).astype(np.uint8)})
        listed[part] = [*listed[part][:2], hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)


def write_not_mnist(folder: Path, per_letter: int) -> None:
    """`<letter>/*.png` of 28x28 grey pixels, and among the As an empty file, as in the original."""
    for number, letter in enumerate("ABCDEFGHIJ"):
        for index in range(per_letter):
            save(folder / letter / f"{index}.png", 100 * number + index, (28, 28), "L")
    (folder / "A" / "empty.png").write_bytes(b"")


def write_mini_imagenet(root: Path, *, split: bool = True) -> list[str]:
    """Three classes of 6 training and 2 test images; returns them in order of appearance."""
    folder = root / "miniimagenet"
    tables = folder / "split" if split else folder
    wnids = ["n9", "n1", "n5"]
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for number, wnid in enumerate(wnids):
        for index in range(8):
            name = f"{wnid}{index:08}.jpg"
            save(folder / "images" / name, 10 * number + index, (20, 30))
            lines["train" if index < 6 else "test"].append(f"{name},{wnid}\n")
    tables.mkdir(exist_ok=True)
    for part, rows in lines.items():
        (tables / f"{part}.csv").write_text("filename,label\n" + "".join(rows))
    return wnids


def write_cub(root: Path) -> Path:
    """Four classes of 5 training and 2 test images, of many sizes and not in order."""
    folder = root / "CUB_200_2011"
    rows = [(label, index) for index in range(7) for label in range(1, 5)]
    files, labels, parts = [], [], []
    for number, (label, index) in enumerate(rows, 1):
        name = f"{label:03}.Some_Bird_{label}/bird_{number}.jpg"
        save(folder / "images" / name, number, (20 + label, 30 + index))
        files.append(f"{number} {name}\n")
        labels.append(f"{number} {label}\n")
        parts.append(f"{number} {int(index < 5)}\n")
    for name, lines in (
        ("images", files),
        ("image_class_labels", labels),
        ("train_test_split", parts),
    ):
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


OMNIGLOT = {
    "images_background": [("Zulu", 3), ("Alpha", 2)],
    "images_evaluation": [("Beta", 2)],
}
"""Alphabets and their numbers of characters; Omniglot's order is not that of the names."""


def omniglot_drawings() -> dict[str, np.ndarray]:
    """True for paper: bool `[characters, 20, 105, 105]` of each part."""
    random = np.random.default_rng(0)
    return {
        part: random.random((sum(count for _, count in alphabets), 20, 105, 105)) > 0.2
        for part, alphabets in OMNIGLOT.items()
    }


def write_omniglot_arrays(root: Path) -> Path:
    folder = root / "omniglot"
    folder.mkdir()
    lines = ["file,index,alphabet,character,omniglot_number"]
    for part, drawings in omniglot_drawings().items():
        np.savez_compressed(folder / f"{part}.npz", images=drawings)
        characters = [(a, c) for a, count in OMNIGLOT[part] for c in range(1, count + 1)]
        for index, (alphabet, character) in enumerate(characters):
            lines.append(f"{part},{index},{alphabet},character{character:02},{len(lines)}")
    (folder / "characters.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_omniglot_folders(root: Path) -> Path:
    folder = root / "omniglot-py"
    number = 0
    for part, drawings in omniglot_drawings().items():
        characters = [(a, c) for a, count in OMNIGLOT[part] for c in range(1, count + 1)]
        for (alphabet, character), images in zip(characters, drawings, strict=True):
            number += 1
            place = folder / part / alphabet / f"character{character:02}"
            place.mkdir(parents=True)
            for drawer, image in enumerate(images, 1):
                Image.fromarray(image).save(place / f"{number:04}_{drawer:02}.png")
    return folder

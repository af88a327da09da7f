"""Grey images of digits, letters and clothes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clearn.datasets.files import data_root, fetch, list_classes, open_files, resize
from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.sources import Source, from_tensors
from clearn.split import draws, stratified
from clearn.store import BUDGET_GIB

MNIST_STATISTICS = (0.1307,), (0.3081,)
FASHION_STATISTICS = (0.2860,), (0.3530,)
FASHION_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
LETTERS = tuple("ABCDEFGHIJ")


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

    def get() -> None:
        from torchvision import datasets

        getattr(datasets, name)(data_root(root), download=True)

    files = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    present = [find_idx(folder, file) for file in files]
    if None in present:
        fetch(get if download else None, folder, f"{files[present.index(None)]}.gz", name)
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


def not_mnist(root: str | None) -> Source:
    """notMNIST: the letters A to J in many typefaces, 28x28 pixels, as RGB.

    In `notMNIST` as the continual-learning literature has it, `Train/<letter>/*.png` and
    `Test/<letter>/*.png`; or in `notMNIST_small` as it is packed, `<letter>/*.png`, of which a
    tenth of every letter, drawn once and for all, is the test set. Its two empty files are left
    out.
    """
    whole, small = data_root(root) / "notMNIST", data_root(root) / "notMNIST_small"
    if not (whole / "Train").is_dir() and not small.is_dir():
        fetch(None, whole, "Train", "notMNIST", by_download=False)
    if (whole / "Train").is_dir():
        folder = whole
        parts = [_letters(folder, f"{part}/") for part in ("Train", "Test")]
    else:
        folder = small
        names, labels = _letters(folder, "")
        apart = stratified(torch.tensor(labels), 0.1, draws(0, "notMNIST")).tolist()
        rows = [[row for row, test in enumerate(apart) if test == part] for part in (False, True)]
        parts = [([names[row] for row in mine], [labels[row] for row in mine]) for mine in rows]
    return open_files(
        "notMNIST",
        folder,
        *parts,
        names=LETTERS,
        statistics=((), ()),
        image_size=None,
        augment=False,
        budget_gib=BUDGET_GIB,
        workers=None,
    )


def _letters(folder: Path, below: str) -> tuple[list[str], list[int]]:
    """The pictures of all letters and their labels, without empty files."""
    names, labels = list_classes(folder, [f"{below}{letter}" for letter in LETTERS])
    kept = [row for row, name in enumerate(names) if (folder / name).stat().st_size]
    return [names[row] for row in kept], [labels[row] for row in kept]


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
    except (OSError, EOFError, ValueError, zlib.error) as error:
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

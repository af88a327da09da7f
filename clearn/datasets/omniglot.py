"""Omniglot: 1623 characters of 50 alphabets, each drawn once by 20 people (Lake et al. 2015)."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clearn.cache import decode_once
from clearn.datasets.files import data_root, fetch
from clearn.errors import UserError
from clearn.images import ImageFiles, Images

DRAWERS = 20
_PARTS = ("images_background", "images_evaluation")
_SIDE = 105  # pixels, of every drawing


@dataclass(frozen=True)
class Omniglot:
    """All drawings, characters in Omniglot's own order.

    Attributes:
        images: uint8 `[1623, 20, S, S]`, dark ink on white paper.
        names: Alphabet and character.
        alphabets: Alphabet of each character; its characters follow each other.
    """

    images: Tensor
    names: tuple[str, ...]
    alphabets: tuple[str, ...]


def omniglot(root: str | None, download: bool, image_size: int | None) -> Omniglot:
    """Omniglot at one size, from torchvision's folders or from arrays.

    torchvision keeps `omniglot-py/images_background/<alphabet>/<character>/<drawing>.png` and the
    same in `images_evaluation`. Arrays are read where these are missing: in `omniglot`, for each of
    the two `<part>.npz` with `images`, bool `[characters, 20, 105, 105]` and true for paper, and
    `characters.csv` with the columns `file` (the part), `index`, `alphabet` and `character`.

    Raises:
        UserError: Files are missing or damaged.
    """
    base = data_root(root)
    folders, arrays = base / "omniglot-py", base / "omniglot"
    if not (folders / _PARTS[0]).is_dir() and (arrays / f"{_PARTS[0]}.npz").is_file():
        return _read_arrays(arrays, image_size)

    def get() -> None:
        from torchvision import datasets

        for background in (True, False):
            datasets.Omniglot(base, background=background, download=True)

    for part in _PARTS:
        if not (folders / part).is_dir():
            fetch(get if download else None, folders, part, "Omniglot")
    return _read_folders(folders, image_size)


def _read_arrays(folder: Path, image_size: int | None) -> Omniglot:
    rows = _read_table(folder / "characters.csv")
    counts = [sum(row["file"] == part for row in rows) for part in _PARTS]
    expected = [
        (part, str(i)) for part, count in zip(_PARTS, counts, strict=True) for i in range(count)
    ]
    if [(row["file"], row["index"]) for row in rows] != expected:
        raise UserError(
            f"stream.root: {folder / 'characters.csv'} is damaged: expected the characters of "
            f"{' and '.join(_PARTS)}, each numbered from 0"
        )
    images = decode_once(Images(_Arrays(folder, counts), image_size), workers=1)
    names = [f"{row['alphabet']}/{row['character']}" for row in rows]
    return _omniglot(images, names, [row["alphabet"] for row in rows])


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        fetch(None, path.parent, path.name, "Omniglot", by_download=False)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = {"file", "index", "alphabet", "character"}
        if not columns <= set(reader.fieldnames or ()):
            raise UserError(
                f"stream.root: {path} is damaged: expected the columns {', '.join(sorted(columns))}"
            )
        return list(reader)


class _Arrays:
    """The drawings in the array files, one character after the other.

    Args:
        folder: Where the files are.
        counts: Characters in each of them.
    """

    def __init__(self, folder: Path, counts: Sequence[int]) -> None:
        self._paths = [folder / f"{part}.npz" for part in _PARTS]
        self._ends = np.cumsum(counts) * DRAWERS
        self._open: dict[int, NDArray[np.bool_]] = {}
        for path in self._paths:
            if not path.is_file():
                fetch(None, folder, path.name, "Omniglot", by_download=False)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Tensor:
        part = int(np.searchsorted(self._ends, index, side="right"))
        if part not in self._open:
            count = int(self._ends[part] - (self._ends[part - 1] if part else 0)) // DRAWERS
            self._open[part] = _load(self._paths[part], count)
        drawings = self._open[part]
        drawing = drawings.reshape(-1, _SIDE, _SIDE)[index - int(self._ends[part])]  # from behind
        return torch.from_numpy(drawing[None]).to(torch.uint8).mul_(255)

    def key(self) -> str:
        return ImageFiles(self._paths[0].parent, [path.name for path in self._paths]).key()


def _load(path: Path, count: int) -> NDArray[np.bool_]:
    """The drawings in an array file, true for paper: `[count, 20, 105, 105]`."""
    try:
        # np.load alone would leave a damaged file open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            drawings: NDArray[np.bool_] = file["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"stream.root: {path} cannot be read: {error}") from error
    if drawings.dtype != np.bool_ or drawings.shape != (count, DRAWERS, _SIDE, _SIDE):
        raise UserError(
            f"stream.root: {path} holds images of shape {drawings.shape} and type "
            f"{drawings.dtype}; expected {(count, DRAWERS, _SIDE, _SIDE)} of bool"
        )
    return drawings


def _read_folders(folder: Path, image_size: int | None) -> Omniglot:
    characters = sorted(
        (path for part in _PARTS for path in (folder / part).glob("*/*") if path.is_dir()),
        key=_number,
    )
    if not characters:
        raise UserError(
            f"stream.root: {folder} holds no characters; expected <part>/<alphabet>/<character>"
        )
    files = [str(file.relative_to(folder)) for path in characters for file in _drawings(path)]
    images = decode_once(Images(ImageFiles(folder, files), image_size), workers=os.cpu_count() or 1)
    names = [f"{path.parent.name}/{path.name}" for path in characters]
    return _omniglot(images[:, :1], names, [path.parent.name for path in characters])


def _omniglot(images: Tensor, names: Sequence[str], alphabets: Sequence[str]) -> Omniglot:
    images = images.reshape(len(names), DRAWERS, *images.shape[2:])
    return Omniglot(images, tuple(names), tuple(alphabets))


def _drawings(folder: Path) -> list[Path]:
    """The drawings of a character, by drawer."""
    files = sorted(folder.glob("*.png"))
    if len(files) != DRAWERS:
        raise UserError(
            f"stream.root: {folder} holds {len(files)} drawings; expected {DRAWERS}, remove it "
            "and get it again"
        )
    return files


def _number(folder: Path) -> tuple[int, str]:
    """Sorts characters: files are called `<number of the character>_<number of the drawer>`."""
    number = _drawings(folder)[0].name.partition("_")[0]
    return (int(number) if number.isdecimal() else 0, str(folder))

"""Streams of Omniglot's characters, from arrays and from torchvision's folders."""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clearn.errors import UserError
from clearn.stream import Stream
from clearn.streams import OmniglotRotation, SplitOmniglot
from tests.clearn.datasets.formats import (
    omniglot_drawings,
    write_omniglot_arrays,
    write_omniglot_folders,
)

NAMES = [
    "Zulu/character01",
    "Zulu/character02",
    "Zulu/character03",
    "Alpha/character01",
    "Alpha/character02",
    "Beta/character01",
    "Beta/character02",
]


@pytest.fixture
def root(tmp_path: Path) -> str:
    write_omniglot_arrays(tmp_path)
    return str(tmp_path)


def drawn() -> np.ndarray:
    """All drawings: uint8 `[characters, 20, 105, 105]`."""
    return np.concatenate(list(omniglot_drawings().values())).astype(np.uint8) * 255


def images(stream: Stream, part: str, label: int) -> list[bytes]:
    """The images of a label, in order."""
    for task in stream:
        if label in task.classes:
            (batch,) = getattr(task, part).batches(10_000)
            return [bytes(image.numpy()) for image in batch.raw[batch.y == label][:, 0]]
    raise AssertionError(label)


def test_an_alphabet_is_a_task(root: str) -> None:
    stream = SplitOmniglot(root=root, image_size=None)
    assert [task.classes for task in stream] == [(0, 1, 2), (3, 4), (5, 6)]
    assert stream.class_names == tuple(NAMES)
    assert stream.input_shape == (1, 105, 105)
    assert stream.name == "SplitOmniglot"
    expected = drawn()
    for label in range(7):
        train, test = images(stream, "train", label), images(stream, "test", label)
        assert (len(train), len(test)) == (15, 5)
        assert sorted(train + test) == sorted(map(bytes, expected[label]))


def test_order_and_number_of_tasks(root: str) -> None:
    def groups(**options: Any) -> list[tuple[int, ...]]:
        stream = SplitOmniglot(root=root, image_size=8, **options)
        original = stream.original_classes
        return [tuple(original[label] for label in task.classes) for task in stream]

    alphabets = {(0, 1, 2), (3, 4), (5, 6)}
    orders = {tuple(groups(order_seed=seed)) for seed in range(9)}
    assert len(orders) > 1
    assert all(set(order) == alphabets for order in orders)
    assert groups(num_tasks=2) == [(0, 1, 2, 3), (4, 5, 6)]
    assert groups(num_tasks=7, scenario="domain") == [(0,)] * 7
    assert groups(classes=[[6], [0]]) == [(6,), (0,)]
    assert groups(keep_tasks=1) == [(0, 1, 2)]
    with pytest.raises(UserError, match=r"stream.num_tasks: null is not valid: .* domain"):
        groups(scenario="domain")
    with pytest.raises(UserError, match=r"stream.num_tasks: is missing"):
        groups(class_order=[1, 2])


def test_folders_give_what_arrays_give(tmp_path: Path) -> None:
    for name, write in (("a", write_omniglot_arrays), ("f", write_omniglot_folders)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    arrays, folders = (SplitOmniglot(root=str(tmp_path / name)) for name in "af")
    assert arrays.class_names == folders.class_names
    assert arrays.input_shape == folders.input_shape == (1, 32, 32)
    for part in ("train", "test"):
        for label in range(7):
            assert images(arrays, part, label) == images(folders, part, label)


def test_drawings_are_shrunk_as_pillow_does(root: str) -> None:
    (small,) = SplitOmniglot(root=root, num_tasks=1)[0].test.batches(99)
    (large,) = SplitOmniglot(root=root, num_tasks=1, image_size=None)[0].test.batches(99)
    assert small.raw.shape == (35, 1, 32, 32)
    for one, image in zip(small.raw[:, 0].numpy(), large.raw[:, 0].numpy(), strict=True):
        expected = Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.abs(one.astype(int) - np.array(expected)).max() <= 1


# Rotations


@pytest.mark.parametrize("split_by", ["drawing", "image"])
def test_four_rotations_of_each_drawing(root: str, split_by: str) -> None:
    stream = OmniglotRotation(root=root, image_size=None, num_tasks=2, split_by=split_by)
    assert stream.name == "OmniglotRotation"
    assert stream.scenario == "task"
    assert [task.classes for task in stream] == [(0, 1, 2, 3), (4, 5, 6)]
    expected = drawn()
    torn = 0
    for label in range(7):
        train, test = images(stream, "train", label), images(stream, "test", label)
        assert (len(train), len(test)) == (60, 20)
        turns = [[bytes(np.rot90(image, k).copy()) for k in range(4)] for image in expected[label]]
        assert sorted(train + test) == sorted(chain(*turns))
        torn += sum(0 < len(set(four) & set(test)) < 4 for four in turns)
    assert (torn == 0) == (split_by == "drawing")


def test_the_draw_never_changes(root: str) -> None:
    digests = {}
    for split_by in ("drawing", "image"):
        stream = OmniglotRotation(root=root, image_size=None, num_tasks=1, split_by=split_by)
        (batch,) = stream[0].test.batches(999)
        digests[split_by] = hashlib.sha256(batch.raw.numpy().tobytes()).hexdigest()[:16]
    assert digests == {"drawing": "36927fd4051a01c6", "image": "47f687e2eddcd6e0"}


def test_unknown_split(root: str) -> None:
    with pytest.raises(UserError, match=r"stream.split_by: 'x' is not valid: .* drawing or image"):
        OmniglotRotation(root=root, split_by="x")


# What is missing or damaged


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Omniglot needs images_background in .*omniglot-py") as e:
        SplitOmniglot(root=str(tmp_path))
    assert "--stream.download true" in str(e.value)
    folder = write_omniglot_arrays(tmp_path)
    for name in ("images_evaluation.npz", "characters.csv"):
        (folder / name).rename(folder / "away")
        with pytest.raises(UserError, match=f"Omniglot needs {name} in {folder}") as e:
            SplitOmniglot(root=str(tmp_path))
        assert "download" not in str(e.value)
        (folder / "away").rename(folder / name)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((5, 20, 105, 105), np.uint8), "holds images of shape .* uint8"),
        (np.zeros((4, 20, 105, 105), bool), r".*expected \(5, 20, 105, 105\) of bool"),
        (np.array([{}], dtype=object), "cannot be read: .*allow_pickle"),
    ],
)
def test_arrays_that_are_not_what_they_should_be(
    images: np.ndarray, message: str, tmp_path: Path
) -> None:
    folder = write_omniglot_arrays(tmp_path)
    np.savez(folder / "images_background.npz", images=images)
    with pytest.raises(UserError, match=f"stream.root: .*images_background.npz {message}"):
        SplitOmniglot(root=str(tmp_path))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_an_array_file_that_is_cut_off(kept: float, tmp_path: Path) -> None:
    path = write_omniglot_arrays(tmp_path) / "images_evaluation.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"stream.root: .*images_evaluation.npz cannot be read"):
        SplitOmniglot(root=str(tmp_path), image_size=8)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alphabet", "alpha", "expected the columns alphabet"),
        ("images_background,1,", "images_background,7,", "each numbered from 0"),
        ("images_evaluation,0,", "images_background,5,", "each numbered from 0"),
    ],
)
def test_a_damaged_table(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = write_omniglot_arrays(tmp_path) / "characters.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=f"stream.root: .*characters.csv is damaged: .*{message}"):
        SplitOmniglot(root=str(tmp_path))


def test_folders_without_characters(tmp_path: Path) -> None:
    for part in ("images_background", "images_evaluation"):
        (tmp_path / "omniglot-py" / part).mkdir(parents=True)
    with pytest.raises(UserError, match=r"stream.root: .*omniglot-py holds no characters"):
        SplitOmniglot(root=str(tmp_path))


def test_a_character_without_all_its_drawings(tmp_path: Path) -> None:
    folder = write_omniglot_folders(tmp_path)
    next(folder.glob("*/Zulu/character02/*_07.png")).unlink()
    with pytest.raises(UserError, match=r"stream.root: .*character02 holds 19 drawings; expected"):
        SplitOmniglot(root=str(tmp_path))


# Real files


def test_real_omniglot(data_root: Path) -> None:
    if not any((data_root / name).is_dir() for name in ("omniglot", "omniglot-py")):
        pytest.skip("no Omniglot in $CLEARN_DATA")
    stream = OmniglotRotation(root=str(data_root), keep_tasks=2)
    assert [task.classes for task in stream] == [tuple(range(12)), tuple(range(12, 24))]
    assert [(len(task.train), len(task.test)) for task in stream] == [(720, 240)] * 2
    (batch,) = stream[0].train.batches(1000)
    assert batch.x.shape == (720, 1, 32, 32)
    assert 0.85 < float(batch.x.mean()) < 0.95  # white paper
    stream = SplitOmniglot(root=str(data_root))
    assert (len(stream), stream.num_classes) == (50, 1623)
    assert torch.equal(stream[0].test.labels.bincount(), torch.full((26,), 5))

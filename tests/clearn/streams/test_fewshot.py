"""The few-shot stream over each of its data sets, in the genuine formats of their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from clearn.errors import UserError
from clearn.stream import Stream
from clearn.streams import FewShotStream
from tests.clearn.datasets.formats import (
    decoded,
    write_cifar,
    write_cub,
    write_mini_imagenet,
    write_tiny,
)


def sizes(stream: Stream, part: str = "train") -> list[int]:
    return [len(getattr(task, part)) for task in stream]


def test_cifar100_has_60_classes_and_8_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, CIFAR100, 100, monkeypatch)  # two training images a class
    stream = FewShotStream(root=str(tmp_path), shots=2)
    assert sizes(stream) == [120, *[10] * 8]
    assert sizes(stream, "test") == [120, *[10] * 8]
    assert [task.classes for task in stream[1:3]] == [(60, 61, 62, 63, 64), (65, 66, 67, 68, 69)]
    assert (stream.name, stream.scenario) == ("FewShotCIFAR100", "class")
    assert (stream.num_classes, stream.input_shape) == (100, (3, 32, 32))
    assert stream.preprocess.flip
    with pytest.raises(UserError, match=r"stream.shots: 5 is not valid: expected 1 to 2"):
        FewShotStream(root=str(tmp_path))


@pytest.mark.parametrize("split", [True, False])
def test_mini_imagenet(tmp_path: Path, split: bool) -> None:
    wnids = write_mini_imagenet(tmp_path, split=split)
    stream = FewShotStream(
        dataset="miniImageNet", root=str(tmp_path), base_classes=1, ways=2, image_size=16, workers=1
    )
    assert sizes(stream) == [6, 10]
    assert sizes(stream, "test") == [2, 4]
    assert stream.class_names == tuple(wnids)
    assert stream.name == "FewShotminiImageNet"
    whole = FewShotStream(
        dataset="miniImageNet", root=str(tmp_path), base_classes=3, image_size=None, workers=1
    )
    assert whole.input_shape == (3, 84, 84)


def test_cub200(tmp_path: Path) -> None:
    folder = write_cub(tmp_path)
    stream = FewShotStream(
        dataset="CUB200", root=str(tmp_path), base_classes=2, ways=1, shots=3, workers=1
    )
    assert sizes(stream) == [10, 3, 3]
    assert sizes(stream, "test") == [4, 2, 2]
    assert stream.input_shape == (3, 224, 224)
    assert stream.class_names == ("Some Bird 1", "Some Bird 2", "Some Bird 3", "Some Bird 4")
    (batch,) = stream[1].test.batches(9)
    names = [f"003.Some_Bird_3/bird_{number}.jpg" for number in (23, 27)]
    for seen, name in zip(batch.raw, names, strict=True):
        image = decoded(folder / "images" / name)
        rough = torch.from_numpy(image).float()[None]
        size = [224, 224 * image.shape[2] // image.shape[1]]
        expected = torch.nn.functional.interpolate(rough, size, mode="bilinear")[0]
        left = round((size[1] - 224) / 2)
        difference = (seen.float() - expected[:, :, left : left + 224]).abs()
        assert difference.max() <= 1.5


def test_tiny_imagenet_is_the_preset_of_the_small_one(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    stream = FewShotStream(
        dataset="TinyImageNet", root=str(tmp_path), base_classes=1, ways=1, shots=2, workers=1
    )
    assert sizes(stream) == [4, 2, 2]
    with pytest.raises(UserError, match=r"stream.base_classes: 120 is not valid: expected 1 to 3"):
        FewShotStream(dataset="TinyImageNet", root=str(tmp_path), workers=1)


@pytest.mark.parametrize(
    ("dataset", "folder", "file", "download"),
    [
        ("CIFAR100", "cifar-100-python", "train", True),
        ("TinyImageNet", "tiny-imagenet-200", "train", True),
        ("miniImageNet", "miniimagenet", "images", False),
        ("CUB200", "CUB_200_2011", "images", False),
    ],
)
def test_what_is_missing_is_named(
    dataset: str, folder: str, file: str, download: bool, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        FewShotStream(dataset=dataset, root=str(tmp_path))
    assert f" needs {file} in {tmp_path / folder}," in str(caught.value)
    assert ("--stream.download" in str(caught.value)) == download


def test_unknown_data_set() -> None:
    with pytest.raises(UserError, match=r"stream.dataset: 'MNIST' is not valid: .* CUB200"):
        FewShotStream(dataset="MNIST")


# Tables that are not what they should be


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.jpg,n1\n", r"has the columns file, label; expected filename and label"),
        ("", r"has the columns ; expected"),
        ("filename,label\n", r"is damaged"),
        ("filename,label\na.jpg\n", r"is damaged"),
        ("filename,label\na.jpg,n7\n", r"has the label 'n7', which train.csv has not"),
    ],
)
def test_tables_of_mini_imagenet(content: str, message: str, tmp_path: Path) -> None:
    write_mini_imagenet(tmp_path)
    (tmp_path / "miniimagenet/split/test.csv").write_text(content)
    with pytest.raises(UserError, match=f"stream.root: .*test.csv {message}"):
        FewShotStream(dataset="miniImageNet", root=str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.txt", "1\n", "images.txt is damaged: expected a number and a value a line"),
        ("image_class_labels.txt", "x 1\n", "image_class_labels.txt is damaged"),
        ("image_class_labels.txt", "1 bird\n", "do not number the same images"),
        ("train_test_split.txt", "1 1\n", "do not number the same images"),
    ],
)
def test_tables_of_cub(file: str, content: str, message: str, tmp_path: Path) -> None:
    (write_cub(tmp_path) / file).write_text(content)
    with pytest.raises(UserError, match=f"stream.root: .*{message}"):
        FewShotStream(dataset="CUB200", root=str(tmp_path))


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("image_class_labels", "bird"),
        ("image_class_labels", "0"),
        ("image_class_labels", "-3"),
        ("train_test_split", "2"),
    ],
)
def test_values_of_the_tables_of_cub(file: str, value: str, tmp_path: Path) -> None:
    path = write_cub(tmp_path) / f"{file}.txt"
    path.write_text("\n".join([f"1 {value}", *path.read_text().splitlines()[1:]]))
    with pytest.raises(UserError, match=rf"{value}' .*of image 1; expected a label from 1"):
        FewShotStream(dataset="CUB200", root=str(tmp_path))


# Real files


def test_real_tiny_imagenet(data_root: Path) -> None:
    if not (data_root / "tiny-imagenet-200").is_dir():
        pytest.skip("no Tiny-ImageNet in $CLEARN_DATA")
    # Streamed: this test reads a few images, and would not decode them all.
    stream = FewShotStream(
        dataset="TinyImageNet", root=str(data_root), keep_tasks=3, budget_gib=0.0, workers=0
    )
    assert sizes(stream) == [60_000, 25, 25]
    assert sizes(stream, "test") == [6_000, 250, 250]
    assert stream.num_classes == 130
    (batch,) = stream[1].train.batches(25)
    assert batch.x.shape == (25, 3, 64, 64)
    assert np.array_equal(batch.y.bincount()[120:], [5] * 5)

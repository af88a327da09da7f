"""Arrays and data sets in, uint8 or float32 and int64 out; nothing changed in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.functional import pil_to_tensor

from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.sources import Source, as_example, as_examples, as_labels, from_dataset, from_tensors
from clearn.store import ResidentStore, StreamedStore

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (RANDOM.integers(0, 256, (3, 2, 5, 4), dtype=np.uint8), (3, 2, 5, 4)),
        (RANDOM.integers(0, 256, (3, 5, 4), dtype=np.uint8), (3, 1, 5, 4)),
        (RANDOM.integers(0, 256, (3, 7), dtype=np.uint8), (3, 7)),
        (RANDOM.random((3, 7)), (3, 7)),
        (RANDOM.random((3, 5, 4)).astype(np.float32), (3, 5, 4)),
        (torch.rand(3, 1, 5, 4, dtype=torch.float64), (3, 1, 5, 4)),
        (torch.rand(3, 7).bfloat16(), (3, 7)),
        ([[0.5, 1.0], [2.0, 3.0]], (2, 2)),
        (RANDOM.random((3, 7))[::-1], (3, 7)),
    ],
)
def test_examples_keep_their_values(data: Any, expected: tuple[int, ...]) -> None:
    x = as_examples(data, "x")
    assert tuple(x.shape) == expected
    plain = np.asarray(data.double() if isinstance(data, torch.Tensor) else data)
    assert x.dtype == (torch.uint8 if plain.dtype == np.uint8 else torch.float32)
    assert np.array_equal(x.numpy(), plain.reshape(expected).astype(x.numpy().dtype))


def test_uint8_is_not_copied_and_a_mapped_file_neither(tmp_path: Path) -> None:
    data = RANDOM.integers(0, 256, (3, 2, 5, 4), dtype=np.uint8)
    assert as_examples(data, "x").data_ptr() == data.ctypes.data
    np.save(tmp_path / "x.npy", data)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert as_examples(mapped, "x").data_ptr() == mapped.ctypes.data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((2, 3), dtype=np.int64), "x: torch.int64 is not valid: expected uint8"),
        (np.zeros((2, 3), dtype=bool), "x: torch.bool is not valid"),
        (np.zeros(3), r"x: shape \(3,\) is not valid"),
        (np.zeros((2, 28, 28, 3), dtype=np.uint8), "x: shape .* has its channels last"),
        (np.array([[0.0], [1.0], [np.nan]]), "x: row 2 holds a number that is not finite"),
        (np.array([[0.0], [np.inf]]), "x: row 1 holds a number that is not finite"),
        ([["a"], ["b"]], "x: is no array of numbers"),
    ],
)
def test_bad_examples(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        as_examples(data, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_labels_become_int64(kind: type) -> None:
    y = as_labels(np.array([3, 0, 3], dtype=kind), "y")
    assert y.dtype == torch.int64
    assert y.tolist() == [3, 0, 3]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([0.0, 1.0], "y: torch.float64 of shape .* is not valid: expected integer labels"),
        ([True, False], "y: torch.bool"),
        ([[0], [1]], r"y: torch.int64 of shape \(2, 1\)"),
        ([0, 4, -2, 1], "y: label -2 in row 2 is out of range: expected >= 0"),
        (["cat"], r"y: labels that are names .* number them with names, y = numpy\.unique\(y, "),
        (np.array(["cat"], dtype=object), "y: labels that are names"),
        ([None, "cat"], "y: is no array of numbers"),
        ([[0], [1, 2]], "y: is no array of numbers"),
    ],
)
def test_bad_labels(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_labels(data, "y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 1]}, "y: 2 labels do not go with 3 inputs"),
        ({"y_test": [0, 1]}, "y_test: 2 labels do not go with 3 inputs"),
        ({"y_test": [0, 1, 7]}, "test: label 7 is out of range"),
        ({"x_test": np.zeros((3, 5))}, r"test: examples of shape \(5,\) .* do not go with \(4,\)"),
        ({"x_test": np.zeros((3, 4), np.uint8)}, "test: examples of .* torch.uint8 do not go"),
        ({"class_names": ["a", "b"]}, "class_names: 2 names do not go with label 2"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0, int)}, "train: has no examples"),
    ],
)
def test_arrays_that_do_not_go_together(change: dict[str, Any], message: str) -> None:
    arrays = {
        "x": np.zeros((3, 4)),
        "y": [0, 1, 2],
        "x_test": np.zeros((3, 4)),
        "y_test": [0, 1, 2],
    }
    with pytest.raises(UserError, match=message):
        from_tensors(**(arrays | change), name="numbers")


def test_classes_are_those_that_occur() -> None:
    x = np.zeros((3, 4))
    source = from_tensors(x, [7, 2, 7], x, [2, 2, 7], name="n", class_names=list("abcdefgh"))
    assert source.classes == (2, 7)
    assert [source.class_name(label) for label in source.classes] == ["c", "h"]
    assert from_tensors(x, [7, 2, 7], x, [2, 2, 7], name="n").class_name(7) == "7"


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "1"])
def test_pil_images(mode: str) -> None:
    pixels = RANDOM.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    expected = pil_to_tensor(image if mode in ("L", "RGB") else image.convert("RGB"))
    assert torch.equal(as_example(image, "x"), expected)


class Pictures(Dataset[tuple[Any, int]]):
    """PIL images with labels, and a count of how often each was read."""

    def __init__(self, count: int = 6, **attributes: Any) -> None:
        pixels = np.random.default_rng(1).integers(0, 256, (count, 5, 4, 3), dtype=np.uint8)
        self.pixels = pixels
        self.reads = [0] * count
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.reads[index] += 1
        return Image.fromarray(self.pixels[index]), index % 3


def open_pair(train: Any, test: Any, budget_gib: float = 1.0) -> Source:
    return from_dataset(train, test, "set", None, None, budget_gib, 0)


def test_a_data_set_is_read_once() -> None:
    train = Pictures()
    source = open_pair(train, Pictures())
    assert isinstance(source.train, ResidentStore)
    assert train.reads == [2, 1, 1, 1, 1, 1]  # the first once more, to see what it is
    raw = next(source.train.batches(torch.arange(6), 6, torch.device("cpu")))
    assert np.array_equal(raw.numpy(), train.pixels.transpose(0, 3, 1, 2))
    assert source.train_labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("attributes", [{}, {"targets": [0, 1, 2] * 2}, {"labels": [0, 1, 2] * 2}])
def test_images_beyond_the_budget_are_read_when_needed(attributes: dict[str, Any]) -> None:
    train, small = Pictures(**attributes), Pictures(3)
    source = open_pair(train, small, budget_gib=200 / 2**30)
    assert isinstance(source.train, StreamedStore)
    assert isinstance(source.test, ResidentStore)
    assert sum(train.reads) == (2 if attributes else 8)  # the first twice, to see what it is
    assert source.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    raw = next(source.train.batches(torch.tensor([4, 1]), 2, torch.device("cpu")))
    assert np.array_equal(raw.numpy(), train.pixels[[4, 1]].transpose(0, 3, 1, 2))


def test_labels_are_those_of_the_items_however_many_there_are() -> None:
    class Turned(Pictures):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x, self.target_transform(y)

    options = {"targets": [0, 1, 2] * 2, "target_transform": lambda y: 2 - y}
    for budget in (1.0, 200 / 2**30):
        source = open_pair(Turned(**options), Pictures(3), budget_gib=budget)
        assert source.train_labels.tolist() == [2, 1, 0, 2, 1, 0]


def test_floats_beyond_the_budget_are_refused() -> None:
    data = TensorDataset(torch.rand(6, 1000), torch.arange(6))
    with pytest.raises(UserError, match=r"budget_gib: train takes 0.00 GiB as torch.float32"):
        open_pair(data, data, budget_gib=1000 / 2**30)


class Strange(Dataset[Any]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


ROW = torch.zeros(4)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Strange(), "train: has no examples"),
        (Strange((ROW, 0), (ROW, "cat")), "train: item 1 is no pair"),
        (Strange({"image": ROW, "label": 0}), "train: item 0 is no pair of input and label"),
        (Strange((ROW, 0), (ROW, 1.5)), "train: item 1 is no pair"),
        (Strange((ROW, 0), (torch.zeros(5), 0)), r"train: item 1 has shape \(5,\)"),
        (Strange((ROW, 0), (ROW.byte(), 0)), "train: item 1 has shape .* torch.uint8"),
        (Strange((ROW, 0), (ROW, -1)), "train: label -1 in row 1 is out of range"),
        (iter([]), "train: a list_iterator is not valid: expected a map-style data set"),
    ],
)
def test_strange_data_sets(dataset: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_pair(dataset, Strange((ROW, 0)))


def test_a_source_is_checked_however_it_was_made() -> None:
    store = ResidentStore(torch.zeros(2, 4))
    labels = torch.tensor([0, 1, 1])
    with pytest.raises(UserError, match="train: 3 labels do not go with 2 examples"):
        Source("n", store, labels, store, labels[:2], Preprocess((), ()))

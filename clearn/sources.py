"""Data sets as examples and labels: from arrays, torch data sets and files.

Shapes: N examples, C channels, H height, W width.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clearn.errors import UserError
from clearn.images import Images
from clearn.preprocess import Preprocess
from clearn.store import ResidentStore, Store, StreamedStore


@dataclass(frozen=True)
class Source:
    """A data set before it is split into tasks.

    Attributes:
        name: What reports call it.
        train: Training examples.
        train_labels: int64 `[N]`, the data set's own numbers.
        test: Test examples.
        test_labels: As `train_labels`, with no class that is not in them.
        preprocess: Makes network inputs of the examples.
        class_names: By label, or None for the numbers themselves.
    """

    name: str
    train: Store
    train_labels: Tensor
    test: Store
    test_labels: Tensor
    preprocess: Preprocess
    class_names: tuple[str, ...] | None = None

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """The classes that occur, in order of their numbers."""
        return tuple(torch.unique(self.train_labels).tolist())

    def class_name(self, label: int) -> str:
        """The name of a class of the data set."""
        return str(label) if self.class_names is None else self.class_names[label]

    def __post_init__(self) -> None:
        for what, store, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            if not len(labels):
                raise UserError(f"{what}: has no examples; expected at least one")
            if len(store) != len(labels):
                raise UserError(
                    f"{what}: {len(labels)} labels do not go with {len(store)} examples"
                )
        if self.train.shape != self.test.shape or self.train.dtype != self.test.dtype:
            raise UserError(
                f"test: examples of shape {self.test.shape} and type {self.test.dtype} do not go "
                f"with {self.train.shape} and {self.train.dtype} in train"
            )
        strange = self.test_labels[~torch.isin(self.test_labels, self.train_labels)]
        if len(strange):
            raise UserError(
                f"test: label {int(strange[0])} is out of range: no training example has it"
            )
        if self.class_names is not None and len(self.class_names) <= max(self.classes):
            raise UserError(
                f"class_names: {len(self.class_names)} names do not go with label "
                f"{max(self.classes)}; expected one for each label from 0"
            )


def from_tensors(
    x: Any,
    y: Any,
    x_test: Any,
    y_test: Any,
    *,
    name: str,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] | None = None,
) -> Source:
    """A data set in memory; see `Stream.from_arrays` for what is accepted.

    Raises:
        UserError: An array has another type or shape, or holds a number that is not valid.
    """
    train_labels, test_labels = as_labels(y, "y"), as_labels(y_test, "y_test")
    train, test = as_examples(x, "x"), as_examples(x_test, "x_test")
    for what, examples, labels in (("y", train, train_labels), ("y_test", test, test_labels)):
        if len(examples) != len(labels):
            raise UserError(f"{what}: {len(labels)} labels do not go with {len(examples)} inputs")
    return Source(
        name=name,
        train=ResidentStore(train),
        train_labels=train_labels,
        test=ResidentStore(test),
        test_labels=test_labels,
        preprocess=preprocess or Preprocess((), ()),
        class_names=None if class_names is None else tuple(class_names),
    )


def as_examples(data: Any, name: str) -> Tensor:
    """Inputs as they are stored: uint8 or float32 `[N, ...]`, images with their channels first.

    Args:
        data: An array or tensor; not copied when it is uint8 or float32 already.
        name: What errors call it.

    Raises:
        UserError: The type or shape is not supported, or a number is not finite.
    """
    x = _tensor(data, name)
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise UserError(
            f"{name}: {x.dtype} is not valid: expected uint8 (0 to 255) or floats; convert it"
        )
    if x.ndim < 2:
        raise UserError(
            f"{name}: shape {tuple(x.shape)} is not valid: expected [N, C, H, W], [N, H, W] or "
            "[N, D]"
        )
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4:
        raise UserError(
            f"{name}: shape {tuple(x.shape)} has its channels last: expected [N, C, H, W]; move "
            "them with .permute(0, 3, 1, 2) (torch) or .transpose(0, 3, 1, 2) (NumPy)"
        )
    if x.dtype == torch.uint8:
        return x[:, None] if x.ndim == 3 else x
    x = x.to(torch.float32)
    bad = ~torch.isfinite(x.flatten(1)).all(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise UserError(f"{name}: row {row} holds a number that is not finite (NaN or infinite)")
    return x


def as_labels(data: Any, name: str) -> Tensor:
    """Labels as int64 `[N]`.

    Args:
        data: Integers.
        name: What errors call it.

    Raises:
        UserError: They are no integers, have another shape, or one is negative.
    """
    if _are_names(data):
        raise UserError(
            f"{name}: labels that are names are not valid: expected integers; number them with "
            "names, y = numpy.unique(y, return_inverse=True), those of the test with "
            "numpy.searchsorted(names, y_test), and give class_names=names"
        )
    y = _tensor(data, name)
    if y.dtype == torch.bool or y.is_floating_point() or y.is_complex() or y.ndim != 1:
        raise UserError(
            f"{name}: {y.dtype} of shape {tuple(y.shape)} is not valid: expected integer labels [N]"
        )
    y = y.to(torch.int64)
    if len(y) and int(y.min()) < 0:
        row = int((y < 0).nonzero()[0])
        raise UserError(f"{name}: label {int(y[row])} in row {row} is out of range: expected >= 0")
    return y


def _are_names(data: Any) -> bool:
    """Whether an array or sequence begins with a text."""
    if isinstance(data, Tensor):
        return False
    try:
        given = np.asarray(data)
    except ValueError:  # rows that differ in length
        return False
    return given.size > 0 and isinstance(given.flat[0], str)


def _tensor(data: Any, name: str) -> Tensor:
    """An array or sequence as a tensor that shares its memory where it can."""
    if isinstance(data, Tensor):
        return data.detach().cpu()
    try:
        with warnings.catch_warnings():
            # torch warns of arrays it could not write to, such as mapped files; we only read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.ascontiguousarray(data))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: is no array of numbers ({error})") from error


def pair_up(train: Any, test: Any, split: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """A list of training data sets and one for testing, task by task.

    Args:
        train: Of every task.
        test: Of every task.
        split: The options of the stream.

    Raises:
        UserError: The lists do not go together, or an option does not go with them.
    """
    unused = set(split) - {"scenario", "keep_tasks", "validation"}
    if unused:
        raise UserError(f"stream.{min(unused)}: does not go with a list of data sets")
    if not isinstance(test, list | tuple) or len(train) != len(test) or not train:
        count = len(test) if isinstance(test, list | tuple) else 1
        raise UserError(f"test: {count} data sets do not go with {len(train)} in train")
    return list(zip(train, test, strict=True))


def from_dataset(
    train: Any,
    test: Any,
    name: str,
    preprocess: Preprocess | None,
    class_names: Sequence[str] | None,
    budget_gib: float,
    workers: int,
) -> Source:
    """A pair of map-style torch data sets; see `Stream.from_dataset`."""
    stores = []
    for what, dataset in (("train", train), ("test", test)):
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise UserError(
                f"{what}: a {type(dataset).__name__} is not valid: expected a map-style data set"
            )
        stores.append(_open_dataset(dataset, what, budget_gib, workers))
    (train_store, train_labels), (test_store, test_labels) = stores
    return Source(
        name=name,
        train=train_store,
        train_labels=train_labels,
        test=test_store,
        test_labels=test_labels,
        preprocess=preprocess or Preprocess((), ()),
        class_names=None if class_names is None else tuple(class_names),
    )


def _open_dataset(dataset: Any, name: str, budget_gib: float, workers: int) -> tuple[Store, Tensor]:
    """A data set in memory; uint8 images beyond the budget are read whenever they are needed."""
    if not len(dataset):
        raise UserError(f"{name}: has no examples; expected at least one")
    inputs = _Inputs(dataset, name)
    first = inputs[0]
    if first.dtype != torch.uint8 or fits(len(dataset), first, budget_gib):
        check_budget(len(dataset), first, name, budget_gib)
        data, labels = decode((dataset[i] for i in range(len(dataset))), len(dataset), name)
        return ResidentStore(data), labels
    return StreamedStore(Images(inputs), workers=workers), _labels(dataset, f"{name}.targets")


def _labels(dataset: Any, name: str) -> Tensor:
    """The labels of the items, without reading these where the data set has a list."""
    listed = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if listed is None or getattr(dataset, "target_transform", None) is not None:
        listed = [operator.index(dataset[index][1]) for index in range(len(dataset))]
    return as_labels(listed, name)


def fits(count: int, first: Tensor, budget_gib: float) -> bool:
    """Whether `count` examples like `first` are within the budget."""
    size = count * first.numel() * first.element_size()
    return size <= budget_gib * 2**30


def check_budget(count: int, first: Tensor, name: str, budget_gib: float) -> None:
    """Refuse data that would not fit the budget.

    Raises:
        UserError: With the size.
    """
    if not fits(count, first, budget_gib):
        size = count * first.numel() * first.element_size() / 2**30
        raise UserError(
            f"budget_gib: {name} takes {size:.2f} GiB as {first.dtype}; allow as much, or give "
            "fewer or smaller examples"
        )


class _Inputs:
    """The inputs of a data set, as images to decode."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Tensor:
        item = self._dataset[index]
        try:
            image = item[0]
        except (TypeError, KeyError, IndexError) as error:
            raise _no_pair(self._name, index) from error
        return as_example(image, f"{self._name}[{index}]")

    def key(self) -> None:
        return None  # nobody knows what else a data set depends on


def _no_pair(name: str, index: int) -> UserError:
    """The error for an item of another form."""
    return UserError(f"{name}: item {index} is no pair of input and label")


def decode(items: Iterable[Any], count: int, name: str) -> tuple[Tensor, Tensor]:
    """Read items once: their inputs, uint8 or float32 `[N, ...]`, and labels, int64 `[N]`.

    Args:
        items: Sequences that begin with an input and its label.
        count: How many there are, >= 1.
        name: What errors call them.

    Raises:
        UserError: An item has another form, or its input another shape or type than the first.
    """
    data, labels = torch.empty(0), torch.empty(count, dtype=torch.int64)
    for index, item in enumerate(items):
        try:
            x, y = as_example(item[0], f"{name}[{index}]"), operator.index(item[1])
        except (TypeError, KeyError, IndexError) as error:
            raise _no_pair(name, index) from error
        if index == 0:
            data = torch.empty(count, *x.shape, dtype=x.dtype)
        if x.shape != data.shape[1:] or x.dtype != data.dtype:
            raise UserError(
                f"{name}: item {index} has shape {tuple(x.shape)} and type {x.dtype}, item 0 "
                f"{tuple(data.shape[1:])} and {data.dtype}; expected all alike"
            )
        data[index] = x
        labels[index] = y
    return data, as_labels(labels, name)


def as_example(item: Any, name: str) -> Tensor:
    """One input as it is stored: a PIL image as uint8 `[C, H, W]`, others as in `as_examples`."""
    if hasattr(item, "convert"):  # a PIL image, without importing PIL to ask
        image = item if item.mode in ("L", "RGB") else item.convert("RGB")
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return as_examples(_tensor(item, name)[None], name)[0]

"""CIFAR-100 by superclass, in both layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from clearn.datasets import SUPERCLASSES
from clearn.errors import UserError
from clearn.streams import CIFAR100Superclass
from tests.clearn.datasets.formats import write_cifar

# The superclass of every fine label, in order of the labels, as in the files of CIFAR-100.
COARSE = """
4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5
5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13
15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write_cifar(tmp_path, CIFAR100, 100, monkeypatch)
    return str(tmp_path)


def test_superclasses_are_those_of_the_coarse_labels() -> None:
    coarse = [int(number) for number in COARSE.split()]
    assert len(coarse) == 100
    for number, group in enumerate(SUPERCLASSES):
        assert list(group) == [fine for fine, label in enumerate(coarse) if label == number]


def test_a_superclass_is_a_task(root: str) -> None:
    stream = CIFAR100Superclass(root=root)
    assert (stream.name, stream.scenario, len(stream)) == ("CIFAR100Superclass", "task", 20)
    assert stream.original_classes == tuple(label for group in SUPERCLASSES for label in group)
    assert {len(task.classes) for task in stream} == {5}
    assert stream.preprocess.flip
    assert not CIFAR100Superclass(root=root, augment=False).preprocess.flip


def test_the_order_of_the_superclasses_is_drawn(root: str) -> None:
    def groups(**options: Any) -> list[tuple[int, ...]]:
        stream = CIFAR100Superclass(root=root, **options)
        original = stream.original_classes
        return [tuple(original[label] for label in task.classes) for task in stream]

    assert groups(order_seed=1) != groups(order_seed=2)
    assert sorted(groups(order_seed=1)) == sorted(SUPERCLASSES)
    assert groups(keep_tasks=3) == list(SUPERCLASSES[:3])


def test_layout_of_apd(root: str) -> None:
    """Rows of 3072 bytes, planes of colour, read as 32x32 pixels of 3."""
    stream = CIFAR100Superclass(root=root, layout="apd")
    data = CIFAR100(root, train=False)
    for task, group in zip(stream, SUPERCLASSES, strict=True):
        (batch,) = task.test.batches(99)
        rows = [row for row, label in enumerate(data.targets) if label in group]
        for seen, x, row in zip(batch.raw, batch.x, rows, strict=True):
            planes = data.data[row].transpose(2, 0, 1).reshape(3072)  # as in the file
            expected = planes.reshape(32, 32, 3).swapaxes(1, 2).swapaxes(0, 1)
            assert np.array_equal(seen.numpy(), expected)
            assert torch.allclose(x, torch.from_numpy(expected.copy()).float() / 255)
    assert (stream.preprocess.padding, stream.preprocess.flip) == (0, False)


def test_correct_layout(root: str) -> None:
    (batch,) = CIFAR100Superclass(root=root)[0].test.batches(99)
    data = CIFAR100(root, train=False)
    rows = [row for row, label in enumerate(data.targets) if label in SUPERCLASSES[0]]
    assert np.array_equal(batch.raw.permute(0, 2, 3, 1).numpy(), data.data[rows])
    assert float(batch.x.min()) < -1


def test_unknown_layout(root: str) -> None:
    with pytest.raises(UserError, match=r"stream.layout: 'x' is not valid: .* correct or apd"):
        CIFAR100Superclass(root=root, layout="x")

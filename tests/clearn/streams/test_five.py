"""Five data sets in a row, each in the genuine formats of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets as reference
from torchvision import transforms

from clearn import Run, Training, build_net
from clearn.errors import UserError
from clearn.examples import Examples
from clearn.store import MappedStore
from clearn.strategies import ER
from clearn.stream import Stream
from clearn.streams import FiveDatasets
from tests.clearn.datasets.formats import (
    save,
    write_cifar,
    write_mnist,
    write_not_mnist,
    write_svhn,
)

NAMES = ["CIFAR-10", "MNIST", "SVHN", "Fashion-MNIST", "notMNIST"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write_cifar(tmp_path, reference.CIFAR10, 10, monkeypatch)
    write_mnist(tmp_path, "MNIST", packed=False)
    write_svhn(tmp_path, monkeypatch)
    write_mnist(tmp_path, "FashionMNIST", packed=False)
    write_not_mnist(tmp_path / "notMNIST/Train", 3)
    write_not_mnist(tmp_path / "notMNIST/Test", 2)
    return str(tmp_path)


def published(name: str, root: Path, train: bool) -> tuple[torch.Tensor, list[int]]:
    """The images as torchvision and the published numbers make them, and their labels."""
    statistics: dict[str, Any] = {
        "CIFAR-10": (
            [v / 255 for v in (125.3, 123.0, 113.9)],
            [v / 255 for v in (63.0, 62.1, 66.7)],
        ),
        "MNIST": ((0.1,), (0.2752,)),
        "SVHN": ([0.4377, 0.4438, 0.4728], [0.198, 0.201, 0.197]),
        "Fashion-MNIST": ((0.2190,), (0.3318,)),
        "notMNIST": ((0.4254,), (0.4501,)),
    }
    pad = [] if name in ("CIFAR-10", "SVHN") else [transforms.Pad(2, fill=0)]
    make = transforms.Compose(
        [*pad, transforms.ToTensor(), transforms.Normalize(*statistics[name])]
    )
    if name == "CIFAR-10":
        data: Any = reference.CIFAR10(root, train=train, transform=make)
    elif name == "MNIST":
        data = reference.MNIST(root, train=train, transform=make)
    elif name == "SVHN":
        data = reference.SVHN(root / "SVHN", split="train" if train else "test", transform=make)
    elif name == "Fashion-MNIST":
        data = reference.FashionMNIST(root, train=train, transform=make)
    else:
        data = reference.ImageFolder(
            root / "notMNIST" / ("Train" if train else "Test"),
            make,
            loader=lambda path: Image.open(path).convert("L"),
            is_valid_file=lambda path: Path(path).stat().st_size > 0,
        )
    x, y = next(iter(DataLoader(data, batch_size=1000)))
    return x.expand(-1, 3, -1, -1), y.tolist()


def test_images_are_normalised_as_published(root: str) -> None:
    stream = FiveDatasets(root=root)
    assert len(stream) == 5
    assert (stream.name, stream.scenario, stream.num_classes) == ("FiveDatasets", "task", 50)
    assert stream.input_shape == (3, 32, 32)
    for index, (name, task) in enumerate(zip(NAMES, stream, strict=True)):
        assert task.classes == tuple(range(10 * index, 10 * index + 10))
        for train, examples in ((True, task.train), (False, task.test)):
            x, y = published(name, Path(root), train)
            (batch,) = examples.batches(1000, train=train)
            assert batch.x.dtype == torch.float32
            assert torch.allclose(batch.x, x, atol=1e-5)
            assert (batch.y - 10 * index).tolist() == y
    assert stream.class_names[0] == "CIFAR-10 class 0"
    assert stream.class_names[20] == "SVHN 0"
    assert stream.class_names[49] == "notMNIST J"


def test_what_is_stored_stays_uint8(root: str) -> None:
    for task in FiveDatasets(root=root):
        store: Any = task.train._sources[0][0]
        assert isinstance(store, MappedStore)
        inner: Any = store._store
        assert inner.dtype == torch.uint8
        assert inner.shape in ((1, 28, 28), (3, 28, 28), (3, 32, 32))


def test_order_and_number_of_tasks(root: str) -> None:
    def names(**options: Any) -> list[str]:
        stream = FiveDatasets(root=root, **options)
        return [
            stream.class_names[10 * k].rpartition(" ")[0].split(" ")[0] for k in range(len(stream))
        ]

    assert names() == NAMES
    assert names(keep_tasks=2) == NAMES[:2]
    assert sorted(names(order_seed=1)) == sorted(NAMES)
    assert {tuple(names(order_seed=seed)) for seed in range(4)} != {tuple(NAMES)}
    assert FiveDatasets(root=root, scenario="domain").num_classes == 10
    assert FiveDatasets(root=root, scenario="class").num_classes == 50
    validation = [task.validation for task in FiveDatasets(root=root, validation=0.5)]
    assert all(part is not None and len(part) for part in validation)
    with pytest.raises(UserError, match=r"stream.keep_tasks: 6 is not valid: expected 1 to 5"):
        names(keep_tasks=6)


def test_data_sets_that_are_not_kept_need_not_be_there(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST", packed=True)
    seed = next(seed for seed in range(99) if _first(tmp_path, seed) == "MNIST")
    assert FiveDatasets(root=str(tmp_path), order_seed=seed, keep_tasks=1).num_classes == 10


def _first(root: Path, seed: int) -> str:
    """The data set that comes first, by what is missing when it is not MNIST."""
    try:
        FiveDatasets(root=str(root), order_seed=seed, keep_tasks=1)
    except UserError as error:
        return str(error).split()[1]
    return "MNIST"


def test_tasks_together(root: str) -> None:
    stream = FiveDatasets(root=root)
    both = Examples.concat([stream[4].train, stream[0].train])
    order = torch.tensor([0, len(both) - 1, 1])
    (batch,) = both.batches(9, order=order)
    (first,) = stream[4].train.batches(2, order=torch.tensor([0, 1]))
    (last,) = stream[0].train.batches(1, order=torch.tensor([len(stream[0].train) - 1]))
    assert torch.equal(batch.x, torch.cat([first.x[:1], last.x, first.x[1:]]))
    assert batch.task_id.tolist() == [4, 0, 4]


def test_items_of_the_avalanche_benchmark(root: str) -> None:
    stream = FiveDatasets(root=root, keep_tasks=2)
    x, y, task_label = stream.benchmark.train_stream[1].dataset[0]
    (batch,) = stream[1].train.batches(1, order=torch.tensor([0]))
    assert torch.equal(x, batch.x[0])
    assert (y, task_label) == (int(batch.y[0]), 1)


def test_a_run_with_replay(root: str) -> None:
    stream: Stream = FiveDatasets(root=root, keep_tasks=2)
    strategy = ER(build_net("MLP", stream, seed=0), buffer_size=8)
    result = Run(strategy, stream, training=Training(batch_size=16)).fit()
    assert not np.isnan(result.matrix).any()


# notMNIST as it is packed


def test_a_tenth_of_the_small_set_is_for_testing(root: str) -> None:
    (Path(root) / "notMNIST").rename(Path(root) / "away")
    write_not_mnist(Path(root) / "notMNIST_small", 20)
    stream = FiveDatasets(root=root)
    train, test = stream[4].train, stream[4].test
    assert train.labels.bincount()[40:].tolist() == [18] * 10
    assert test.labels.bincount()[40:].tolist() == [2] * 10
    seen = [bytes(image.numpy()) for part in (train, test) for image in next(part.batches(999)).raw]
    assert len(set(seen)) == 200


# What is missing


@pytest.mark.parametrize(
    ("folder", "name", "file", "download"),
    [
        ("cifar-10-batches-py", "CIFAR-10", "data_batch_1", True),
        ("MNIST", "MNIST", "train-images-idx3-ubyte.gz", True),
        ("SVHN", "SVHN", "train_32x32.mat", True),
        ("FashionMNIST", "FashionMNIST", "train-images-idx3-ubyte.gz", True),
        ("notMNIST", "notMNIST", "Train", False),
    ],
)
def test_the_data_set_that_is_missing_is_named(
    folder: str, name: str, file: str, download: bool, root: str
) -> None:
    (Path(root) / folder).rename(Path(root) / "away")
    with pytest.raises(UserError, match=f"stream.root: {name} needs {file} in .*{folder}") as e:
        FiveDatasets(root=root)
    assert ("--stream.download true" in str(e.value)) == download


def test_a_damaged_house_number_file(root: str) -> None:
    with (Path(root) / "SVHN/test_32x32.mat").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"stream.root: the files in .*SVHN are damaged"):
        FiveDatasets(root=root)


def test_letters_of_another_size(root: str) -> None:
    folder = Path(root) / "notMNIST_small"
    (Path(root) / "notMNIST").rename(folder)
    for part in ("Train", "Test"):
        (folder / part).rename(folder.parent / part)
    for number, letter in enumerate("ABCDEFGHIJ"):
        for index in range(10):
            save(folder / letter / f"{index}.png", 10 * number + index, (64, 64))
    with pytest.raises(UserError, match=r"notMNIST are \(3, 64, 64\) .*expected 28 or 32 pixels"):
        FiveDatasets(root=root)


def test_a_letter_without_pictures(root: str) -> None:
    for path in (Path(root) / "notMNIST/Test/C").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"stream.root: .*Test/C holds no image"):
        FiveDatasets(root=root)

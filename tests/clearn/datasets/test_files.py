"""Data sets from files in their genuine formats, and what is said when a file is not there."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from clearn.datasets import data_root, digits, mnist, natural, photographs, resize, tiny_imagenet
from clearn.errors import UserError
from clearn.sources import Source
from clearn.streams import (
    SplitCIFAR10,
    SplitCIFAR100,
    SplitFMNIST,
    SplitImageNet,
    SplitMNIST,
    SplitOmniglot,
    SplitTinyImageNet,
)
from tests.clearn.datasets.formats import (
    decoded,
    write_cifar,
    write_imagenet,
    write_mnist,
    write_tiny,
)

CPU = torch.device("cpu")


def rows(store: Any) -> np.ndarray:
    return next(store.batches(torch.arange(len(store)), len(store), CPU)).numpy()


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CLEARN_DATA", raising=False)
    monkeypatch.setenv("CLEARN_CACHE", str(tmp_path))
    assert data_root() == tmp_path / "data"
    monkeypatch.setenv("CLEARN_DATA", str(tmp_path / "mine"))
    assert data_root() == tmp_path / "mine"
    assert data_root("~/x") == Path.home() / "x"


def test_digits_are_scikit_learns() -> None:
    source, bundled = digits(), load_digits()
    x = np.concatenate([rows(source.train), rows(source.test)])[:, 0]
    y = np.concatenate([source.train_labels, source.test_labels])
    expected = np.rint(bundled.images * 255 / 16)
    assert sorted(map(bytes, x)) == sorted(map(bytes, expected.astype(np.uint8)))
    for label in range(10):
        count = int((bundled.target == label).sum())
        assert int((y == label).sum()) == count
        assert int((source.test_labels == label).sum()) == int(count / 5 + 0.5)
        mine = {bytes(image) for image in x[y == label]}
        assert mine == {bytes(i) for i in expected[bundled.target == label].astype(np.uint8)}
    digest = hashlib.sha256(rows(source.test).tobytes()).hexdigest()[:16]
    assert digest == "285f8ce22399a042"  # must never change


def test_resize_against_pillow() -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8))
    assert resize(x, 28) is x
    assert resize(x, None) is x
    small = resize(x, 14)
    for one, image in zip(small, x, strict=True):
        expected = Image.fromarray(image[0].numpy()).resize((14, 14), Image.Resampling.BILINEAR)
        assert np.abs(one[0].numpy().astype(int) - np.array(expected)).max() <= 1
    with pytest.raises(UserError, match=r"stream.image_size: 0 is not valid"):
        resize(x, 0)


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (64, 8), (224, 28)])
def test_photographs_are_padded_by_an_eighth(size: int, padding: int) -> None:
    preprocess = natural((0.5,), (0.5,), size=size, augment=True)
    assert (preprocess.padding, preprocess.flip) == (padding, True)
    plain = natural((0.5,), (0.5,), size=size, augment=False)
    assert (plain.padding, plain.flip) == (0, False)


# IDX files


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "fashion"), [("MNIST", False), ("FashionMNIST", True)])
def test_idx_files(tmp_path: Path, name: str, fashion: bool, packed: bool) -> None:
    from torchvision import datasets as reference

    written = write_mnist(tmp_path, name, packed=packed)
    source = mnist(str(tmp_path), download=False, fashion=fashion)
    assert np.array_equal(rows(source.train)[:, 0], written["train-images-idx3"])
    assert np.array_equal(rows(source.test)[:, 0], written["t10k-images-idx3"])
    assert source.test_labels.tolist() == written["t10k-labels-idx1"].tolist()
    if not packed:  # torchvision reads them in this form
        theirs = getattr(reference, name)(tmp_path, train=True)
        assert torch.equal(theirs.data[:, None], torch.from_numpy(rows(source.train)))
        assert torch.equal(theirs.targets, source.train_labels)


def test_fashion_has_names(tmp_path: Path) -> None:
    write_mnist(tmp_path, "FashionMNIST", packed=True)
    stream = SplitFMNIST(root=str(tmp_path), num_tasks=5, class_order=[9, 0, 1, 2, 3])
    assert stream.class_names == ("Ankle boot", "T-shirt", "Trouser", "Pullover", "Dress")
    assert stream.name == "SplitFMNIST"


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\x01a", b"\0\0\x08\x01\0\0\0\x05abc"]
)
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_idx_file(tmp_path: Path, content: bytes, packed: bool) -> None:
    write_mnist(tmp_path, "MNIST", packed=False)
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    path.unlink()
    if packed:
        path = path.with_name(f"{path.name}.gz")
        content = gzip.compress(content)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"stream.root: {path} is damaged"):
        SplitMNIST(root=str(tmp_path))
    if packed:
        for broken in (b"no gzip", gzip.compress(bytes(100))[:10] + b"\xff" * 50):
            path.write_bytes(broken)
            with pytest.raises(UserError, match=f"stream.root: {path} cannot be read"):
                SplitMNIST(root=str(tmp_path))


# Pickles, checked first


@pytest.mark.parametrize(("classes", "builder"), [(10, SplitCIFAR10), (100, SplitCIFAR100)])
def test_cifar(classes: int, builder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets as reference

    kind = {10: reference.CIFAR10, 100: reference.CIFAR100}[classes]
    write_cifar(tmp_path, kind, classes, monkeypatch)
    stream = builder(root=str(tmp_path), num_tasks=5)
    theirs = kind(tmp_path, train=False)
    (batch,) = stream[1].test.batches(1000)
    keep = [row for row, label in enumerate(theirs.targets) if label in stream[1].classes]
    assert np.array_equal(batch.raw.permute(0, 2, 3, 1).numpy(), theirs.data[keep])
    assert batch.y.tolist() == [theirs.targets[row] for row in keep]
    assert stream.input_shape == (3, 32, 32)
    assert stream.class_names[1] == "class 1"
    assert (stream.preprocess.padding, stream.preprocess.flip) == (4, True)
    assert builder(root=str(tmp_path), augment=False, image_size=16).input_shape == (3, 16, 16)


def test_a_cifar_file_with_another_checksum_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    write_cifar(tmp_path, CIFAR10, 10, monkeypatch)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled")

    with (tmp_path / CIFAR10.base_folder / "data_batch_3").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(pickle, "load", refuse)
    with pytest.raises(UserError, match=r"stream.root: the files in .* are damaged"):
        SplitCIFAR10(root=str(tmp_path))


# Folders of pictures


def test_tiny_imagenet(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    stream = SplitTinyImageNet(root=str(tmp_path), num_tasks=3, workers=1)
    assert stream.class_names == ("tench", "goldfish", "n03")
    assert stream.input_shape == (3, 8, 8)
    for task, wnid in zip(stream, ("n01", "n02", "n03"), strict=True):
        (train,), (test,) = task.train.batches(9), task.test.batches(9)
        files = sorted((folder / f"train/{wnid}/images").iterdir())
        assert np.array_equal(train.raw.numpy(), np.stack([decoded(file) for file in files]))
        position = ["n03", "n01", "n02"].index(wnid)
        shown = [decoded(folder / f"val/images/val_{i}.JPEG") for i in (position, position + 3)]
        assert np.array_equal(test.raw.numpy(), np.stack(shown))


def test_beyond_the_budget_the_same_images_are_streamed(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    options = (str(tmp_path), False, 6, False)
    resident = tiny_imagenet(*options, budget_gib=1.0, workers=1)
    streamed = tiny_imagenet(*options, budget_gib=0.0, workers=0)
    assert type(resident.train) is not type(streamed.train)
    assert np.array_equal(rows(resident.train), rows(streamed.train))


@pytest.mark.parametrize("below", ["", "imagenet"])
def test_imagenet_folders(tmp_path: Path, below: str) -> None:
    write_imagenet(tmp_path / below)
    stream = SplitImageNet(root=str(tmp_path), num_tasks=2, image_size=16, workers=1)
    assert stream.input_shape == (3, 16, 16)
    assert stream.class_names == ("c0", "c1", "c2", "c3")
    assert [len(task.train) for task in stream] == [6, 6]
    assert stream.preprocess.padding == 2
    few = SplitImageNet(root=str(tmp_path), num_tasks=1, image_size=16, num_classes=3, workers=1)
    assert few.class_names == ("c0", "c1", "c2")


def test_imagenet_errors(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(UserError, match=r"ImageNet needs train in .*imagenet") as caught:
        SplitImageNet(root=root)
    assert "download" not in str(caught.value)
    write_imagenet(tmp_path)
    for number in (0, 5):
        with pytest.raises(UserError, match=f"stream.num_classes: {number} .* expected 1 to 4"):
            SplitImageNet(root=root, num_classes=number)
    for path in (tmp_path / "val/c2").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"stream.root: .*val/c2 holds no image"):
        SplitImageNet(root=root)
    (tmp_path / "val/c2").rmdir()
    with pytest.raises(UserError, match=r"stream.root: .*val/c2 cannot be read"):
        SplitImageNet(root=root)


# What is missing


@pytest.mark.parametrize(
    ("builder", "name", "file", "folder"),
    [
        (SplitMNIST, "MNIST", "train-images-idx3-ubyte.gz", "MNIST/raw"),
        (SplitFMNIST, "FashionMNIST", "train-images-idx3-ubyte.gz", "FashionMNIST/raw"),
        (SplitCIFAR10, "CIFAR-10", "data_batch_1", "cifar-10-batches-py"),
        (SplitCIFAR100, "CIFAR-100", "train", "cifar-100-python"),
        (SplitTinyImageNet, "Tiny-ImageNet", "train", "tiny-imagenet-200"),
    ],
)
def test_a_missing_file_is_named_with_the_ways_to_get_it(
    builder: Any, name: str, file: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARN_DATA", str(tmp_path))
    with pytest.raises(UserError) as caught:
        builder()
    message = str(caught.value)
    assert message.startswith(f"stream.root: {name} needs {file} in {tmp_path / folder},")
    assert "--stream.download true" in message
    assert "--stream.root or CLEARN_DATA" in message
    assert "\n" not in message


@pytest.mark.parametrize("builder", [SplitMNIST, SplitCIFAR10, SplitTinyImageNet, SplitOmniglot])
def test_a_download_that_fails_is_one_line(builder: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stream.download: .* downloading it failed") as caught:
        builder(root=str(tmp_path), download=True)  # the tests have no network
    assert "\n" not in str(caught.value)


def test_a_download_is_asked_for_once_and_only_when_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(root: Path) -> None:
        calls.append(root)
        write_tiny(root)

    monkeypatch.setattr(photographs, "download_tiny_imagenet", download)
    for _ in range(2):
        source = tiny_imagenet(str(tmp_path), True, None, False, 1.0, 1)
        assert isinstance(source, Source)
    assert calls == [tmp_path]

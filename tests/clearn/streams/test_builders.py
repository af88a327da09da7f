"""The builders: their signatures, what they build, and the data sets behind them."""

from __future__ import annotations

import hashlib
import inspect
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from sklearn.utils import shuffle
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from clearn import streams
from clearn.errors import UserError
from clearn.semi import Labels
from clearn.stream import Stream
from clearn.streams import (
    STREAMS,
    Options,
    PermutedMNIST,
    RotatedMNIST,
    SplitDigits,
    SplitMNIST,
    build_stream,
    registry,
    stream_builder,
    stream_names,
)
from clearn.streams.domains import PixelPermutation, Rotation

NAMES = [
    "SplitDigits",
    "SplitMNIST",
    "PermutedMNIST",
    "RotatedMNIST",
    "SplitFMNIST",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "SplitTinyImageNet",
    "SplitMiniImageNet",
    "SplitCUB200",
    "SplitImageNet",
    "CIFAR100Superclass",
    "SplitOmniglot",
    "OmniglotRotation",
    "FiveDatasets",
    "FewShotStream",
    "TextStream",
]


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A small MNIST: 60 training and 30 test images."""
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 30)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{data.ndim}I", 0, 0, 8, data.ndim, *data.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + data.tobytes())
    return str(tmp_path)


def raw(stream: Stream, part: str = "train") -> list[torch.Tensor]:
    return [next(getattr(task, part).batches(10_000)).raw for task in stream]


# Names and signatures


def test_every_stream_is_there_by_its_name() -> None:
    assert list(STREAMS) == NAMES
    assert stream_names()[: len(NAMES)] == NAMES
    for name, builder in STREAMS.items():
        assert getattr(streams, name) is builder is stream_builder(name)
        assert builder.__name__ == name


@pytest.mark.parametrize("name", NAMES)
def test_signature_and_docstring_are_the_options(name: str) -> None:
    builder = STREAMS[name]
    parameters = inspect.signature(builder).parameters
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert {"scenario", "order_seed", "keep_tasks", "validation"} <= set(parameters)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(builder, "stream")
    for parameter in parameters.values():
        assert f"\n    {parameter.name}: " in (builder.__doc__ or "")
        (action,) = (a for a in parser._actions if a.dest == f"stream.{parameter.name}")
        assert action.help
        assert action.help[0].isupper() or action.help.startswith("classes:")
    defaults = parser.get_defaults().stream.as_dict()
    assert defaults == {p.name: p.default for p in parameters.values()}


@pytest.mark.parametrize(
    ("name", "with_", "without"),
    [
        ("SplitDigits", ["classes", "split"], ["root", "download", "augment", "workers"]),
        ("SplitMNIST", ["root", "download"], ["augment", "budget_gib"]),
        ("PermutedMNIST", ["root"], ["classes", "class_order", "split", "augment"]),
        ("RotatedMNIST", ["angles"], ["classes", "class_order", "split"]),
        ("SplitCIFAR10", ["augment", "download"], ["workers"]),
        ("SplitTinyImageNet", ["augment", "download", "budget_gib", "workers"], ["angles"]),
        ("SplitMiniImageNet", ["augment", "budget_gib", "workers"], ["download", "angles"]),
        ("SplitCUB200", ["augment", "budget_gib", "workers"], ["download", "num_classes"]),
        ("SplitImageNet", ["num_classes", "augment", "budget_gib", "workers"], ["download"]),
        ("TextStream", ["root", "tokenizer"], ["num_tasks", "download", "augment", "workers"]),
    ],
)
def test_options_that_a_stream_has_and_has_not(
    name: str, with_: list[str], without: list[str]
) -> None:
    parameters = inspect.signature(STREAMS[name]).parameters
    assert not set(with_) - set(parameters)
    assert not set(without) & set(parameters)


def test_defaults() -> None:
    found: dict[str, tuple[Any, ...]] = {}
    for name, builder in STREAMS.items():
        parameters = inspect.signature(builder).parameters
        options = ("num_tasks", "scenario")
        found[name] = tuple(parameters[o].default for o in options if o in parameters)
    assert found == {
        "SplitDigits": (5, "class"),
        "SplitMNIST": (5, "class"),
        "PermutedMNIST": (10, "domain"),
        "RotatedMNIST": (10, "domain"),
        "SplitFMNIST": (5, "class"),
        "SplitCIFAR10": (5, "class"),
        "SplitCIFAR100": (10, "class"),
        "SplitTinyImageNet": (10, "class"),
        "SplitMiniImageNet": (20, "class"),
        "SplitCUB200": (20, "class"),
        "SplitImageNet": (10, "class"),
        "CIFAR100Superclass": ("task",),
        "SplitOmniglot": (None, "class"),
        "OmniglotRotation": (100, "task"),
        "FiveDatasets": ("task",),
        "FewShotStream": ("class",),
        "TextStream": ("task",),
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_has_the_options_of_few_labels(name: str) -> None:
    parameters = list(inspect.signature(STREAMS[name]).parameters)
    place = parameters.index("validation") + 1
    assert parameters[place : place + 7] == [
        "labels_per_class",
        "label_share",
        "label_file",
        "label_seed",
        "pool",
        "pool_decay",
        "pool_least",
    ]
    with pytest.raises(UserError, match=r"stream.labels_per_class: 0 is not valid"):
        build_stream(name, labels_per_class=0)  # before any data is looked for
    with pytest.raises(UserError, match=r"stream.label_seed: does not go with a stream whose"):
        build_stream(name, label_seed=1)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"stream: 'SplitMinst' .* did you mean SplitMNIST"):
        build_stream("SplitMinst")
    with pytest.raises(UserError, match=r"SplitDigits .*'num_task' .* did you mean num_tasks"):
        build_stream("SplitDigits", num_task=3)
    with pytest.raises(UserError, match="'root' is unknown"):
        SplitDigits(root="x")


def test_streams_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def third_party(*, size: int = 2) -> Stream:
        x, y = np.zeros((2 * size, 3)), np.arange(2).repeat(size)
        return Stream.from_arrays(x, y, x, y, num_tasks=2)

    class Point:
        name = "Theirs"

        def load(self) -> Callable[..., Stream]:
            return third_party

    def points(group: str, name: str = "Theirs") -> list[Point]:
        return [Point()] if (group, name) == ("clearn.streams", "Theirs") else []

    monkeypatch.setattr(registry.metadata, "entry_points", points)
    assert stream_names() == [*NAMES, "Theirs"]
    assert len(build_stream("Theirs", size=5)[0].train) == 5
    with pytest.raises(UserError, match="did you mean Theirs"):
        build_stream("theirs")


# Digits and MNIST


def test_split_digits() -> None:
    stream = SplitDigits()
    assert [task.classes for task in stream] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert (stream.name, stream.input_shape, stream.num_classes) == ("SplitDigits", (1, 8, 8), 10)
    assert sum(len(task.train) + len(task.test) for task in stream) == 1797
    assert stream[0].train.dtype == torch.uint8
    (batch,) = stream[0].train.batches(1000)
    assert (float(batch.x.min()), float(batch.x.max())) == (0.0, 1.0)


def test_an_uneven_split_gives_the_first_tasks_more() -> None:
    stream = SplitDigits(num_tasks=3, keep_tasks=3, validation=0.1)
    assert [task.classes for task in stream] == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert all(task.validation is not None for task in stream)


def test_few_labels() -> None:
    options: dict[str, Any] = {"num_tasks": 5, "order_seed": 2, "validation": 0.1}
    few = {"labels_per_class": 4, "label_seed": 1, "pool": "rest", "pool_decay": "linear"}
    stream = SplitDigits(**options, **few)
    expected = SplitDigits(**options).semi_supervised(Labels(**few))  # type: ignore[arg-type]
    for task, same in zip(stream, expected, strict=True):
        assert len(task.train) == 8
        assert task.unlabelled is not None
        assert same.unlabelled is not None
        assert torch.equal(task.train.rows, same.train.rows)
        assert torch.equal(task.unlabelled.rows, same.unlabelled.rows)
    assert "unlabelled" in stream.benchmark.streams
    assert all(task.unlabelled is None for task in SplitDigits(**options, label_seed=None))


def test_few_labels_of_images_that_are_permuted(root: str) -> None:
    stream = PermutedMNIST(root=root, num_tasks=2, labels_per_class=2)
    for task, before in zip(stream, PermutedMNIST(root=root, num_tasks=2), strict=True):
        assert task.unlabelled is not None
        (seen,), (expected,) = task.unlabelled.batches(100), before.train.batches(100)
        assert torch.equal(seen.raw, expected.raw)
        assert seen.y.tolist() == [-1] * 60
        assert len(task.train) == 20
    assert not torch.equal(stream[0].train.rows, stream[1].train.rows)


def test_few_labels_by_a_builder_of_ones_own() -> None:
    @streams.builder("num_tasks", labels_per_class=3, num_tasks=5)
    def Few(options: Options) -> Stream:
        """Few digits."""
        return SplitDigits(num_tasks=options.num_tasks)

    assert [len(task.train) for task in Few()] == [6] * 5
    assert [len(task.train) for task in Few(labels_per_class=2, num_tasks=2)] == [10] * 2
    assert list(inspect.signature(Few).parameters)[:2] == ["num_tasks", "labels_per_class"]


def test_classes_win_over_the_default_number_of_tasks() -> None:
    stream = SplitDigits(classes=[[7], [1, 8]])
    assert stream.original_classes == (7, 1, 8)
    assert stream.class_names == ("7", "1", "8")


def test_builders_use_their_own_seeds_alone(root: str) -> None:
    for builder in (PermutedMNIST, RotatedMNIST):
        torch.manual_seed(1)
        np.random.seed(1)
        first = raw(builder(root=root, num_tasks=3, order_seed=5, validation=0.2))
        state = torch.get_rng_state()
        torch.manual_seed(2)
        np.random.seed(2)
        second = raw(builder(root=root, num_tasks=3, order_seed=5, validation=0.2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        torch.manual_seed(1)
        assert torch.equal(state, torch.get_rng_state())


def test_image_size(root: str) -> None:
    assert SplitMNIST(root=root, image_size=32).input_shape == (1, 32, 32)
    assert PermutedMNIST(root=root, image_size=14, num_tasks=2).input_shape == (1, 14, 14)


# Permutations


def test_permutations_move_the_pixels_of_train_and_test_alike(root: str) -> None:
    stream = PermutedMNIST(root=root, num_tasks=4)
    plain = SplitMNIST(root=root, num_tasks=1)
    assert stream.name == "PermutedMNIST"
    assert [task.classes for task in stream] == [tuple(range(10))] * 4
    orders = []
    for part in ("train", "test"):
        (expected,) = raw(plain, part)
        for index, seen in enumerate(raw(stream, part)):
            if index == 0:
                assert torch.equal(seen, expected)
                continue
            transform = stream[index].train._sources[0][1]
            assert isinstance(transform, PixelPermutation)
            order = transform.order.numpy()
            assert sorted(order) == list(range(784))
            for before, after in zip(expected.numpy(), seen.numpy(), strict=True):
                assert np.array_equal(after.ravel(), before.ravel()[order])
            orders.append(order)
    assert all(np.array_equal(a, b) for a, b in zip(orders[:3], orders[3:], strict=True))
    assert len({order.tobytes() for order in orders}) == 3
    digest = hashlib.sha256(orders[0].astype(np.int64).tobytes()).hexdigest()[:16]
    assert digest == "57473cc9083682d9"  # must never change


def test_permutations_do_not_depend_on_the_number_of_tasks_but_on_the_seed(root: str) -> None:
    few, many = (
        raw(PermutedMNIST(root=root, num_tasks=2)),
        raw(PermutedMNIST(root=root, num_tasks=5)),
    )
    assert torch.equal(few[1], many[1])
    assert torch.equal(few[1], raw(PermutedMNIST(root=root, num_tasks=2, order_seed=0))[1])
    assert not torch.equal(few[1], raw(PermutedMNIST(root=root, num_tasks=2, order_seed=1))[1])


@pytest.mark.parametrize("seed", [None, 0, 3])
def test_permutations_of_wsn(root: str, seed: int | None) -> None:
    """`shuffle(image, random_state=r * 100 + i)` over `enumerate(shuffle(range(T), seed))`."""
    options: dict[str, Any] = {"root": root, "num_tasks": 10, "order_seed": seed}
    stream = PermutedMNIST(permutations="wsn", scenario="task", **options)
    (plain,) = raw(SplitMNIST(root=root, num_tasks=1), "test")
    numbers = np.arange(10)
    if seed is not None:
        numbers = shuffle(numbers, random_state=seed)
    assert (numbers.tolist() == list(range(10))) == (seed is None)
    for place, seen in enumerate(raw(stream, "test")):
        state = int(numbers[place]) * 100 + place
        for before, after in zip(plain.numpy(), seen.numpy(), strict=True):
            assert np.array_equal(after.ravel(), shuffle(before.ravel(), random_state=state))
    assert [task.classes[0] for task in stream] == list(range(0, 100, 10))
    assert stream.num_classes == 100


def test_unknown_permutations(root: str) -> None:
    with pytest.raises(UserError, match=r"stream.permutations: 'x' is not valid: .*clearn or wsn"):
        PermutedMNIST(root=root, permutations="x")


def test_tasks_of_permuted_mnist_share_one_store(root: str) -> None:
    stream = PermutedMNIST(root=root, num_tasks=6, scenario="task", keep_tasks=4)
    assert len({id(task.train._sources[0][0]) for task in stream}) == 1
    assert stream[3].classes == tuple(range(30, 40))
    assert stream.num_classes == 40
    assert stream.original_classes == tuple(range(10)) * 4


def test_a_permutation_works_per_channel_and_whatever_the_batch() -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    images = torch.arange(5 * 2 * 12, dtype=torch.uint8).view(5, 2, 3, 4)
    seen = PixelPermutation(order)(images)
    for n in range(5):
        for c in range(2):
            assert torch.equal(seen[n, c].flatten(), images[n, c].flatten()[order])


# Rotations


def test_rotations_equal_torchvisions_one_by_one(root: str) -> None:
    angles = [0.0, 30.0, 90.0, -45.0, 360.0]
    stream = RotatedMNIST(root=root, angles=angles, num_tasks=3)
    assert (stream.name, len(stream)) == ("RotatedMNIST", 5)
    (plain,) = raw(SplitMNIST(root=root, num_tasks=1), "test")
    for angle, seen in zip(angles, raw(stream, "test"), strict=True):
        assert seen.dtype == torch.uint8
        for before, after in zip(plain, seen, strict=True):
            expected = rotate(before, angle, InterpolationMode.BILINEAR)
            assert (after.int() - expected.int()).abs().max() <= 1


def test_a_right_angle_is_exact_and_counter_clockwise() -> None:
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    turned = Rotation(90.0)(images)
    expected = torch.from_numpy(np.rot90(images.numpy(), axes=(2, 3)).copy())
    assert (turned.int() - expected.int()).abs().max() <= 1


def test_angles_are_spread_over_half_a_turn_and_shuffled_by_the_seed(root: str) -> None:
    def angles(**options: Any) -> list[float]:
        stream = RotatedMNIST(root=root, num_tasks=6, **options)
        found = [task.train._sources[0][1] for task in stream]
        return [0.0 if turn is None else turn.angle for turn in found]

    assert angles() == [0, 30, 60, 90, 120, 150]
    assert sorted(angles(order_seed=1)) == angles()
    assert angles(order_seed=1) == angles(order_seed=1) != angles(order_seed=2)


@pytest.mark.parametrize("builder", [PermutedMNIST, RotatedMNIST])
def test_the_number_of_tasks_is_needed(builder: Any, root: str) -> None:
    with pytest.raises(UserError, match=r"stream.num_tasks: null is not valid"):
        builder(root=root, num_tasks=None)


def test_no_angles_is_an_error(root: str) -> None:
    with pytest.raises(UserError, match=r"stream.angles: \[\] is not valid"):
        RotatedMNIST(root=root, angles=[])


# Real files


def test_real_mnist(data_root: Path) -> None:
    if not (data_root / "MNIST").is_dir():
        pytest.skip("no MNIST in $CLEARN_DATA")
    stream = SplitMNIST(root=str(data_root))
    assert [len(task.train) for task in stream] == [12665, 12089, 11263, 12183, 11800]
    assert [len(task.test) for task in stream] == [2115, 2042, 1874, 1986, 1983]
    x = torch.cat([batch.x for task in stream for batch in task.train.batches(20_000)])
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3


def test_real_tiny_imagenet(data_root: Path) -> None:
    folder = data_root / "tiny-imagenet-200"
    if not folder.is_dir():
        pytest.skip("no Tiny-ImageNet in $CLEARN_DATA")
    # Streamed: this test reads a few images, and would not decode them all.
    stream = build_stream("SplitTinyImageNet", root=str(data_root), budget_gib=0.0, workers=0)
    assert [len(task.train) for task in stream] == [10_000] * 10
    assert [len(task.test) for task in stream] == [1_000] * 10
    assert (stream.input_shape, stream.num_classes) == ((3, 64, 64), 200)
    assert stream.class_names[0] == "goldfish"

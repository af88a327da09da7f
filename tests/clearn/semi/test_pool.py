"""The pool of unlabelled examples, in Avalanche too, and options that are not valid."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.semi import UNKNOWN, Labels, read_labels
from clearn.stream import Stream
from tests.clearn.semi.few import (
    CLASSES,
    PER_CLASS,
    arrays,
    content,
    make,
    members,
    plain,
    sizes,
)


@pytest.mark.parametrize("labelled", [1, 4])
@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize(
    ("decay", "space"), [("linear", np.linspace), ("long-tailed", np.geomspace)]
)
def test_a_pool_falls_over_the_classes_of_each_task(
    decay: str, space: Callable[..., Any], rest: bool, labelled: int
) -> None:
    x, y = arrays(50)
    stream = Stream.from_arrays(x, y, x, y, num_tasks=2, class_order=[5, 4, 3, 0, 1, 2])
    options = {"labels_per_class": labelled, "pool": "rest" if rest else "all"}
    whole = stream.semi_supervised(Labels(**options))
    stream = stream.semi_supervised(Labels(**options, pool_decay=decay, pool_least=2))
    most = 50 - labelled if rest else 50
    expected = [int(round(float(count), 9) + 0.5) for count in space(most, 2, 3)]
    for task, full in zip(stream, whole, strict=True):
        found, known, everything = map(members, (task.unlabelled, task.train, full.unlabelled))
        assert known == members(full.train)
        order = [stream.original_classes[label] for label in task.classes]
        assert [len(found[label]) for label in order] == expected
        for label in order:
            assert found[label] <= everything[label]
            if not rest:  # what is labelled is the last to leave
                assert found[label] <= known[label] or known[label] <= found[label]


def test_a_linear_pool_of_the_paper() -> None:
    """`linspace(500, 5, 10)`, with all ten classes in a task."""
    y = np.arange(10).repeat(500)
    x = y[:, None].astype(np.float32)
    stream = Stream.from_arrays(x, y, x, y, num_tasks=1)
    stream = stream.semi_supervised(Labels(labels_per_class=4, pool_decay="linear"))
    counts = content(stream[0].unlabelled).raw.flatten().long().bincount()
    assert counts.tolist() == [500, 445, 390, 335, 280, 225, 170, 115, 60, 5]


def test_the_only_class_of_a_task_keeps_its_pool() -> None:
    stream = make({"labels_per_class": 1, "pool_decay": "linear", "pool_least": 99}, num_tasks=6)
    assert [sizes(task.unlabelled) for task in stream] == [[PER_CLASS]] * 6


def test_each_class_falls_from_its_own_size() -> None:
    y = np.repeat(np.arange(3), (20, 9, 30))
    x = np.stack([y, np.arange(59)], axis=1).astype(np.float32)
    stream = Stream.from_arrays(x, y, x, y, num_tasks=1)
    stream = stream.semi_supervised(Labels(labels_per_class=1, pool_decay="linear", pool_least=5))
    assert sizes(stream[0].unlabelled) == [20, 7, 5]


# Avalanche


def test_the_benchmark_has_a_stream_of_unlabelled_examples() -> None:
    stream = make({"labels_per_class": 2}, scenario="task", validation=0.1)
    assert set(stream.benchmark.streams) == {"train", "test", "valid", "unlabelled"}
    for task, experience in zip(stream, stream.benchmark.unlabelled_stream, strict=True):
        batch = content(task.unlabelled)
        assert set(experience.dataset.targets) == {UNKNOWN}
        assert experience.classes_in_this_experience == [UNKNOWN]
        assert experience.task_label == task.index
        items = list(experience.dataset)
        assert torch.equal(torch.stack([x for x, _, _ in items]), batch.x)
        assert {(y, t) for _, y, t in items} == {(UNKNOWN, task.index)}
    for task, experience in zip(stream, stream.benchmark.train_stream, strict=True):
        assert list(experience.dataset.targets) == task.train.labels.tolist()
    assert "unlabelled" not in plain().benchmark.streams


def test_unlabelled_items_are_augmented() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    y = np.arange(40) % 4
    preprocess = Preprocess((), (), padding=1, flip=True)
    stream = Stream.from_arrays(images, y, images, y, num_tasks=2, preprocess=preprocess)
    stream = stream.semi_supervised(Labels(labels_per_class=2))
    torch.manual_seed(0)
    dataset = stream.benchmark.unlabelled_stream[0].dataset
    assert len({dataset[0][0].numpy().tobytes() for _ in range(50)}) > 10


@pytest.mark.filterwarnings("ignore:No loggers specified")
def test_an_avalanche_strategy_learns_the_labelled_examples() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from avalanche.training.supervised import Naive as Theirs
    stream = make({"labels_per_class": 4})
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    strategy = Theirs(
        model=net,
        optimizer=torch.optim.Adam(net.parameters(), lr=0.03),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=6,
        train_epochs=60,
        evaluator=None,
    )
    strategy.train(stream.benchmark.train_stream[0])
    batch = content(stream[0].test)
    with torch.no_grad():
        assert (net(batch.x).argmax(1) == batch.y).float().mean() > 0.9


def test_a_stream_of_a_benchmark_gets_another_one() -> None:
    theirs = plain().benchmark
    before = Stream.from_avalanche(theirs, scenario="class")
    stream = before.semi_supervised(Labels(labels_per_class=3))
    assert before.benchmark is theirs
    assert [len(e.dataset) for e in stream.benchmark.train_stream] == [9, 9]
    assert [len(e.dataset) for e in stream.benchmark.unlabelled_stream] == [30, 30]
    for task in stream:
        batch = content(task.train)
        assert torch.equal(batch.y, batch.raw[:, 0].long())


# Options that are not valid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"labels_per_class: none of labels_per_class, label_share, label_file are given"),
        (
            {"labels_per_class": 1, "label_share": 0.5},
            r"stream.labels_per_class and stream.label_share of .* are given; expected exactly one",
        ),
        ({"labels_per_class": 0}, r"stream.labels_per_class: 0 is not valid: .* >= 1"),
        ({"label_share": 0.0}, r"stream.label_share: 0.0 is not valid: .*\(0, 1\]"),
        ({"label_share": 1.1}, r"stream.label_share: 1.1 is not valid"),
        ({"labels_per_class": 1, "pool": "most"}, r"stream.pool: 'most' is not .*: .*all or rest"),
        (
            {"labels_per_class": 1, "pool_decay": "fast"},
            r"stream.pool_decay: 'fast' is not valid: expected none or linear or long-tailed",
        ),
        ({"labels_per_class": 1, "pool_least": 0}, r"stream.pool_least: 0 is not valid: .* >= 1"),
        (
            {"labels_per_class": 11},
            r"stream.labels_per_class: 11 .* 1 to 10, the training examples of class 0 \(0\) of ",
        ),
        (
            {"labels_per_class": 10, "pool": "rest"},
            r"stream.pool: 'rest' leaves task 0 without unlabelled examples: all 30 are labelled",
        ),
        (
            {"labels_per_class": 8, "pool": "rest", "pool_decay": "linear"},
            r"stream.pool_least: 5 .* 1 to 2, the unlabelled examples of class 0 \(0\) of task 0",
        ),
        (
            {"labels_per_class": 1, "pool_decay": "long-tailed", "pool_least": 11},
            r"stream.pool_least: 11 .* 1 to 10, the unlabelled examples of class 0",
        ),
    ],
)
def test_options_that_are_not_valid(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(options)


def test_a_class_that_is_too_small_is_named() -> None:
    y = np.repeat(np.arange(4), (9, 9, 9, 3))
    x = y[:, None].astype(np.float32)
    stream = Stream.from_arrays(x, y, x, y, num_tasks=2, class_names=["a", "b", "c", "d"])
    with pytest.raises(
        UserError, match=r"1 to 3, the training examples of class 3 \(d\) of task 1"
    ):
        stream.semi_supervised(Labels(labels_per_class=4))


def test_a_semi_supervised_stream_is_not_made_so_again() -> None:
    stream = make({"labels_per_class": 4})
    with pytest.raises(UserError, match="stream: arrays is semi-supervised already"):
        stream.semi_supervised(Labels(labels_per_class=2))


def test_options_without_an_amount_of_labels() -> None:
    defaults = {"labels_per_class": None, "label_seed": None, "pool": "all", "pool_decay": "none"}
    assert read_labels({}) is None
    assert read_labels({**defaults, "label_file": None, "pool_least": 5}) is None
    assert read_labels({**defaults, "label_share": 0.5}) == Labels(label_share=0.5)
    for name, value in (
        ("label_seed", 1),
        ("pool", "rest"),
        ("pool_decay", "linear"),
        ("pool_least", 4),
    ):
        with pytest.raises(UserError, match=rf"stream.{name}: does not go with a stream whose"):
            read_labels({**defaults, name: value})

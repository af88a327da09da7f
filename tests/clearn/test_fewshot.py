"""Few-shot tasks against a slow, obvious version, and on real digits."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearn import Run, Training, build_net
from clearn.datasets import digits
from clearn.errors import UserError
from clearn.fewshot import FewShot, few_shot, read_split
from clearn.preprocess import Preprocess
from clearn.sources import Source
from clearn.split import Split, draws
from clearn.store import ResidentStore
from clearn.strategies import Naive
from clearn.stream import Stream


def source(train: list[int], test: list[int]) -> Source:
    return Source(
        name="numbers",
        train=ResidentStore(torch.zeros(len(train), 1)),
        train_labels=torch.tensor(train),
        test=ResidentStore(torch.zeros(len(test), 1)),
        test_labels=torch.tensor(test),
        preprocess=Preprocess((), ()),
    )


def slow_tasks(
    train: list[int], test: list[int], order: list[int], base: int, ways: int, shots: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """Training and test rows of each task, read off the definition."""
    groups = [order[:base]]
    while sum(map(len, groups)) < len(order):
        start = sum(map(len, groups))
        groups.append(order[start : start + ways])
    tasks = []
    for number, group in enumerate(groups):
        if number == 0:
            rows = [row for row, label in enumerate(train) if label in group]
        else:
            rows = []
            for label in group:
                mine = [row for row, known in enumerate(train) if known == label]
                chosen = draws(seed, "shots", label).permutation(len(mine))
                rows += [mine[int(place)] for place in chosen[:shots]]
        tasks.append((rows, [row for row, label in enumerate(test) if label in group]))
    return tasks


@st.composite
def problems(draw: Any) -> tuple[list[int], list[int], list[int], int, int, int, int]:
    classes = draw(st.lists(st.integers(0, 30), min_size=1, max_size=9, unique=True))
    shots = draw(st.integers(1, 3))
    extra = draw(st.lists(st.sampled_from(classes), max_size=20))
    train = draw(st.permutations(classes * shots + extra))
    test = draw(st.permutations(classes + draw(st.lists(st.sampled_from(classes), max_size=9))))
    base = draw(st.integers(1, len(classes)))
    left = len(classes) - base
    ways = draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0] or [1, 7]))
    order = draw(st.permutations(classes))
    return train, test, order, base, ways, shots, draw(st.integers(0, 99))


@given(problems())
def test_tasks_are_the_definition(
    problem: tuple[list[int], list[int], list[int], int, int, int, int],
) -> None:
    train, test, order, base, ways, shots, seed = problem
    split = FewShot(base_classes=base, ways=ways, shots=shots, shot_seed=seed, class_order=order)
    parts = few_shot(source(train, test), split)
    assert [label for part in parts for label in part.classes] == order
    assert [(p.train.tolist(), p.test.tolist()) for p in parts] == slow_tasks(*problem)


def test_the_shots_of_a_class_depend_on_the_seed_alone_and_fewer_are_among_more() -> None:
    data = digits()

    def drawn(**options: Any) -> dict[int, list[int]]:
        split = FewShot(**{"base_classes": 4, "ways": 2, "shots": 5} | options)
        rows: dict[int, list[int]] = {}
        for part in few_shot(data, split)[1:]:
            for label in part.classes:
                rows[label] = [r for r in part.train.tolist() if data.train_labels[r] == label]
        return rows

    first = drawn()
    assert {label: len(rows) for label, rows in first.items()} == dict.fromkeys(range(4, 10), 5)
    other = drawn(ways=3, order_seed=1)
    assert all(first[label] == other[label] for label in first.keys() & other.keys())
    fewer = drawn(shots=2)
    assert all(fewer[label] == rows[:2] for label, rows in first.items())
    assert drawn(shot_seed=1) != first
    digest = hashlib.sha256(np.array(list(first.values())).tobytes()).hexdigest()[:16]
    assert digest == "70f8e4e664fb298f"  # must never change


# Streams


def few_digits(**options: Any) -> Stream:
    data = digits()
    x, x_test = (
        next(store.batches(torch.arange(len(store)), len(store), torch.device("cpu")))
        for store in (data.train, data.test)
    )
    options = {"base_classes": 4, "ways": 2, "shots": 5} | options
    return Stream.from_arrays(x, data.train_labels, x_test, data.test_labels, **options)


def test_few_shot_arrays() -> None:
    stream = few_digits()
    assert [task.classes for task in stream] == [(0, 1, 2, 3), (4, 5), (6, 7), (8, 9)]
    assert [len(task.train) for task in stream] == [576, 10, 10, 10]
    assert sum(len(task.test) for task in stream) == len(digits().test_labels)
    assert stream.scenario == "class"
    assert stream.num_classes == 10
    assert stream[1].train.labels.tolist() == [4] * 5 + [5] * 5


def test_order_keep_tasks_and_validation() -> None:
    stream = few_digits(class_order=[9, 8, 7, 6, 5, 4], base_classes=2, keep_tasks=2)
    assert stream.original_classes == (9, 8, 7, 6)
    assert few_digits(order_seed=3).original_classes != tuple(range(10))
    stream = few_digits(validation=0.2)
    validation = [task.validation for task in stream]
    assert [len(part) for part in validation if part is not None] == [114, 2, 2, 2]
    assert [len(task.train) for task in stream] == [462, 8, 8, 8]
    assert few_digits(scenario="task").scenario == "task"
    assert len(few_digits(base_classes=10)) == 1


def test_a_run_over_few_shot_sessions(tmp_path: Any) -> None:
    stream = few_digits(keep_tasks=2)
    net = build_net("MLP", stream, seed=0)
    result = Run(Naive(net), stream, training=Training(batch_size=25), folder=tmp_path / "r").fit()
    assert result.matrix.shape == (2, 2)
    assert not np.isnan(result.matrix).any()


def test_data_sets_take_the_same_options() -> None:
    class Data:
        def __init__(self, rows: int) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return self.rows

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.full((1, 2, 2), index, dtype=torch.uint8), index % 4

    stream = Stream.from_dataset(Data(40), Data(8), base_classes=2, ways=1, shots=3)
    assert [len(task.train) for task in stream] == [20, 3, 3]


# What is not valid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_classes": 0}, r"stream.base_classes: 0 is not valid: expected a number >= 1"),
        ({"base_classes": 11}, r"stream.base_classes: 11 is not valid: expected 1 to 10"),
        ({"ways": 0}, r"stream.ways: 0 is not valid"),
        ({"ways": 4}, r"stream.ways: 4 is not valid: expected a divisor of 6"),
        ({"shots": 0}, r"stream.shots: 0 is not valid"),
        ({"shots": 999}, r"stream.shots: 999 .*expected 1 to \d+, the training rows of class 4"),
        ({"num_tasks": 3}, r"stream.num_tasks: does not go with stream.shots"),
        ({"train_share": 0.5}, r"stream.train_share: does not go with stream.shots; set that"),
        ({"classes": [[1], [2]]}, r"stream.classes: does not go with stream.shots"),
        ({"scenario": "domain"}, r"stream.scenario: 'domain' is not valid"),
        ({"scenario": "domain", "split": "instances"}, r"stream.split: 'instances' is not valid"),
        ({"class_order": [1, 1]}, r"stream.class_order: class 1 is given more than once"),
        ({"keep_tasks": 5}, r"stream.keep_tasks: 5 is not valid: expected 1 to 4"),
        ({"validation": 0.05}, r"stream.validation: 0.05 leaves task 1 with no validation rows"),
        ({"shot": 1}, r"'shot' is unknown.*did you mean shots"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        few_digits(**options)


@pytest.mark.parametrize("missing", ["base_classes", "ways", "shots"])
def test_all_three_numbers_are_needed(missing: str) -> None:
    options = {"base_classes": 4, "ways": 2, "shots": 5}
    del options[missing]
    with pytest.raises(UserError, match=f"stream.{missing}: is missing"):
        read_split(options)


def test_without_options_of_its_own_it_is_an_ordinary_split() -> None:
    assert read_split({"num_tasks": 2}) == Split(num_tasks=2)
    with pytest.raises(UserError, match=r"stream.base_classes: is missing"):
        read_split({"shot_seed": 2})

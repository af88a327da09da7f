"""The split of rows into tasks against slow, obvious versions."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.sources import Source
from clearn.split import Split, draws, split_source, stratified, validation_rows, whole
from clearn.store import ResidentStore


def source(train: list[int], test: list[int]) -> Source:
    return Source(
        name="numbers",
        train=ResidentStore(torch.zeros(len(train), 1)),
        train_labels=torch.tensor(train),
        test=ResidentStore(torch.zeros(len(test), 1)),
        test_labels=torch.tensor(test),
        preprocess=Preprocess((), ()),
    )


def slow_by_class(labels: list[int], groups: list[tuple[int, ...]]) -> list[list[int]]:
    return [[row for row, label in enumerate(labels) if label in group] for group in groups]


@st.composite
def labelled(draw: Any) -> tuple[list[int], list[int]]:
    """Training and test labels with gaps between the numbers, shuffled."""
    classes = draw(
        st.lists(st.integers(0, 40) | st.just(10**12), min_size=1, max_size=9, unique=True)
    )
    extra = draw(st.lists(st.sampled_from(classes), max_size=30))
    train = draw(st.permutations(classes + extra))
    return train, draw(st.permutations(classes))


@given(labelled(), st.data())
def test_split_by_class_is_a_partition_in_the_given_order(
    labels: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    train, test = labels
    order = data.draw(st.permutations(sorted(set(train))))
    count = data.draw(st.integers(1, len(order)))
    parts = split_source(source(train, test), Split(num_tasks=count, class_order=order))
    groups = [part.classes for part in parts]
    assert [label for group in groups for label in group] == order
    sizes = [len(group) for group in groups]
    assert len(sizes) == count
    assert sorted(sizes, reverse=True) == sizes
    assert sizes[0] - sizes[-1] <= 1
    assert [part.train.tolist() for part in parts] == slow_by_class(train, groups)
    assert [part.test.tolist() for part in parts] == slow_by_class(test, groups)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 4), st.randoms())
def test_split_by_instance_shares_the_rows_of_every_class(
    counts: list[int], tasks: int, random: Any
) -> None:
    counts = [count + tasks for count in counts]
    labels = [3 * label for label, count in enumerate(counts) for _ in range(count)]
    random.shuffle(labels)
    split = Split(num_tasks=tasks, scenario="domain", split="instances")
    parts = split_source(source(labels, labels), split)
    expected: list[list[int]] = [[] for _ in range(tasks)]
    for label in sorted(set(labels)):
        rows = [row for row, other in enumerate(labels) if other == label]
        for index, piece in enumerate(np.array_split(rows, tasks)):
            expected[index] += piece.tolist()
    assert [part.train.tolist() for part in parts] == [sorted(rows) for rows in expected]
    assert {part.classes for part in parts} == {tuple(sorted(set(labels)))}


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_classes_may_be_arrays(kind: Any) -> None:
    data = source([0, 5, 9, 5], [9, 5, 0])
    for split in (
        Split(class_order=kind([9, 0, 5]), num_tasks=3),
        Split(classes=kind([[9], [0], [5]])),
    ):
        classes = [part.classes for part in split_source(data, split)]
        assert classes == [(9,), (0,), (5,)]
        assert {type(label) for group in classes for label in group} == {int}


def test_explicit_classes_leave_out_the_rest() -> None:
    parts = split_source(source([0, 5, 9, 5, 0], [9, 5, 0]), Split(classes=[[9], [0]], num_tasks=7))
    assert [(part.classes, part.train.tolist(), part.test.tolist()) for part in parts] == [
        ((9,), [2], [0]),
        ((0,), [0, 4], [2]),
    ]


def test_whole_has_every_row() -> None:
    part = whole(source([4, 2, 4], [2, 4]))
    assert (part.classes, part.train.tolist(), part.test.tolist()) == ((2, 4), [0, 1, 2], [0, 1])


def test_order_seed_is_stable_and_leaves_the_global_generators_alone() -> None:
    data = source(list(range(100)), list(range(100)))
    np.random.seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    orders = [split_source(data, Split(num_tasks=1, order_seed=s))[0].classes for s in (0, 0, 1)]
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(100))
    digest = hashlib.sha256(str(orders[0]).encode()).hexdigest()[:16]
    assert digest == "f3f147282e80165a"  # must never change: results are named by it


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0, 1), st.integers(0, 9))
def test_stratified_draws_the_rounded_share_of_each_class(
    labels: list[int], share: float, seed: int
) -> None:
    y = torch.tensor(labels)
    chosen = stratified(y, share, draws(seed, "test"))
    again = stratified(y, share, draws(seed, "test"))
    assert torch.equal(chosen, again)
    for label in set(labels):
        count = labels.count(label)
        assert int(chosen[y == label].sum()) == int(np.floor(share * count + 0.5))


def test_validation_rows_are_stable_and_spread() -> None:
    labels = torch.arange(4).repeat(250)
    chosen = validation_rows(labels, 0.2)
    digest = hashlib.sha256(chosen.numpy().tobytes()).hexdigest()[:16]
    assert digest == "2a32344eac85f2f0"  # must never change
    first, second = chosen[:500].sum(), chosen[500:].sum()
    assert abs(int(first - second)) < 40  # not the first rows, not the last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 0}, "stream.num_tasks: 0 is not valid: expected a number >= 1"),
        ({"keep_tasks": -1}, "stream.keep_tasks: -1 is not valid: expected a number >= 1"),
        ({"scenario": "til"}, "stream.scenario: 'til' is not valid: expected task or class or d"),
        ({"split": "rows"}, "stream.split: 'rows' is not valid: expected classes or instances"),
        (
            {"train_share": 0.0},
            r"stream.train_share: 0.0 is not valid: expected a number in \(0, 1",
        ),
        ({"train_share": 1.1}, "stream.train_share: 1.1 is not valid"),
        ({"validation": 1.0}, "stream.validation: 1.0 is not valid: expected a number in"),
        ({"validation": float("nan")}, "stream.validation: nan is not valid"),
        ({"split": "instances"}, "stream.scenario: 'class' is not valid: expected domain"),
        ({"class_order": [1], "order_seed": 1}, "stream.class_order: does not go with"),
        ({"classes": [[1]], "order_seed": 1}, "stream.classes: does not go with"),
        (
            {"classes": [[1]], "split": "instances", "scenario": "domain"},
            "stream.classes: does not go with split",
        ),
        ({}, "stream.num_tasks: is missing"),
        ({"split": "instances", "scenario": "domain"}, "stream.num_tasks: is missing"),
        ({"num_tasks": 7}, "stream.num_tasks: 7 is not valid: expected 1 to 6"),
        ({"classes": []}, "stream.classes: .* is not valid"),
        ({"classes": [[0], []]}, "stream.classes: task 1 is empty"),
        ({"classes": [[0, 1], [1, 2]]}, "stream.classes: class 1 is given more than once"),
        ({"classes": [[0], [6]]}, "stream.classes: 6 is not valid: expected .* 0 to 5"),
        ({"class_order": [0, 0], "num_tasks": 1}, "stream.class_order: class 0 is given more"),
        ({"class_order": [], "num_tasks": 1}, "stream.class_order: .* is not valid"),
        ({"class_order": [0, 1.5], "num_tasks": 1}, "stream.class_order: .* expected integers"),
        (
            {"num_tasks": 4, "scenario": "domain"},
            "stream.num_tasks: 4 is not valid: expected a divisor of the 6 .*: 1, 2, 3, 6",
        ),
        ({"classes": [[0, 1], [2]], "scenario": "domain"}, "stream.classes: .* equally many"),
        (
            {"num_tasks": 3, "split": "instances", "scenario": "domain"},
            "stream.num_tasks: 3 tasks cannot share the 2 test rows of class 0",
        ),
    ],
)
def test_errors_are_one_line_and_name_the_field(options: dict[str, Any], message: str) -> None:
    labels = list(range(6)) * 2
    with pytest.raises(UserError, match=message) as caught:
        split_source(source(labels * 2, labels), Split(**options))
    assert "\n" not in str(caught.value)


def test_classes_with_gaps_are_listed() -> None:
    with pytest.raises(UserError, match=r"expected classes of the data set: 2, 5, 11"):
        split_source(source([2, 5, 11], [2, 5, 11]), Split(classes=[[3]]))

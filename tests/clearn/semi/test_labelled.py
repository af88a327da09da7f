"""Which examples of a stream are labelled: drawn, or named in a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from clearn.errors import UserError
from clearn.semi import Labels
from clearn.stream import Stream
from tests.clearn.semi.few import (
    CLASSES,
    PER_CLASS,
    arrays,
    content,
    listed,
    make,
    members,
    plain,
    sizes,
)


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_labels_per_class(count: int, scenario: str) -> None:
    before = plain(scenario=scenario)
    stream = before.semi_supervised(Labels(labels_per_class=count))
    assert (stream.name, stream.class_names) == (before.name, before.class_names)
    assert (stream.num_classes, len(stream), stream.scenario) == (before.num_classes, 2, scenario)
    for old, task in zip(before, stream, strict=True):
        assert (task.index, task.classes) == (old.index, old.classes)
        assert task.test is old.test
        assert sizes(task.train) == [count] * 3
        batch = content(task.train)
        shift = 3 * task.index if scenario == "domain" else 0
        assert torch.equal(batch.y + shift, batch.raw[:, 0].long())
        assert batch.task_id == task.index
        everything = members(old.train)
        assert members(task.unlabelled) == everything
        assert content(task.unlabelled).task_id == task.index
        for label, counts in members(task.train).items():
            assert counts <= everything[label]
    assert all(task.unlabelled is None for task in before)
    assert sizes(before[0].train) == [PER_CLASS] * 3


def test_the_rest_of_a_pool() -> None:
    stream = make({"labels_per_class": 4, "pool": "rest"})
    for task in stream:
        rest = members(task.unlabelled)
        for label, counts in members(task.train).items():
            assert len(counts) == 4
            assert counts ^ rest[label] == set(range(PER_CLASS))


@pytest.mark.parametrize(
    ("share", "count"), [(0.01, 1), (0.1, 1), (0.14, 1), (0.15, 2), (0.25, 3), (0.94, 9), (1.0, 10)]
)
def test_a_share_is_rounded_and_at_least_one(share: float, count: int) -> None:
    stream = make({"label_share": share})
    assert [sizes(task.train) for task in stream] == [[count] * 3] * 2
    more = make({"labels_per_class": count})
    assert [members(task.train) for task in stream] == [members(task.train) for task in more]


def test_a_share_is_of_each_class() -> None:
    y = np.repeat(np.arange(3), (4, 10, 33))
    x = np.stack([y, np.arange(47)], axis=1).astype(np.float32)
    stream = Stream.from_arrays(x, y, x, y, num_tasks=1)
    stream = stream.semi_supervised(Labels(label_share=0.25))
    assert sizes(stream[0].train) == [1, 3, 8]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    few=st.integers(1, PER_CLASS),
    many=st.integers(1, PER_CLASS),
    order=st.permutations(range(CLASSES)),
)
def test_a_draw_depends_on_the_seed_and_the_class_alone(
    seed: int, few: int, many: int, order: list[int]
) -> None:
    few, many = sorted((few, many))
    small = make({"labels_per_class": few, "label_seed": seed})
    large = make(
        {"labels_per_class": many, "label_seed": seed}, class_order=order, num_tasks=3, keep_tasks=2
    )
    drawn = {label: c for task in small for label, c in members(task.train).items()}
    for task in large:
        for label, counts in members(task.train).items():
            assert drawn[label] <= counts
            assert (drawn[label] == counts) == (few == many)


def test_seeds_and_classes_are_drawn_apart() -> None:
    first, second = (make({"labels_per_class": 4, "label_seed": seed}) for seed in (0, 1))
    drawn = [c for s in (first, second) for task in s for c in members(task.train).values()]
    assert len({tuple(sorted(counts)) for counts in drawn}) > CLASSES
    rows = torch.cat([task.train.rows for task in first])
    digest = hashlib.sha256(rows.numpy().astype(np.int64).tobytes()).hexdigest()[:16]
    assert digest == "2b08a7a0288def3f"  # must never change


def test_tasks_with_the_same_class_are_drawn_apart() -> None:
    x, y = arrays(40)
    options: dict[str, Any] = {"scenario": "domain", "split": "instances", "num_tasks": 4}
    stream = Stream.from_arrays(x, y, x, y, **options)
    stream = stream.semi_supervised(Labels(labels_per_class=5))
    places = []
    for task, old in zip(stream, Stream.from_arrays(x, y, x, y, **options), strict=True):
        mine = old.train.rows[old.train.labels == 2]
        places.append(tuple(torch.isin(mine, task.train.rows).tolist()))
    assert {sum(place) for place in places} == {5}
    assert len(set(places)) == 4


def test_drawing_leaves_other_generators_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    make({"labels_per_class": 4, "pool_decay": "linear"})
    assert (torch.rand(1), np.random.rand()) == expected


def test_validation_is_set_apart_before() -> None:
    before = plain(validation=0.2)
    stream = before.semi_supervised(Labels(labels_per_class=2))
    for old, task in zip(before, stream, strict=True):
        assert task.validation is old.validation
        assert sizes(task.validation) == [2] * 3
        apart = members(task.validation)
        for label, counts in members(task.unlabelled).items():
            assert counts ^ apart[label] == set(range(PER_CLASS))


# The file of labelled rows


def test_a_file_names_the_labelled_rows(tmp_path: Path) -> None:
    x, y = arrays()
    rows = [int(row) for label in range(CLASSES) for row in np.flatnonzero(y == label)[: label + 1]]
    path = tmp_path / "labelled.txt"
    path.write_text("\n".join(f" {row} " for row in reversed(rows)) + "\n\n")
    stream = make({"label_file": str(path)}, class_order=[3, 0, 5, 4, 2, 1])
    seen = torch.cat([content(task.train).raw for task in stream])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, x[rows].tolist()))
    assert [sizes(task.train) for task in stream] == [[1, 4, 6], [2, 3, 5]]
    assert [sizes(task.unlabelled) for task in stream] == [[PER_CLASS] * 3] * 2
    rest = make({"label_file": str(path), "pool": "rest"})
    assert [sizes(task.unlabelled) for task in rest] == [[9, 8, 7], [6, 5, 4]]


def test_a_file_of_what_was_drawn_labels_the_same(tmp_path: Path) -> None:
    drawn = make({"labels_per_class": 3})
    again = make({"label_file": listed(drawn, tmp_path / "rows"), "label_seed": 9})
    for one, other in zip(drawn, again, strict=True):
        assert torch.equal(one.train.rows, other.train.rows)
        assert torch.equal(one.train.labels, other.train.labels)


def test_a_file_labels_a_row_in_every_task_that_has_it(tmp_path: Path) -> None:
    from clearn.sources import from_tensors
    from clearn.split import Split

    x, y = arrays()
    source = from_tensors(x, y, x, y, name="n")
    stream = Stream.from_source(source, Split(scenario="domain"), [None, lambda raw: raw + 1])
    path = tmp_path / "rows"
    path.write_text("\n".join(str(np.flatnonzero(y == label)[-1]) for label in range(CLASSES)))
    first, second = stream.semi_supervised(Labels(label_file=str(path)))
    assert torch.equal(first.train.rows, second.train.rows)
    assert torch.equal(content(first.train).raw + 1, content(second.train).raw)
    assert torch.equal(content(first.unlabelled).raw + 1, content(second.unlabelled).raw)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("0\n1\n60", {}, r"rows, line 3: '60' is not valid: expected a row .*, 0 to 59$"),
        ("0\n-1", {}, r"line 2: '-1' is not valid"),
        ("0\n1.5", {}, r"line 2: '1.5' is not valid"),
        ("0\ncat", {}, r"line 2: 'cat' is not valid"),
        ("7\n\n8\n7", {}, r"line 4: row 7 is also in line 1; name it once"),
        ("", {}, r"rows labels no training example of class 0 \(0\) of task 0; add one"),
    ],
)
def test_files_that_are_not_valid(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "rows"
    path.write_text(text)
    with pytest.raises(UserError, match=r"stream.label_file: .*" + message):
        make({"label_file": str(path)}, **options)


def test_a_class_without_labelled_rows_is_named(tmp_path: Path) -> None:
    _, y = arrays()
    path = tmp_path / "rows"
    path.write_text("\n".join(str(row) for row in np.flatnonzero(y != 4)[:40]))
    with pytest.raises(UserError, match=r"no training example of class 5 \(e\) of task 1"):
        make({"label_file": str(path)}, class_order=[0, 1, 2, 3, 5, 4], class_names="abcdef")


def test_rows_that_no_task_learns_from(tmp_path: Path) -> None:
    path = listed(plain(), tmp_path / "rows")
    for options in ({"keep_tasks": 1}, {"validation": 0.2}, {"train_share": 0.5}):
        with pytest.raises(UserError, match=r"rows, line \d+: row \d+ is of no task's training"):
            make({"label_file": path}, **options)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stream.label_file: \S+absent cannot be read: .*No such"):
        make({"label_file": str(tmp_path / "absent")})
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"stream.label_file: \S+binary cannot be read"):
        make({"label_file": str(binary)})


def test_rows_of_several_data_sets(tmp_path: Path) -> None:
    data = [TensorDataset(torch.rand(8, 2), torch.arange(8) % 2) for _ in range(2)]
    stream = Stream.from_dataset(data, data, scenario="domain")
    path = tmp_path / "rows"
    path.write_text("0\n1")
    with pytest.raises(UserError, match=r"label_file: .*dataset has 2; expected labels_per_class"):
        stream.semi_supervised(Labels(label_file=str(path)))
    assert len(stream.semi_supervised(Labels(labels_per_class=1))[1].train) == 2

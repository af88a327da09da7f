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
from tests.clearn.words import write_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks, one of them with three samples."""
    write_task(tmp_path / "news", [(5, 2), (3, 3)], names=["World", "Sports"])
    for seed in range(3):
        write_task(tmp_path / "few-shot/news", [(2, 1)], tables=f"seed{seed}")
    return tmp_path


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
    for seed in range(3):
        task = read_task(folder, "few-shot/news", seed)
        assert all(text.endswith(f"seed{seed}") for text in task.train.texts)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"few_shot_seed: 3 is not valid for few-shot/news: "):
        read_task(folder, "few-shot/news", 3)


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


@pytest.mark.parametrize("data", [[], 5, iter(()), None])
def test_no_rows(data: Any) -> None:
    with pytest.raises(UserError, match=r"train: a \w+ without rows is not valid: expected a list"):
        is_table(data, "train")

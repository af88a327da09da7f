"""Texts and their labels: from folders of JSON lines, or from rows that a user has in memory."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearn.errors import UserError, unknown_name
from clearn.sources import Source
from clearn.tokens import Text, Tokenizer, load_tokenizer

_COLUMNS = ("text", "text2", "label")


@dataclass(frozen=True)
class Texts:
    """Texts with labels.

    Attributes:
        texts: Each a text or a pair of texts.
        labels: int64 `[N]`, the data set's own numbers.
    """

    texts: tuple[Text, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Tensor) -> Texts:
        """The texts in int64 `[M]` rows, in that order."""
        return Texts(tuple(self.texts[row] for row in rows.tolist()), self.labels[rows])


@dataclass(frozen=True)
class TextTask:
    """A data set of texts.

    Attributes:
        name: Of its folder.
        train: To learn from.
        test: To be measured on.
        class_names: By label, or None for the numbers themselves.
    """

    name: str
    train: Texts
    test: Texts
    class_names: tuple[str, ...] | None


def text_names(folder: Path) -> list[str]:
    """The tasks in a folder of texts, those of its folder `few-shot` among them; sorted."""
    files = [*folder.glob("*/labels.json"), *folder.glob("*/*/labels.json")]
    return sorted(file.parent.relative_to(folder).as_posix() for file in files)


def read_task(folder: Path, name: str, seed: int, other_names: Iterable[str] = ()) -> TextTask:
    """One task: `<name>/labels.json` with the names of its labels, `train.jsonl` and `test.jsonl`.

    A line is `{"text": ..., "label": ...}`, with `text2` for pairs; other keys are not read. Where
    a task has n samples, the tables of each are in `<name>/seed0` to `seed<n - 1>`.

    Args:
        folder: With a folder for each task.
        name: Of the task, below `folder`.
        seed: Which sample, where the task has several: the remainder by their number says it.
        other_names: Whatever else would have been valid, for the message of an unknown name.

    Raises:
        UserError: There is no such task, a file is missing, or a line of it is not valid.
    """
    if not (folder / name / "labels.json").is_file():
        known = text_names(folder)
        if not known:
            raise UserError(
                f"stream.root: {folder} holds no task; expected folders with labels.json, "
                "train.jsonl and test.jsonl; name the folder of your data with --stream.root or "
                "CLEARN_DATA"
            )
        raise unknown_name("stream.tasks", name, [*known, *other_names])
    class_names = _read_class_names(folder / name / "labels.json")
    tables = folder / name
    if samples := len(list(tables.glob("seed*"))):
        tables = tables / f"seed{seed % samples}"
    train, test = (
        _read_table(tables / f"{part}.jsonl", len(class_names)) for part in ("train", "test")
    )
    return TextTask(name, train, test, class_names)


def _read_class_names(path: Path) -> tuple[str, ...]:
    """The names by label: a JSON object with the keys "0", "1", ..."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"stream.root: {path} cannot be read: {error}") from error
    if not isinstance(names, dict) or set(names) != set(map(str, range(len(names)))) or not names:
        raise UserError(
            f'stream.root: {path} is not valid: expected names by label, {{"0": ..., "1": ...}}, '
            "with no number left out"
        )
    return tuple(str(names[str(label)]) for label in range(len(names)))


def _read_table(path: Path, classes: int) -> Texts:
    """The rows of a file of JSON lines; empty lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"stream.root: {path} cannot be read: {error}") from error

    def rows() -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"stream.root: {path}, line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: is no JSON ({error.msg})") from error

    return _as_texts(rows(), str(path), classes)


def _as_texts(
    rows: Iterable[tuple[str, Any]],
    name: str,
    classes: int | None,
    keys: Sequence[str] = _COLUMNS,
    numbers: Mapping[str, int] | None = None,
) -> Texts:
    """Checked texts of rows, each with the place that errors name.

    Args:
        rows: Places and rows.
        name: Of all of them, for errors.
        classes: How many there are; None for any number.
        keys: What `_COLUMNS` are called in mappings.
        numbers: Of labels that are names; None where labels are numbers.
    """
    texts, labels = [], []
    for where, row in rows:
        text, label = _as_row(where, row, keys, numbers)
        if not 0 <= label < (classes or label + 1):
            expected = f"0 to {classes - 1}, the labels in labels.json" if classes else ">= 0"
            raise UserError(f"{where}: label {label} is out of range: expected {expected}")
        texts.append(text)
        labels.append(label)
    if not texts:
        raise UserError(f"{name}: has no rows; expected at least one")
    return Texts(tuple(texts), torch.tensor(labels, dtype=torch.int64))


def _as_row(
    where: str, row: Any, keys: Sequence[str], numbers: Mapping[str, int] | None
) -> tuple[Text, int]:
    """The text or texts, and the label, of a mapping with these keys or of a tuple."""
    if isinstance(row, Mapping):
        found = [row[key] for key in keys if row.get(key) is not None]
        for key in (keys[0], keys[2]):
            if row.get(key) is None:
                raise UserError(f"{where}: lacks {key}; it has {', '.join(map(str, row))}")
    elif isinstance(row, list | tuple) and len(row) in (2, 3):
        found = list(row)
    else:
        raise UserError(f"{where}: is no (text, label), (text, text2, label) or mapping of these")
    *texts, label = found
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{where}: a {type(text).__name__} is not valid: expected text")
        if not text.strip():
            raise UserError(f"{where}: its text is empty; give it words, or leave the row out")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: its text holds half a character: {error}") from error
    return (texts[0] if len(texts) == 1 else (texts[0], texts[1])), _as_number(
        where, label, numbers
    )


def _as_number(where: str, label: Any, numbers: Mapping[str, int] | None) -> int:
    """A label that is a number, or that of a name."""
    if numbers is not None:
        if not isinstance(label, str):
            raise UserError(
                f"{where}: label {label!r} is not valid: expected a name, as in the first row"
            )
        if label not in numbers:
            raise unknown_name(f"{where}: label", label, numbers)
        return numbers[label]
    try:
        if isinstance(label, bool):
            raise TypeError
        return operator.index(label)
    except TypeError:
        raise UserError(f"{where}: label {label!r} is not valid: expected an integer") from None


def is_table(data: Any, name: str) -> bool:
    """Whether these are rows of one data set, and not a list of data sets.

    Raises:
        UserError: They are neither.
    """
    sized = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, Mapping) or not sized or not len(data):
        parts = f" of {', '.join(map(str, data))}" if isinstance(data, Mapping) else ""
        raise UserError(
            f"{name}: a {type(data).__name__}{parts or ' without rows'} is not valid: expected a "
            "list of rows, a data set (one split of it), or a list of these"
        )
    first = data[0]
    return isinstance(first, Mapping) or (
        isinstance(first, list | tuple) and len(first) > 0 and isinstance(first[0], str)
    )


def table_sources(
    pairs: Sequence[tuple[Any, Any]],
    name: str,
    columns: Mapping[str, str],
    class_names: Sequence[str] | None,
    tokenizer: str,
    max_length: int,
    *,
    shared: bool,
) -> list[Source]:
    """The tokens of training and test rows in memory; see `Stream.from_texts`.

    Args:
        pairs: Training and test rows of each data set.
        name: Of the sources.
        columns: What mappings call their parts.
        class_names: By label; None for those of the rows.
        tokenizer: As in `load_tokenizer`.
        max_length: Most tokens.
        shared: Whether a name has one number in all data sets, and not in each its own.

    Raises:
        UserError: A row is not valid, or there is no such tokenizer.
    """
    for key in columns:
        if key not in _COLUMNS:
            raise unknown_name("columns", key, _COLUMNS)
    keys = tuple(columns.get(key, key) for key in _COLUMNS)
    places = [f"[{index}]" if len(pairs) > 1 else "" for index in range(len(pairs))]
    tables = [
        (_rows(train, f"train{place}"), _rows(test, f"test{place}"))
        for place, (train, test) in zip(places, pairs, strict=True)
    ]
    if shared and class_names is None:
        class_names, _ = _label_names([row for train, _ in tables for row in train], keys[2], None)
    tasks = []
    for place, (train, test) in zip(places, tables, strict=True):
        names, numbers = _label_names(train, keys[2], class_names)
        tasks.append(
            TextTask(
                name,
                _as_texts(train, f"train{place}", None, keys, numbers),
                _as_texts(test, f"test{place}", None, keys, numbers),
                names,
            )
        )
    return text_sources(tasks, load_tokenizer(tokenizer), max_length)


def _rows(data: Any, name: str) -> list[tuple[str, Any]]:
    """The rows of one data set and their places."""
    if not is_table(data, name):
        raise UserError(
            f"{name}: a {type(data[0]).__name__} is no row: expected (text, label), "
            "(text, text2, label) or a mapping of these"
        )
    return [(f"{name}[{index}]", data[index]) for index in range(len(data))]


def _label_names(
    rows: Sequence[tuple[str, Any]], key: str, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, dict[str, int] | None]:
    """Names by label, and labels by name where the first row has a name for its label.

    Args:
        rows: Training rows and their places, not checked yet.
        key: Of the label in a mapping.
        class_names: By label; None for those of the rows, in the order of the alphabet.
    """
    found = [_label_name(row, key) for _, row in rows]
    names = None if class_names is None else tuple(class_names)
    if found[0] is None:
        return names, None
    if names is None:
        names = tuple(sorted({name for name in found if name is not None}))
    return names, {name: label for label, name in enumerate(names)}


def _label_name(row: Any, key: str) -> str | None:
    """The label of a row if that is a name; None for a number, and for what is no row."""
    label = None
    if isinstance(row, Mapping):
        label = row.get(key)
    elif isinstance(row, list | tuple) and len(row) in (2, 3):
        label = row[-1]
    return label if isinstance(label, str) else None


def text_sources(tasks: Sequence[TextTask], tokenizer: Tokenizer, max_length: int) -> list[Source]:
    """The tokens of each task, all made together and with one pipeline.

    Raises:
        UserError: `max_length` is too low, or a label of a test row is in no training row.
    """
    parts = [part for task in tasks for part in (task.train, task.test)]
    stores, preprocess = tokenizer.stores([part.texts for part in parts], max_length)
    return [
        Source(
            name=task.name,
            train=train,
            train_labels=task.train.labels,
            test=test,
            test_labels=task.test.labels,
            preprocess=preprocess,
            class_names=task.class_names,
        )
        for task, train, test in zip(tasks, stores[::2], stores[1::2], strict=True)
    ]

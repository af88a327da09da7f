"""Streams of texts: a data set a task, in the orders of the literature or in one's own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from clearn.datasets.files import data_root
from clearn.datasets.texts import Texts, TextTask, read_task, text_sources
from clearn.errors import UserError
from clearn.split import draws, invalid
from clearn.stream import Stream
from clearn.streams.options import Options, builder
from clearn.tokens import MINILM, load_tokenizer

# Orders 1-6 and 10 are those of the published code of Progressive Prompts and O-LoRA; 7-9 are
# recalled from the literature, and no source of them was at hand.
TEXT_ORDERS: dict[str, tuple[str, ...]] = {
    name: tuple(tasks.split())
    for name, tasks in {
        "short-1": "few-shot/dbpedia few-shot/amazon few-shot/yahoo few-shot/agnews",
        "short-2": "few-shot/dbpedia few-shot/amazon few-shot/agnews few-shot/yahoo",
        "short-3": "few-shot/yahoo few-shot/amazon few-shot/agnews few-shot/dbpedia",
        "short-sst2": "few-shot/dbpedia few-shot/amazon few-shot/agnews sst2",
        "bert-4": "agnews yelp amazon few-shot/yahoo dbpedia",
        "bert-5": "yelp few-shot/yahoo amazon dbpedia agnews",
        "bert-6": "dbpedia few-shot/yahoo agnews amazon yelp",
        "bert-7": "yelp agnews dbpedia amazon few-shot/yahoo",
        "long-8": "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc",
        "long-9": "multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon",
        "long-10": "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews multirc boolq wic",
        "xl": "dbpedia:0+1 dbpedia:2+3 dbpedia:4+5 dbpedia:6+7 dbpedia:8+9 dbpedia:10+11 "
        "dbpedia:12+13 agnews:0+1 agnews:2+3 sst2 qqp rte amazon:0+4 mnli:0+2",
    }.items()
}
"""Sequences of tasks by name."""

_XL_COPIES = 5


@builder("scenario", "order_seed", "keep_tasks", "validation", "root", scenario="task")
def TextStream(
    options: Options,
    *,
    tasks: str | Sequence[str] = "short-sst2",
    per_class: int | None = None,
    test_per_class: int | None = None,
    few_shot_seed: int | None = None,
    copies: int | None = None,
    tokenizer: str = MINILM,
    max_length: int = 128,
) -> Stream:
    """Texts to classify, a data set a task: your own list, or an order of the literature.

    A task is a folder in `text` below the root, with `labels.json`, `train.jsonl` and `test.jsonl`.
    A label has a number of its own in each task. Examples that several tasks of one stream have in
    common, such as copies, are shared out among them: no example is in two.

    Args:
        options: The shared ones.
        order_seed: Draws the order of the tasks; as listed when missing. xl is always shuffled, by
            seed 0 when missing.
        tasks: One of the orders short-1, short-2, short-3, short-sst2, bert-4 to bert-7, long-8 to
            long-10, xl; or a list of names of folders, among them `few-shot/agnews` for a task of
            16 examples a class, and `dbpedia:0+1` for those classes of a task alone.
        per_class: Training examples drawn of each class and task, fewer where there are fewer; all
            when missing, but 16 of each for short-sst2 and 20 for xl.
        test_per_class: Test examples of each class and task, fewer where there are fewer; all when
            missing. Which they are does not depend on the run's seed, but for few-shot tasks, whose
            samples have tests of their own.
        few_shot_seed: Seeds the draw of the training examples, and says which of the three samples
            of few-shot tasks is used: its remainder by 3. None: the seed of the run, or 0 where a
            stream is built by itself.
        copies: How often each task occurs, each time with other examples. None: 5 times for xl,
            else once.
        tokenizer: What makes the tokens: all-minilm-l6-v2, a local folder, or a name on the hub.
        max_length: Most tokens of a text or pair, special ones included, and no more than the
            model's window; what is longer is truncated, of a pair the longer text first.
    """
    for name, value in (("per_class", per_class), ("test_per_class", test_per_class)):
        if value is not None and value < 1:
            raise invalid(name, value, "a number >= 1")
    if copies is not None and copies < 1:
        raise invalid("copies", copies, "a number >= 1")
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise invalid("tasks", "[]", "at least one name")
    if per_class is None and len(names) == 1:
        per_class = {"short-sst2": 16, "xl": 20}.get(names[0])
    if copies is None:
        copies = _XL_COPIES if names == ["xl"] else 1
    pieces = [_parse(name) for given in names for name in TEXT_ORDERS.get(given, (given,))] * copies
    seed = 0 if options.order_seed is None and "xl" in names else options.order_seed
    if seed is not None:
        pieces = [pieces[k] for k in draws(seed, "task order").permutation(len(pieces))]
    draw = 0 if few_shot_seed is None else few_shot_seed
    found = _read(data_root(options.root), pieces, draw, per_class, test_per_class)
    found = found[: options.keep_tasks]
    sources = text_sources(found, load_tokenizer(tokenizer), max_length)
    return Stream.from_sources(sources, options, "TextStream")


@dataclass(frozen=True)
class _Piece:
    """A task as it was asked for: `name`, or `name:0+1` with those classes alone."""

    name: str
    classes: tuple[int, ...] | None


def _parse(text: str) -> _Piece:
    name, colon, classes = text.partition(":")
    if not colon:
        return _Piece(name, None)
    if not re.fullmatch(r"\d+(\+\d+)*", classes):
        raise invalid("tasks", repr(text), "a name, or a name with classes such as dbpedia:0+1")
    numbers = tuple(map(int, classes.split("+")))
    if len(set(numbers)) < len(numbers):
        raise invalid("tasks", repr(text), "each class once")
    return _Piece(name, numbers)


def _read(
    root: Path, pieces: Sequence[_Piece], seed: int, per_class: int | None, test: int | None
) -> list[TextTask]:
    """The tasks with the examples that are drawn for them, in order."""
    folder = root / "text" if (root / "text").is_dir() else root
    whole: dict[str, TextTask] = {}
    for piece in pieces:
        if piece.name not in whole:
            whole[piece.name] = read_task(folder, piece.name, seed, TEXT_ORDERS)
    wanted = [_classes(piece, whole[piece.name]) for piece in pieces]
    total = Counter(
        (piece.name, label)
        for piece, classes in zip(pieces, wanted, strict=True)
        for label in classes
    )
    taken: Counter[tuple[str, int]] = Counter()
    tasks = []
    for piece, classes in zip(pieces, wanted, strict=True):
        task = whole[piece.name]
        train, held = [], []
        for label in classes:
            key = piece.name, label
            share = taken[key], total[key]
            train.append(_draw(task, "train", label, share, per_class, seed))
            held.append(_draw(task, "test", label, share, test, 0))
            taken[key] += 1
        train_rows, test_rows = (torch.cat(rows).sort().values for rows in (train, held))
        tasks.append(
            replace(task, train=task.train.select(train_rows), test=task.test.select(test_rows))
        )
    return tasks


def _classes(piece: _Piece, task: TextTask) -> tuple[int, ...]:
    """The labels of a task that are used."""
    known = tuple(torch.unique(torch.cat([task.train.labels, task.test.labels])).tolist())
    for label in piece.classes or ():
        if label not in known:
            raise invalid("tasks", f"{piece.name} with class {label}", f"classes among {known}")
    return piece.classes or known


def _draw(
    task: TextTask, part: str, label: int, share: tuple[int, int], most: int | None, seed: int
) -> Tensor:
    """The rows of one class that a task gets.

    The rows of the class are put in a drawn order and dealt out in equal shares to the tasks that
    want it; of its share a task takes the first `most`, so that few examples are among more.

    Args:
        task: All of it.
        part: train or test.
        label: The class.
        share: Which task of how many that want the class this is.
        most: How many are wanted; None for all.
        seed: Of the draw.
    """
    texts: Texts = getattr(task, part)
    rows = (texts.labels == label).nonzero().flatten()
    number, total = share
    size = len(rows) // total
    if not len(rows):
        raise UserError(
            f"stream.tasks: {task.name} has no {part} examples of class {label}; add some, or "
            f"leave the class out by naming the others, as in {task.name}:0+1"
        )
    if not size:
        raise UserError(
            f"stream.copies: {total} tasks cannot share the {len(rows)} {part} examples of class "
            f"{label} of {task.name}; expected at most that many"
        )
    order = draws(seed, "texts", task.name, part, label).permutation(len(rows))
    own = order[number * size : number * size + size][:most]
    return rows[torch.from_numpy(own)]

"""How the rows of a data set become the tasks of a stream.

Shapes: N rows of a data set, T tasks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from clearn.errors import UserError
from clearn.examples import Examples
from clearn.seeding import derive_seed
from clearn.sources import Source

Scenario = Literal["task", "class", "domain"]
SplitBy = Literal["classes", "instances"]
Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the rows of a data set become tasks; every stream has these options.

    Args:
        num_tasks: Number of tasks, >= 1; not used when `classes` is given. When it does not divide
            the number of classes, the first tasks have one class more.
        scenario: What is known at test time. task: the task's id. class: nothing, and the labels of
            all tasks differ. domain: nothing, and all tasks have the same labels (split by
            classes: the position of a class in its task).
        classes: The classes of each task, in the data set's numbers; they may not overlap.
        class_order: The classes in order of appearance, in the data set's numbers; those left out
            do not appear.
        order_seed: Seeds what the stream draws: the order of classes or rotations, the
            permutations. None: the data set's own order (permutations: as 0).
        split: classes: every task has classes of its own. instances (domain scenario only): every
            task has all classes and an equal share of the rows of each, in the order of the data.
        keep_tasks: Use the first so many tasks only, >= 1.
        train_share: Share of the training rows of each class and task that is used at all, in
            (0, 1]; drawn once and for all. For searches on a part of the data.
        validation: Share of the rows used set apart for validation, in [0, 1).

    Raises:
        UserError: A value is out of range, or two do not go together; what depends on the data is
            checked with the data.
    """

    num_tasks: int | None = None
    scenario: Scenario = "class"
    classes: Sequence[Sequence[int]] | None = None
    class_order: Sequence[int] | None = None
    order_seed: int | None = None
    split: SplitBy = "classes"
    keep_tasks: int | None = None
    train_share: float = 1.0
    validation: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("scenario", get_args(Scenario)), ("split", get_args(SplitBy))):
            if getattr(self, name) not in allowed:
                raise invalid(name, repr(getattr(self, name)), " or ".join(allowed))
        for name in ("num_tasks", "keep_tasks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise invalid(name, value, "a number >= 1")
        if not 0 <= self.validation < 1:
            raise invalid("validation", self.validation, "a number in [0, 1)")
        if not 0 < self.train_share <= 1:
            raise invalid("train_share", self.train_share, "a number in (0, 1]")
        if self.split == "instances" and self.scenario != "domain":
            raise invalid(
                "scenario", repr(self.scenario), "domain, the only one to go with split: instances"
            )
        orders = [
            n for n in ("classes", "class_order", "order_seed") if getattr(self, n) is not None
        ]
        if len(orders) > 1:
            raise UserError(
                f"stream.{orders[0]}: does not go with stream.{orders[1]}; leave one out"
            )
        if self.classes is not None and self.split == "instances":
            raise UserError("stream.classes: does not go with split: instances; use class_order")


def invalid(name: str, value: object, expected: str) -> UserError:
    """The error for an option of a stream."""
    return UserError(f"stream.{name}: {value} is not valid: expected {expected}")


@dataclass(frozen=True)
class Part:
    """The rows of one task, not numbered for the stream yet.

    Attributes:
        source: The data set they are rows of.
        classes: The classes of the task, in the data set's numbers and in order of appearance.
        train: int64 rows of the training examples.
        test: int64 rows of the test examples.
        transform: How the task sees the raw examples; see `Examples`.
    """

    source: Source
    classes: tuple[int, ...]
    train: Tensor
    test: Tensor
    transform: Transform | None = None


def split_source(source: Source, split: Split) -> list[Part]:
    """The tasks that `split` makes of a data set.

    Raises:
        UserError: An option does not go with the data.
    """
    by_instance = split.split == "instances"
    if by_instance:
        if split.num_tasks is None:
            raise UserError("stream.num_tasks: is missing; give a number >= 1")
        groups = [ordered_classes(source, split)] * split.num_tasks
    else:
        groups = _class_groups(source, split)
    rows = []
    for what, labels in (("train", source.train_labels), ("test", source.test_labels)):
        tasks = _by_instance(labels, groups, what) if by_instance else _by_class(labels, groups)
        order = tasks.argsort(stable=True)
        counts = (tasks + 1).bincount(minlength=len(groups) + 1).tolist()
        rows.append(torch.split(order, counts)[1:])  # the first piece is of no task
    return [Part(source, *part) for part in zip(groups, *rows, strict=True)]


def ordered_classes(source: Source, split: Split) -> tuple[int, ...]:
    """The classes in order of appearance: given, drawn, or in order of their numbers.

    Raises:
        UserError: `class_order` does not go with the data.
    """
    known = source.classes
    if split.class_order is not None:
        return _checked_classes("class_order", split.class_order, known)
    if split.order_seed is not None:
        order = draws(split.order_seed, "class order").permutation(len(known))
        return tuple(known[index] for index in order)
    return known


def validation_rows(labels: Tensor, share: float) -> Tensor:
    """Which of the rows of a task to set apart: `share` of every class, drawn once and for all.

    Args:
        labels: int64 `[N]`.
        share: In [0, 1).

    Returns:
        bool `[N]`.
    """
    return stratified(labels, share, draws(0, "validation"))


def stratified(labels: Tensor, share: float, random: np.random.RandomState) -> Tensor:
    """A draw of `share` of the rows of each class, rounded to the nearest number: bool `[N]`."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        rows = (labels == label).nonzero().flatten()
        count = int(share * len(rows) + 0.5)
        chosen[rows[torch.from_numpy(random.permutation(len(rows))[:count])]] = True
    return chosen


def draws(seed: int, *names: str | int) -> np.random.RandomState:
    """A generator for what a stream draws: NumPy's frozen one, the same in every version."""
    sequence = np.random.SeedSequence(derive_seed(seed, *names))
    return np.random.RandomState(np.random.MT19937(sequence))


def _class_groups(source: Source, split: Split) -> list[tuple[int, ...]]:
    """The classes of each task."""
    if split.classes is not None:
        sizes = [len(group) for group in split.classes]
        if not sizes:
            raise invalid("classes", "[]", "one list of classes per task")
        if 0 in sizes:
            raise UserError(f"stream.classes: task {sizes.index(0)} is empty; give it a class")
        given = [c for group in split.classes for c in group]
        checked = iter(_checked_classes("classes", given, source.classes))
        groups = [tuple(islice(checked, size)) for size in sizes]
    else:
        order = ordered_classes(source, split)
        if split.num_tasks is None:
            raise UserError("stream.num_tasks: is missing; give it, or stream.classes")
        if split.num_tasks > len(order):
            raise invalid("num_tasks", split.num_tasks, f"1 to {len(order)}, the number of classes")
        pieces = np.array_split(np.array(order), split.num_tasks)
        groups = [tuple(piece.tolist()) for piece in pieces]
    if split.scenario == "domain" and len({len(group) for group in groups}) > 1:
        if split.classes is not None:
            raise invalid("classes", split.classes, "equally many per task in the domain scenario")
        total = sum(len(group) for group in groups)
        divisors = [str(n) for n in range(1, total + 1) if total % n == 0]
        raise invalid(
            "num_tasks",
            split.num_tasks,
            f"a divisor of the {total} classes in the domain scenario: {', '.join(divisors)}",
        )
    return groups


def _checked_classes(name: str, given: Sequence[int], known: Sequence[int]) -> tuple[int, ...]:
    """Plain numbers; every class is one of the data set's, and none is given twice."""
    if not len(given):
        raise invalid(name, "[]", "at least one class")
    try:
        classes = tuple(map(operator.index, given))  # those of arrays are numbers of NumPy or torch
    except TypeError:
        raise invalid(name, given, "integers") from None
    for label in classes:
        if label not in known:
            raise invalid(name, label, f"classes of the data set: {_ranges(known)}")
    twice = sorted({label for label in classes if classes.count(label) > 1})
    if twice:
        raise UserError(f"stream.{name}: class {twice[0]} is given more than once; give it once")
    return classes


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers in words: `0 to 9`, or all of them where there are gaps."""
    if len(numbers) == numbers[-1] - numbers[0] + 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _by_class(labels: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The task of every row, -1 for none: int64 `[N]`."""
    tasks = {label: index for index, group in enumerate(groups) for label in group}
    return _look_up(labels, tasks)


def _look_up(labels: Tensor, numbers: Mapping[int, int]) -> Tensor:
    """The number of every label, -1 for one that has none: int64 `[N]`."""
    # No table up to the largest label, which may be 1e11.
    found, place = torch.unique(labels, return_inverse=True)
    return torch.tensor([numbers.get(k, -1) for k in found.tolist()], dtype=torch.int64)[place]


def _by_instance(labels: Tensor, groups: Sequence[Sequence[int]], what: str) -> Tensor:
    """As `_by_class`, when all tasks have the classes of the first and share their rows."""
    tasks = torch.full((len(labels),), -1)
    for label in groups[0]:
        rows = (labels == label).nonzero().flatten()
        if len(rows) < len(groups):
            raise UserError(
                f"stream.num_tasks: {len(groups)} tasks cannot share the {len(rows)} {what} rows "
                f"of class {label}; expected at most that many tasks"
            )
        sizes = torch.full((len(groups),), len(rows) // len(groups))
        sizes[: len(rows) % len(groups)] += 1
        tasks[rows] = torch.arange(len(groups)).repeat_interleave(sizes)
    return tasks


def whole(source: Source, transform: Transform | None = None) -> Part:
    """A task with all rows of a data set."""
    train, test = torch.arange(len(source.train_labels)), torch.arange(len(source.test_labels))
    return Part(source, source.classes, train, test, transform)


def whole_parts(sources: Sequence[Source], scenario: Scenario) -> list[Part]:
    """Every data set a task.

    Raises:
        UserError: In the domain scenario they do not have the same classes, or a name not the same
            number.
    """
    parts = [whole(source) for source in sources]
    first = {label: parts[0].source.class_name(label) for label in parts[0].classes}
    for index, part in enumerate(parts if scenario == "domain" else ()):
        if part.classes != parts[0].classes:
            raise UserError(
                f"stream.scenario: 'domain' is not valid: data sets 0 and {index} have "
                "different classes; expected class or task"
            )
        for label in part.classes:
            name = part.source.class_name(label)
            if name != first[label] and name in first.values():
                raise UserError(
                    f"stream.scenario: 'domain' is not valid: class {name!r} has the number "
                    f"{label} in data set {index} and another in data set 0; expected class or "
                    "task, or one number for a name"
                )
    return parts


def task_examples(
    index: int, part: Part, labels: Sequence[int], split: Split
) -> tuple[Examples, Examples, Examples | None]:
    """What a task has to learn from, to be measured on, and set apart for validation.

    Args:
        index: Of the task.
        part: Its rows.
        labels: The number of each of `part.classes` in the stream.
        split: Its `train_share` and `validation` are read.

    Raises:
        UserError: A class has no rows, or is left with none.
    """
    source = part.source
    numbers = dict(zip(part.classes, labels, strict=True))
    train, test = (
        Examples(
            store, rows, _look_up(known[rows], numbers), index, source.preprocess, part.transform
        )
        for store, rows, known in (
            (source.train, part.train, source.train_labels),
            (source.test, part.test, source.test_labels),
        )
    )
    for what, examples in (("train", train), ("test", test)):
        if len(examples) and int(examples.labels.min()) < 0:
            raise UserError(
                f"{what}: task {index} has examples of other classes than {list(part.classes)}, "
                "those of its training examples"
            )
        counts = _counts(examples.labels, labels)
        if not counts.all():
            missing = part.classes[int((counts == 0).nonzero()[0])]
            raise UserError(f"{what}: class {missing} of task {index} has no rows; give it some")
    if split.train_share < 1:
        used = stratified(train.labels, split.train_share, draws(0, "train share"))
        if not _counts(train.labels[used], labels).all():
            raise UserError(
                f"stream.train_share: {split.train_share} leaves task {index} with no training "
                f"rows of a class: it has {len(train)} rows of {len(labels)} classes"
            )
        train = train.select(used.nonzero().flatten())
    if not split.validation:
        return train, test, None
    apart = validation_rows(train.labels, split.validation)
    if not apart.any() or not _counts(train.labels[~apart], labels).all():
        left = "validation" if not apart.any() else "training"
        raise UserError(
            f"stream.validation: {split.validation} leaves task {index} with no {left} rows of a "
            f"class: it has {len(train)} rows of {len(labels)} classes"
        )
    kept, validation = (train.select(rows.nonzero().flatten()) for rows in (~apart, apart))
    return kept, test, validation


def _counts(found: Tensor, labels: Sequence[int]) -> Tensor:
    """How many rows there are of each of `labels`: int64 `[len(labels)]`."""
    return found.bincount(minlength=1 + max(labels))[list(labels)]

"""Streams: ordered sequences of tasks, each an Avalanche benchmark underneath."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from clearn.errors import UserError
from clearn.examples import Examples
from clearn.preprocess import Preprocess
from clearn.seeding import derive_seed
from clearn.sources import Source, from_tensors

Scenario = Literal["task", "class", "domain"]
SplitBy = Literal["classes", "instances"]
Transform = Callable[[Tensor], Tensor]


def option(default: Any, help: str) -> Any:  # noqa: A002
    """A field of an options dataclass; `help` is what the command line says about it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the rows of a data set become tasks: options that every stream has."""

    num_tasks: int | None = option(
        None, "Number of tasks. None: one per entry of `classes`, otherwise the stream's own."
    )
    scenario: Scenario = option(
        "class",
        "What is known at test time: task (the task's id), class (nothing, and the labels of all "
        "tasks differ), domain (nothing, and all tasks have the same labels).",
    )
    classes: Sequence[Sequence[int]] | None = option(
        None, "The classes of each task, in the data set's numbers. They must not overlap."
    )
    class_order: Sequence[int] | None = option(
        None, "The classes in order of appearance; those left out do not appear."
    )
    order_seed: int | None = option(
        None, "Shuffles the order of the classes. None: the data set's own order."
    )
    split: SplitBy = option(
        "classes",
        "classes: every task has classes of its own. instances (domain scenario only): every task "
        "has all classes and an equal share of the rows of each, in the order of the data.",
    )
    keep_tasks: int | None = option(None, "Use the first so many tasks only.")
    validation: float = option(
        0.0, "Share of the training rows of every class set apart for validation, in [0, 1)."
    )

    def __post_init__(self) -> None:
        for name, allowed in (("scenario", Scenario), ("split", SplitBy)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise UserError(
                    f"stream.{name}: {value!r} is not valid: expected {', '.join(get_args(allowed))}"
                )
        for name in ("num_tasks", "keep_tasks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"stream.{name}: {value} is not valid: expected a number >= 1")
        if not 0 <= self.validation < 1:
            raise UserError(f"stream.validation: {self.validation} is not valid: expected [0, 1)")


@dataclass(frozen=True)
class Task:
    """One step of a stream.

    Attributes:
        index: Position in the stream, from 0; also the task id.
        classes: The labels that occur in it, in the stream's numbers.
        train: What to learn from.
        test: What to be measured on.
        validation: Set apart from the training rows, None when `validation` is 0.
    """

    index: int
    classes: tuple[int, ...]
    train: Examples
    test: Examples
    validation: Examples | None = None


class Stream:
    """An ordered sequence of tasks."""

    def __init__(
        self,
        *,
        name: str,
        scenario: Scenario,
        tasks: Sequence[Task],
        preprocess: Preprocess,
        num_classes: int,
        input_shape: Sequence[int],
        class_names: Sequence[str],
        original_classes: Sequence[int],
    ) -> None:
        self.name = name
        self.scenario: Scenario = scenario
        self.tasks = tuple(tasks)
        self.preprocess = preprocess
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.class_names = tuple(class_names)
        self.original_classes = tuple(original_classes)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        x_test: Any,
        y_test: Any,
        *,
        name: str = "arrays",
        preprocess: Preprocess | None = None,
        class_names: Sequence[str] | None = None,
        **split: Any,
    ) -> Stream:
        """A stream of NumPy arrays or tensors."""
        source = from_tensors(x, y, x_test, y_test, name, preprocess, class_names)
        return cls.from_source(source, Split(**split))

    @classmethod
    def from_source(cls, source: Source, split: Split) -> Stream:
        """A stream of the rows of a data set, split as `split` says."""
        present = source.train_labels.unique().tolist()
        if split.split == "instances":
            order = _class_order(present, split)
            groups = [tuple(order)] * (split.num_tasks or 1)
        else:
            groups = _class_groups(present, split)
        shared = split.scenario == "domain"
        flat = list(groups[0]) if shared else [c for group in groups for c in group]
        tasks = []
        for index, group in enumerate(groups[: split.keep_tasks]):
            labels = range(len(group)) if shared else [flat.index(c) for c in group]
            lookup = torch.full((max(present) + 1,), -1)
            lookup[list(group)] = torch.tensor(list(labels))

            def pick(y: Tensor, lookup: Tensor = lookup) -> tuple[Tensor, Tensor]:
                new = lookup[y]
                rows = (new >= 0).nonzero().flatten()
                return rows, new[rows]

            train_rows, train_labels = pick(source.train_labels)
            test_rows, test_labels = pick(source.test_labels)
            if split.split == "instances":
                mine = _share(train_labels, index, len(groups))
                train_rows, train_labels = train_rows[mine], train_labels[mine]
                mine = _share(test_labels, index, len(groups))
                test_rows, test_labels = test_rows[mine], test_labels[mine]
            train = Examples(source.train, train_rows, train_labels, index, source.preprocess)
            test = Examples(source.test, test_rows, test_labels, index, source.preprocess)
            validation = None
            if split.validation:
                apart = _apart(train_labels, split.validation)
                train, validation = (
                    train.select((~apart).nonzero().flatten()),
                    train.select(apart.nonzero().flatten()),
                )
            tasks.append(Task(index, tuple(labels), train, test, validation))
        num_classes = 1 + max(label for task in tasks for label in task.classes)
        return cls(
            name=source.name,
            scenario=split.scenario,
            tasks=tasks,
            preprocess=source.preprocess,
            num_classes=num_classes,
            input_shape=source.train.shape,
            class_names=[source.class_names[c] for c in flat[:num_classes]],
            original_classes=flat[:num_classes],
        )


def _draws(*names: str | int) -> np.random.RandomState:
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(derive_seed(*names))))


def _class_order(present: list[int], split: Split) -> list[int]:
    if split.class_order is not None:
        return list(split.class_order)
    if split.order_seed is not None:
        return [
            present[i] for i in _draws(split.order_seed, "class order").permutation(len(present))
        ]
    return present


def _class_groups(present: list[int], split: Split) -> list[tuple[int, ...]]:
    if split.classes is not None:
        return [tuple(group) for group in split.classes]
    order = _class_order(present, split)
    return [
        tuple(group.tolist()) for group in np.array_split(np.array(order), split.num_tasks or 1)
    ]


def _share(labels: Tensor, index: int, count: int) -> Tensor:
    rows = [
        np.array_split((labels == label).nonzero().flatten().numpy(), count)[index]
        for label in labels.unique().tolist()
    ]
    return torch.from_numpy(np.sort(np.concatenate(rows)))


def _apart(labels: Tensor, share: float) -> Tensor:
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    draws = _draws(0, "validation")
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten().numpy()
        chosen[torch.from_numpy(draws.permutation(rows)[: round(share * len(rows))])] = True
    return chosen

"""Semi-supervised tasks: a few labelled examples, and a pool of unlabelled ones.

Shapes: N examples, n of them of a class, K classes of a task, M positions in a given order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from clearn.errors import UserError
from clearn.examples import Examples, Transform
from clearn.preprocess import Preprocess
from clearn.split import draws, invalid
from clearn.store import Store

if TYPE_CHECKING:
    from clearn.stream import Stream, Task

UNKNOWN = -1
"""The label of an unlabelled example."""

Pool = Literal["all", "rest"]
Decay = Literal["none", "linear", "long-tailed"]

_AMOUNTS = ("labels_per_class", "label_share", "label_file")


class Unlabelled(Examples):
    """Examples whose labels are all -1, and so are those of their batches.

    The true labels stay in the memory of this object, for `correct` alone: a copy that was pickled
    has none.

    Args:
        store: As in `Examples`, like the other arguments.
        rows: int64 `[N]` rows of `store`.
        labels: int64 `[N]`, the true ones.
        task_id: The task all of them belong to.
        preprocess: Makes network inputs of them.
        transform: Applied to raw batches before augmentation.
    """

    _truth: Tensor | None  # on the CPU
    _near: Tensor | None  # a copy of it, on the device of the last guesses

    def _set(
        self,
        sources: tuple[tuple[Store, Transform | None], ...],
        source: Tensor | None,
        rows: Tensor,
        labels: Tensor,
        task_id: int | Tensor,
        preprocess: Preprocess,
    ) -> Examples:
        self._truth, self._near = labels, None
        hidden = torch.full_like(labels, UNKNOWN)
        return super()._set(sources, source, rows, hidden, task_id, preprocess)

    @classmethod
    def of(cls, examples: Examples) -> Unlabelled:
        """The same examples without their labels."""
        pool = cls.__new__(cls)
        pool._set(
            examples._sources,
            examples._source,
            examples.rows,
            examples.labels,
            examples.task_id,
            examples.preprocess,
        )
        return pool

    def select(self, index: Tensor) -> Unlabelled:
        """The examples at int64 `[M]` positions, in that order, unlabelled as they are."""
        chosen = Unlabelled.of(super().select(index))
        chosen._truth = None if self._truth is None else self._truth[index]
        return chosen

    def correct(self, positions: Tensor, guesses: Tensor) -> Tensor:
        """How many guesses are right. For diagnostics only: nothing may be learnt from it.

        Args:
            positions: int64 `[M]`, of the examples that were guessed.
            guesses: int64 `[M]` labels in the stream's numbers; -1 is never right.

        Returns:
            int64 scalar, on the device of the guesses.

        Raises:
            UserError: These examples are a copy that was pickled.
        """
        if self._truth is None:
            raise UserError(
                "unlabelled: the true labels are not in a copy that was pickled; build the stream "
                "in the process that asks for them"
            )
        device = guesses.device
        if self._near is None or self._near.device != device:
            self._near = self._truth.to(device, non_blocking=True)
        return (self._near[positions.to(device, non_blocking=True)] == guesses).sum()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_truth": None, "_near": None}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which examples of a task are labelled, and which are in its pool of unlabelled ones.

    Exactly one of the first three makes a stream semi-supervised. The examples of each class are
    put in one drawn order, labelled ones first, which depends on `label_seed` and the class alone:
    fewer labels are among more, whatever the order of the classes (where tasks share labels, on
    the task as well).

    Args:
        labels_per_class: Labelled training examples of each class and task, >= 1. The other
            examples are learned from without their labels, or not at all; all are labelled when
            neither this nor `label_share` nor `label_file` is given.
        label_share: Share of the training examples of each class and task that is labelled, in
            (0, 1], rounded but at least one.
        label_file: Text file with the number of a training row of the data set in each line,
            counted from 0: those are labelled, in every task that has them. For streams of one
            data set.
        label_seed: Seeds the draw of the labelled examples, and of those that `pool_decay` keeps.
            None: the seed of the run, or 0 where a stream is built by itself.
        pool: The unlabelled examples of a task. all: all its training examples, the labelled ones
            too. rest: those that are not labelled.
        pool_decay: How the number of unlabelled examples falls over the classes of each task, in
            their order, from all examples to `pool_least`. none: not at all. linear: by equal
            steps. long-tailed: by equal factors. What is labelled is the last to leave the pool.
        pool_least: Unlabelled examples of the last class of each task, >= 1, with `pool_decay`.

    Raises:
        UserError: A value is out of range, or two do not go together; what depends on the data is
            checked with the data.
    """

    labels_per_class: int | None = None
    label_share: float | None = None
    label_file: str | None = None
    label_seed: int | None = None
    pool: Pool = "all"
    pool_decay: Decay = "none"
    pool_least: int = 5

    def __post_init__(self) -> None:
        amounts = [name for name in _AMOUNTS if getattr(self, name) is not None]
        if len(amounts) != 1:
            given = " and ".join(f"stream.{name}" for name in amounts) or "none"
            raise UserError(
                f"stream.labels_per_class: {given} of {', '.join(_AMOUNTS)} are given; expected "
                "exactly one, to say which examples are labelled"
            )
        if self.labels_per_class is not None and self.labels_per_class < 1:
            raise invalid("labels_per_class", self.labels_per_class, "a number >= 1")
        if self.label_share is not None and not 0 < self.label_share <= 1:
            raise invalid("label_share", self.label_share, "a number in (0, 1]")
        for name, allowed in (("pool", get_args(Pool)), ("pool_decay", get_args(Decay))):
            if getattr(self, name) not in allowed:
                raise invalid(name, repr(getattr(self, name)), " or ".join(allowed))
        if self.pool_least < 1:
            raise invalid("pool_least", self.pool_least, "a number >= 1")


def read_labels(options: Mapping[str, Any]) -> Labels | None:
    """The `Labels` of some of their options; None when all examples are labelled.

    Raises:
        UserError: An option is not valid, or says something of labels when all are labelled.
    """
    if any(options.get(name) is not None for name in _AMOUNTS):
        return Labels(**options)
    for field in fields(Labels):
        if options.get(field.name, field.default) != field.default:
            raise UserError(
                f"stream.{field.name}: does not go with a stream whose examples are all labelled; "
                f"leave it out, or give one of {', '.join(_AMOUNTS)}"
            )
    return None


def follow_seed(options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Options of a stream, in which examples are drawn by the run's seed where none is given."""
    drawn = any(options.get(name) is not None for name in _AMOUNTS)
    names = [name for name, used in (("label_seed", drawn), ("few_shot_seed", True)) if used]
    missing = [name for name in names if name in options and options[name] is None]
    return dict(options) | dict.fromkeys(missing, seed)


def label_tasks(stream: Stream, labels: Labels) -> list[Task]:
    """The tasks of a stream with some of their examples labelled and a pool of unlabelled ones.

    Raises:
        UserError: See `Stream.semi_supervised`.
    """
    listed = None if labels.label_file is None else _read(labels.label_file, stream)
    occurrences: Counter[int] = Counter()  # the draw of a class of several tasks differs in each
    tasks = []
    for task in stream:
        chosen = []
        for place, label in enumerate(task.classes):
            number = stream.original_classes[label]
            random = draws(labels.label_seed or 0, "labels", number, occurrences[number])
            occurrences[number] += 1
            rows = (task.train.labels == label).nonzero().flatten()
            order = rows[torch.from_numpy(random.permutation(len(rows)))]
            what = f"class {label} ({stream.class_names[label]}) of task {task.index}"
            if listed is None:
                count = _count(len(order), labels, what)
            else:
                found = torch.isin(task.train.rows[order], listed)
                order = torch.cat([order[found], order[~found]])
                count = int(found.sum())
                if not count:
                    raise UserError(
                        f"stream.label_file: {labels.label_file} labels no training example of "
                        f"{what}; add one"
                    )
            pool = order if labels.pool == "all" else order[count:]
            size = _pool_size(len(pool), place, len(task.classes), labels, what)
            chosen.append((order[:count], pool[:size]))
        labelled, pool = (torch.cat(parts).sort().values for parts in zip(*chosen, strict=True))
        if not len(pool):
            raise UserError(
                f"stream.pool: 'rest' leaves task {task.index} without unlabelled examples: all "
                f"{len(labelled)} are labelled; label fewer, or set it to all"
            )
        unlabelled = Unlabelled.of(task.train).select(pool)
        tasks.append(replace(task, train=task.train.select(labelled), unlabelled=unlabelled))
    return tasks


def _count(available: int, labels: Labels, what: str) -> int:
    """How many of the `available` examples of a class are labelled."""
    if labels.label_share is not None:
        return max(1, int(labels.label_share * available + 0.5))
    assert labels.labels_per_class is not None
    if labels.labels_per_class > available:
        raise invalid(
            "labels_per_class",
            labels.labels_per_class,
            f"1 to {available}, the training examples of {what}",
        )
    return labels.labels_per_class


def _pool_size(available: int, place: int, count: int, labels: Labels, what: str) -> int:
    """How many of the `available` examples the pool has of a class, one of `count` in order."""
    if labels.pool_decay == "none" or count == 1:
        return available
    if labels.pool_least > available:
        raise invalid(
            "pool_least",
            labels.pool_least,
            f"1 to {available}, the unlabelled examples of {what}",
        )
    space = np.linspace if labels.pool_decay == "linear" else np.geomspace
    return int(space(available, labels.pool_least, count)[place] + 0.5)


def _read(path: str, stream: Stream) -> Tensor:
    """The rows in a file of labelled ones: int64 `[N]`.

    Raises:
        UserError: The file cannot be read; a line is not a row that a task learns from, or stands
            there twice; or the stream has several data sets.
    """
    stores = {id(store): store for task in stream for store, _ in task.train._sources}
    if len(stores) > 1:
        raise UserError(
            f"stream.label_file: rows are not of one data set: {stream.name} has {len(stores)}; "
            "expected labels_per_class or label_share"
        )
    (store,) = stores.values()
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"stream.label_file: {path} cannot be read: {error}") from error
    learned = set(torch.cat([task.train.rows for task in stream]).tolist())
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"stream.label_file: {path}, line {number}"
        if not line.strip().isdecimal() or int(line) >= len(store):
            raise UserError(
                f"{where}: {line.strip()!r} is not valid: expected a row of the training data, "
                f"0 to {len(store) - 1}"
            )
        row = int(line)
        if row in seen:
            raise UserError(f"{where}: row {row} is also in line {seen[row]}; name it once")
        if row not in learned:
            raise UserError(
                f"{where}: row {row} is of no task's training examples: its class is not in the "
                "stream, or it was set apart (keep_tasks, train_share, validation); leave it out"
            )
        seen[row] = number
    return torch.tensor(list(seen), dtype=torch.int64)

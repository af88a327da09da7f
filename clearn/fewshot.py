"""Few-shot class-incremental tasks: a base task with much data, then sessions with little.

Shapes: C classes of a data set, B of them in the base task, S sessions after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from clearn.errors import UserError, unknown_name
from clearn.sources import Source
from clearn.split import Part, Split, draws, invalid, ordered_classes


@dataclass(frozen=True, kw_only=True)
class FewShot(Split):
    """How the rows of a data set become a base task and few-shot sessions.

    Task 0 has all training rows of the first B classes. Every session after it has `shots` training
    rows of each of the next `ways` classes, until the C - B classes that are left are used up (Tao
    et al. 2020, "Few-Shot Class-Incremental Learning"). All tasks have all test rows of their
    classes.

    Of the fields of `Split` it reads `scenario`, `class_order`, `order_seed`, `keep_tasks` and
    `validation`.

    Args:
        base_classes: Classes of the base task, B >= 1.
        ways: Classes of every session, >= 1.
        shots: Training rows of each class of a session, >= 1.
        shot_seed: Seeds the draw of the shots. The draw of a class depends on nothing else, and
            fewer shots are among more.

    Raises:
        UserError: A value is out of range, or a field of `Split` is given that does not apply.
    """

    base_classes: int
    ways: int
    shots: int
    shot_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("base_classes", "ways", "shots"):
            if getattr(self, name) < 1:
                raise invalid(name, getattr(self, name), "a number >= 1")
        for name in ("num_tasks", "classes"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"stream.{name}: does not go with stream.shots: base_classes and ways say what "
                    "the tasks are; leave it out"
                )
        if self.train_share != 1:
            raise UserError("stream.train_share: does not go with stream.shots; set that instead")
        if self.split != "classes":
            raise invalid("split", repr(self.split), "classes, the only one to go with shots")
        if self.scenario == "domain":
            raise invalid("scenario", "'domain'", "class or task: the sessions have new classes")


def read_split(options: Mapping[str, Any]) -> Split:
    """The `FewShot` of some options when fields of its own are among them, else the `Split`.

    Raises:
        UserError: An option is unknown, with the nearest names; missing; or not valid.
    """
    known = [field.name for field in fields(FewShot)]
    for name in options:
        if name not in known:
            raise unknown_name("option of the stream", name, known)
    if not set(options) - {field.name for field in fields(Split)}:
        return Split(**options)
    for name in ("base_classes", "ways", "shots"):
        if name not in options:
            raise UserError(f"stream.{name}: is missing; give it with the others of few-shot tasks")
    return FewShot(**options)


def few_shot(source: Source, split: FewShot) -> list[Part]:
    """The base task and the sessions that `split` makes of a data set.

    Raises:
        UserError: An option does not go with the data.
    """
    order = ordered_classes(source, split)
    left = len(order) - split.base_classes
    if left < 0:
        raise invalid(
            "base_classes", split.base_classes, f"1 to {len(order)}, the number of classes"
        )
    if left % split.ways:
        raise invalid(
            "ways", split.ways, f"a divisor of {left}, the classes that the base task leaves"
        )
    base, rest = order[: split.base_classes], order[split.base_classes :]
    sessions = [rest[start : start + split.ways] for start in range(0, left, split.ways)]
    parts = [Part(source, base, _rows(source.train_labels, base), _rows(source.test_labels, base))]
    for classes in sessions:
        train = torch.cat([_shots(source.train_labels, label, split) for label in classes])
        parts.append(Part(source, classes, train, _rows(source.test_labels, classes)))
    return parts


def _rows(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """The rows of some classes, in the order of the data."""
    return torch.isin(labels, torch.tensor(classes)).nonzero().flatten()


def _shots(labels: Tensor, label: int, split: FewShot) -> Tensor:
    """The training rows that are drawn of one class: int64 `[shots]`."""
    rows = _rows(labels, [label])
    if len(rows) < split.shots:
        raise invalid("shots", split.shots, f"1 to {len(rows)}, the training rows of class {label}")
    drawn = draws(split.shot_seed, "shots", label).permutation(len(rows))[: split.shots]
    return rows[torch.from_numpy(drawn)]

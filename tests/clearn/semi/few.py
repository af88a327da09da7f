"""Streams with few labels whose rows say which they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clearn import Examples
from clearn.batch import Batch
from clearn.semi import Labels, Unlabelled
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

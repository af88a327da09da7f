"""The one door to Avalanche: its benchmarks from our tasks, and our tasks from its benchmarks.

Avalanche is imported when a function of this module is called, never before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clearn.errors import UserError
from clearn.examples import Examples
from clearn.preprocess import Preprocess
from clearn.sources import Source, as_example, check_budget, decode
from clearn.split import Part
from clearn.store import ResidentStore

if TYPE_CHECKING:
    from clearn.split import Scenario
    from clearn.stream import Task

TIMELINE = (
    "classes_in_this_experience",
    "previous_classes",
    "classes_seen_so_far",
    "future_classes",
)


@cache
def _benchmarks() -> ModuleType:
    """`avalanche.benchmarks`; importing any part of Avalanche imports all of it."""
    with warnings.catch_warnings():
        # One of its strategies wants a quadratic-programming solver, and says so at import.
        warnings.filterwarnings("ignore", message="no QP solver found")
        from avalanche import benchmarks
    return benchmarks  # type: ignore[no-any-return]


def make_benchmark(tasks: Sequence[Task], scenario: Scenario, preprocess: Preprocess) -> Any:
    """An Avalanche benchmark of `tasks`: streams `train`, `test`, `valid` and `unlabelled`.

    Each task is an experience of every stream; the last two are there if the tasks have such
    examples. Items are `(x, y, task label)`: x normalised, and augmented in the streams to learn
    from; y in our numbers, -1 for unlabelled ones; the task label is the task's index in the task
    scenario and 0 in the others, which Avalanche's strategies must not tell apart. Nothing is
    copied: an item is read from the task's store when it is asked for.
    """
    parts = {"train": [task.train for task in tasks], "test": [task.test for task in tasks]}
    if all(task.validation is not None for task in tasks):
        parts["valid"] = [task.validation for task in tasks if task.validation is not None]
    if all(task.unlabelled is not None for task in tasks):
        parts["unlabelled"] = [task.unlabelled for task in tasks if task.unlabelled is not None]
    streams = {
        name: [
            _dataset(part, task.index if scenario == "task" else 0, preprocess, name)
            for task, part in zip(tasks, parts_of_stream, strict=True)
        ]
        for name, parts_of_stream in parts.items()
    }
    library = _benchmarks()
    benchmark = library.benchmark_from_datasets(**streams)
    benchmark = library.with_classes_timeline(library.with_task_labels(benchmark))
    for experience in chain(*benchmark.streams.values()):
        for name in TIMELINE:
            # Avalanche 0.6 makes sets of them, but its multi-head nets want lists.
            setattr(experience, name, sorted(getattr(experience, name)))
    return benchmark


def _dataset(examples: Examples, task_label: int, preprocess: Preprocess, stream: str) -> Any:
    library = _benchmarks()
    labels = examples.labels.tolist()
    targets = library.utils.DataAttribute(labels, "targets")
    constant = library.utils.ConstantSequence(task_label, len(labels))
    groups = {
        "train": (partial(_one, preprocess.train), None),
        "eval": (partial(_one, preprocess.eval), None),
    }
    dataset = library.utils.TaskAwareSupervisedClassificationDataset(
        [_Items(examples)],
        data_attributes=[targets, library.utils.TaskLabels(constant)],
        transform_groups=library.utils.TransformGroups(groups),
    )
    return dataset if stream in ("train", "unlabelled") else dataset.eval()


def _one(function: Callable[[Tensor], Tensor], raw: Tensor) -> Tensor:
    """Apply a function of batches to one example."""
    return function(raw[None])[0]


class _Items(Dataset[tuple[Tensor, int]]):
    """Examples as the map-style data set of single rows that Avalanche reads."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        examples = self._examples
        batch = next(examples.batches(1, order=torch.tensor([index])))
        raw = examples.preprocess.fill(batch.raw, examples.shape)  # rows are to be collated
        return raw[0], int(batch.y[0])


def read_benchmark(
    benchmark: Any,
    name: str,
    preprocess: Preprocess | None,
    budget_gib: float,
    keep_tasks: int | None,
) -> list[Part]:
    """The tasks of an Avalanche benchmark, decoded once; see `Stream.from_avalanche`.

    Raises:
        UserError: It has no train and test stream of equal length, or its items are not supported.
    """
    experiences = []
    for stream in ("train", "test"):
        try:
            found = list(getattr(benchmark, f"{stream}_stream"))
        except AttributeError as error:
            kind = type(benchmark).__name__
            raise UserError(
                f"benchmark: a {kind} without a {stream}_stream is not valid: expected an "
                "Avalanche benchmark with a train and a test stream"
            ) from error
        experiences.append(found)
    train, test = experiences
    shared = len(test) == 1 < len(train)
    if not train or (len(test) != len(train) and not shared):
        raise UserError(
            f"benchmark: {len(train)} train and {len(test)} test experiences do not go together; "
            "expected equally many, or one for testing"
        )
    train_data, train_rows = _decode(train[:keep_tasks], "train", budget_gib)
    test_data, test_rows = _decode(test[:keep_tasks], "test", budget_gib)
    if shared:  # it may hold classes of tasks that are not kept
        used = torch.isin(test_data[1], train_data[1])
        test_data = test_data[0][used], test_data[1][used]
    source = Source(
        name=name,
        train=ResidentStore(train_data[0]),
        train_labels=train_data[1],
        test=ResidentStore(test_data[0]),
        test_labels=test_data[1],
        preprocess=preprocess or Preprocess((), ()),
    )
    parts = []
    for index, rows in enumerate(train_rows):
        classes = torch.unique(source.train_labels[rows])
        if shared:
            mine = torch.isin(source.test_labels, classes).nonzero().flatten()
        else:
            mine = test_rows[index]
        parts.append(Part(source, tuple(classes.tolist()), rows, mine))
    return parts


def _decode(
    experiences: Sequence[Any], name: str, budget_gib: float
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """All items of some experiences, and which rows of them are of each experience."""
    datasets = [experience.dataset.eval() for experience in experiences]
    counts = [len(dataset) for dataset in datasets]
    if 0 in counts:
        raise UserError(f"benchmark: {name} experience {counts.index(0)} is empty")
    check_budget(sum(counts), as_example(datasets[0][0][0], name), name, budget_gib)
    items = (dataset[index] for dataset in datasets for index in range(len(dataset)))
    return decode(items, sum(counts), name), list(torch.split(torch.arange(sum(counts)), counts))


def download_tiny_imagenet(root: Path) -> None:
    """Have Avalanche download Tiny-ImageNet into `root`."""
    _benchmarks()
    from avalanche.benchmarks.datasets import TinyImagenet

    TinyImagenet(root, download=True)

"""Streams: ordered sequences of tasks, each an Avalanche benchmark underneath."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Any

from clearn._avalanche import make_benchmark, read_benchmark
from clearn.errors import UserError
from clearn.examples import Examples
from clearn.fewshot import FewShot, few_shot, read_split
from clearn.preprocess import Preprocess
from clearn.semi import Labels, Unlabelled, label_tasks
from clearn.sources import Source, from_dataset, from_tensors, pair_up
from clearn.split import (
    Part,
    Scenario,
    Split,
    Transform,
    invalid,
    split_source,
    task_examples,
    whole,
    whole_parts,
)
from clearn.store import BUDGET_GIB
from clearn.tokens import MINILM


@dataclass(frozen=True)
class Task:
    """One step of a stream.

    Attributes:
        index: Position in the stream, from 0; also the task id.
        classes: The labels that occur in it, in the stream's numbers.
        train: What to learn from; of a semi-supervised stream, the labelled examples.
        test: What to be measured on.
        validation: Set apart from the training rows; None when `validation` is 0.
        unlabelled: What to learn from without labels; None unless the stream is semi-supervised.
    """

    index: int
    classes: tuple[int, ...]
    train: Examples
    test: Examples
    validation: Examples | None = None
    unlabelled: Unlabelled | None = None


class Stream:
    """An ordered sequence of tasks, over an Avalanche benchmark.

    Labels are numbered in order of appearance: task 0 has 0 to k - 1, task 1 the next ones. In the
    domain scenario all tasks have the same labels.

    Args:
        name: What reports call it.
        scenario: What is known at test time.
        tasks: At least one.
        preprocess: Makes network inputs of the examples of all tasks.
        num_classes: Size of the label space: outputs of a net with a single head.
        input_shape: Of one example: `(C, H, W)` of an image.
        class_names: By label.
        original_classes: The data set's own number of each label; where tasks share labels, that
            of task 0.
        benchmark: The Avalanche benchmark the tasks were read from; made of the tasks when None.

    Attributes:
        benchmark: The Avalanche benchmark, usable with Avalanche's own strategies.
    """

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
        benchmark: Any = None,
    ) -> None:
        self.name = name
        self.scenario: Scenario = scenario
        self.tasks = tuple(tasks)
        self.preprocess = preprocess
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.class_names = tuple(map(str, class_names))  # NumPy's strings are no plain ones
        self.original_classes = tuple(original_classes)
        if benchmark is None:
            benchmark = make_benchmark(self.tasks, scenario, preprocess)
        self.benchmark = benchmark

    def __repr__(self) -> str:
        classes = len(self.class_names)
        return (
            f"<{self.name}: {len(self)} task{'s' * (len(self) > 1)}, "
            f"{classes} class{'es' * (classes > 1)}, {self.scenario} scenario>"
        )

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def semi_supervised(self, labels: Labels) -> Stream:
        """This stream with few labels: each task keeps some of its labelled training examples.

        Its pool of unlabelled examples goes to `Task.unlabelled`, and to a stream `unlabelled` of
        the benchmark, which is made of the tasks also where they were read from another one.
        Validation and test examples stay as they are.

        Args:
            labels: Which examples are labelled, and which are in the pools.

        Raises:
            UserError: The stream is semi-supervised already, a class has too few training examples
                or no labelled one, a task has no unlabelled ones, or the file of labelled rows
                does not go with the data.
        """
        if any(task.unlabelled is not None for task in self):
            raise UserError(f"stream: {self.name} is semi-supervised already")
        stream = copy(self)
        stream.tasks = tuple(label_tasks(self, labels))
        stream.benchmark = make_benchmark(stream.tasks, self.scenario, self.preprocess)
        return stream

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
        """A stream of arrays in memory.

        Args:
            x: Training inputs, NumPy or torch: uint8 images `[N, C, H, W]` or `[N, H, W]` (gets
                one channel), or rows of floats `[N, ...]`, kept as float32. uint8 values are
                divided by 255 on their way into a net, floats are taken as they are.
            y: Integer labels `[N]`, >= 0.
            x_test: As `x`, for testing.
            y_test: As `y`; every class of a task must occur.
            name: What reports call the stream.
            preprocess: Normalisation and augmentation; none when missing.
            class_names: By label of `y`; the numbers themselves when missing.
            **split: The fields of `Split`, with `num_tasks` or `classes` among them; or those of
                `FewShot`, with `shots`.

        Raises:
            UserError: The arrays do not go together, or an option does not go with them.
        """
        source = from_tensors(
            x, y, x_test, y_test, name=name, preprocess=preprocess, class_names=class_names
        )
        return cls.from_source(source, read_split(split))

    @classmethod
    def from_dataset(
        cls,
        train: Any,
        test: Any,
        *,
        name: str = "dataset",
        preprocess: Preprocess | None = None,
        class_names: Sequence[str] | None = None,
        budget_gib: float = BUDGET_GIB,
        workers: int = 0,
        **split: Any,
    ) -> Stream:
        """A stream of map-style torch data sets of `(input, label)` pairs.

        Every item is read once, with the transforms of its data set, and kept: PIL images and
        uint8 tensors as uint8, others as float32. A transform that draws at random is thus applied
        once; leave augmentation to `preprocess`. uint8 images beyond the budget are read anew
        whenever they are needed, and their labels taken from `.targets` or `.labels` where there is
        no `target_transform`.

        Args:
            train: A data set to be split into tasks; or a list of data sets, one per task.
            test: As `train`.
            name: What reports call the stream.
            preprocess: Normalisation and augmentation; none when missing.
            class_names: By label of the data set, or of the stream for a list of data sets.
            budget_gib: Largest size of each data set that is held in memory, GiB.
            workers: Processes that read images beyond the budget; 0 for none.
            **split: As in `from_arrays`; for a list only `scenario`, `keep_tasks` and
                `validation`. In the domain scenario the data sets of a list share their labels,
                in the others each has classes of its own.

        Raises:
            UserError: The data sets do not go together, or an option does not go with them.
        """
        options = read_split(split)
        if not isinstance(train, list | tuple):
            source = from_dataset(train, test, name, preprocess, class_names, budget_gib, workers)
            return cls.from_source(source, options)
        pairs = pair_up(train, test, split)[: options.keep_tasks]
        preprocess = preprocess or Preprocess((), ())  # one, so that examples go together
        sources = [
            from_dataset(*pair, name, preprocess, None, budget_gib, workers) for pair in pairs
        ]
        return _assemble(whole_parts(sources, options.scenario), options, name, class_names)

    @classmethod
    def from_texts(
        cls,
        train: Any,
        test: Any,
        *,
        tokenizer: str = MINILM,
        max_length: int = 128,
        name: str = "texts",
        columns: Mapping[str, str] | None = None,
        class_names: Sequence[str] | None = None,
        **split: Any,
    ) -> Stream:
        """A stream of texts to classify, tokenised once.

        Args:
            train: Rows `(text, label)` or `(text, text2, label)`, or mappings with these keys, to
                be split into tasks; or a list of such data, one per task.
            test: As `train`.
            tokenizer: As in `load_tokenizer`.
            max_length: Most tokens of a text or pair, special ones included.
            name: What reports call the stream.
            columns: What mappings call `text`, `text2` and `label`, where they differ. Labels are
                integers from 0, or names, each in `class_names` where these are given for data to
                be split.
            class_names: By label of the data, or of the stream for a list of data. By default the
                names among the labels, in the order of the alphabet.
            **split: As in `from_dataset`.

        Raises:
            UserError: A row is not valid, there is no such tokenizer, or an option does not fit.
        """
        from clearn.datasets.texts import is_table, table_sources

        options = read_split(split)
        single = is_table(train, "train")
        pairs = [(train, test)] if single else pair_up(train, test, split)[: options.keep_tasks]
        shared = options.scenario == "domain"
        sources = table_sources(
            pairs,
            name,
            columns or {},
            class_names if single or shared else None,
            tokenizer,
            max_length,
            shared=shared,
        )
        if single:
            return cls.from_source(sources[0], options)
        return _assemble(whole_parts(sources, options.scenario), options, name, class_names)

    @classmethod
    def from_avalanche(
        cls,
        benchmark: Any,
        *,
        scenario: Scenario,
        name: str = "benchmark",
        preprocess: Preprocess | None = None,
        class_names: Sequence[str] | None = None,
        keep_tasks: int | None = None,
        validation: float = 0.0,
        budget_gib: float = BUDGET_GIB,
    ) -> Stream:
        """A stream of any Avalanche benchmark with a train and a test stream.

        Every item is decoded once, with its transforms for evaluation, and kept: PIL images and
        uint8 tensors as uint8, others as float32. Transforms for training are left out, since they
        draw at random; give a `preprocess` that does what they do. Labels keep their numbers.

        Args:
            benchmark: With as many test experiences as training experiences, or one for all, of
                which each task is then tested on the rows of its own classes.
            scenario: What is known at test time.
            name: What reports call the stream.
            preprocess: Normalisation and augmentation; none when missing: what the benchmark's
                transforms return is what the net gets.
            class_names: By label; the numbers themselves when missing.
            keep_tasks: Use the first so many tasks only.
            validation: As in `Split`.
            budget_gib: Largest size of the decoded items of each stream, GiB.

        Raises:
            UserError: The benchmark has no such streams, or its items are not supported.
        """
        options = Split(scenario=scenario, keep_tasks=keep_tasks, validation=validation)
        parts = read_benchmark(benchmark, name, preprocess, budget_gib, keep_tasks)
        return _assemble(parts, options, name, class_names, benchmark=benchmark)

    @classmethod
    def from_source(
        cls, source: Source, split: Split, domains: Sequence[Transform | None] | None = None
    ) -> Stream:
        """A stream of one data set.

        Args:
            source: The data set.
            split: How its rows become tasks; a `FewShot` makes sessions of them.
            domains: One transform of raw batches per task: every task then has all rows of all
                classes, seen through its transform; see `Examples`.

        Raises:
            UserError: An option does not go with the data.
        """
        if domains is not None:
            parts = [whole(source, transform) for transform in domains]
        elif isinstance(split, FewShot):
            parts = few_shot(source, split)
        else:
            parts = split_source(source, split)
        return _assemble(parts, split, source.name)

    @classmethod
    def from_sources(cls, sources: Sequence[Source], split: Split, name: str) -> Stream:
        """A stream in which every data set is a task.

        Args:
            sources: One per task, with examples of one shape and type.
            split: Its `scenario`, `keep_tasks` and `validation` are read.
            name: What reports call the stream.

        Raises:
            UserError: The data sets do not go together, or an option does not go with them.
        """
        return _assemble(whole_parts(sources, split.scenario), split, name)


def _assemble(
    parts: Sequence[Part],
    split: Split,
    name: str,
    class_names: Sequence[str] | None = None,
    benchmark: Any = None,
) -> Stream:
    """Number the labels of `parts` over the stream and set the validation rows apart.

    Args:
        parts: One per task.
        split: Its scenario, `keep_tasks` and `validation` are read.
        name: Of the stream.
        class_names: By label of the stream; as the data sets call them when None.
        benchmark: Where the parts were read from; its labels keep their numbers. It is that of
            the stream where this has all its tasks and training examples.
    """
    if split.keep_tasks is not None and split.keep_tasks > len(parts):
        raise invalid("keep_tasks", split.keep_tasks, f"1 to {len(parts)}, the number of tasks")
    parts = parts[: split.keep_tasks]
    source = parts[0].source
    shape, dtype = source.train.shape, source.train.dtype
    for index, part in enumerate(parts):
        if (part.source.train.shape, part.source.train.dtype) != (shape, dtype):
            raise UserError(
                f"train: task {index} has examples of shape {part.source.train.shape} and type "
                f"{part.source.train.dtype}, task 0 of {shape} and {dtype}; expected all alike"
            )
        if part.source.preprocess is not source.preprocess:
            raise UserError(
                f"preprocess: task {index} has another than task 0; give all sources the same one"
            )
    if benchmark is not None:
        numbers = [part.classes for part in parts]
        _check_disjoint(numbers, split.scenario)
        classes = [(source, label) for label in range(1 + max(map(max, numbers)))]
    elif split.scenario == "domain":
        numbers = [tuple(range(len(part.classes))) for part in parts]
        classes = [(source, label) for label in parts[0].classes]
    else:
        classes = [(part.source, label) for part in parts for label in part.classes]
        count = iter(range(len(classes)))
        numbers = [tuple(islice(count, len(part.classes))) for part in parts]
    if class_names is None:
        class_names = [source.class_name(label) for source, label in classes]
    if len(class_names) < len(classes):
        raise invalid("class_names", f"a list of {len(class_names)}", f"{len(classes)} names")
    return Stream(
        name=name,
        scenario=split.scenario,
        tasks=[
            Task(index, tuple(labels), *task_examples(index, part, labels, split))
            for index, (part, labels) in enumerate(zip(parts, numbers, strict=True))
        ],
        preprocess=source.preprocess,
        num_classes=len(classes),
        input_shape=source.train.shape,
        class_names=class_names[: len(classes)],
        original_classes=[label for _, label in classes],
        benchmark=None if split.validation or split.keep_tasks is not None else benchmark,
    )


def _check_disjoint(classes: Sequence[Sequence[int]], scenario: Scenario) -> None:
    """In the class scenario every class is of one task only."""
    seen: dict[int, int] = {}
    for index, group in enumerate(classes if scenario == "class" else ()):
        for label in group:
            if label in seen:
                raise UserError(
                    f"stream.scenario: 'class' is not valid: tasks {seen[label]} and {index} both "
                    f"have class {label}; expected domain or task"
                )
            seen[label] = index

"""What Lightning iterates over: chunks of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch

from clearn.batch import Batch
from clearn.examples import Examples
from clearn.seeding import Generators, derive_seed
from clearn.tracking import Position


class Chunk:
    """Consecutive batches of one epoch of one task, made one by one when asked for.

    Not a dataclass: Lightning copies those.

    Args:
        task: Index of the task.
        epoch: The epoch inside the task.
        first: Index of the first batch.
        last: Index after the last batch, or None for all that are left of the epoch.
        make: Makes the batches; called once, when the step begins.
    """

    __slots__ = ("_make", "epoch", "first", "last", "task")

    def __init__(
        self,
        task: int,
        epoch: int,
        first: int,
        last: int | None,
        make: Callable[[Chunk], Iterator[Batch]],
    ) -> None:
        self.task = task
        self.epoch = epoch
        self.first = first
        self.last = last
        self._make = make

    def batches(self) -> Iterator[Batch]:
        """The batches, each assembled just before it is used."""
        return self._make(self)


class Feed:
    """Chunks from where the run stands to the end of the epoch, or of the last of several tasks.

    The order of an epoch is a function of the seed, the task and the epoch, so that a run can be
    resumed at any batch. With several tasks in one fit, a chunk is one epoch of one task.

    Args:
        position: Where the run stands; read whenever Lightning starts an epoch.
        tasks: Indices of the tasks of this fit.
        epochs: Epochs per task.
        batch_size: Examples per batch.
        chunk_size: Batches per chunk.
        generators: The run's generators.
        examples: The examples to train on in the current task.
        device: Where the batches shall be.
    """

    def __init__(
        self,
        position: Position,
        tasks: range,
        *,
        epochs: int,
        batch_size: int,
        chunk_size: int,
        generators: Generators,
        examples: Callable[[], Examples],
        device: torch.device,
    ) -> None:
        self._position = position
        self._tasks = tasks
        self._epochs = epochs
        self._batch_size = batch_size
        self._chunk_size = chunk_size
        self._generators = generators
        self._examples = examples
        self._device = device
        self._open: tuple[tuple[int, int, int], Iterator[Batch]] | None = None

    def __iter__(self) -> Iterator[Chunk]:
        here = self._position
        if len(self._tasks) == 1:
            total = self.batches_per_epoch()
            for first in range(here.batch, total, self._chunk_size):
                last = min(first + self._chunk_size, total)
                yield Chunk(here.task, here.epoch, first, last, self._make)
        else:
            for task in range(here.task, self._tasks.stop):
                for epoch in range(self._epochs):
                    if (task, epoch) >= (here.task, here.epoch):
                        yield Chunk(task, epoch, 0, None, self._make)

    def batches_per_epoch(self) -> int:
        """Batches in an epoch of the current task."""
        return -(-len(self._examples()) // self._batch_size)

    def _make(self, chunk: Chunk) -> Iterator[Batch]:
        here = self._position
        if (chunk.task, chunk.epoch) < (here.task, here.epoch):
            return iter(())  # Lightning reads a chunk ahead, and the task was ended meanwhile
        # One iterator serves the whole epoch, so that workers of a streamed store read ahead.
        if self._open is None or self._open[0] != (chunk.task, chunk.epoch, chunk.first):
            batches = self._epoch(chunk)
        else:
            batches = self._open[1]
        last = self.batches_per_epoch() if chunk.last is None else chunk.last
        self._open = (chunk.task, chunk.epoch, last), batches
        return islice(batches, last - chunk.first)

    def _epoch(self, chunk: Chunk) -> Iterator[Batch]:
        """The batches of the chunk's epoch from its first one on."""
        examples = self._examples()
        seed = derive_seed(self._generators.seed, "sampler", chunk.task, chunk.epoch)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
        return examples.batches(
            self._batch_size,
            order=order[chunk.first * self._batch_size :],
            train=True,
            generator=self._generators.get("augmentation", self._device),
            device=self._device,
        )

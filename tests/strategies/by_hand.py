"""What loops written by hand share: the batches of a run, from its seed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clearn.batch import Batch
from clearn.preprocess import Preprocess
from clearn.seeding import derive_seed
from clearn.stream import Task


class Double(Preprocess):
    """In float64, so that rounding does not hide a difference; what is stored stays float32."""

    def eval(self, raw: Tensor) -> Tensor:
        return super().eval(raw).double()


def batches(task: Task, *, seed: int, epoch: int, batch_size: int) -> Iterator[Batch]:
    """The batches of an epoch of a task, in the order of a run; nothing is augmented."""
    whole = next(task.train.batches(len(task.train)))
    sampler = torch.Generator().manual_seed(derive_seed(seed, "sampler", task.index, epoch))
    for rows in torch.randperm(len(whole), generator=sampler).split(batch_size):
        yield Batch(whole.x[rows], whole.y[rows], task.index, whole.raw[rows])

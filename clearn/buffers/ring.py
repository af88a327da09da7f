"""The ring buffer of GEM: the last examples of every task.

Shapes: B batch, M capacity, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clearn.buffers.buffer import Buffer, columns
from clearn.buffers.slots import Slots, positive
from clearn.errors import UserError


class RingBuffer(Buffer):
    """The last examples of every task, each task in a share of its own.

    The memory of GEM (Lopez-Paz and Ranzato 2017, arXiv 1706.08840, section 3): of M slots each of
    T tasks has M // T, and the first M % T tasks have one more. The i-th example of a task (from 0)
    goes to slot i modulo the share, in the place of the oldest one. Nothing is drawn on the way in,
    and the share of a task that has not come yet stays empty. An example that is presented again,
    in the next epoch say, counts as another one. Where T > M, the last tasks have no share and
    nothing of theirs is kept.

    Args:
        capacity: Number of examples M, >= 1.
        shape: Of one raw example.
        dtype: Of the raw examples.
        num_tasks: Number of tasks T, >= 1.
        logits: Number of classes whose logits are kept with each example; None for none.
    """

    def __init__(
        self,
        capacity: int,
        shape: Sequence[int],
        dtype: torch.dtype = torch.uint8,
        *,
        num_tasks: int,
        logits: int | None = None,
    ) -> None:
        super().__init__(
            Slots(capacity, columns(shape, dtype, logits), positive("buffer num_tasks", num_tasks))
        )

    def _keep(
        self, batch: Mapping[str, Tensor], task_id: int | Tensor, generator: torch.Generator
    ) -> None:
        """The task must be one number in [0, T), the same for all rows."""
        task = self._task(task_id)
        count, share, seen = len(batch["y"]), self.slots.shares[task], self.slots.seen[task]
        rows = np.arange(count - min(count, share), count)  # what comes before is overwritten
        if share:
            self.slots.place(rows, self.slots.starts[task] + (seen + rows) % share, batch)
        self.slots.seen[task] += count

    def _task(self, task_id: int | Tensor) -> int:
        """The task of a batch, checked."""
        if isinstance(task_id, Tensor):
            raise UserError(
                "task_id: a tensor is not valid: a ring needs one int for all rows, since the "
                "places are worked out without waiting for the device; add each task by itself"
            )
        tasks = len(self.slots.seen)
        if not 0 <= task_id < tasks:
            raise UserError(
                f"task_id: {task_id} is not valid: expected 0 to {tasks - 1}, for the buffer was "
                f"made for {tasks} tasks"
            )
        return task_id

"""Joint training: the upper bound that keeps all data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.examples import Examples
from clearn.strategy import Strategy
from clearn.stream import Task


class Joint(Strategy):
    """Train on the examples of all tasks so far, shuffled together.

    The net goes on from where the last task left it (cumulative training): it is not initialised
    again, and an epoch takes more steps with every task.
    """

    def examples(self, task: Task, past: Sequence[Task]) -> Examples:
        """The training examples of this task and of all before it."""
        return Examples.concat([*(other.train for other in past), task.train])

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch."""
        return cross_entropy(self.logits(batch), batch.y)

    def bytes_stored(self) -> dict[str, int]:
        """Parameters, and as buffer all examples so far with their labels and task ids."""
        past = [task.train for task in self.stream.tasks[: self.task.index + 1]]
        kept = sum(len(e) * (math.prod(e.shape) * e.dtype.itemsize + 2 * 8) for e in past)
        return super().bytes_stored() | {"buffer": kept}

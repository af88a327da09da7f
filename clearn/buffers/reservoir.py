"""A reservoir: a uniform sample of a stream of unknown length.

Shapes: B batch, M capacity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clearn.buffers.buffer import Buffer, columns
from clearn.buffers.slots import Slots, integers


class ReservoirBuffer(Buffer):
    """A uniform sample of everything seen, by Vitter's Algorithm R (1985, doi:10.1145/3147.3165).

    The i-th example seen (from 1) is kept with probability min(1, M / i), in a slot drawn at
    random, and whatever was there is dropped; at any time each of the n examples seen is stored
    with probability M / n. Adding costs O(B), whatever the capacity and the number seen. An example
    that is presented again, in the next epoch say, counts as another one.

    Args:
        capacity: Number of examples, >= 1.
        shape: Of one raw example.
        dtype: Of the raw examples.
        logits: Number of classes whose logits are kept with each example; None for none.
    """

    def __init__(
        self,
        capacity: int,
        shape: Sequence[int],
        dtype: torch.dtype = torch.uint8,
        *,
        logits: int | None = None,
    ) -> None:
        super().__init__(Slots(capacity, columns(shape, dtype, logits)))

    def _keep(
        self, batch: Mapping[str, Tensor], task_id: int | Tensor, generator: torch.Generator
    ) -> None:
        count, seen = len(batch["y"]), int(self.slots.seen[0])
        numbers = np.arange(seen + 1, seen + count + 1)
        # The remainder is uniform on [0, number) but for a bias below number / 2^63.
        drawn = integers(2**63 - 1, count, generator) % numbers
        slots = np.where(numbers <= self.slots.capacity, numbers - 1, drawn)
        rows = np.flatnonzero(slots < self.slots.capacity)[::-1]
        # From the back, the first of equal slots is the last that was written to it.
        slots, last = np.unique(slots[rows], return_index=True)
        self.slots.place(rows[last], slots, batch)
        self.slots.seen += count

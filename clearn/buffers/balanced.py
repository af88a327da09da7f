"""A class-balanced buffer.

Shapes: B batch, M capacity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clearn.buffers.buffer import Buffer, columns
from clearn.buffers.slots import Slots, integers

_KEY_BITS = 41  # of a random key; a label takes the 22 bits above it in an int64
_LABEL_BITS = 22


class BalancedBuffer(Buffer):
    """Equal shares for the classes seen, and within each class a uniform sample of it.

    Every example draws a random key when it arrives, and a class keeps its examples with the
    smallest keys. The classes fill the buffer in turns, one example each, lowest label first, and
    a class that has no more is passed over: with n_c examples seen of class c, it stores
    min(n_c, L) or one more, where L is the largest level that fits, and larger classes give up
    random examples as others arrive. As no class's share ever grows back, the stored examples of a
    class are at any time a uniform sample without replacement of those seen of it.

    Labels are compared on the device, without waiting for it. Adding sorts O(M + B) integers there
    and copies O(B) examples, whatever the number seen. Labels are in [0, 2^22).

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
        super().__init__(
            Slots(capacity, columns(shape, dtype, logits) | {"key": ((), torch.int64)})
        )

    def _keep(
        self, batch: Mapping[str, Tensor], task_id: int | Tensor, generator: torch.Generator
    ) -> None:
        keys = torch.from_numpy(integers(2**_KEY_BITS, len(batch["y"]), generator))
        batch = {**batch, "key": keys.to(self.slots.device, non_blocking=True)}
        filled = len(self)
        room = min(self.slots.capacity - filled, len(keys))
        rows = np.arange(room)
        self.slots.place(rows, filled + rows, batch)
        if room < len(keys):
            self._replace({name: value[room:] for name, value in batch.items()})
        self.slots.seen += len(keys)

    def _replace(self, batch: Mapping[str, Tensor]) -> None:
        """Exchange what leaves the full buffer for what comes; shapes are known to the host."""
        capacity = self.slots.capacity
        keep = self._chosen(batch["y"], batch["key"])
        count = min(len(batch["y"]), capacity)
        # As many leave as come. They stand first, and the rest is written back as it was.
        leaving = keep[:capacity].int().argsort(stable=True)[:count]
        coming = keep[capacity:].int().argsort(descending=True, stable=True)[:count]
        comes, old = keep[capacity:][coming], self.slots.read(leaving)
        new = {name: value.index_select(0, coming) for name, value in batch.items()}
        self.slots.write(
            leaving,
            {name: torch.where(_like(comes, old[name]), new[name], old[name]) for name in new},
        )

    def _chosen(self, y: Tensor, key: Tensor) -> Tensor:
        """Which of the M stored and the new examples are kept: bool `[M + B]`, M of them true."""
        y = torch.cat([self.slots.get_buffer("y"), y])
        key = torch.cat([self.slots.get_buffer("key"), key])
        order = (y << _KEY_BITS | key).argsort(stable=True)  # by class, then by key
        y, place = y[order], torch.arange(len(order), device=order.device)
        first = torch.ones_like(y, dtype=torch.bool)
        first[1:] = y[1:] != y[:-1]
        turn = place - torch.where(first, place, 0).cummax(0).values  # rank inside the class
        kept = order[(turn << _LABEL_BITS | y).argsort()[: self.slots.capacity]]
        return torch.zeros_like(first).index_fill_(0, kept, True)


def _like(mask: Tensor, value: Tensor) -> Tensor:
    """A mask `[K]` that broadcasts over `[K, ...]`."""
    return mask.view(-1, *(1,) * (value.ndim - 1))

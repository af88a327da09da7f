"""Stored examples for rehearsal: which are kept, and how they are drawn.

Which example goes where is worked out on the host from sizes it knows, with a CPU generator; the
examples themselves stay on the device, so that neither adding nor drawing waits for it.

Shapes: B batch, M capacity, K drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clearn.errors import UserError

_KEY_BITS = 41  # of a random key; a label takes the 22 bits above it in an int64
_LABEL_BITS = 22


class Slots(nn.Module):
    """Preallocated columns of equal length, written and read by slot.

    The columns and the number of examples seen are in `state_dict`.

    Args:
        capacity: Number of slots, >= 1.
        columns: Shape and type of one entry, by column.

    Raises:
        UserError: The capacity is not an integer >= 1.
    """

    def __init__(
        self, capacity: int, columns: Mapping[str, tuple[Sequence[int], torch.dtype]]
    ) -> None:
        super().__init__()
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise UserError(f"buffer capacity: {capacity!r} is not valid: expected an integer >= 1")
        self.capacity = capacity
        self.seen = 0
        for name, (shape, dtype) in columns.items():
            self.register_buffer(name, torch.zeros(capacity, *shape, dtype=dtype))

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    @property
    def device(self) -> torch.device:
        """Where the columns are."""
        return next(self.buffers()).device

    def write(self, slots: Tensor, values: Mapping[str, Tensor]) -> None:
        """Overwrite the given slots, each of which occurs once.

        Args:
            slots: int64 `[K]`, on the device.
            values: New entries `[K, ...]`, by column.
        """
        for name, value in values.items():
            self.get_buffer(name).index_copy_(0, slots, value)

    def read(self, slots: Tensor) -> dict[str, Tensor]:
        """The entries `[K, ...]` of the given slots, by column."""
        return {name: column.index_select(0, slots) for name, column in self.named_buffers()}

    def bytes_stored(self) -> int:
        """Bytes of the filled slots."""
        return len(self) * sum(c[0].numel() * c.element_size() for c in self.buffers())

    def get_extra_state(self) -> Tensor:
        """The number of examples seen, which is needed on the host and so is no buffer."""
        return torch.tensor(self.seen, dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        self.seen = int(state)


class ReservoirBuffer(nn.Module):
    """A uniform sample of everything seen, by Vitter's Algorithm R (1985, doi:10.1145/3147.3165).

    The i-th example seen (from 1) is kept with probability min(1, M / i), in a slot drawn at
    random, and whatever was there is dropped; at any time each of the n examples seen is stored
    with probability M / n. Adding costs O(B), whatever the capacity and the number seen. An example
    that is presented again, in the next epoch say, counts as another one.

    Args:
        capacity: Number of examples, >= 1.
        shape: Of one raw example.
        dtype: Of the raw examples.
    """

    def __init__(
        self, capacity: int, shape: Sequence[int], dtype: torch.dtype = torch.uint8
    ) -> None:
        super().__init__()
        self.slots = Slots(capacity, _columns(shape, dtype))

    def __len__(self) -> int:
        return len(self.slots)

    def add(
        self, raw: Tensor, y: Tensor, task_id: int | Tensor, generator: torch.Generator
    ) -> None:
        """Offer a batch of examples, in order.

        Args:
            raw: Examples as stored, before augmentation, `[B, *shape]`.
            y: Labels, int64 `[B]`.
            task_id: The task of all rows, or of each, int64 `[B]`.
            generator: Draws the slots; lives on the CPU.

        Raises:
            UserError: Shapes or types do not fit the buffer.
        """
        batch = _batch(self.slots, raw, y, task_id)
        rows, slots = self._place(len(y), generator)
        self.slots.seen += len(y)
        if not len(rows):  # late in a stream mostly
            return
        index = torch.from_numpy(np.stack([rows, slots])).to(self.slots.device, non_blocking=True)
        self.slots.write(index[1], {name: v.index_select(0, index[0]) for name, v in batch.items()})

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw without replacement, all stored examples being equally likely.

        Args:
            count: How many, >= 0; all that are stored, in random order, when these are fewer.
            generator: Draws the examples; lives on the CPU.

        Returns:
            Raw examples `[K, *shape]`, labels `[K]` and task ids `[K]`.
        """
        return _sample(self.slots, count, generator)

    def bytes_stored(self) -> int:
        """Bytes of the examples stored, their labels and task ids."""
        return self.slots.bytes_stored()

    def _place(
        self, count: int, generator: torch.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the next `count` examples are kept at the end of them, and in which slots."""
        numbers = np.arange(self.slots.seen + 1, self.slots.seen + count + 1)
        # The remainder is uniform on [0, number) but for a bias below number / 2^63.
        drawn = _integers(2**63 - 1, count, generator) % numbers
        slots = np.where(numbers <= self.slots.capacity, numbers - 1, drawn)
        rows = np.flatnonzero(slots < self.slots.capacity)[::-1]
        # From the back, the first of equal slots is the last that was written to it.
        slots, last = np.unique(slots[rows], return_index=True)
        return rows[last], slots


class BalancedBuffer(nn.Module):
    """Equal shares for the classes seen, and within each class a uniform sample of it.

    Every example draws a random key when it arrives, and a class keeps its examples with the
    smallest keys. The classes fill the buffer in turns, one example each, lowest label first, and
    a class that has no more is passed over: with n_c examples seen of class c, it stores
    min(n_c, L) or one more, where L is the largest level that fits, and larger classes give up
    random examples as others arrive. As no class's share ever grows back, the stored examples of a
    class are at any time a uniform sample without replacement of those seen of it.

    Labels are compared on the device, without waiting for it. Adding sorts O(M + B) integers there
    and copies O(B) examples, whatever the number seen.

    Args:
        capacity: Number of examples, >= 1.
        shape: Of one raw example.
        dtype: Of the raw examples.
    """

    def __init__(
        self, capacity: int, shape: Sequence[int], dtype: torch.dtype = torch.uint8
    ) -> None:
        super().__init__()
        self.slots = Slots(capacity, _columns(shape, dtype) | {"key": ((), torch.int64)})

    def __len__(self) -> int:
        return len(self.slots)

    def add(
        self, raw: Tensor, y: Tensor, task_id: int | Tensor, generator: torch.Generator
    ) -> None:
        """Offer a batch of examples; as `ReservoirBuffer.add`, with labels in [0, 2^22)."""
        batch = _batch(self.slots, raw, y, task_id)
        keys = torch.from_numpy(_integers(2**_KEY_BITS, len(y), generator))
        batch["key"] = keys.to(self.slots.device, non_blocking=True)
        filled = len(self.slots)
        room = min(self.slots.capacity - filled, len(y))
        if room:
            free = torch.arange(filled, filled + room, device=self.slots.device)
            self.slots.write(free, {name: value[:room] for name, value in batch.items()})
        if room < len(y):
            self._replace({name: value[room:] for name, value in batch.items()})
        self.slots.seen += len(y)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw without replacement; as `ReservoirBuffer.sample`."""
        return _sample(self.slots, count, generator)

    def bytes_stored(self) -> int:
        """Bytes of the examples stored, their labels, task ids and keys."""
        return self.slots.bytes_stored()

    def _replace(self, batch: Mapping[str, Tensor]) -> None:
        """Exchange what leaves the full buffer for what comes; shapes are known to the host."""
        capacity = self.slots.capacity
        keep = self._keep(batch["y"], batch["key"])
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

    def _keep(self, y: Tensor, key: Tensor) -> Tensor:
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


def _columns(
    shape: Sequence[int], dtype: torch.dtype
) -> dict[str, tuple[Sequence[int], torch.dtype]]:
    return {"raw": (tuple(shape), dtype), "y": ((), torch.int64), "task_id": ((), torch.int64)}


def _like(mask: Tensor, value: Tensor) -> Tensor:
    """A mask `[K]` that broadcasts over `[K, ...]`."""
    return mask.view(-1, *(1,) * (value.ndim - 1))


def _batch(slots: Slots, raw: Tensor, y: Tensor, task_id: int | Tensor) -> dict[str, Tensor]:
    """The batch by column, checked."""
    column = slots.get_buffer("raw")
    if raw.shape[1:] != column.shape[1:] or raw.dtype != column.dtype:
        raise UserError(
            f"raw: examples of shape {list(raw.shape[1:])} and type {raw.dtype} do not fit a "
            f"buffer for {list(column.shape[1:])} of {column.dtype}"
        )
    if isinstance(task_id, int):
        task_id = torch.full_like(y, task_id)
    for name, value in (("y", y), ("task_id", task_id)):
        if value.shape != raw.shape[:1] or value.dtype != torch.int64:
            raise UserError(
                f"{name}: shape {list(value.shape)} and type {value.dtype} do not go with "
                f"{len(raw)} examples: expected [{len(raw)}] of torch.int64"
            )
    return {"raw": raw, "y": y, "task_id": task_id}


def _sample(slots: Slots, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    if count < 0:
        raise UserError(f"count: {count} is not valid: expected an integer >= 0")
    drawn = distinct(min(count, len(slots)), len(slots), generator)
    entries = slots.read(torch.from_numpy(drawn).to(slots.device, non_blocking=True))
    return entries["raw"], entries["y"], entries["task_id"]


def distinct(count: int, total: int, generator: torch.Generator) -> NDArray[np.int64]:
    """`count` different integers of [0, total), every ordered choice being equally likely.

    The distinct values of independent uniform draws, in the order of their first appearance, are
    such a choice. Up to half of `total`, 1.4 draws per value suffice on average, so that the cost
    is O(count); beyond that a permutation of all is.

    Args:
        count: How many, in [0, total].
        total: Number of integers.
        generator: Lives on the CPU.
    """
    if 2 * count > total:
        return np.asarray(torch.randperm(total, generator=generator)[:count].numpy())
    drawn = np.empty(0, np.int64)
    while len(drawn) < count:
        more = _integers(total, 2 * count, generator)
        drawn = np.concatenate([drawn, more])
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return drawn[:count]


def _integers(high: int, count: int, generator: torch.Generator) -> NDArray[np.int64]:
    """Uniform integers of [0, high) on the host."""
    drawn: NDArray[np.int64] = torch.randint(high, (count,), generator=generator).numpy()
    return drawn

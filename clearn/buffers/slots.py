"""Columns of stored entries, and the draws that choose among them.

Shapes: G groups, K entries written or read, M capacity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clearn.errors import UserError


class Slots(nn.Module):
    """Preallocated columns of equal length, written and read by slot.

    The slots stand in consecutive groups of M // G, the first M % G groups having one more, and
    each group is filled from its first slot on. The columns and the number of examples seen are in
    `state_dict`.

    Args:
        capacity: Number of slots M, >= 1.
        columns: Shape and type of one entry, by column.
        groups: Number of groups G, >= 1; those beyond the capacity have no slot.

    Attributes:
        shares: Number of slots of each group, int64 `[G]`, on the host.
        starts: First slot of each group, int64 `[G]`, on the host.
        seen: Number of examples that each group has seen, int64 `[G]`, on the host.

    Raises:
        UserError: The capacity is not an integer >= 1.
    """

    def __init__(
        self,
        capacity: int,
        columns: Mapping[str, tuple[Sequence[int], torch.dtype]],
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.capacity = positive("buffer capacity", capacity)
        self.shares = capacity // groups + (np.arange(groups) < capacity % groups).astype(np.int64)
        self.starts = np.cumsum(self.shares) - self.shares
        self.seen = np.zeros(groups, np.int64)
        for name, (shape, dtype) in columns.items():
            self.register_buffer(name, torch.zeros(capacity, *shape, dtype=dtype))

    def __len__(self) -> int:
        return int(np.minimum(self.seen, self.shares).sum())

    @property
    def device(self) -> torch.device:
        """Where the columns are."""
        return next(self.buffers()).device

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one entry, all columns together."""
        return sum(map(_bytes_per_row, self.buffers()))

    def filled(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The filled slots of the given ranks `[K]` in [0, len) among all filled ones, in order."""
        counts = np.minimum(self.seen, self.shares)
        ends = np.cumsum(counts)
        shifts = self.starts - (ends - counts)
        slots: NDArray[np.int64] = ranks + shifts[np.searchsorted(ends, ranks, side="right")]
        return slots

    def place(
        self, rows: NDArray[np.int64], slots: NDArray[np.int64], batch: Mapping[str, Tensor]
    ) -> None:
        """Overwrite slots by rows of a batch, both chosen on the host; one copy per column.

        Args:
            rows: Of the batch, `[K]`.
            slots: Where they go, `[K]`, each slot once.
            batch: New entries `[B, ...]` on the device, by column.
        """
        if not len(rows):  # a reservoir late in a stream mostly
            return
        index = torch.from_numpy(np.stack([rows, slots])).to(self.device, non_blocking=True)
        self.write(index[1], {name: v.index_select(0, index[0]) for name, v in batch.items()})

    def write(self, slots: Tensor, values: Mapping[str, Tensor]) -> None:
        """Overwrite the given slots, each of which occurs once.

        Args:
            slots: int64 `[K]`, on the device.
            values: New entries `[K, ...]`, contiguous, by column.
        """
        for name, value in values.items():
            column = self.get_buffer(name)
            if column.ndim > 1 and column.is_contiguous() and _bytes_per_row(column) % 8 == 0:
                # The CPU copies one number after the other: of eight bytes rather than of one.
                column, value = (t.flatten(1).view(torch.int64) for t in (column, value))
            column.index_copy_(0, slots, value)

    def read(self, slots: Tensor) -> dict[str, Tensor]:
        """The entries `[K, ...]` of the given slots, by column."""
        return {name: column.index_select(0, slots) for name, column in self.named_buffers()}

    def get_extra_state(self) -> Tensor:
        """The numbers of examples seen, which are needed on the host and so are no buffer."""
        return torch.from_numpy(self.seen.copy())

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        self.seen[:] = state.cpu().numpy()


def _bytes_per_row(column: Tensor) -> int:
    return column.shape[1:].numel() * column.element_size()


def positive(what: str, value: int) -> int:
    """`value`, when it is an integer >= 1.

    Raises:
        UserError: It is not; the message begins with `what`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{what}: {value!r} is not valid: expected an integer >= 1")
    return value


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
        more = integers(total, 2 * count, generator)
        drawn = np.concatenate([drawn, more])
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return drawn[:count]


def integers(high: int, count: int, generator: torch.Generator) -> NDArray[np.int64]:
    """Uniform integers of [0, high) on the host, `[count]`."""
    drawn: NDArray[np.int64] = torch.randint(high, (count,), generator=generator).numpy()
    return drawn

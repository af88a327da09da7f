"""A bounded queue of frozen prompt rows, what new rows start from, and how rows are re-weighted.

Shapes: R rows of the queue, C capacity, l rows of a prompt, d width of an embedding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clearn.buffers import distinct
from clearn.errors import UserError
from clearn.prompts.eviction import Evict


def aggregate(rows: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Rows re-weighted by a matrix of rank one: (u v') o rows, `[R, d]`.

    u and v of ones leave every bit of the rows as it is. That the matrix has rank one is published
    (Guo et al. 2024); that it multiplies entry by entry is our reading.

    Args:
        rows: `[R, d]`.
        u: A factor for each row, `[R]`.
        v: A factor for each column, `[d]`.
    """
    return torch.outer(u, v) * rows


def vocabulary_rows(embeddings: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The embeddings of different tokens, every choice being equally likely: float32 `[count, d]`.

    How Progressive Prompts (Razdaibiedina et al. 2023) starts its prompts. Special tokens are
    among those drawn from.

    Args:
        embeddings: `[V, d]`.
        count: In [0, V].
        generator: On the CPU.

    Raises:
        UserError: The count is out of range.
    """
    if not 0 <= count <= len(embeddings):
        raise UserError(
            f"count: {count} is not valid: expected a number of prompt rows in "
            f"[0, {len(embeddings)}], the tokens of the vocabulary"
        )
    tokens = torch.from_numpy(distinct(count, len(embeddings), generator))
    return embeddings.detach()[tokens.to(embeddings.device)].float()


class PromptQueue(nn.Module):
    """The prompts of earlier tasks, oldest first, frozen, in a bounded number of rows.

    Before a task `make_room`, after it `append` what it has learned. A capacity that prompts do not
    divide is filled by no more than whole prompts at first, and to the last row once an eviction
    has made just enough room. Loading a state takes over its number of rows.

    Args:
        block: l.
        width: d.
        capacity: C, >= l; None for no bound.

    Attributes:
        rows: float32 `[R, d]`.
        tasks: How many prompts were appended.

    Raises:
        UserError: A length is not >= 1, or the capacity is less than a prompt.
    """

    rows: Tensor

    def __init__(self, block: int, width: int, capacity: int | None = None) -> None:
        super().__init__()
        for name, value in (("prompt length", block), ("width", width)):
            if value < 1:
                raise UserError(f"{name}: {value} is not valid: expected an integer >= 1")
        if capacity is not None and capacity < block:
            raise UserError(
                f"capacity: a queue of {capacity} rows cannot hold one prompt of {block}: expected "
                f"a number of rows >= {block}, or null for no bound; raise it or shorten the prompt"
            )
        self.block = block
        self.capacity = capacity
        self.register_buffer("rows", torch.empty(0, width))
        self.tasks = 0
        self._evicted_after = 0  # how many prompts had been appended at the latest eviction

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def make_room(self, evict: Evict) -> None:
        """Bring the queue down to C - l rows if another prompt would not fit, else do nothing.

        Args:
            evict: Chooses or makes the rows that stay.

        Raises:
            UserError: It gives another number of rows than it was asked for.
        """
        if not self._is_full():
            return
        assert self.capacity is not None
        keep = self.capacity - self.block
        rows = evict(self.rows, keep)
        if rows.shape != (keep, self.rows.shape[1]):
            raise UserError(
                f"evict: gave rows of shape {list(rows.shape)}: expected "
                f"[{keep}, {self.rows.shape[1]}]"
            )
        self.rows = rows.detach().to(self.rows)
        self._evicted_after = self.tasks

    @torch.no_grad()
    def append(self, rows: Tensor) -> None:
        """Add the prompt of the next task: a copy of `[l, d]`, behind all others.

        Raises:
            UserError: The shape is another, or there is no room.
        """
        expected = (self.block, self.rows.shape[1])
        if rows.shape != expected:
            raise UserError(
                f"rows: a prompt of shape {list(rows.shape)} does not fit the queue: expected "
                f"{list(expected)}"
            )
        if self._is_full():
            raise UserError(
                f"queue: {len(self)} rows and a prompt of {self.block} are more than the capacity "
                f"of {self.capacity}; call make_room before the task"
            )
        self.rows = torch.cat([self.rows, rows.detach().to(self.rows)])
        self.tasks += 1

    def untouched(self, task: int) -> bool:
        """Whether the queue still begins with all rows it had when the task's prompt was appended.

        True as long as no eviction has followed; the rows of later tasks stand behind. Then, and
        only then, a weight for each of those rows still belongs to the row in its place.

        Args:
            task: Index of the task, in order of appending.

        Raises:
            UserError: No prompt of the task was appended.
        """
        if not 0 <= task < self.tasks:
            raise UserError(
                f"task: {task} has no prompt in the queue: expected one of the {self.tasks} tasks "
                "whose prompts were appended"
            )
        return task >= self._evicted_after

    def bytes_stored(self) -> int:
        """Bytes of the rows."""
        return self.rows.nbytes

    def get_extra_state(self) -> dict[str, int]:
        """What is counted on the host, so that no question waits for a device."""
        return {"tasks": self.tasks, "evicted_after": self._evicted_after}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take over what `get_extra_state` gave."""
        self.tasks, self._evicted_after = state["tasks"], state["evicted_after"]

    def _is_full(self) -> bool:
        return self.capacity is not None and len(self) + self.block > self.capacity

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "rows")
        if stored is not None and stored.shape[1:] == self.rows.shape[1:]:
            self.rows = self.rows.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

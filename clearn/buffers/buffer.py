"""What all buffers have in common: what an entry is, how it is checked, and how it is drawn.

Shapes: B batch, C classes, K drawn, M capacity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clearn.buffers.slots import Slots, distinct, positive
from clearn.errors import UserError


class Entries(NamedTuple):
    """Examples drawn from a buffer.

    Attributes:
        raw: Examples as they were stored, before augmentation, `[K, *shape]`.
        y: Labels, int64 `[K]`.
        task_id: Tasks they were learned in, int64 `[K]`.
        logits: What the net said of them when they were stored, float32 `[K, C]`; None when the
            buffer keeps none.
    """

    raw: Tensor
    y: Tensor
    task_id: Tensor
    logits: Tensor | None = None


class Buffer(nn.Module):
    """A bounded store of examples; the subclasses say which of them it keeps.

    Args:
        slots: Where the examples are kept, with the columns that `columns` names.
    """

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def __len__(self) -> int:
        return len(self.slots)

    def add(
        self,
        raw: Tensor,
        y: Tensor,
        task_id: int | Tensor,
        generator: torch.Generator,
        logits: Tensor | None = None,
    ) -> None:
        """Offer a batch of examples, in order.

        Args:
            raw: Examples as stored, before augmentation, `[B, *shape]`.
            y: Labels, int64 `[B]`.
            task_id: The task of all rows, or of each, int64 `[B]`.
            generator: Draws what is kept; lives on the CPU.
            logits: What the net says of them, floating point `[B, C]`, kept as float32; given if
                and only if the buffer keeps logits.

        Raises:
            UserError: Shapes or types do not fit the buffer.
        """
        batch = {"raw": raw, "y": y}
        batch["task_id"] = torch.full_like(y, task_id) if isinstance(task_id, int) else task_id
        if logits is not None:
            batch["logits"] = logits
        self._check(batch)
        if logits is not None:
            batch["logits"] = logits.detach().to(self.slots.get_buffer("logits").dtype)
        self._keep(batch, task_id, generator)

    def sample(self, count: int, generator: torch.Generator) -> Entries:
        """Draw without replacement, all stored examples being equally likely.

        Args:
            count: How many, >= 0; all that are stored, in random order, when these are fewer.
            generator: Draws the examples; lives on the CPU.

        Raises:
            UserError: The count is negative.
        """
        if count < 0:
            raise UserError(f"count: {count} is not valid: expected an integer >= 0")
        ranks = distinct(min(count, len(self)), len(self), generator)
        slots = torch.from_numpy(self.slots.filled(ranks))
        entries = self.slots.read(slots.to(self.slots.device, non_blocking=True))
        return Entries(entries["raw"], entries["y"], entries["task_id"], entries.get("logits"))

    def bytes_stored(self) -> int:
        """Bytes of the examples stored, with all that is kept of each."""
        return len(self) * self.slots.bytes_per_slot

    def _keep(
        self, batch: Mapping[str, Tensor], task_id: int | Tensor, generator: torch.Generator
    ) -> None:
        """Store what the buffer's law keeps of a batch that fits it, and count the batch.

        Args:
            batch: Entries `[B, ...]` on the device, by column.
            task_id: As it was given to `add`.
            generator: Draws what is kept.
        """
        raise NotImplementedError

    def _check(self, batch: Mapping[str, Tensor]) -> None:
        """Raise a `UserError` unless the batch has what the columns hold."""
        raw, column = batch["raw"], self.slots.get_buffer("raw")
        if raw.shape[1:] != column.shape[1:] or raw.dtype != column.dtype:
            raise UserError(
                f"raw: examples of shape {list(raw.shape[1:])} and type {raw.dtype} do not fit a "
                f"buffer for {list(column.shape[1:])} of {column.dtype}"
            )
        for name in ("y", "task_id"):
            value = batch[name]
            if value.shape != raw.shape[:1] or value.dtype != torch.int64:
                raise UserError(
                    f"{name}: shape {list(value.shape)} and type {value.dtype} do not go with "
                    f"{len(raw)} examples: expected [{len(raw)}] of torch.int64"
                )
        kept, logits = dict(self.slots.named_buffers()).get("logits"), batch.get("logits")
        if kept is None and logits is not None:
            raise UserError("logits: this buffer keeps none; make it with logits=number of classes")
        if kept is not None and logits is None:
            raise UserError(f"logits: none are given; this buffer keeps {kept.shape[1]} an example")
        if kept is not None and logits is not None:
            expected = [len(raw), kept.shape[1]]
            if list(logits.shape) != expected or not logits.dtype.is_floating_point:
                raise UserError(
                    f"logits: shape {list(logits.shape)} and type {logits.dtype} do not fit: "
                    f"expected {expected} of a floating-point type"
                )


def columns(
    shape: Sequence[int], dtype: torch.dtype, logits: int | None
) -> dict[str, tuple[Sequence[int], torch.dtype]]:
    """Shape and type of one entry, by column.

    Args:
        shape: Of one raw example.
        dtype: Of the raw examples.
        logits: Number of classes C whose logits are kept; None for no such column.

    Raises:
        UserError: The number of classes is not an integer >= 1.
    """
    kept: dict[str, tuple[Sequence[int], torch.dtype]] = {
        "raw": (tuple(shape), dtype),
        "y": ((), torch.int64),
        "task_id": ((), torch.int64),
    }
    if logits is not None:
        kept["logits"] = ((positive("buffer logits", logits),), torch.float32)
    return kept

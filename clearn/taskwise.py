"""Tensors of which every task has its own copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn


class Taskwise(nn.Module):
    """One row per task of each of several tensors, kept as buffers that grow.

    Buffer k is `rows_k`, `[T, *shapes[k]]` after T tasks. Loading a state takes over its number of
    tasks.

    Args:
        like: Tensors that give shapes, types and device of one row.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        super().__init__()
        self._count = len(like)
        for k, tensor in enumerate(like):
            self.register_buffer(f"rows_{k}", tensor.detach().new_empty(0, *tensor.shape))

    @property
    def rows(self) -> list[Tensor]:
        """The buffers."""
        return [cast("Tensor", getattr(self, f"rows_{k}")) for k in range(self._count)]

    def append(self, tensors: Sequence[Tensor]) -> None:
        """Keep copies of `tensors` for the next task."""
        for k, (rows, tensor) in enumerate(zip(self.rows, tensors, strict=True)):
            setattr(self, f"rows_{k}", torch.cat([rows, tensor.detach()[None].to(rows)]))

    def of_task(self, index: int) -> list[Tensor]:
        """The tensors of a task; views, not copies."""
        return [rows[index] for rows in self.rows]

    def bytes_stored(self) -> int:
        """Bytes of all rows."""
        return sum(rows.numel() * rows.element_size() for rows in self.rows)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for k, rows in enumerate(self.rows):
            stored = state_dict.get(f"{prefix}rows_{k}")
            if stored is not None and stored.shape[1:] == rows.shape[1:]:
                setattr(self, f"rows_{k}", rows.new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

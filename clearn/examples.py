"""Labelled examples of tasks, handed out as whole batches.

Shapes: N examples, M of them in a given order, B in a batch, S sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.store import RaggedStore, Store

Transform = Callable[[Tensor], Tensor]
_Source = tuple[Store, "Transform | None"]


class Examples:
    """Labelled examples: rows of a store, not copies.

    Args:
        store: Where the examples lie.
        rows: int64 `[N]` rows of `store`.
        labels: int64 `[N]`, numbered over the whole stream.
        task_id: The task all of them belong to.
        preprocess: Makes network inputs of them.
        transform: Applied to raw batches before augmentation: a deterministic function of one
            example, computed for whole batches (a permutation of pixels, a rotation), that
            keeps shape and type.

    Attributes:
        rows: int64 `[N]`.
        labels: int64 `[N]`, on the CPU.
        task_id: One task for all, or int64 `[N]`.

    Raises:
        UserError: Rows and labels differ in number or type, or a row is not in the store.
    """

    def __init__(
        self,
        store: Store,
        rows: Tensor,
        labels: Tensor,
        task_id: int,
        preprocess: Preprocess,
        transform: Transform | None = None,
    ) -> None:
        for name, values in (("rows", rows), ("labels", labels)):
            if values.dtype != torch.int64 or values.ndim != 1:
                raise UserError(
                    f"{name}: {values.dtype} of shape {tuple(values.shape)} is not valid: "
                    "expected torch.int64 with one axis"
                )
        if len(rows) != len(labels):
            raise UserError(f"labels: {len(labels)} of them do not go with {len(rows)} rows")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(store):
            raise UserError(
                f"rows: {int(rows.min())} to {int(rows.max())} are not valid: expected 0 to "
                f"{len(store) - 1}, the rows of the store"
            )
        self._set(((store, transform),), None, rows, labels, task_id, preprocess)

    def _set(
        self,
        sources: tuple[_Source, ...],
        source: Tensor | None,
        rows: Tensor,
        labels: Tensor,
        task_id: int | Tensor,
        preprocess: Preprocess,
    ) -> Examples:
        """Fill in the fields; `source` int64 `[N]` says which of several sources a row is of."""
        self._sources = sources
        self._source = source
        self.rows = rows
        self.labels = labels
        self.task_id = task_id
        self.preprocess = preprocess
        return self

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one raw example."""
        return self._sources[0][0].shape

    @property
    def dtype(self) -> torch.dtype:
        """Of raw examples: uint8 or float32; int32 of text."""
        return self._sources[0][0].dtype

    @staticmethod
    def concat(parts: Sequence[Examples]) -> Examples:
        """All examples of `parts`, in order; batches carry an id per row if tasks differ.

        Args:
            parts: At least one, of one stream.
        """
        if not parts:
            raise UserError("parts: there are none; expected at least one Examples")
        kinds = {(part.shape, part.dtype, part.preprocess) for part in parts}
        if len(kinds) > 1:
            raise UserError(
                "parts: their shapes, types or preprocessing differ; expected one stream"
            )
        sources = {_identity(one): one for part in parts for one in part._sources}
        numbers = {identity: number for number, identity in enumerate(sources)}
        source = []
        for part in parts:
            number = torch.tensor([numbers[_identity(one)] for one in part._sources])
            index = part._source
            source.append(number.expand(len(part)) if index is None else number[index])
        ids = torch.cat([torch.as_tensor(part.task_id).expand(len(part)) for part in parts])
        first = parts[0].task_id
        return Examples.__new__(Examples)._set(
            tuple(sources.values()),
            torch.cat(source) if len(sources) > 1 else None,
            torch.cat([part.rows for part in parts]),
            torch.cat([part.labels for part in parts]),
            first if isinstance(first, int) and bool((ids == first).all()) else ids,
            parts[0].preprocess,
        )

    def select(self, index: Tensor) -> Examples:
        """The examples at int64 `[M]` positions, in that order."""
        return Examples.__new__(Examples)._set(
            self._sources,
            None if self._source is None else self._source[index],
            self.rows[index],
            self.labels[index],
            self.task_id if isinstance(self.task_id, int) else self.task_id[index],
            self.preprocess,
        )

    def by_length(self) -> Tensor | None:
        """Positions int64 `[N]` of texts, shortest first: batches in this order hold least padding.

        None where all examples are of one size.
        """
        stores = [store for store, _ in self._sources]
        if not all(isinstance(store, RaggedStore) for store in stores):
            return None
        lengths = torch.zeros_like(self.rows)
        for number, store in enumerate(stores):
            own = slice(None) if self._source is None else self._source == number
            lengths[own] = cast("RaggedStore", store).lengths[self.rows[own]]
        return lengths.argsort(stable=True)

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None = None,
        train: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Batches on `device`, each assembled just before it is handed out.

        Args:
            batch_size: Examples per batch, >= 1; the last batch may be smaller.
            order: int64 `[M]` positions to go through; all from the first to the last if None.
            train: Augment, drawing from `generator` batch by batch.
            generator: On `device` or on the CPU; the global one when missing.
            device: Where the batches shall be.
        """
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} is not valid: expected a number >= 1")
        device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        chosen = self if order is None else self.select(order.cpu())
        if not len(chosen):
            return
        order = torch.arange(len(self)) if order is None else order
        positions = torch.split(order.to(device, non_blocking=True), batch_size)
        labels = torch.split(chosen.labels.to(device, non_blocking=True), batch_size)
        if isinstance(chosen.task_id, int):
            ids: Sequence[int | Tensor] = [chosen.task_id] * len(labels)
        else:
            ids = torch.split(chosen.task_id.to(device, non_blocking=True), batch_size)
        preprocess = self.preprocess
        raws = chosen._raw(batch_size, device)
        for raw, y, task_id, position in zip(raws, labels, ids, positions, strict=True):
            x = preprocess.train(raw, generator) if train else preprocess.eval(raw)
            yield Batch(x, y, task_id, raw, position)

    def _raw(self, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """Raw batches in order, after the transform."""
        if self._source is not None:
            return self._mixed(self._source, batch_size, device)
        ((store, transform),) = self._sources
        batches = store.batches(self.rows, batch_size, device)
        return batches if transform is None else map(transform, batches)

    def _mixed(self, source: Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """Raw batches of several sources: each read once per batch, then put into order."""
        batch = torch.arange(len(self)) // batch_size
        group = batch * len(self._sources) + source
        grouped = group.argsort(stable=True)  # every batch by itself, its sources one by one
        back = (grouped.argsort() - batch * batch_size).to(device, non_blocking=True)
        counts = group.bincount(minlength=(int(batch[-1]) + 1) * len(self._sources))
        counts = counts.view(-1, len(self._sources))
        rows = self.rows[grouped]
        reads = [
            store.batches(rows[source[grouped] == number], sizes[sizes > 0].tolist(), device)
            for number, ((store, _), sizes) in enumerate(zip(self._sources, counts.T, strict=True))
        ]
        transforms = [transform for _, transform in self._sources]
        for sizes, places in zip(counts.tolist(), torch.split(back, batch_size), strict=True):
            parts = []
            for size, read, transform in zip(sizes, reads, transforms, strict=True):
                if size:
                    raw = next(read)
                    parts.append(raw if transform is None else transform(raw))
            widest = max(part.shape[1:] for part in parts)
            parts = [self.preprocess.fill(part, widest) for part in parts]
            yield torch.cat(parts).index_select(0, places)


def _identity(source: _Source) -> tuple[int, int]:
    """Tells sources apart without asking a transform whether it can be hashed."""
    store, transform = source
    return id(store), id(transform)

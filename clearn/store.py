"""Where examples lie: in memory, or in files that are decoded while the run goes on.

Shapes: N examples of a store, K rows of it, `shape` of one example.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from clearn.cache import decode_once
from clearn.errors import UserError
from clearn.images import Images, ImageSource

BUDGET_GIB = 2.0
BUCKET = 8
"""What widths of batches of text are multiples of: fewer shapes, and whole tiles of a kernel."""

_AHEAD = 16  # batches of text that are padded in one go: small operations cost the most


class Store(Protocol):
    """Examples as stored, addressed by row.

    Attributes:
        shape: Of one example: `(C, H, W)` of an image, any other of float32 data, `(L,)` of text.
        dtype: uint8 or float32; int32 of text.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int: ...

    def batches(
        self, rows: Tensor, batch_size: int | list[int], device: torch.device
    ) -> Iterator[Tensor]:
        """The examples at `rows` in order, batch by batch, read ahead where that pays.

        Args:
            rows: int64 `[K]`.
            batch_size: Of every batch but a shorter last one, or of each: a list with sum K.
            device: Where the batches shall be.
        """
        ...


class ResidentStore:
    """Examples in memory; a batch is one index operation.

    They are copied to a device when they are first read there, and stay.

    Args:
        data: uint8 or float32 `[N, *shape]`; on the CPU it may be memory-mapped.

    Raises:
        UserError: `data` is of another type or has no axis of examples.
    """

    def __init__(self, data: Tensor) -> None:
        if data.dtype not in (torch.uint8, torch.float32):
            raise UserError(
                f"data: {data.dtype} is not valid: expected torch.uint8 (0 to 255) or "
                "torch.float32; convert it with .to(torch.float32)"
            )
        if data.ndim == 0:
            raise UserError("data: a single number is not valid: expected one row per example")
        self.shape = tuple(data.shape[1:])
        self.dtype = data.dtype
        self._on = {data.device: data}

    def __len__(self) -> int:
        return len(next(iter(self._on.values())))

    def batches(
        self, rows: Tensor, batch_size: int | list[int], device: torch.device
    ) -> Iterator[Tensor]:
        """As `Store.batches`; the rows travel to the device once, not batch by batch."""
        data = self._data(device)
        for chunk in torch.split(rows.to(device, non_blocking=True), batch_size):
            yield data.index_select(0, chunk)

    def _data(self, device: torch.device) -> Tensor:
        if device not in self._on:
            self._on[device] = next(iter(self._on.values())).to(device)
        return self._on[device]


class RaggedStore:
    """Rows of integers that differ in length, in memory: the tokens of texts.

    A batch is as wide as its longest row needs, rounded up to a multiple of 8 but never wider than
    `max_length`; shorter rows are padded at their end. All widths are known on the host.

    Args:
        values: int32 `[K]`, row after row.
        lengths: int64 `[N]` of the rows, with sum K; each in [0, max_length].
        max_length: The widest a row may be: `shape` is `(max_length,)`.
        pad: What shorter rows are filled up with.

    Raises:
        UserError: A type is another, or the lengths do not go with the values.
    """

    def __init__(self, values: Tensor, lengths: Tensor, *, max_length: int, pad: int) -> None:
        if values.dtype != torch.int32 or lengths.dtype != torch.int64:
            raise UserError(
                f"values, lengths: {values.dtype}, {lengths.dtype} are not valid: expected "
                "torch.int32 and torch.int64"
            )
        if int(lengths.sum()) != len(values) or bool((lengths < 0).any()):
            raise UserError(f"lengths: their sum is not {len(values)}, the number of values")
        if len(lengths) and int(lengths.max()) > max_length:
            raise UserError(
                f"lengths: a row of {int(lengths.max())} is not valid: expected at most "
                f"{max_length}; truncate it"
            )
        self.shape: tuple[int, ...] = (max_length,)
        self.dtype = torch.int32
        self.pad = pad
        self.lengths = lengths
        self._starts = lengths.cumsum(0) - lengths
        # Behind the last row, so that what is read beyond a row's end is there to be overwritten.
        self._on = {values.device: F.pad(values, (0, max_length), value=pad)}

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(
        self, rows: Tensor, batch_size: int | list[int], device: torch.device
    ) -> Iterator[Tensor]:
        """As `Store.batches`: int32 `[B, L]`, views of what is read for several batches at once."""
        if device not in self._on:
            self._on[device] = next(iter(self._on.values())).to(device)
        values, lengths = self._on[device], self.lengths[rows]
        spans = torch.stack([self._starts[rows], lengths]).to(device, non_blocking=True)
        columns = torch.arange(self.shape[0], device=device)
        known = [part.tolist() for part in torch.split(lengths, batch_size)]
        done = 0
        for first in range(0, len(known), _AHEAD):
            own = known[first : first + _AHEAD]
            widths = [-(-max(part, default=0) // BUCKET) * BUCKET for part in own]
            sizes = [len(part) for part in own]
            starts, ends = spans[:, done : done + sum(sizes)]
            done += sum(sizes)
            across = columns[: max(widths)]
            read = values.unfold(0, len(across), 1).index_select(0, starts)
            read.masked_fill_(across >= ends.unsqueeze(1), self.pad)
            for raw, width in zip(torch.split(read, sizes), widths, strict=True):
                yield raw[:, :width]


class MappedStore:
    """Examples of another store as a function makes them: what lies there stays as it is.

    Args:
        store: Where the examples lie.
        function: Of a raw batch `[B, ...]`, on any device: deterministic, one example at a time.
        shape: Of one example that it returns.
        dtype: Of the examples that it returns: uint8 or float32.
    """

    def __init__(
        self,
        store: Store,
        function: Callable[[Tensor], Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._store = store
        self._function = function

    def __len__(self) -> int:
        return len(self._store)

    def batches(
        self, rows: Tensor, batch_size: int | list[int], device: torch.device
    ) -> Iterator[Tensor]:
        """As `Store.batches`; the function is computed on the device."""
        return map(self._function, self._store.batches(rows, batch_size, device))


class StreamedStore:
    """Images that DataLoader workers decode whenever they are needed: for data beyond memory.

    Args:
        images: What to decode.
        workers: Processes per iteration, each a batch ahead; 0 decodes in this process.
    """

    def __init__(self, images: Images, *, workers: int) -> None:
        self.images = images
        self.workers = workers
        self.shape: tuple[int, ...] = images.shape
        self.dtype = torch.uint8

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, rows: Tensor, batch_size: int | list[int], device: torch.device
    ) -> Iterator[Tensor]:
        """As `Store.batches`; decodes in worker processes that end with the iteration."""
        loader = DataLoader(
            cast("torch.utils.data.Dataset[Tensor]", self.images),
            batch_size=None,  # an item is a batch: a worker gets all its rows at once
            sampler=[chunk.tolist() for chunk in torch.split(rows, batch_size)],
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # or iterating would draw from the global generator
        )
        try:
            for raw in loader:
                yield raw.to(device, non_blocking=True)
        except UserError as error:  # a worker's comes with its traceback in the message
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def open_images(
    source: ImageSource,
    *,
    image_size: int | None = None,
    budget_gib: float = BUDGET_GIB,
    workers: int | None = None,
) -> Store:
    """Images in memory, decoded once and cached on disk, if they fit the budget; else streamed.

    Args:
        source: The images.
        image_size: Height and width to bring them to, see `Images`.
        budget_gib: Largest size of the decoded images that is held in memory, GiB >= 0.
        workers: Threads or processes that decode; None for one per core.

    Raises:
        UserError: An option is out of range, an image cannot be read, the cache not be written.
    """
    if math.isnan(budget_gib) or budget_gib < 0:
        raise UserError(f"budget_gib: {budget_gib} is not valid: expected GiB >= 0")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if workers < 0:
        raise UserError(f"workers: {workers} is not valid: expected a number >= 0")
    images = Images(source, image_size)
    if len(images) * math.prod(images.shape) <= budget_gib * 2**30:
        return ResidentStore(decode_once(images, workers=max(workers, 1)))
    return StreamedStore(images, workers=workers)

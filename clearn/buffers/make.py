"""Buffers by name, sized in examples or in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from clearn.buffers.balanced import BalancedBuffer
from clearn.buffers.buffer import Buffer
from clearn.buffers.reservoir import ReservoirBuffer
from clearn.buffers.ring import RingBuffer
from clearn.buffers.slots import positive
from clearn.errors import UserError, unknown_name
from clearn.tokens import TokenPreprocess

if TYPE_CHECKING:
    from clearn.stream import Stream

Kind = Literal["reservoir", "ring", "balanced"]

DEFAULT_SIZE = 200
"""Number of examples that strategies keep when nothing is said."""


def make_buffer(
    kind: Kind,
    stream: Stream,
    *,
    size: int | None = None,
    budget: int | None = None,
    logits: bool = False,
) -> Buffer:
    """An empty buffer for the examples of a stream.

    Args:
        kind: What it keeps: see `ReservoirBuffer`, `RingBuffer` and `BalancedBuffer`.
        stream: Gives the shape and type of the examples, the number of classes and of tasks.
        size: Number of examples, >= 1; this or `budget`.
        budget: Bytes, with all that is kept of an example: it holds as many as fit. The default
            size may stand beside it, as it does in a config whose defaults are filled in.
        logits: Keep the logits of all classes of the stream with each example.

    Raises:
        UserError: The stream is one of texts; the kind is unknown; not exactly one of `size` and
            `budget` is given; the size is not an integer >= 1; or the budget cannot hold one
            example of each class, and for a ring one of each task.
    """
    if isinstance(stream.preprocess, TokenPreprocess):
        raise UserError(
            f"stream: {stream.name} is one of texts, whose batches differ in width, and a buffer "
            "keeps examples of one shape; take a strategy without a buffer"
        )
    if kind not in get_args(Kind):
        raise unknown_name("strategy.buffer", kind, get_args(Kind))
    if size is not None and budget is None:
        return _make(kind, stream, positive("strategy.buffer_size", size), logits)
    if budget is not None and size in (None, DEFAULT_SIZE):
        size = _fitting(kind, stream, positive("strategy.buffer_bytes", budget), logits)
        return _make(kind, stream, size, logits)
    given = "neither is" if size is None else "both are"
    raise UserError(
        f"strategy.buffer_size, strategy.buffer_bytes: {given} given; expected one of them: the "
        "number of examples, or the bytes they may take"
    )


def _make(kind: Kind, stream: Stream, size: int, logits: bool) -> Buffer:
    shape, dtype = stream[0].train.shape, stream[0].train.dtype
    classes = stream.num_classes if logits else None
    if kind == "ring":
        return RingBuffer(size, shape, dtype, num_tasks=len(stream), logits=classes)
    if kind == "balanced":
        return BalancedBuffer(size, shape, dtype, logits=classes)
    return ReservoirBuffer(size, shape, dtype, logits=classes)


def _fitting(kind: Kind, stream: Stream, budget: int, logits: bool) -> int:
    """How many examples fit into `budget` bytes; enough of them, or a `UserError`."""
    one = _make(kind, stream, 1, logits).slots.bytes_per_slot
    needed, of_what = stream.num_classes, "classes"
    if kind == "ring" and len(stream) > needed:
        needed, of_what = len(stream), "tasks"
    if budget // one < needed:
        raise UserError(
            f"strategy.buffer_bytes: {budget} is too small: at {one} bytes an example it holds "
            f"{budget // one}; expected at least {needed * one}, for one example of each of the "
            f"{needed} {of_what} of the stream"
        )
    return budget // one

"""Streams by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clearn.errors import unknown_name
from clearn.sources import digits
from clearn.stream import Split, Stream


def SplitDigits(num_tasks: int | None = 5, **options: Any) -> Stream:  # noqa: N802
    """Handwritten digits."""
    if options.get("classes") is not None:
        num_tasks = None
    return Stream.from_source(digits(), Split(num_tasks=num_tasks, **options))


STREAMS: dict[str, Callable[..., Stream]] = {"SplitDigits": SplitDigits}


def build_stream(name: str, **options: Any) -> Stream:
    """Build the stream called `name`."""
    if name not in STREAMS:
        raise unknown_name("stream", name, STREAMS)
    return STREAMS[name](**options)

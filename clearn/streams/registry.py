"""Streams by name."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from clearn.errors import unknown_name
from clearn.stream import Stream
from clearn.streams.classes import (
    CIFAR100Superclass,
    SplitCIFAR10,
    SplitCIFAR100,
    SplitCUB200,
    SplitDigits,
    SplitFMNIST,
    SplitImageNet,
    SplitMiniImageNet,
    SplitMNIST,
    SplitTinyImageNet,
)
from clearn.streams.domains import PermutedMNIST, RotatedMNIST
from clearn.streams.fewshot import FewShotStream
from clearn.streams.five import FiveDatasets
from clearn.streams.omniglot import OmniglotRotation, SplitOmniglot
from clearn.streams.options import Builder
from clearn.streams.text import TextStream

_ENTRY_POINTS = "clearn.streams"

STREAMS: dict[str, Builder] = {
    function.__name__: function
    for function in (
        SplitDigits,
        SplitMNIST,
        PermutedMNIST,
        RotatedMNIST,
        SplitFMNIST,
        SplitCIFAR10,
        SplitCIFAR100,
        SplitTinyImageNet,
        SplitMiniImageNet,
        SplitCUB200,
        SplitImageNet,
        CIFAR100Superclass,
        SplitOmniglot,
        OmniglotRotation,
        FiveDatasets,
        FewShotStream,
        TextStream,
    )
}
"""Our builders; those of other packages are found by the entry-point group `clearn.streams`."""


def stream_names() -> list[str]:
    """All streams, ours first, then those of other packages."""
    others = {point.name for point in metadata.entry_points(group=_ENTRY_POINTS)}
    return [*STREAMS, *sorted(others - set(STREAMS))]


def stream_builder(name: str) -> Builder:
    """The function that builds the stream called `name`.

    Raises:
        UserError: There is none, with the nearest names.
    """
    if name in STREAMS:
        return STREAMS[name]
    for point in metadata.entry_points(group=_ENTRY_POINTS, name=name):
        return point.load()  # type: ignore[no-any-return]
    raise unknown_name("stream", name, stream_names())


def build_stream(name: str, **options: Any) -> Stream:
    """Build the stream called `name` with the options of its builder.

    Raises:
        UserError: The name or an option is unknown, or the data is not there.
    """
    return stream_builder(name)(**options)

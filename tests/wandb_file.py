"""Reads the file an offline W&B run leaves behind; W&B itself ships no reader for Python.

The file is `:W&B`, a magic number and a version (7 bytes), then protobuf messages in the framing
of LevelDB's log: blocks of 32 KiB, in them chunks of checksum (4 bytes), length (2 bytes), type
(1 byte) and data, where a message is one full chunk or a first, some middle and a last one. The
checksum is the CRC-32 of zlib over type and data.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024
CHUNK = struct.Struct("<IHB")
HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages(path: Path) -> Iterator[bytes]:
    """The serialized messages of a file, oldest first."""
    content = path.read_bytes()
    if content[: len(HEADER)] != HEADER:
        raise ValueError(f"{path} is not a W&B file")
    offset, parts = len(HEADER), []
    while offset < len(content):
        left = BLOCK - offset % BLOCK
        if left < CHUNK.size:  # the tail of a block is padded
            offset += left
            continue
        checksum, length, kind = CHUNK.unpack_from(content, offset)
        start = offset + CHUNK.size
        data = content[start : start + length]
        if len(data) < length:
            raise ValueError(f"{path} ends in the middle of a chunk")
        if zlib.crc32(bytes([kind]) + data) != checksum:
            raise ValueError(f"{path}: wrong checksum at byte {offset}")
        if (kind in (FULL, FIRST)) == bool(parts):
            raise ValueError(f"{path}: chunk of type {kind} out of order at byte {offset}")
        parts.append(data)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []
        offset = start + length


class WandbFile:
    """What an offline run has logged.

    Attributes:
        run_id: W&B's id of the run.
        run: The message that began the run.
        config: The configuration.
        axes: Name or pattern of metrics to the metric they are drawn against.
        history: Rows in the order they were logged.
        summary: Last values and what was set.
        artifacts: Name to type.
        exit_code: None when the run did not end.
    """

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = {}
        self.axes: dict[str, str] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[str, str] = {}
        self.exit_code: int | None = None
        for message in messages(path):
            record = Record()
            record.ParseFromString(message)
            take = getattr(self, f"_take_{record.WhichOneof('record_type')}", None)
            if take is not None:
                take(getattr(record, record.WhichOneof("record_type")))

    @classmethod
    def find(cls, folder: Path) -> list[WandbFile]:
        """The runs in a record, oldest first."""
        return [cls(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]

    def column(self, name: str) -> list[Any]:
        """Values of one metric, without the rows that lack it."""
        return [row[name] for row in self.history if name in row]

    def _take_run(self, run: Any) -> None:
        self.run = run
        self.run_id = run.run_id
        self._take_config(run.config)

    def _take_config(self, config: Any) -> None:
        self.config |= _items(config.update)

    def _take_metric(self, metric: Any) -> None:
        self.axes[metric.glob_name or metric.name] = metric.step_metric

    def _take_history(self, history: Any) -> None:
        self.history.append(_items(history.item))

    def _take_summary(self, summary: Any) -> None:
        self.summary |= _items(summary.update)

    def _take_artifact(self, artifact: Any) -> None:
        self.artifacts[artifact.name] = artifact.type

    def _take_exit(self, end: Any) -> None:
        self.exit_code = end.exit_code


def _items(items: Any) -> dict[str, Any]:
    return {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for item in items
        if item.value_json
    }

"""What the tests of the buffers share: examples that carry their number, and who keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from clearn.buffers import BalancedBuffer, Buffer, ReservoirBuffer, RingBuffer

Make = Callable[..., Buffer]


def ring(*args: object, num_tasks: int = 1, **options: object) -> RingBuffer:
    """A ring, of one share unless the test is about shares."""
    return RingBuffer(*args, num_tasks=num_tasks, **options)


KINDS: list[Make] = [ReservoirBuffer, BalancedBuffer, ring]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def offer(
    buffer: Buffer, labels: Sequence[int], start: int, generator: torch.Generator, task: int = 0
) -> None:
    """Examples whose values are their number in the stream; so are their logits, where kept."""
    number = torch.arange(start, start + len(labels)).to(torch.float32)
    logits = torch.stack([number, -number], 1) if hasattr(buffer.slots, "logits") else None
    raw = number.view(-1, 1).expand(-1, 3)
    buffer.add(raw, torch.tensor(labels, dtype=torch.int64), task, generator, logits)


def filled(
    make: Make, capacity: int, batches: Sequence[Sequence[int]], seed: int = 0, **options: object
) -> Buffer:
    """A buffer that was offered batches of examples with these labels."""
    buffer, generator, start = make(capacity, (3,), torch.float32, **options), seeded(seed), 0
    for labels in batches:
        offer(buffer, labels, start, generator)
        start += len(labels)
    return buffer


def numbers(buffer: Buffer) -> list[int]:
    """Numbers of the stored examples, by slot."""
    return [int(value) for value in buffer.slots.get_buffer("raw")[: len(buffer), 0]]


def split(total: int, size: int) -> list[list[int]]:
    """Batches of one label."""
    return [[0] * min(size, total - first) for first in range(0, total, size)]

"""The ring against a list per task that forgets its oldest example."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from clearn.buffers import RingBuffer
from clearn.errors import UserError
from tests.clearn.buffers.feed import numbers, offer, ring, seeded

BATCHES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=10)


def slow_ring(capacity: int, tasks: int, batches: list[tuple[int, int]]) -> list[int | None]:
    """One example at a time, to slot i modulo the share of its task; None where none came."""
    shares = [len(range(task, capacity, tasks)) for task in range(tasks)]
    slots: list[list[int | None]] = [[None] * share for share in shares]
    counts, number = [0] * tasks, 0
    for task, size in batches:
        for _ in range(size):
            if shares[task]:
                slots[task][counts[task] % shares[task]] = number
            counts[task] += 1
            number += 1
    return [value for own in slots for value in own]


def fed(capacity: int, tasks: int, batches: list[tuple[int, int]]) -> RingBuffer:
    """A ring that was offered batches given by task and size."""
    buffer, start = ring(capacity, (3,), torch.float32, num_tasks=tasks, logits=2), 0
    for task, size in batches:
        offer(buffer, [task + 5] * size, start, seeded(), task)
        start += size
    return buffer


@given(capacity=st.integers(1, 13), batches=BATCHES)
@example(capacity=1, batches=[(0, 0), (0, 1), (0, 5), (3, 2)])
@example(capacity=11, batches=[(1, 300), (1, 2), (0, 1), (1, 4)])
@example(capacity=8, batches=[(2, 3)] * 50)
def test_every_example_is_where_the_slow_ring_puts_it(
    capacity: int, batches: list[tuple[int, int]]
) -> None:
    buffer, expected = fed(capacity, 4, batches), slow_ring(capacity, 4, batches)
    filled = [slot for slot, number in enumerate(expected) if number is not None]
    kept = [number for number in expected if number is not None]
    assert len(buffer) == len(kept)
    tasks = [task for task, size in batches for _ in range(size)]
    raw, y, task_id, logits = (
        buffer.slots.get_buffer(name)[filled] for name in ("raw", "y", "task_id", "logits")
    )
    assert raw.tolist() == [[number] * 3 for number in kept]
    assert logits.tolist() == [[number, -number] for number in kept]
    assert task_id.tolist() == [tasks[number] for number in kept]
    assert y.tolist() == [tasks[number] + 5 for number in kept]
    drawn = buffer.sample(capacity, seeded())
    assert sorted(drawn.raw[:, 0].tolist()) == sorted(kept)


def test_each_task_keeps_its_last_examples() -> None:
    """11 slots for 3 tasks: 4, 4 and 3."""
    batches = [(0, 7), (1, 2), (0, 3), (2, 9)]
    last: list[deque[int]] = [deque(maxlen=size) for size in (4, 4, 3)]
    for number, task in enumerate(task for task, size in batches for _ in range(size)):
        last[task].append(number)
    drawn = fed(11, 3, batches).sample(99, seeded())
    for task, own in enumerate(last):
        assert sorted(drawn.raw[drawn.task_id == task, 0].tolist()) == list(own)


def test_nothing_is_drawn_on_the_way_in() -> None:
    generator = seeded()
    buffer = ring(4, (3,), torch.float32)
    offer(buffer, [0] * 9, 0, generator)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_draws_are_uniform_over_shares_that_are_not_full() -> None:
    buffer = fed(14, 4, [(0, 9), (2, 1), (3, 2)])  # 4, none, 1 and 2 stored
    generator, rounds, counts = seeded(), 2000, np.zeros(12)
    for _ in range(rounds):
        drawn = buffer.sample(3, generator).raw[:, 0].long()
        assert len(set(drawn.tolist())) == 3
        counts[drawn] += 1
    stored = counts[counts > 0]
    assert len(stored) == 7
    share = 3 / 7
    statistic = ((stored - rounds * share) ** 2).sum() / (rounds * share * (1 - share)) * 6 / 7
    assert stats.chi2.sf(statistic, 6) > 1e-3


def test_more_tasks_than_slots() -> None:
    buffer = fed(2, 4, [(0, 3), (1, 1), (2, 5), (3, 1)])
    assert numbers(buffer) == [2, 3]
    assert buffer.slots.seen.tolist() == [3, 1, 5, 1]


@pytest.mark.parametrize(
    ("task_id", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), r"task_id: a tensor is not valid: .* one int"),
        (3, r"task_id: 3 is not valid: expected 0 to 2, for the buffer was made for 3 tasks"),
        (-1, r"task_id: -1 is not valid"),
    ],
)
def test_task_is_checked(task_id: Any, message: str) -> None:
    buffer = RingBuffer(9, (3,), torch.float32, num_tasks=3)
    with pytest.raises(UserError, match=message):
        buffer.add(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), task_id, seeded())
    assert not buffer.slots.seen.any()


@pytest.mark.parametrize("tasks", [0, -1, 1.5, True])
def test_number_of_tasks_is_checked(tasks: Any) -> None:
    with pytest.raises(UserError, match=r"buffer num_tasks: .* expected an integer >= 1"):
        RingBuffer(9, (3,), num_tasks=tasks)

"""Rows that grow with the tasks, and what a state dict makes of them."""

from __future__ import annotations

import torch

from clearn.taskwise import Taskwise


def test_rows_are_copies_in_the_order_of_the_tasks() -> None:
    a, b = torch.arange(3.0), torch.tensor(7)
    rows = Taskwise([a, b])
    for task in range(3):
        rows.append([a + task, b + task])
    a.zero_()
    assert [tensor.tolist() for tensor in rows.of_task(1)] == [[1, 2, 3], 8]
    assert [tuple(tensor.shape) for tensor in rows.rows] == [(3, 3), (3,)]
    assert rows.bytes_stored() == 3 * (3 * 4 + 8)


def test_a_fresh_object_takes_over_the_number_of_tasks() -> None:
    like = [torch.zeros(2, 3), torch.zeros(0), torch.zeros((), dtype=torch.uint8)]
    full, fresh = Taskwise(like), Taskwise(like)
    for _ in range(2):
        full.append([torch.randn(2, 3), torch.zeros(0), torch.tensor(5)])
    fresh.load_state_dict(full.state_dict())
    for one, other in zip(full.rows, fresh.rows, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    fresh.load_state_dict(Taskwise(like).state_dict())  # back to no task at all
    assert [len(row) for row in fresh.rows] == [0, 0, 0]


def test_nothing_to_keep() -> None:
    rows = Taskwise([])
    rows.append([])
    assert rows.of_task(0) == []
    assert rows.bytes_stored() == 0

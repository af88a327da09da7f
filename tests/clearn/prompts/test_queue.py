"""The queue of prompts against a list of rows; re-weighting; rows of the vocabulary."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clearn.errors import UserError
from clearn.prompts import (
    EVICTIONS,
    EvictionOptions,
    PromptQueue,
    aggregate,
    dq_pca,
    fifo,
    merge_oldest,
    vocabulary_rows,
)

WIDTH = 4


def prompt(task: int, block: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(task)
    return torch.randn(block, WIDTH, generator=generator)


def filled(tasks: int, capacity: int | None, evict: str = "pca", block: int = 2) -> PromptQueue:
    queue = PromptQueue(block, WIDTH, capacity)
    options = EvictionOptions(block=block, generator=torch.Generator().manual_seed(0))
    for task in range(tasks):
        queue.make_room(EVICTIONS[evict](options))
        queue.append(prompt(task, block))
    return queue


@given(rows=st.integers(0, 6), width=st.integers(1, 6), seed=st.integers(0, 99), even=st.booleans())
def test_aggregate(rows: int, width: int, seed: int, even: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, width, generator=generator)
    u, v = (torch.randn(size, generator=generator) for size in (rows, width))
    if even:
        u, v = torch.ones(rows), torch.ones(width)
    found = aggregate(matrix, u, v)
    for i in range(rows):
        for j in range(width):
            assert found[i, j].item() == pytest.approx((u[i] * v[j] * matrix[i, j]).item())


def test_weights_of_one_leave_every_bit() -> None:
    special = [0.0, -0.0, 1e-45, -3.4e38, float("inf"), 0.1]
    rows = torch.tensor([special, special[::-1]])
    found = aggregate(rows, torch.ones(2), torch.ones(6))
    assert found.view(torch.int32).equal(rows.view(torch.int32))


def test_gradients_of_weights() -> None:
    """The rows' weights gather over columns, the columns' over rows."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (3,), (4,))
    drawn = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    assert torch.autograd.gradcheck(aggregate, [t.requires_grad_() for t in drawn])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 7, 13])
def test_vocabulary_rows(count: int, dtype: torch.dtype) -> None:
    """Different tokens, copied."""
    embeddings = torch.arange(26).view(13, 2).to(dtype).requires_grad_()
    rows = vocabulary_rows(embeddings, count, torch.Generator().manual_seed(1))
    assert rows.shape == (count, 2)
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    tokens = (rows[:, 0] / 2).int().tolist()
    assert len(set(tokens)) == count
    assert rows.equal(embeddings.detach().float()[tokens])
    before = embeddings.detach().clone()
    rows.fill_(-1)
    assert embeddings.detach().equal(before)


def test_every_token_comes_equally_often() -> None:
    embeddings, generator = torch.arange(8.0)[:, None], torch.Generator().manual_seed(0)
    drawn = torch.cat([vocabulary_rows(embeddings, 3, generator) for _ in range(2000)])
    counts = drawn.flatten().int().bincount(minlength=8)
    assert (counts - 750).abs().max() < 4 * (2000 * 3 / 8 * 5 / 8) ** 0.5


@pytest.mark.parametrize("count", [-1, 6])
def test_more_rows_than_tokens(count: int) -> None:
    with pytest.raises(UserError, match=rf"count: {count} is not valid: .* in \[0, 5\]"):
        vocabulary_rows(torch.ones(5, 2), count, torch.Generator())


def test_without_a_bound_nothing_leaves() -> None:
    queue = filled(6, None)
    assert queue.rows.equal(torch.cat([prompt(task) for task in range(6)]))
    assert len(queue) == 12
    assert queue.tasks == 6
    assert queue.bytes_stored() == 12 * WIDTH * 4
    assert all(queue.untouched(task) for task in range(6))


@given(
    tasks=st.integers(0, 9),
    block=st.integers(1, 3),
    more=st.integers(0, 7),
    name=st.sampled_from(["pca", "fifo", "merge"]),
)
def test_against_a_plain_loop(tasks: int, block: int, more: int, name: str) -> None:
    """An eviction takes all rows at once, just before they would be too many."""
    capacity = block + more
    queue = filled(tasks, capacity, name, block)
    evict = {"pca": dq_pca, "fifo": fifo, "merge": lambda r, k: merge_oldest(r, k, block)}[name]
    rows, latest = torch.empty(0, WIDTH), 0
    for task in range(tasks):
        if len(rows) + block > capacity:
            rows, latest = evict(rows, capacity - block), task
        rows = torch.cat([rows, prompt(task, block)])
    assert queue.rows.equal(rows)
    assert len(queue) <= capacity
    assert [queue.untouched(task) for task in range(tasks)] == [t >= latest for t in range(tasks)]


def test_room_is_made_once() -> None:
    queue = filled(3, 6)
    queue.make_room(dq_pca)
    assert len(queue) == 4
    assert [queue.untouched(task) for task in range(3)] == [False, False, False]
    rows = queue.rows.clone()
    queue.make_room(dq_pca)
    assert queue.rows.equal(rows)
    queue.append(prompt(3))
    assert queue.untouched(3)


def test_appended_rows_are_copies() -> None:
    queue, rows = PromptQueue(2, WIDTH), prompt(0).requires_grad_()
    queue.append(rows)
    assert not queue.rows.requires_grad
    with torch.no_grad():
        rows.zero_()
    assert queue.rows.equal(prompt(0))
    assert not list(queue.parameters())


def test_state_goes_on_where_it_was() -> None:
    """Through a file of plain tensors and numbers, into a queue of another number of rows."""
    queue = torch.nn.ModuleDict({"queue": filled(5, 7)})
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    for tasks in (0, 2, 6):
        other = torch.nn.ModuleDict({"queue": filled(tasks, 7)})
        other.load_state_dict(torch.load(file, weights_only=True))
        file.seek(0)
        one, two = queue["queue"], other["queue"]
        assert isinstance(one, PromptQueue)
        assert isinstance(two, PromptQueue)
        assert two.rows.equal(one.rows)
        assert two.tasks == 5
        assert [two.untouched(t) for t in range(5)] == [False, False, False, False, True]
        two.make_room(dq_pca)
        two.append(prompt(5))
        expected = torch.cat([dq_pca(one.rows, 5), prompt(5)])
        assert two.rows.equal(expected)


def test_state_of_another_width_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for rows"):
        PromptQueue(2, WIDTH + 1).load_state_dict(filled(1, None).state_dict())


def test_what_no_queue_takes() -> None:
    with pytest.raises(UserError, match="capacity: a queue of 9 rows cannot hold one prompt of 10"):
        PromptQueue(10, WIDTH, 9)
    with pytest.raises(UserError, match="prompt length: 0 is not valid: expected an integer >= 1"):
        PromptQueue(0, WIDTH)
    with pytest.raises(UserError, match="width: 0 is not valid"):
        PromptQueue(1, 0)
    queue = filled(2, 4)
    with pytest.raises(UserError, match=r"queue: 4 rows and a prompt of 2 .* call make_room"):
        queue.append(prompt(2))
    with pytest.raises(UserError, match=r"rows: a prompt of shape \[3, 4\] .* expected \[2, 4\]"):
        queue.append(prompt(0, 3))
    with pytest.raises(UserError, match=r"evict: gave rows of shape \[1, 4\]: expected \[2, 4\]"):
        queue.make_room(lambda rows, keep: rows[:1])
    for task in (-1, 2):
        with pytest.raises(UserError, match=f"task: {task} has no prompt .* one of the 2 tasks"):
            queue.untouched(task)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EVICTIONS)
def test_on_a_device(name: str) -> None:
    queue = PromptQueue(2, WIDTH, 6).cuda()
    options = EvictionOptions(block=2, generator=torch.Generator().manual_seed(0))
    for task in range(5):
        queue.make_room(EVICTIONS[name](options))
        queue.append(prompt(task).cuda())
    expected = filled(5, 6, name)
    torch.testing.assert_close(queue.rows.cpu(), expected.rows)
    rows = vocabulary_rows(queue.rows, 3, torch.Generator())
    assert rows.is_cuda

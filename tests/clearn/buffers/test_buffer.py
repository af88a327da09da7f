"""What all buffers promise: draws, what travels together, state, bytes, and what they refuse."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from clearn.buffers import BalancedBuffer, Entries, ReservoirBuffer, Slots
from clearn.errors import UserError
from tests.clearn.buffers.feed import KINDS, Make, filled, numbers, offer, seeded

BATCHES = [[0, 1, 2, 3], [3, 3, 1], [], [0] * 16, [2]]
every_kind = pytest.mark.parametrize("make", KINDS)


# What is drawn


@every_kind
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 8, 8), torch.uint8),  # whole words of eight bytes
        ((1, 5, 5), torch.uint8),
        ((8,), torch.float32),
        ((7,), torch.float32),
        ((), torch.float64),
    ],
)
@pytest.mark.parametrize("classes", [None, 5])
def test_what_belongs_together_is_drawn_together(
    make: Make, shape: tuple[int, ...], dtype: torch.dtype, classes: int | None
) -> None:
    buffer, generator, offered = make(9, shape, dtype, logits=classes), seeded(), {}
    for step in range(8):
        y = torch.arange(step, step + 5)
        raw = (256 * torch.rand(5, *shape, generator=generator)).to(dtype)
        if len(shape) == 3 and step % 2:
            raw = raw.contiguous(memory_format=torch.channels_last)
        logits = None if classes is None else torch.randn(5, classes, generator=generator)
        buffer.add(raw, y, 0, generator, logits)
        offered |= {one.numpy().tobytes(): (y[row], row, logits) for row, one in enumerate(raw)}
    drawn = buffer.sample(7, generator)
    assert isinstance(drawn, Entries)
    assert drawn.raw.shape == (7, *shape)
    assert (drawn.raw.dtype, drawn.y.dtype, drawn.task_id.dtype) == (dtype, *[torch.int64] * 2)
    assert (drawn.logits is None) == (classes is None)
    for place, one in enumerate(drawn.raw):
        label, row, logits = offered[one.numpy().tobytes()]
        assert drawn.y[place] == label
        if drawn.logits is not None:
            assert torch.equal(drawn.logits[place], logits[row])


@pytest.mark.parametrize("make", [ReservoirBuffer, BalancedBuffer])
def test_each_row_keeps_its_task(make: Make) -> None:
    buffer, generator = make(6, (), torch.float32), seeded()
    for first in range(0, 40, 8):
        number = torch.arange(first, first + 8)
        buffer.add(number.float(), number % 3, number // 2, generator)
    drawn = buffer.sample(6, generator)
    assert torch.equal(drawn.task_id, drawn.raw.long() // 2)


@every_kind
def test_task_id_may_be_one_number(make: Make) -> None:
    buffer = make(3, (3,), torch.float32)
    offer(buffer, [4, 4, 4, 4], 0, seeded(), task=0)
    assert buffer.sample(3, seeded()).task_id.tolist() == [0, 0, 0]


@every_kind
def test_all_that_is_stored_is_drawn_equally_often_and_never_twice(make: Make) -> None:
    buffer, generator = filled(make, 9, [[0, 1, 2, 0], [1] * 6, [2] * 20]), seeded(1)
    rounds, counts = 1000, Counter[int]()
    for _ in range(rounds):
        drawn = [int(value) for value in buffer.sample(4, generator).raw[:, 0]]
        assert len(set(drawn)) == 4
        counts.update(drawn)
    assert sorted(counts) == sorted(numbers(buffer))
    found, share = np.array(list(counts.values())), 4 / 9
    statistic = ((found - rounds * share) ** 2).sum() / (rounds * share * (1 - share)) * 8 / 9
    assert stats.chi2.sf(statistic, 8) > 1e-3


@every_kind
def test_draws_repeat_with_the_generator(make: Make) -> None:
    buffer = filled(make, 9, BATCHES)
    first, again, other = (buffer.sample(4, seeded(seed)).raw for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_kind
def test_asked_for_more_than_there_is(make: Make) -> None:
    buffer = make(10, (3,), torch.float32, logits=2)
    empty = buffer.sample(5, seeded())
    assert (len(buffer), [list(column.shape) for column in empty]) == (
        0,
        [[0, 3], [0], [0], [0, 2]],
    )
    offer(buffer, [1, 0, 1], 0, seeded())
    assert sorted(buffer.sample(5, seeded()).raw[:, 0].tolist()) == [0, 1, 2]
    assert len(buffer.sample(0, seeded()).raw) == 0


@every_kind
def test_negative_count_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match="count: -1 is not valid"):
        make(4, (3,)).sample(-1, seeded())


# Edges and state


@pytest.mark.parametrize("make", [ReservoirBuffer, BalancedBuffer])
def test_one_slot_and_batches_larger_than_the_buffer(make: Make) -> None:
    stored = Counter(
        numbers(filled(make, 1, [[0] * 3, [], [0] * 5], seed))[0] for seed in range(500)
    )
    assert stats.chisquare([stored[number] for number in range(8)]).pvalue > 1e-3


@every_kind
@pytest.mark.parametrize("capacity", [1, 7])
def test_no_slot_is_written_twice_at_once(
    make: Make, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU either write could win."""
    write, sizes = Slots.write, []

    def checked(self: Slots, slots: torch.Tensor, values: Any) -> None:
        assert len(slots.unique()) == len(slots)
        sizes.append(len(slots))
        write(self, slots, values)

    monkeypatch.setattr(Slots, "write", checked)
    filled(make, capacity, [[0] * 3, [0] * 50, [1] * 9, [0] * 20])
    assert max(sizes) == capacity


@every_kind
@pytest.mark.parametrize("capacity", [1, 5, 40])
@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_state_goes_on_from_a_weights_only_file(make: Make, capacity: int, done: int) -> None:
    """What is stored, counted and drawn after the file is what it would have been without it."""

    def go_on(buffer: Any, generator: torch.Generator, first: int) -> list[torch.Tensor]:
        drawn = []
        for step in range(first, 6):
            offer(buffer, (BATCHES * 2)[step], 100 * step, generator)
            drawn += buffer.sample(3, generator)
        return drawn

    first, generator = make(capacity, (3,), torch.float32, logits=2), seeded()
    for step in range(done):
        offer(first, BATCHES[step], 100 * step, generator)
    file, draws = io.BytesIO(), generator.get_state()
    torch.save(first.state_dict(), file)
    file.seek(0)
    expected = go_on(first, generator, done)
    second, later = make(capacity, (3,), torch.float32, logits=2), seeded()
    second.load_state_dict(torch.load(file, weights_only=True))
    later.set_state(draws)
    for ours, theirs in zip(go_on(second, later, done), expected, strict=True):
        assert torch.equal(ours, theirs)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@every_kind
def test_state_is_a_copy(make: Make) -> None:
    """Adding afterwards does not change the numbers in a state that was taken before."""
    buffer = filled(make, 3, [[0] * 4])
    state = buffer.state_dict()
    offer(buffer, [0] * 5, 4, seeded())
    assert state["slots._extra_state"].tolist() == [4]


def test_bytes_are_those_of_the_filled_slots() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for make, extra in zip(KINDS, (0, 8, 0), strict=True):
        for classes in (None, 6):
            buffer = make(2, (3, 8, 8), logits=classes)
            logits = None if classes is None else torch.zeros(1, classes)
            assert buffer.bytes_stored() == 0
            for count in (1, 2, 2):
                buffer.add(image, torch.tensor([0]), 0, seeded(), logits)
                one = 3 * 8 * 8 + 8 + 8 + extra + 4 * (classes or 0)
                assert buffer.bytes_stored() == count * one


# Logits


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_are_kept_as_float32_without_their_graph(make: Make, dtype: torch.dtype) -> None:
    buffer = make(4, (3,), torch.float32, logits=3)
    given = torch.randn(4, 3, dtype=torch.float64, generator=seeded()).to(dtype).requires_grad_()
    for start in (0, 4):  # into free slots, and in the place of others
        y = torch.tensor([start] * 4)
        buffer.add(torch.full((4, 3), float(start)), y, 0, seeded(), given * 2)
    kept = buffer.sample(4, seeded()).logits
    assert kept is not None
    assert kept.dtype == torch.float32
    assert not kept.requires_grad
    rows = {tuple(row) for row in (given * 2).float().tolist()}
    assert {tuple(row) for row in kept.tolist()} <= rows


@every_kind
@pytest.mark.parametrize(
    ("classes", "logits", "message"),
    [
        (None, torch.zeros(2, 3), r"logits: this buffer keeps none; make it with logits="),
        (3, None, r"logits: none are given; this buffer keeps 3 an example"),
        (3, torch.zeros(2, 4), r"logits: shape \[2, 4\] .* do not fit: expected \[2, 3\] of"),
        (3, torch.zeros(3, 3), r"logits: shape \[3, 3\] .* expected \[2, 3\]"),
        (3, torch.zeros(2, 3, dtype=torch.int64), r"torch.int64 do not fit: .* floating-point"),
    ],
)
def test_logits_are_checked(
    make: Make, classes: int | None, logits: torch.Tensor | None, message: str
) -> None:
    buffer = make(4, (3,), torch.float32, logits=classes)
    with pytest.raises(UserError, match=message):
        buffer.add(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 0, seeded(), logits)
    assert not buffer.slots.seen.any()


@every_kind
@pytest.mark.parametrize("classes", [0, -1, 2.0, True])
def test_number_of_logits_is_checked(make: Make, classes: Any) -> None:
    with pytest.raises(UserError, match=r"buffer logits: .* expected an integer >= 1"):
        make(4, (3,), logits=classes)


# What is refused


@every_kind
@pytest.mark.parametrize("capacity", [0, -3, 2.5, True, "9"])
def test_capacity_is_checked(make: Make, capacity: Any) -> None:
    with pytest.raises(UserError, match=r"buffer capacity: .* expected an integer >= 1"):
        make(capacity, (3,))


@every_kind
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw": torch.zeros(2, 4)}, r"raw: examples of shape \[4\] and type torch.float32 do not"),
        ({"raw": torch.zeros(2, 3, dtype=torch.uint8)}, r"raw: .* torch.uint8 do not fit"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, r"y: shape \[3\] .* do not go with 2 examples"),
        ({"y": torch.zeros(2)}, r"y: .* torch.float32 do not go with 2 examples"),
        ({"task_id": torch.zeros(1, dtype=torch.int64)}, r"task_id: shape \[1\]"),
    ],
)
def test_what_does_not_fit_is_refused(make: Make, change: dict[str, Any], message: str) -> None:
    given = {"raw": torch.zeros(2, 3), "y": torch.zeros(2, dtype=torch.int64), "task_id": 0}
    buffer = make(4, (3,), torch.float32)
    with pytest.raises(UserError, match=message):
        buffer.add(**given | change, generator=seeded())
    assert len(buffer) == 0


@pytest.mark.gpu
@every_kind
def test_on_a_gpu_the_same_examples_without_waiting(make: Make) -> None:
    ours = make(20, (3,), torch.float32, logits=2).cuda()
    reference = make(20, (3,), torch.float32, logits=2)
    generators = seeded(), seeded()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(30):
            batch = torch.rand(7, 3), torch.arange(7) * step % 5, torch.rand(7, 2)
            raw, y, logits = (value.cuda(non_blocking=True) for value in batch)
            ours.add(raw, y, 0, generators[0], logits)
            reference.add(*batch[:2], 0, generators[1], batch[2])
            drawn, expected = (
                buffer.sample(5, generator)
                for buffer, generator in zip((ours, reference), generators, strict=True)
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for left, right in zip(drawn, expected, strict=True):
        assert torch.equal(left.cpu(), right)
    for name, value in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[name].cpu(), value), name

"""Buffers against slow per-sample versions of their laws, and what they refuse."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clearn.buffers import BalancedBuffer, ReservoirBuffer, Slots, distinct
from clearn.errors import UserError

KINDS = [ReservoirBuffer, BalancedBuffer]
Buffer = ReservoirBuffer | BalancedBuffer


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def offer(buffer: Buffer, labels: list[int], start: int, generator: torch.Generator) -> None:
    """Examples that carry their number in the stream, as value and as task id."""
    number = torch.arange(start, start + len(labels))
    raw = number.to(torch.float32).view(-1, 1).expand(-1, 3)
    buffer.add(raw, torch.tensor(labels, dtype=torch.int64), number, generator)


def filled(kind: type[Buffer], capacity: int, batches: list[list[int]], seed: int = 0) -> Buffer:
    buffer, generator, start = kind(capacity, (3,), torch.float32), seeded(seed), 0
    for labels in batches:
        offer(buffer, labels, start, generator)
        start += len(labels)
    return buffer


def numbers(buffer: Buffer) -> list[int]:
    """Numbers of the stored examples, by slot."""
    return buffer.slots.get_buffer("task_id")[: len(buffer)].tolist()


def split(total: int, size: int) -> list[list[int]]:
    return [[0] * min(size, total - first) for first in range(0, total, size)]


def slow_algorithm_r(capacity: int, total: int, rng: np.random.Generator) -> list[int]:
    """Vitter's Algorithm R, one example at a time."""
    kept: list[int] = []
    for number in range(total):
        if number < capacity:
            kept.append(number)
        else:
            slot = int(rng.integers(number + 1))
            if slot < capacity:
                kept[slot] = number
    return kept


# What is kept


@pytest.mark.parametrize("batch", [4, 7, 30])
def test_reservoir_keeps_every_example_equally_often(batch: int) -> None:
    """Each of n examples is stored with probability M / n, whatever the batches."""
    capacity, total, rounds = 5, 30, 800
    counts = np.zeros(total)
    for seed in range(rounds):
        counts[numbers(filled(ReservoirBuffer, capacity, split(total, batch), seed))] += 1
    expected = rounds * capacity / total
    # The counts of a round sum to M, hence the factor in the variance and one degree less.
    statistic = ((counts - expected) ** 2).sum() / (expected * (1 - capacity / total))
    statistic *= (total - 1) / total
    assert stats.chi2.sf(statistic, total - 1) > 1e-3
    limits = stats.binom.interval(1 - 1e-6, rounds, capacity / total)
    assert (counts >= limits[0]).all()
    assert (counts <= limits[1]).all()


def test_reservoir_has_the_joint_law_of_the_slow_version() -> None:
    """Which example is in which slot: all outcomes of 5 examples in 2 slots."""
    rounds, rng = 4_000, np.random.default_rng(0)
    ours = Counter(
        tuple(numbers(filled(ReservoirBuffer, 2, [[0], [0] * 3, [0]], seed)))
        for seed in range(rounds)
    )
    slow = Counter(tuple(slow_algorithm_r(2, 5, rng)) for _ in range(rounds))
    keys = sorted(ours | slow)
    assert len(keys) == len(slow) == len(ours)
    table = np.array([[ours[key] for key in keys], [slow[key] for key in keys]])
    assert stats.chi2_contingency(table).pvalue > 1e-3


@given(
    capacity=st.integers(1, 12),
    sizes=st.lists(st.integers(0, 15), max_size=8),
    seed=st.integers(0, 1000),
)
def test_reservoir_does_what_algorithm_r_does_with_the_same_draws(
    capacity: int, sizes: list[int], seed: int
) -> None:
    buffer = filled(ReservoirBuffer, capacity, [[0] * size for size in sizes], seed)
    generator, kept, number = seeded(seed), {}, 0
    for size in sizes:
        for drawn in torch.randint(2**63 - 1, (size,), generator=generator).tolist():
            slot = number if number < capacity else drawn % (number + 1)
            if slot < capacity:
                kept[slot] = number  # a later one overwrites an earlier one
            number += 1
    assert numbers(buffer) == [kept[slot] for slot in range(len(kept))]
    assert len(buffer) == min(number, capacity)
    raw = buffer.slots.get_buffer("raw")[: len(buffer)]
    assert torch.equal(raw, torch.tensor(numbers(buffer)).float().view(-1, 1).expand(-1, 3))


def test_reservoir_counts_beyond_32_bits() -> None:
    buffer = filled(ReservoirBuffer, 4, [[0] * 4])
    buffer.slots.seen[0] = 2**40
    before = numbers(buffer)
    offer(buffer, [0] * 100, 1000, seeded())
    assert numbers(buffer) == before  # the chance to enter is 4 / 2^40
    assert buffer.slots.seen[0] == 2**40 + 100
    other = ReservoirBuffer(4, (3,), torch.float32)
    other.load_state_dict(buffer.state_dict())
    assert other.slots.seen[0] == 2**40 + 100


def fair_shares(seen: Counter[int], capacity: int) -> dict[int, int]:
    """One example to each class in turn, lowest label first, until the buffer is full."""
    shares = dict.fromkeys(sorted(seen), 0)
    while sum(shares.values()) < min(capacity, sum(seen.values())):
        for label in shares:
            if shares[label] < seen[label] and sum(shares.values()) < capacity:
                shares[label] += 1
    return shares


@given(
    capacity=st.integers(1, 12),
    batches=st.lists(st.lists(st.integers(0, 4), max_size=9), max_size=9),
    seed=st.integers(0, 1000),
)
def test_balanced_shares_are_fair_after_every_batch(
    capacity: int, batches: list[list[int]], seed: int
) -> None:
    buffer, generator, flat = BalancedBuffer(capacity, (3,), torch.float32), seeded(seed), []
    for batch in batches:
        offer(buffer, batch, len(flat), generator)
        flat += batch
        kept = numbers(buffer)
        assert len(set(kept)) == len(kept) == len(buffer) == min(capacity, len(flat))
        labels = buffer.slots.get_buffer("y")[: len(buffer)].tolist()
        assert labels == [flat[number] for number in kept]
        shares = {k: v for k, v in fair_shares(Counter(flat), capacity).items() if v}
        assert dict(Counter(labels)) == shares


@given(
    labels=st.lists(st.integers(0, 4), max_size=40), size=st.integers(1, 41), seed=st.integers(0, 9)
)
def test_balanced_does_not_depend_on_the_batches(labels: list[int], size: int, seed: int) -> None:
    """One at a time or many at once: the same examples, for the draws are the same."""
    batches = [labels[first : first + size] for first in range(0, len(labels), size)]
    singly = filled(BalancedBuffer, 6, [[label] for label in labels], seed)
    assert sorted(numbers(filled(BalancedBuffer, 6, batches, seed))) == sorted(numbers(singly))


def test_balanced_keeps_the_examples_of_a_class_equally_often() -> None:
    """Also after the class has given up most of its share to classes that came later."""
    batches, rounds = [[0] * 12, [0] * 8, [1, 1, 0, 0], [1] * 6 + [2] * 10], 1000
    flat = np.array(list(itertools.chain(*batches)))
    counts = np.zeros(len(flat))
    for seed in range(rounds):
        counts[numbers(filled(BalancedBuffer, 9, batches, seed))] += 1
    for label in range(3):
        own = counts[flat == label]
        share = 3 / len(own)
        statistic = ((own - rounds * share) ** 2).sum() / (rounds * share * (1 - share))
        statistic *= (len(own) - 1) / len(own)
        assert stats.chi2.sf(statistic, len(own) - 1) > 1e-3


# What is drawn


@given(total=st.integers(0, 60), count=st.integers(0, 80), seed=st.integers(0, 1000))
def test_distinct_are_distinct_and_in_range(total: int, count: int, seed: int) -> None:
    drawn = distinct(min(count, total), total, seeded(seed))
    assert drawn.dtype == np.int64
    assert len(set(drawn.tolist())) == len(drawn) == min(count, total)
    assert all(0 <= value < total for value in drawn)


@pytest.mark.parametrize(("count", "total"), [(2, 5), (3, 5), (2, 4), (1, 3), (4, 4)])
def test_every_ordered_choice_is_equally_likely(count: int, total: int) -> None:
    generator, rounds = seeded(), 3000
    found = Counter(tuple(distinct(count, total, generator).tolist()) for _ in range(rounds))
    possible = list(itertools.permutations(range(total), count))
    assert set(found) <= set(possible)
    assert stats.chisquare([found[choice] for choice in possible]).pvalue > 1e-3


def test_drawing_costs_the_same_from_a_large_buffer() -> None:
    """The numbers drawn do not depend on the total, so neither does the work."""
    states = []
    for total in (10**3, 10**6, 10**8):
        generator = seeded()
        assert len(distinct(20, total, generator)) == 20
        states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states)


@pytest.mark.parametrize("kind", KINDS)
def test_sample_returns_whole_examples(kind: type[Buffer]) -> None:
    buffer = filled(kind, 9, [[0, 1, 2, 0], [1] * 6, [2] * 20])
    raw, y, number, _ = buffer.sample(4, seeded(1))
    assert raw.shape == (4, 3)
    assert (raw.dtype, y.dtype, number.dtype) == (torch.float32, torch.int64, torch.int64)
    labels = torch.tensor([0, 1, 2, 0] + [1] * 6 + [2] * 20)
    assert torch.equal(raw, number.float().view(-1, 1).expand(-1, 3))
    assert torch.equal(y, labels[number])
    assert len(set(number.tolist())) == 4
    again = buffer.sample(4, seeded(1))
    assert torch.equal(number, again[2])


@pytest.mark.parametrize("kind", KINDS)
def test_asked_for_more_than_there_is(kind: type[Buffer]) -> None:
    buffer = kind(10, (3,), torch.float32)
    raw, y, task_id, _ = buffer.sample(5, seeded())
    assert (len(buffer), raw.shape, y.shape, task_id.shape) == (0, (0, 3), (0,), (0,))
    offer(buffer, [1, 0, 1], 0, seeded())
    assert sorted(buffer.sample(5, seeded())[2].tolist()) == [0, 1, 2]
    assert len(buffer.sample(0, seeded())[0]) == 0


# Edges, state, errors


@pytest.mark.parametrize("kind", KINDS)
def test_one_slot_and_batches_larger_than_the_buffer(kind: type[Buffer]) -> None:
    stored = Counter(
        numbers(filled(kind, 1, [[0] * 3, [], [0] * 5], seed))[0] for seed in range(1000)
    )
    assert stats.chisquare([stored[number] for number in range(8)]).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_through_a_weights_only_file(kind: type[Buffer]) -> None:
    batches = [[0, 1, 2, 3], [3, 3, 1], [0] * 6]
    whole = filled(kind, 5, [*batches, [1, 2, 1, 0], [2]])
    first = filled(kind, 5, batches)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = kind(5, (3,), torch.float32)
    second.load_state_dict(torch.load(file, weights_only=True))
    generator = seeded()
    for labels in batches:
        torch.randint(2**41, (len(labels),), generator=generator)
    offer(second, [1, 2, 1, 0], 13, generator)
    offer(second, [2], 17, generator)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_task_id_may_be_one_number(kind: type[Buffer]) -> None:
    buffer = kind(3, (2, 4, 4))
    raw = torch.randint(256, (5, 2, 4, 4), dtype=torch.uint8, generator=seeded())
    buffer.add(raw, torch.zeros(5, dtype=torch.int64), 7, seeded())
    stored, _, task_id, _ = buffer.sample(3, seeded())
    assert task_id.tolist() == [7] * 3
    assert all(any(torch.equal(one, other) for other in raw) for one in stored)


def test_bytes_are_those_of_the_filled_slots() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for kind, extra in ((ReservoirBuffer, 0), (BalancedBuffer, 8)):
        buffer = kind(2, (3, 8, 8))
        assert buffer.bytes_stored() == 0
        for count in (1, 2, 2):
            buffer.add(image, torch.tensor([0]), 0, seeded())
            assert buffer.bytes_stored() == count * (3 * 8 * 8 + 8 + 8 + extra)


@pytest.mark.parametrize("kind", [*KINDS, lambda capacity, shape: Slots(capacity, {})])
@pytest.mark.parametrize("capacity", [0, -3, 2.5, True, "9"])
def test_capacity_is_checked(kind: Any, capacity: Any) -> None:
    with pytest.raises(UserError, match=r"buffer capacity: .* expected an integer >= 1"):
        kind(capacity, (3,))


@pytest.mark.parametrize("kind", KINDS)
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
def test_what_does_not_fit_is_refused(
    kind: type[Buffer], change: dict[str, Any], message: str
) -> None:
    given_ = {"raw": torch.zeros(2, 3), "y": torch.zeros(2, dtype=torch.int64), "task_id": 0}
    buffer = kind(4, (3,), torch.float32)
    with pytest.raises(UserError, match=message):
        buffer.add(**given_ | change, generator=seeded())
    assert len(buffer) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_negative_count_is_refused(kind: type[Buffer]) -> None:
    with pytest.raises(UserError, match="count: -1 is not valid"):
        kind(4, (3,)).sample(-1, seeded())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_same_examples_without_waiting(kind: type[Buffer]) -> None:
    ours = kind(20, (3,), torch.float32).cuda()
    reference = kind(20, (3,), torch.float32)
    generators = seeded(), seeded()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(30):
            raw = torch.rand(7, 3)
            y = torch.arange(7) * step % 5
            on_device = raw.cuda(non_blocking=True), y.cuda(non_blocking=True)
            ours.add(*on_device, step, generators[0])
            reference.add(raw, y, step, generators[1])
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

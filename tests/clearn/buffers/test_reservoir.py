"""The reservoir against Algorithm R, one example at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from clearn.buffers import ReservoirBuffer
from tests.clearn.buffers.feed import filled, numbers, offer, seeded, split


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


@pytest.mark.parametrize("batch", [4, 7, 30])
def test_reservoir_keeps_every_example_equally_often(batch: int) -> None:
    """Each of n examples is stored with probability M / n, whatever the batches."""
    capacity, total, rounds = 5, 30, 400
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
    rounds, rng = 2_000, np.random.default_rng(0)
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
@example(capacity=1, sizes=[1, 0, 1, 9, 200], seed=0)
@example(capacity=7, sizes=[50, 1, 0, 3, 300, 6, 8], seed=1)
@example(capacity=64, sizes=[63, 1, 1, 500, 500, 500], seed=2)
@example(capacity=5, sizes=[5, 5, 5] * 40, seed=3)
def test_reservoir_does_what_algorithm_r_does_with_the_same_draws(
    capacity: int, sizes: list[int], seed: int
) -> None:
    batches = [[0] * size for size in sizes]
    buffer = filled(ReservoirBuffer, capacity, batches, seed, logits=2)
    generator, kept, number = seeded(seed), {}, 0
    for size in sizes:
        for drawn in torch.randint(2**63 - 1, (size,), generator=generator).tolist():
            slot = number if number < capacity else drawn % (number + 1)
            if slot < capacity:
                kept[slot] = number  # a later one overwrites an earlier one
            number += 1
    assert numbers(buffer) == [kept[slot] for slot in range(len(kept))]
    assert len(buffer) == min(number, capacity)
    number = torch.tensor(numbers(buffer)).float()
    raw, logits = (buffer.slots.get_buffer(name)[: len(buffer)] for name in ("raw", "logits"))
    assert torch.equal(raw, number.view(-1, 1).expand(-1, 3))
    assert torch.equal(logits, torch.stack([number, -number], 1))


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

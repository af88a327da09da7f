"""The balanced buffer: fair shares of the classes, and uniform samples within them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clearn.buffers import BalancedBuffer
from tests.clearn.buffers.feed import filled, numbers, offer, seeded


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
    batches, rounds = [[0] * 12, [0] * 8, [1, 1, 0, 0], [1] * 6 + [2] * 10], 500
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

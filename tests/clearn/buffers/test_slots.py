"""Slots in groups, and draws of distinct integers."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clearn.buffers import Slots, distinct
from clearn.errors import UserError
from tests.clearn.buffers.feed import seeded


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


@given(capacity=st.integers(1, 20), seen=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_groups_share_the_slots_and_are_read_in_order(capacity: int, seen: list[int]) -> None:
    slots = Slots(capacity, {"value": ((), torch.int64)}, groups=len(seen))
    slots.seen[:] = seen
    owners = sorted(slot % len(seen) for slot in range(capacity))  # dealt out one at a time
    expected = [
        slot for slot, owner in enumerate(owners) if slot - owners.index(owner) < seen[owner]
    ]
    assert len(slots) == len(expected)
    assert slots.filled(np.arange(len(slots))).tolist() == expected
    assert slots.filled(np.arange(len(slots))[::-1]).tolist() == expected[::-1]


@pytest.mark.parametrize("capacity", [0, -3, 2.5, True, "9"])
def test_capacity_is_checked(capacity: Any) -> None:
    with pytest.raises(UserError, match=r"buffer capacity: .* expected an integer >= 1"):
        Slots(capacity, {})

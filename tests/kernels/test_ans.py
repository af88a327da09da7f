"""Asymmetric numeral systems: round trips, the entropy, and data that do not fit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearn.kernels import ans

DISTRIBUTIONS = [[1, 1], [999_000, 1000], [1, 1_000_002], [5] * 128, [1] + [9999] * 3, [2] * 65536]


@pytest.mark.parametrize("counts", DISTRIBUTIONS, ids=lambda counts: f"{len(counts)}x{counts[0]}")
def test_round_trip_reaches_the_entropy(counts: list[int]) -> None:
    occurs = np.zeros(4 * len(counts), np.int64)
    occurs[1::4] = counts  # most symbols do not occur
    symbols = np.repeat(np.arange(len(occurs)), occurs).astype(np.int32)
    symbols = np.random.default_rng(0).permutation(symbols)
    data, bits = ans.encode(symbols, occurs)
    assert bits == 8 * len(data)
    share = np.array(counts) / sum(counts)
    entropy = -sum(counts) * (share @ np.log2(share))
    assert bits <= 1.01 * entropy + 64
    assert (np.concatenate(list(ans.decode(data, occurs))) == symbols).all()


@given(st.lists(st.integers(0, 2**42 - 1) | st.integers(0, 300), min_size=1))
def test_counts_are_stored_seven_bits_to_a_byte(counts: list[int]) -> None:
    expected = bytearray()
    for count in counts:
        while count >= 128:
            expected.append(128 | count & 127)
            count >>= 7
        expected.append(count)
    data = ans.pack_counts(np.array(counts))
    assert data == bytes(expected)
    assert ans.unpack_counts(data, len(counts)).tolist() == counts


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"", 1),
        (b"\1\2", 1),
        (b"\1\2", 3),
        (b"\1\x82", 2),
        (b"\1\x82", 1),
        (b"\xff" * 6 + b"\1", 1),
    ],
)
def test_other_counts_are_refused(data: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="count"):
        ans.unpack_counts(data, size)


def test_other_data_are_refused() -> None:
    counts = np.array([300, 30, 3])
    data, _ = ans.encode(np.repeat(np.arange(3), counts).astype(np.uint8), counts)
    assert len(list(ans.decode(data, counts))) == 1
    for bad in (b"", data[:-4], b"abcd" + data, data + b"abcd", data + bytes(4), data[::-1]):
        with pytest.raises(ValueError, match=r"do not hold the 333 symbols|ends in a zero word"):
            list(ans.decode(bad, counts))
    for other in ([300, 31, 2], [1, 30, 302]):
        with pytest.raises(ValueError, match="do not hold the 333 symbols"):
            list(ans.decode(data, np.array(other)))


@given(st.lists(st.integers(1, 2**20), min_size=2, max_size=9), st.binary(max_size=60))
def test_any_data_are_refused(counts: list[int], data: bytes) -> None:
    counts[0] = min(counts[0], 1000)
    with pytest.raises(ValueError, match=r"bytes|zero word|multiple"):  # noqa: PT012
        for chunk in ans.decode(data, np.array(counts)):
            assert chunk.max() < len(counts)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ValueError, match=r"pip install 'clearn\[ans\]', or use huffman"):
        ans.encode(np.array([0, 1], np.uint8), np.array([1, 1]))

"""Canonical Huffman codes against a word-by-word reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clearn.kernels import huffman
from tests.kernels.coding import canonical_words, huffman_bits, write_words

SKEWED = [0, 1, 0, 7, 30, 30, 2, 500]
COUNTS = st.lists(st.integers(0, 2000), min_size=2, max_size=70).filter(
    lambda counts: np.count_nonzero(counts) > 1
)


def lengths_of(counts: Sequence[int]) -> NDArray[np.uint8]:
    return huffman.code_lengths(np.array(counts, np.int64))


def drawn(counts: Sequence[int]) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Symbols in random order that occur as often as `counts` has it."""
    symbols = np.repeat(np.arange(len(counts)), counts)
    kind = np.uint8 if len(counts) <= 256 else np.int32
    return np.random.default_rng(0).permutation(symbols).astype(kind)


@given(COUNTS)
def test_no_code_is_shorter(counts: list[int]) -> None:
    lengths = lengths_of(counts)
    assert int(lengths @ np.array(counts)) == huffman_bits(counts)
    assert [length > 0 for length in lengths] == [count > 0 for count in counts]
    huffman.check_lengths(lengths)


@given(COUNTS)
def test_words_are_those_of_the_reference(counts: list[int]) -> None:
    lengths, symbols = lengths_of(counts), drawn(counts)
    data, bits = huffman.encode(symbols, lengths)
    assert (data, bits) == write_words(symbols.tolist(), canonical_words(lengths.tolist()))
    decoded = np.concatenate(list(huffman.decode(data, bits, lengths, len(symbols))))
    assert decoded.dtype == symbols.dtype
    assert (decoded == symbols).all()


@pytest.mark.parametrize("n", [7, 8, 9, 63, 64, 65, 128, 129])
@pytest.mark.parametrize("size", [8, 300])
def test_chunks_join(n: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huffman, "CHUNK", 64)
    symbols = np.resize(drawn([n] * size), n)
    lengths = lengths_of(np.bincount(symbols, minlength=size).tolist())
    data, bits = huffman.encode(symbols, lengths)
    chunks = list(huffman.decode(data, bits, lengths, n))
    assert [len(chunk) for chunk in chunks] == [min(64, n - i) for i in range(0, n, 64)]
    assert (np.concatenate(chunks) == symbols).all()


def test_the_largest_alphabet() -> None:
    counts = np.random.default_rng(0).poisson(0.2, 1 << 16)
    lengths, symbols = huffman.code_lengths(counts), drawn(counts.tolist())
    data, bits = huffman.encode(symbols, lengths)
    assert bits == huffman_bits(counts.tolist())
    decoded = np.concatenate(list(huffman.decode(data, bits, lengths, len(symbols))))
    assert (decoded == symbols).all()


def test_words_of_very_rare_symbols_are_kept_short() -> None:
    counts = [1, 1]
    while len(counts) < 48:
        counts.append(counts[-1] + counts[-2])
    lengths = lengths_of(counts)
    assert lengths.max() <= huffman.MAX_LENGTH
    huffman.check_lengths(lengths)
    optimum = huffman_bits(counts)
    assert optimum <= int(lengths.astype(np.int64) @ np.array(counts)) < 1.00001 * optimum
    symbols = drawn([20] * 48)  # the longest words as often as the others
    data, bits = huffman.encode(symbols, lengths)
    assert (data, bits) == write_words(symbols.tolist(), canonical_words(lengths.tolist()))
    assert (np.concatenate(list(huffman.decode(data, bits, lengths, 960))) == symbols).all()


@pytest.mark.parametrize("counts", [[], [0, 0], [0, 5, 0]])
def test_one_symbol_needs_no_code(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="a code needs two or more"):
        lengths_of(counts)


@pytest.mark.parametrize("size", [2, 4, 8, 128, 1 << 16])
def test_lengths_take_five_bits_each(size: int) -> None:
    lengths = np.random.default_rng(0).integers(0, 32, size).astype(np.uint8)
    data = huffman.pack_lengths(lengths)
    assert len(data) == huffman.packed_size(size) == -(-5 * size // 8)
    assert (huffman.unpack_lengths(data, size) == lengths).all()
    number = sum(int(length) << 5 * place for place, length in enumerate(lengths[:8]))
    assert data[:5] == number.to_bytes(5, "little")[: len(data)]


@pytest.mark.parametrize(
    "lengths",
    [[], [0, 0], [1], [0, 1, 0], [1, 1, 1], [1, 2], [1, 2, 3], [31] * 3, [1, 2, 40, 40]],
    ids=str,
)
def test_lengths_that_are_no_code_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="not those of a Huffman code"):
        list(huffman.decode(b"abcd", 32, np.array(lengths, np.uint8), 2))


def test_data_that_hold_another_number_of_symbols_are_refused() -> None:
    lengths, symbols = lengths_of(SKEWED), drawn(SKEWED)
    data, bits = huffman.encode(symbols, lengths)
    n = len(symbols)
    assert bits % 8  # so that there is padding
    padded = data[:-1] + bytes([data[-1] | 1])
    wrong = [
        (data, bits, n + 1),
        (data, bits, n - 1),
        (data, bits - 1, n),
        (data[:-1], bits, n),
        (data + b"\0", bits, n),
        (padded, bits, n),
        (data, bits, 1 << 60),
        (data, 1 << 60, n),
        (b"", 0, n),
    ]
    for bad, count, symbols_asked in wrong:
        with pytest.raises(ValueError, match=r"do not hold"):
            list(huffman.decode(bad, count, lengths, symbols_asked))


@given(COUNTS, st.binary(max_size=40), st.integers(0, 330), st.integers(0, 330))
def test_any_data_are_symbols_or_refused(counts: list[int], data: bytes, bits: int, n: int) -> None:
    lengths = lengths_of(counts)
    try:
        symbols = np.concatenate(list(huffman.decode(data, bits, lengths, n)) or [[]])
    except ValueError:
        return
    assert len(symbols) == n
    assert int(lengths[symbols.astype(int)].sum()) == bits

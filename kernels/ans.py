"""Asymmetric numeral systems (Duda 2015, doi:10.1109/PCS.2015.7170048), by way of constriction.

Where a Huffman code spends whole bits on a symbol, this one spends the fractions that the entropy
asks for, so it also compresses one mask alone. The counts of all symbols are stored in front of the
code, and checked after decoding. The package constriction is optional: `pip install 'clearn[ans]'`.

Shapes: n symbols to code, S size of the alphabet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearn.kernels.huffman import CHUNK

_GROUP = 7  # bits of a count per byte; the eighth says that more follow
_MAX_BYTES = 6  # of a count


def pack_counts(counts: NDArray[np.int64]) -> bytes:
    """The counts `[S]`, each < 2^42, in 1 to 6 bytes: 7 bits a byte, the lowest first (LEB128)."""
    shifts = _GROUP * np.arange(_MAX_BYTES)
    groups = counts[:, None] >> shifts
    more = np.pad(groups[:, 1:] > 0, ((0, 0), (0, 1)))
    used = np.pad(groups[:, 1:] > 0, ((0, 0), (1, 0)), constant_values=True)
    return ((groups & 127) | more << _GROUP).astype(np.uint8)[used].tobytes()


def unpack_counts(data: bytes, size: int) -> NDArray[np.int64]:
    """The counts `[size]` from what `pack_counts` gave.

    Raises:
        ValueError: The data are not counts of that many symbols.
    """
    groups = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(groups < 128) + 1
    if len(ends) != size or ends[-1] != len(groups):
        raise ValueError(f"{len(data)} bytes do not hold {size} counts")
    starts = np.concatenate([[0], ends[:-1]])
    if (ends - starts).max() > _MAX_BYTES:
        raise ValueError("a count is out of range")
    place = np.arange(len(groups)) - np.repeat(starts, ends - starts)
    return np.add.reduceat((groups & 127).astype(np.int64) << _GROUP * place, starts)


def encode(
    symbols: NDArray[np.uint8] | NDArray[np.int32], counts: NDArray[np.int64]
) -> tuple[bytes, int]:
    """Code symbols.

    Args:
        symbols: `[n]`.
        counts: How often each occurs, `[S]`; two or more are > 0.

    Returns:
        The code, and its number of bits, a multiple of 32.

    Raises:
        ValueError: The package constriction is missing.
    """
    package = _constriction()
    present, model = _model(package, counts)
    rank = np.zeros(len(counts), np.int32)
    rank[present] = np.arange(len(present))
    coder = package.stream.stack.AnsCoder()
    for start in reversed(range(0, len(symbols), CHUNK)):  # last in, first out
        coder.encode_reverse(rank[symbols[start : start + CHUNK]], model)
    words = coder.get_compressed().astype("<u4")
    return words.tobytes(), 32 * len(words)


def decode(data: bytes, counts: NDArray[np.int64]) -> Iterator[NDArray[np.int32]]:
    """Decode as many symbols as the counts add up to, `CHUNK` at a time.

    Args:
        data: What `encode` gave.
        counts: How often each symbol occurs, `[S]`.

    Yields:
        Symbols `[CHUNK]`, the last time fewer.

    Raises:
        ValueError: The data are not a code of symbols with these counts (which is known for
            certain when the last chunk has been taken), or the package constriction is missing.
    """
    package = _constriction()
    present, model = _model(package, counts)
    n, left = int(counts.sum()), counts[present]
    coder = package.stream.stack.AnsCoder(np.frombuffer(data, "<u4").astype(np.uint32))
    for start in range(0, n, CHUNK):
        ranks = coder.decode(model, min(CHUNK, n - start))
        left = left - np.bincount(ranks, minlength=len(present))
        yield present[ranks]
    if left.any() or not coder.is_empty():
        raise ValueError(f"{len(data)} bytes do not hold the {n} symbols that were counted")


def _model(package: Any, counts: NDArray[np.int64]) -> tuple[NDArray[np.int32], Any]:
    """The symbols that occur, and the distribution of their ranks."""
    present = np.flatnonzero(counts).astype(np.int32)
    if len(present) < 2:
        raise ValueError(f"counts: {len(present)} symbols occur; a code needs two or more")
    weights = counts[present].astype(np.float64)
    return present, package.stream.model.Categorical(weights, perfect=False)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ValueError(
            "codec ans needs the package constriction: pip install 'clearn[ans]', or use huffman"
        ) from error
    return constriction

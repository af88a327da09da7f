"""The masks of one tensor in one block of an archive, as bytes.

A payload is a codebook, a code and zeros, of one of these kinds; with k tasks in the block,
symbol j has bit b = element j of the mask of the block's task b, and S = 2^k.

| kind | codebook | code |
|---|---|---|
| raw | none | the k packed masks, one behind the other |
| constant | the one symbol that occurs, uint16 | none |
| huffman | S code lengths of 5 bits (`huffman.pack_lengths`) | `huffman.encode` |
| ans | S counts (`ans.pack_counts`) | `ans.encode` |

Kinds are chosen by size: raw, where a code is not smaller. The zeros fill a payload up to one byte
per 2^13 elements, so that a byte of a file asks a reader for 1 KiB of mask at most, as in deflate.
Else a few bytes could ask for any amount of memory and time: a constant takes no code, and a symbol
that is nearly all takes hardly any of an ans code.

Shapes: n elements, B = ceil(n / 8) bytes, k tasks of the block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clearn.kernels import ans, huffman
from clearn.kernels._checks import packed_size
from clearn.kernels.bitmask import stack_bits, symbol_histogram, unstack_bits

KINDS = ("raw", "constant", "huffman", "ans")
CODECS = ("huffman", "ans")
ELEMENTS_PER_BYTE = 1 << 13


@dataclass(frozen=True)
class Payload:
    """What is known of a payload without its bytes.

    Attributes:
        kind: One of `KINDS`.
        tasks: Tasks of the block, k.
        elements: Of the tensor, n.
        coded: Bytes of the whole.
        codebook: Bytes of the codebook.
        code_bits: Bits of the code alone.
        entropy_bits: n times the entropy of the symbols in bits: no code of one word per symbol,
            and none of their counts, needs less.
    """

    kind: str
    tasks: int
    elements: int
    coded: int
    codebook: int
    code_bits: int
    entropy_bits: float

    @property
    def raw(self) -> int:
        """Bytes of the packed masks, k ceil(n / 8)."""
        return self.tasks * packed_size(self.elements)

    @property
    def padding_bits(self) -> int:
        """Bits that hold neither codebook nor code."""
        return 8 * (self.coded - self.codebook) - self.code_bits

    def check(self) -> None:
        """Refuse sizes that cannot be those of a payload of this kind, tasks and elements.

        Raises:
            ValueError: They cannot.
        """
        n, k, size = self.elements, self.tasks, 1 << self.tasks
        least = {
            "raw": (self.codebook == 0 and self.code_bits == n * k, self.raw),
            "constant": (self.codebook == 2 and self.code_bits == 0, 2),
            "huffman": (
                self.codebook == huffman.packed_size(size) and self.code_bits >= n,
                self.codebook + (self.code_bits + 7) // 8,
            ),
            "ans": (
                self.codebook >= size and self.code_bits % 32 == 0,
                self.codebook + self.code_bits // 8,
            ),
        }
        fits, needed = least[self.kind]
        entropy_fits = 0 <= self.entropy_bits <= n * k + 1e-6
        if not (fits and entropy_fits and self.coded == max(needed, _least_bytes(n))):
            raise ValueError(f"sizes of a {self.kind} payload do not go with {n} x {k} bits")


def encode(masks: Tensor, n: int, codec: str) -> tuple[Payload, bytes]:
    """Code the masks of a block.

    Args:
        masks: Packed, uint8 `[k, B]` on the CPU, k in 1..16.
        n: Number of elements.
        codec: One of `CODECS`.

    Raises:
        ValueError: The package that the codec needs is missing.
    """
    tasks = len(masks)
    symbols = stack_bits(masks, n)
    counts: NDArray[np.int64] = symbol_histogram(symbols, tasks).numpy()
    entropy = _entropy_bits(counts)
    kind, codebook, code, bits = "raw", b"", b"", n * tasks
    if np.count_nonzero(counts) == 1:
        kind, codebook, bits = "constant", int(symbols[0]).to_bytes(2, "little"), 0
    elif np.count_nonzero(counts) > 1:
        found = _code(symbols.numpy(), counts, codec, tasks * packed_size(n))
        if found is not None:
            kind, (codebook, code, bits) = codec, found
    if kind == "raw":
        code = masks.contiguous().numpy().tobytes()
    data = (codebook + code).ljust(_least_bytes(n), b"\0")
    return Payload(kind, tasks, n, len(data), len(codebook), bits, entropy), data


def decode(payload: Payload, data: bytes, first: int, count: int) -> Tensor:
    """The packed masks of tasks `first` to `first + count - 1` of the block, uint8 `[count, B]`.

    Args:
        payload: Checked.
        data: Its bytes.
        first: In 0..k - 1.
        count: In 1..k - first.

    Raises:
        ValueError: The bytes are not those of such a payload, or the package that decodes them is
            missing.
    """
    n, width = payload.elements, packed_size(payload.elements)
    if payload.kind == "raw":
        rows = bytearray(data[first * width : (first + count) * width])
        masks = torch.from_numpy(np.frombuffer(rows, np.uint8)).view(count, width)
        if n % 8 and (masks[:, -1] >> n % 8).any():
            raise ValueError("bits beyond the last element are set")
        return masks
    masks = torch.empty(count, width, dtype=torch.uint8)
    start, kind = 0, np.uint8 if count <= 8 else np.int32
    for chunk in _symbols(payload, data):
        symbols = (chunk >> first).astype(kind, copy=False)  # higher bits do not matter
        part = unstack_bits(torch.from_numpy(symbols), count)
        masks[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return masks


def _code(
    symbols: NDArray[Any], counts: NDArray[np.int64], codec: str, raw: int
) -> tuple[bytes, bytes, int] | None:
    """Codebook, code and bits, or None when they are not smaller than `raw` bytes."""
    if codec == "huffman":
        lengths = huffman.code_lengths(counts)
        bits = int((counts * lengths).sum())
        if huffman.packed_size(len(counts)) + (bits + 7) // 8 >= raw:
            return None
        return huffman.pack_lengths(lengths), *huffman.encode(symbols, lengths)
    codebook = ans.pack_counts(counts)
    if len(codebook) + _entropy_bits(counts) / 8 >= raw:
        return None
    code, bits = ans.encode(symbols, counts)
    return None if len(codebook) + len(code) >= raw else (codebook, code, bits)


def _symbols(payload: Payload, data: bytes) -> Iterator[NDArray[Any]]:
    """The symbols, `huffman.CHUNK` at a time."""
    n, size = payload.elements, 1 << payload.tasks
    head, code = data[: payload.codebook], data[payload.codebook :]
    code, rest = code[: (payload.code_bits + 7) // 8], code[(payload.code_bits + 7) // 8 :]
    if rest.strip(b"\0"):
        raise ValueError("bytes beyond the code are set")
    if payload.kind == "constant":
        symbol = int.from_bytes(head, "little")
        if symbol >= size:
            raise ValueError(f"symbol {symbol} has more bits than {payload.tasks}")
        for start in range(0, n, huffman.CHUNK):
            yield np.full(min(huffman.CHUNK, n - start), symbol, np.int32)
    elif payload.kind == "huffman":
        yield from huffman.decode(code, payload.code_bits, huffman.unpack_lengths(head, size), n)
    else:
        counts = ans.unpack_counts(head, size)
        if counts.sum() != n:
            raise ValueError(f"the counts add up to {counts.sum()} symbols instead of {n}")
        yield from ans.decode(code, counts)


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    """Entropy of the symbols in bits, times n."""
    present = counts[counts > 0].astype(np.float64)
    bits = float(-(present * np.log2(present / counts.sum())).sum()) if len(present) else 0.0
    return math.fabs(bits)  # a sum of nothing but ones times log 1 is -0


def _least_bytes(n: int) -> int:
    return -(-n // ELEMENTS_PER_BYTE)

"""The mask archive: speed of coding 7-bit symbols, and size against an optimal Huffman code.

    OMP_NUM_THREADS=1 python experiments/speed/archive.py

4 million weights, 7 tasks in one block. Masks keep the top c of scores that drift from task to task
(correlation 0.98), or of scores that have nothing in common (0). "encode" and "decode" go from the
symbols to the code and back; "write" and "read all" are the archive: from the packed masks of 7
tasks to a file on disk, and from it to the packed masks. "read one" decodes one task's mask. Bars:
>= 20 million weights per second each way; size <= that of an optimal code + 0.1 %, without headers.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import keep

from clearn.kernels import ans, huffman, pack_bits, stack_bits, symbol_histogram
from clearn.kernels.archive import MaskArchive

# By its folder: other distributions install a package called `tests`.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "kernels"))
from coding import correlated_masks, huffman_bits

torch.set_num_threads(1)
N, TASKS, ROUNDS = 4_000_000, 7, 7
SHAPES = {"weight": (N,)}


def speed(bench: str, variants: dict[str, Callable[[], object]], bar: str) -> None:
    """Million weights per CPU second of each variant; one round first is thrown away."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for counted in [False] + [True] * ROUNDS:
        for name, function in variants.items():
            gc.collect()
            started = time.process_time()
            function()
            if counted:
                rates[name].append(N / 1e6 / (time.process_time() - started))
    for name, values in rates.items():
        keep(bench, name, values, "M weights/s", bar=bar)


def measure(path: Path, codec: str, c: float, correlation: float) -> None:
    masks = [pack_bits(mask) for mask in correlated_masks(TASKS, N, c, correlation)]
    tasks = [{"weight": bits} for bits in masks]
    symbols = stack_bits(torch.stack(masks), N)
    counts = symbol_histogram(symbols, TASKS).numpy()
    archive = MaskArchive.write(path, tasks, SHAPES, codec=codec)
    (block,) = archive.sizes()["weight"].blocks
    lengths = huffman.code_lengths(counts)
    if codec == "huffman":
        code, bits = huffman.encode(symbols.numpy(), lengths)
    else:
        code, bits = ans.encode(symbols.numpy(), counts)

    def encode() -> None:
        if codec == "huffman":
            huffman.encode(symbols.numpy(), huffman.code_lengths(counts))
        else:
            ans.encode(symbols.numpy(), counts)

    def decode() -> None:
        if codec == "huffman":
            list(huffman.decode(code, bits, lengths, N))
        else:
            list(ans.decode(code, counts))

    bench = f"archive, {codec}, 7 masks, c = {c}, correlation {correlation}, 4e6 weights"
    variants = {
        "encode": encode,
        "decode": decode,
        "write": lambda: MaskArchive.write(path, tasks, SHAPES, codec=codec),
        "read all": lambda: archive.masks("weight"),
        "read one": lambda: archive.mask(3, "weight"),
    }
    speed(f"{bench}, stored as {block.kind}", variants, bar=">= 20")
    for name, ratio, bar in [
        ("code / optimal Huffman code", bits / huffman_bits(counts.tolist()), "<= 1.001"),
        ("payload / entropy", 8 * block.coded / block.entropy_bits, ""),
        ("payload / raw masks", block.coded / block.raw, ""),
    ]:
        keep(f"{bench}: bytes", name, [ratio], "ratio", bar=bar)


with tempfile.TemporaryDirectory() as temporary:
    for c, correlation in ((0.1, 0.98), (0.5, 0.98), (0.1, 0.0), (0.5, 0.0)):
        for codec in ("huffman", "ans"):
            measure(Path(temporary) / codec, codec, c, correlation)

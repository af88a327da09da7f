"""The CUDA sources, run by a host, where the data lies: any alignment, page ends, past 2^31."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from clearn.kernels import cuda
from tests.kernels import reference
from tests.kernels.host import Host, needs_compiler, on_cuda
from tests.kernels.reference import FLOATS, draw, same, values

MAP_NORESERVE = 0x4000  # on Linux; mmap has it from Python 3.13 on

needs_sparse_memory = pytest.mark.skipif(
    sys.platform != "linux", reason="needs memory that is not reserved (Linux)"
)


class Place:
    """Memory before a page that may not be touched, filled with ones bits around the values."""

    def __init__(self) -> None:
        self.maps: list[tuple[mmap.mmap, int, int]] = []

    def put(self, value: Tensor, after: int) -> Tensor:
        """Copy a tensor so that `after` elements fit between its end and that page."""
        if not value.numel():
            return value.clone()
        size, page = value.nbytes, mmap.PAGESIZE
        room = -(-(size + 256) // page) * page
        memory = mmap.mmap(-1, room + page)
        start = room - size - after * value.element_size()
        memory.write(b"\xff" * room)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        assert not protect(ctypes.c_void_p(address + room), ctypes.c_size_t(page), 0)
        self.maps.append((memory, start, start + size))
        placed = torch.frombuffer(memory, dtype=value.dtype, count=value.numel(), offset=start)
        return placed.view(value.shape).copy_(value)

    def check(self) -> None:
        """Nothing was written around the values."""
        for memory, start, end in self.maps:
            room = len(memory) - mmap.PAGESIZE
            around = memory[:start] + memory[end:room]
            assert around == b"\xff" * len(around)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.check()


def unequal(size: int) -> Iterator[tuple[int, int]]:
    """Numbers of elements and of elements behind them: every alignment, with every remainder."""
    per_vector = 16 // size
    for after in range(per_vector):
        for n in (1, per_vector, per_vector + 1, 3 * per_vector - 1, 67):
            yield n, after


@needs_compiler
def test_masks_at_any_place(host: Host, place: Place) -> None:
    for n, after in unequal(1):
        mask, other = draw(n), reference.pack(draw(n, seed=1))
        bits = reference.pack(mask)
        placed = place.put(bits, after)
        assert same(on_cuda("pack_bits", place.put(mask, after)), bits)
        assert same(on_cuda("unpack_bits", placed, [n]), mask)
        assert same(on_cuda("count_bits", placed), reference.count(bits))
        if n == 67:  # slow here: its threads meet often
            assert same(on_cuda("overlap_bits", placed[None]), reference.overlap(bits[None]))
        on_cuda("or_bits_", placed, place.put(other, after))
        assert same(placed, bits | other)
        on_cuda("or_bits_", placed, place.put(other, (after + 3) % 16))
    assert same(on_cuda("pack_bits", torch.tensor([2, 0, 128], dtype=torch.uint8).view(torch.bool)),
                torch.tensor([5], dtype=torch.uint8))  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_at_any_place(dtype: torch.dtype, host: Host, place: Place) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    for n, after in unequal(size):
        weight, score, grad = (values(dtype, n, seed=seed) for seed in range(3))
        bits, tau = reference.pack(draw(n)), torch.tensor(0.5, dtype=dtype)
        w, s, g = (place.put(value, after) for value in (weight, score, grad))
        used = place.put(bits, n % 3)
        selected = score.abs() >= tau
        zero = torch.zeros_like(weight)
        dw, ds = reference.keep_unset(torch.where(selected, grad, zero), bits), grad * weight
        # Fresh results first, which are aligned; then results aligned like the inputs.
        assert same(on_cuda("apply_bits", w, used), reference.apply(weight, bits))
        assert same(on_cuda("select_bits", s, tau), reference.pack(selected))
        assert same(on_cuda("masked_weight", w, s, tau, None), torch.where(selected, weight, zero))
        found = on_cuda("masked_weight_backward", g, w, s, tau, used)
        assert same(found[0], dw)
        assert same(found[1], ds * score.sign())
        out, other = place.put(zero, after), place.put(zero, after)
        name = str(dtype).removeprefix("torch.")
        cuda._launch("bitmask", f"apply_bits_{size}", [w, used, out, n], n)
        assert same(out, reference.apply(weight, bits))
        cuda._launch("masked", f"masked_weight_{name}", [w, s, tau, out, n], n)
        assert same(out, torch.where(selected, weight, zero))
        arguments = [g, w, s, tau, used, out, other, n]
        cuda._launch("masked", f"masked_weight_backward_{name}", arguments, n)
        assert same(out, dw)
        assert same(other, ds * score.sign())
        on_cuda("keep_unset_", g, used)
        assert same(g, reference.keep_unset(grad, bits))
        assert on_cuda("top_c_thresholds", [s], 0.4, None) == reference.threshold(score, 0.4)


@needs_compiler
@pytest.mark.parametrize("tasks", [3, 9])
def test_symbols_at_any_place(tasks: int, host: Host, place: Place) -> None:
    for n, after in unequal(1 if tasks <= 8 else 4):
        masks = torch.stack([reference.pack(draw(n, seed=seed)) for seed in range(tasks)])
        placed, symbols = place.put(masks, after), reference.stack(masks, n)
        assert same(on_cuda("stack_bits", placed, n), symbols)
        if n > 16:
            assert same(on_cuda("overlap_bits", placed), reference.overlap(masks))
        at = place.put(symbols, after)
        assert same(on_cuda("unstack_bits", at, tasks), masks)
        counts = torch.bincount(symbols, minlength=2**tasks)
        assert same(on_cuda("symbol_histogram", at, tasks), counts)


class Sparse:
    """Tensors of gigabytes, of which only what is touched takes memory."""

    def __init__(self) -> None:
        self.maps: list[mmap.mmap] = []

    def zeros(self, count: int, dtype: torch.dtype) -> Tensor:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.maps.append(mmap.mmap(-1, count * dtype.itemsize, flags=flags))
        return torch.frombuffer(self.maps[-1], dtype=dtype)


def run_parts(
    host: Host, source: str, kernel: str, arguments: Sequence[Any], blocks: int, parts: set[int]
) -> None:
    """Run some blocks of a grid with a thread for every vector."""

    def some(device: Any, source: str, kernel: str, grid: Any, threads: int, values: Any) -> None:
        for block in sorted(parts):
            part = range(block, block + 1)
            host.run(device, source, kernel, (blocks, 1), threads, values, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_run", some)
        cuda._launch_blocks(source, kernel, arguments, (blocks, 1), 256)


@needs_compiler
@needs_sparse_memory
@pytest.mark.parametrize("n", [2**31 + 10_005, 2**32 + 2**31 + 4_095])
def test_more_than_2_to_the_31_elements(n: int, host: Host) -> None:
    sparse, size = Sparse(), (n + 7) // 8
    mask, bits, weight = (
        sparse.zeros(count, dtype)
        for count, dtype in ((n, torch.bool), (size, torch.uint8), (n, torch.float16))
    )
    outs = [sparse.zeros(n, torch.float16) for _ in range(2)]
    flags, packed = sparse.zeros(n, torch.bool), sparse.zeros(size, torch.uint8)
    edge = 2**31 - 2_048  # in the middle of what some block of every kernel works on
    windows = [slice(0, 4_096), slice(edge, edge + 4_096), slice(n // 8 * 8 - 4_096, n)]
    for seed, window in enumerate(windows):
        length = window.stop - window.start
        mask[window] = draw(length, seed=seed)
        bits[window.start // 8 : (window.stop + 7) // 8] = reference.pack(mask[window])
        weight[window] = values(torch.float16, length, seed=seed)
    tau = torch.tensor(0.5, dtype=torch.float16)

    def parts(width: int) -> set[int]:
        """Blocks that take the windows in vectors of `width` elements; 0 takes what is left."""
        each = 256 * width
        return {0} | {w // each for s in windows for w in range(s.start, s.stop, 512)}

    def blocks(width: int) -> int:
        return -(-n // (256 * width))

    run_parts(host, "bitmask", "pack_bits", [mask, packed, n], blocks(16), parts(16))
    run_parts(host, "bitmask", "unpack_bits", [bits, flags, n], blocks(16), parts(16))
    run_parts(host, "bitmask", "apply_bits_2", [weight, bits, outs[0], n], blocks(8), parts(8))
    arguments = [weight, weight, tau, outs[1], n]
    run_parts(host, "masked", "masked_weight_float16", arguments, blocks(8), parts(8))
    for window in windows:
        there = slice(window.start // 8, (window.stop + 7) // 8)
        part = weight[window]
        assert same(packed[there], bits[there])
        assert same(flags[window], mask[window])
        assert same(outs[0][window], reference.apply(part, bits[there]))
        assert same(outs[1][window], torch.where(part.abs() >= 0.5, part, torch.zeros_like(part)))
    arguments = [weight, tau, packed, n]
    run_parts(host, "masked", "select_bits_float16", arguments, blocks(8), parts(8))
    run_parts(host, "bitmask", "keep_unset_2", [weight, bits, n], blocks(8), parts(8))
    symbols, rows = sparse.zeros(n, torch.uint8), sparse.zeros(size, torch.uint8)
    run_parts(host, "symbols", "stack_bits_1", [bits, symbols, n, 1], blocks(16), parts(16))
    run_parts(host, "symbols", "unstack_bits_1", [symbols, rows, n, 1], blocks(8), parts(8))
    for window in windows:
        there = slice(window.start // 8, (window.stop + 7) // 8)
        assert same(packed[there], reference.pack(outs[1][window] != 0))
        assert not weight[window][mask[window]].any()
        assert torch.equal(symbols[window], mask[window].to(torch.uint8))
        assert same(rows[there], bits[there])


@needs_compiler
@needs_sparse_memory
def test_counting_more_than_2_to_the_31_elements(host: Host) -> None:
    n = 2**32 + 1_001
    sparse = Sparse()
    scores, bits = sparse.zeros(n, torch.float16), sparse.zeros(n // 8 + 1, torch.uint8)
    symbols = sparse.zeros(n, torch.uint8)
    for start in (2**31, 2**32):
        scores[start : start + 64], symbols[start : start + 64] = 1.0, 3
        bits[start // 8 : start // 8 + 8] = 255
    each = 256 * 8
    parts = {0, 2**31 // each, 2**32 // each}
    touched = len(parts) * each - (each - n % each)  # the last block is not full, or takes the rest
    batch = cuda._Batch(tensors=1)
    batch.scores[0], batch.numel[0], batch.kept[0] = scores.data_ptr(), n, 1
    batch.first_block[1] = blocks = -(-n // each)
    states = torch.zeros(1, 3, dtype=torch.int64)
    counters = torch.zeros(1, cuda._COUNTERS, dtype=torch.int64)
    arguments = [batch, states, None, counters, 0]
    run_parts(host, "topc", "count_float16", arguments, blocks, parts)
    assert counters[0, 0x3C00 >> 4] == 128
    assert counters.sum() == touched
    histogram = torch.zeros(256, dtype=torch.int64)
    whole = {0, 2**31 // (2 * each), 2**32 // (2 * each)}
    arguments = [symbols, n, 256, histogram]
    run_parts(host, "symbols", "symbol_histogram_1", arguments, -(-n // (2 * each)), whole)
    assert histogram[3] == 128
    total = torch.zeros((), dtype=torch.int64)
    in_bytes = {0, 2**28 // (2 * each), 2**29 // (2 * each)}
    arguments = [bits, n // 8 + 1, total]
    run_parts(host, "bitmask", "count_bits", arguments, -(-n // 8 // (2 * each)), in_bytes)
    assert total == 128

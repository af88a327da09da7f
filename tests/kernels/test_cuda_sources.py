"""The CUDA sources without a GPU: they compile, and run right on a host (see `tests.kernels.host`).

Operators are called the way the dispatcher calls them for CUDA tensors, but on CPU tensors.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clearn.kernels import bitmask, cuda, masked, topc
from tests.kernels import reference
from tests.kernels.host import COMPILER, SOURCES, Host, kernels
from tests.kernels.reference import FLOATS, draw, same, values

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100"]
SMALL = [0, 1, 7, 8, 9, 63, 64, 65, 4_099]
LARGE = 50_003  # many rounds of the small grid here
CUDA_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

MAP_NORESERVE = 0x4000  # on Linux; mmap has it from Python 3.13 on

needs_sparse_memory = pytest.mark.skipif(
    sys.platform != "linux", reason="needs memory that is not reserved (Linux)"
)
needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="needs a C++ compiler (g++ or clang++); none found"
)


def on_cuda(name: str, *arguments: Any) -> Any:
    return getattr(torch.ops.clearn, name).default.redispatch(CUDA_KEY, *arguments)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host"))


@pytest.fixture
def host(compiled: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A GPU with one multiprocessor, which has room for two blocks."""
    monkeypatch.setattr(cuda, "_run", compiled.run)
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: 1)
    monkeypatch.setattr(cuda, "_RESIDENT_THREADS", 512)
    compiled.order = 0
    return compiled


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
        for n in (*range(1, per_vector + 2), 3 * per_vector - 1, 67):
            yield n, after


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_source_compiles(source: str, architecture: str) -> None:
    nvrtc = pytest.importorskip("clearn.kernels._nvrtc")
    try:
        nvrtc.nvrtc_version()
    except ImportError as error:
        pytest.skip(f"needs NVRTC: {error}")
    binary = nvrtc.compile_source(source, architecture)
    assert binary[:4] == b"\x7fELF"
    if COMPILER is not None:
        assert all(name.encode() in binary for name in kernels(source))


@needs_compiler
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("n", [*SMALL, LARGE])
def test_bits(n: int, order: int, host: Host) -> None:
    host.order = order
    mask = draw(n)
    bits, other = reference.pack(mask), reference.pack(draw(n, seed=1))
    assert same(on_cuda("pack_bits", mask), bits)
    assert same(on_cuda("unpack_bits", bits, [n]), mask)
    assert same(on_cuda("count_bits", bits), reference.count(bits))
    merged = bits.clone()
    on_cuda("or_bits_", merged, other)
    assert same(merged, bits | other)


@needs_compiler
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [*SMALL, LARGE])
def test_apply_and_keep_unset(n: int, dtype: torch.dtype, host: Host) -> None:
    weight, bits = values(dtype, n), reference.pack(draw(n))
    weight.view(-1)[::5] = math.nan
    assert same(on_cuda("apply_bits", weight, bits), reference.apply(weight, bits))
    grad = weight.clone()
    on_cuda("keep_unset_", grad, bits)
    assert same(grad, reference.keep_unset(weight, bits))


@needs_compiler
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [*SMALL, LARGE])
def test_masked_weight(n: int, dtype: torch.dtype, host: Host) -> None:
    weight, score, grad = (values(dtype, n, seed=seed) for seed in range(3))
    score[::17], score[1::17], weight[::13], grad[::11] = 0, -0.0, math.inf, -0.0
    tau, used = values(dtype).abs(), reference.pack(draw(n))
    selected = score.abs() >= tau
    zero = torch.zeros_like(weight)
    found = on_cuda("masked_weight", weight, score, tau, None)
    assert same(found, torch.where(selected, weight, zero))
    assert same(on_cuda("select_bits", score, tau), reference.pack(selected))
    for bits in (None, used):
        dw, ds = on_cuda("masked_weight_backward", grad, weight, score, tau, bits)
        dense = torch.where(selected, grad, zero)
        assert same(dw, dense if bits is None else reference.keep_unset(dense, bits))
        expected = grad * weight * score.sign()
        assert torch.equal(ds.isnan(), expected.isnan())
        assert same(ds.nan_to_num(0), expected.nan_to_num(0))


@needs_compiler
@pytest.mark.parametrize("tasks", [1, 3, 8, 9, 16])
@pytest.mark.parametrize("n", [*SMALL, LARGE])
def test_symbols(n: int, tasks: int, host: Host) -> None:
    masks = torch.stack([reference.pack(draw(n, seed=seed)) for seed in range(tasks)])
    symbols = reference.stack(masks, n)
    assert same(on_cuda("stack_bits", masks, n), symbols)
    assert same(on_cuda("unstack_bits", symbols, tasks), masks)
    counts = torch.bincount(symbols, minlength=2**tasks)
    assert same(on_cuda("symbol_histogram", symbols, tasks), counts)


@needs_compiler
@pytest.mark.parametrize("order", [0, 1, 2])
def test_every_symbol_is_counted_once_however_threads_run(order: int, host: Host) -> None:
    host.order = order
    symbols = torch.arange(2**16, dtype=torch.int32).repeat(2)
    assert (on_cuda("symbol_histogram", symbols, 16) == 2).all()
    strays = torch.tensor([0, 511, 512, -1, 2**31 - 1], dtype=torch.int32)  # 9 tasks: 0..511
    assert on_cuda("symbol_histogram", strays, 9).nonzero().flatten().tolist() == [0, 511]


@needs_compiler
@pytest.mark.parametrize(
    ("tasks", "n"), [(0, 9), (1, 1), (2, 65), (7, 64), (8, 1000), (9, 1000), (17, 31), (3, 40_003)]
)
def test_overlap(tasks: int, n: int, host: Host) -> None:
    rows = [reference.pack(draw(n, seed=seed)) for seed in range(tasks)]
    masks = torch.stack(rows) if rows else torch.zeros(0, 2, dtype=torch.uint8)
    expected = reference.overlap(masks) if rows else torch.zeros(0, 0, dtype=torch.int64)
    for order in (0, 1, 2) if n < 100 else (1,):
        host.order = order
        assert same(on_cuda("overlap_bits", masks), expected)


def rank_statistics(dtype: torch.dtype) -> list[Tensor]:
    """Scores that are hard to select from."""
    info = torch.finfo(dtype)
    smallest = 2.0 ** (math.log2(info.tiny) - math.log2(1 / info.eps))
    ladder = [0.0, -0.0, smallest, -2 * smallest, info.tiny, 1.0, -1.0, info.max, -info.max]
    return [
        torch.zeros(0, dtype=dtype),
        torch.tensor([-3.5], dtype=dtype),
        torch.zeros(777, dtype=dtype),
        torch.full((300,), -0.1, dtype=dtype),
        torch.tensor(ladder, dtype=dtype).repeat(13),
        torch.arange(2_000).to(dtype).view(40, 50) / 7,
        torch.randint(-4, 5, (3_001,)).to(dtype),
        values(dtype, 40_001) * 0.03,  # two blocks
    ]


@needs_compiler
@pytest.mark.parametrize("c", [0.001, 0.3, 1.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_thresholds(dtype: torch.dtype, c: float, host: Host) -> None:
    scores = rank_statistics(dtype)
    exact = [reference.threshold(s, c) if s.numel() else torch.tensor(math.inf) for s in scores]
    expected = torch.stack([tau.to(dtype) for tau in exact])
    assert torch.equal(on_cuda("top_c_thresholds", scores, c, None), expected)
    for start in (expected, expected * 1.01, expected * 0.5, expected * -3, expected * math.nan):
        assert torch.equal(on_cuda("top_c_thresholds", scores, c, start), expected)


@needs_compiler
@pytest.mark.parametrize("order", [0, 1, 2])
def test_thresholds_of_many_tensors(order: int, host: Host) -> None:
    host.order = order
    scores = [values(torch.float32, 3 * seed, seed=seed) for seed in range(67)]  # two launches
    found = on_cuda("top_c_thresholds", scores, 0.4, None)
    assert found[0] == math.inf
    assert torch.equal(found[1:], torch.stack([reference.threshold(s, 0.4) for s in scores[1:]]))


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "turns"),
    [(torch.float32, 3), (torch.float16, 2), (torch.bfloat16, 2), (torch.float64, 6)],
)
def test_a_good_start_saves_a_reading_of_the_scores(
    dtype: torch.dtype, turns: int, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = values(dtype, 5_000)
    exact = reference.threshold(score, 0.3)
    readings = 0

    def run(device: Any, source: str, kernel: str, *rest: Any) -> None:
        nonlocal readings
        if kernel.startswith("count_"):
            readings += 1
            if readings == turns:
                score.fill_(math.nan)  # nobody looks any more
        host.run(device, source, kernel, *rest)

    monkeypatch.setattr(cuda, "_run", run)
    start = (exact * 1.02)[None]
    assert torch.equal(on_cuda("top_c_thresholds", [score], 0.3, start), exact[None])
    assert readings == turns


@needs_compiler
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_scores_that_are_not_finite_are_found_later(
    dtype: torch.dtype, wrong: float, host: Host
) -> None:
    scores = [values(dtype, 999, seed=seed) for seed in range(3)]
    scores[1][500] = wrong
    for host.order, start in enumerate((None, torch.ones(3, dtype=dtype), None)):
        found = on_cuda("top_c_thresholds", scores, 0.5, start)
        assert found.isnan().tolist() == [False, True, False]
        assert found[2] == reference.threshold(scores[2], 0.5)
    with pytest.raises(ValueError, match=r"^scores\[1\]: NaN or infinite values"):
        cuda.check_thresholds(found)
    cuda.check_thresholds(found[::2])
    weight = torch.ones(999, dtype=dtype)
    assert on_cuda("masked_weight", weight, scores[1], found[1], None).isnan().all()
    assert not on_cuda("select_bits", scores[1], found[1]).any()


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


@needs_compiler
def test_strides(host: Host) -> None:
    weight, score, grad = (values(torch.float32, 4, 3, 5, 6, seed=seed) for seed in range(3))
    bits, tau = reference.pack(draw(360)), torch.tensor(0.5)
    other = weight.contiguous(memory_format=torch.channels_last)
    assert same(on_cuda("apply_bits", other, bits), reference.apply(weight, bits))
    on_cuda("keep_unset_", other, bits)
    assert same(other.contiguous(), reference.keep_unset(weight, bits))
    assert other.is_contiguous(memory_format=torch.channels_last)
    expanded = grad[:1].expand(4, -1, -1, -1)
    found = on_cuda("masked_weight_backward", expanded, weight.mT.contiguous().mT, score, tau, bits)
    assert same(found[1], expanded * weight * score.sign())
    every_second = torch.zeros(90, dtype=torch.uint8)[::2]
    on_cuda("or_bits_", every_second, bits)
    assert same(every_second, bits)
    assert same(on_cuda("pack_bits", draw(8, 9).T), reference.pack(draw(8, 9).T.contiguous()))
    assert on_cuda("top_c_thresholds", [score[:, :, ::2]], 0.3, None) == reference.threshold(
        score[:, :, ::2], 0.3
    )


@needs_compiler
@pytest.mark.parametrize("dtype", FLOATS)
def test_arithmetic_of_every_type_rounds_like_torch(dtype: torch.dtype, host: Host) -> None:
    if dtype.itemsize == 2:  # all numbers
        score = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        score = torch.randint(-(2**63), 2**63 - 1, (3_000,)).view(dtype)
    score = torch.where(score.isnan(), 1, score)
    weight = score[torch.randperm(len(score))]
    tau = torch.tensor(1, dtype=dtype)
    _, found = on_cuda("masked_weight_backward", score, weight, score, tau, None)
    expected = score * weight * score.sign()
    assert torch.equal(found.isnan(), expected.isnan())
    assert same(found.nan_to_num(0), expected.nan_to_num(0))
    assert same(on_cuda("select_bits", score, tau), reference.pack(score.abs() >= 1))


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


def test_every_operator_has_a_cuda_implementation() -> None:
    for module in (bitmask, topc, masked):
        for value in vars(module).values():
            if isinstance(value, torch.library.CustomOpDef):
                name = value._qualname
                assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name


def test_tensors_on_several_devices_are_refused() -> None:
    weight, bits = torch.ones(8, device="meta"), torch.ones(1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="tensors on cpu and meta: expected all on one device"):
        cuda._launch_blocks("bitmask", "apply_bits_4", [weight, bits, weight, 8], (1, 1), 256)


def test_the_sources_are_complete() -> None:
    assert SOURCES == ["bitmask", "masked", "symbols", "topc"]
    for path in (Path(cuda.__file__).parent).glob("*.cu*"):
        assert "#include <" not in path.read_text(encoding="utf-8"), "NVRTC is given no headers"

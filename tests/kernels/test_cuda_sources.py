"""The CUDA sources without a GPU: they compile, and run right on a host (see `tests.kernels.host`).

Operators are called the way the dispatcher calls them for CUDA tensors, but on CPU tensors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clearn.kernels import _nvrtc, bitmask, cuda, masked, tag, topc
from tests.kernels import reference
from tests.kernels.host import COMPILER, SOURCES, Host, kernels, needs_compiler, on_cuda
from tests.kernels.reference import FLOATS, draw, same, values

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100"]
SMALL = [0, 1, 7, 8, 9, 63, 64, 65, 4_099]
LARGE = 50_003  # many rounds of the small grid here


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_source_compiles(source: str, architecture: str) -> None:
    try:
        _nvrtc.nvrtc_version()
    except ImportError as error:
        pytest.skip(f"needs NVRTC: {error}")
    binary = _nvrtc.compile_source(source, architecture)
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


def test_every_operator_has_a_cuda_implementation() -> None:
    for module in (bitmask, topc, masked, tag):
        for value in vars(module).values():
            if isinstance(value, torch.library.CustomOpDef):
                name = value._qualname
                assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name


def test_tensors_on_several_devices_are_refused() -> None:
    weight, bits = torch.ones(8, device="meta"), torch.ones(1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="tensors on cpu and meta: expected all on one device"):
        cuda._launch_blocks("bitmask", "apply_bits_4", [weight, bits, weight, 8], (1, 1), 256)


def test_the_sources_are_complete() -> None:
    assert SOURCES == ["bitmask", "masked", "symbols", "tag", "topc"]
    for path in (Path(cuda.__file__).parent).glob("*.cu*"):
        assert "#include <" not in path.read_text(encoding="utf-8"), "NVRTC is given no headers"

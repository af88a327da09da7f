"""The kernels on a GPU against the slow references, which run on the CPU."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import clearn.kernels as k
from clearn.kernels import cuda, topc
from clearn.kernels.tag import tag_step_
from tests.kernels import reference
from tests.kernels.reference import FLOATS, SIZES, draw, same, values
from tests.kernels.tag_inputs import NUMBERS, TYPES, inputs

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
GPU = torch.device("cuda", 0)
SANITIZER = shutil.which("compute-sanitizer") or shutil.which(
    "compute-sanitizer", path="/usr/local/cuda/bin"
)
ODD = [*SIZES, 2**20 + 3]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))
        yield


def agrees(found: Tensor, expected: Tensor) -> bool:
    return found.is_cuda and same(found.cpu(), expected)


def packed(n: int, seed: int = 0) -> Tensor:
    return reference.pack(draw(n, seed=seed))


@pytest.mark.parametrize("n", ODD)
def test_reference_of_bits(n: int) -> None:
    mask, bits, other = draw(n), packed(n), packed(n, 1)
    assert agrees(k.pack_bits(mask.to(GPU)), bits)
    assert agrees(k.unpack_bits(bits.to(GPU), [n]), mask)
    assert agrees(k.count_bits(bits.to(GPU)), reference.count(bits))
    assert agrees(k.or_bits_(bits.to(GPU), other.to(GPU)), bits | other)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", ODD)
def test_reference_of_weights(n: int, dtype: torch.dtype) -> None:
    weight, score, grad = (values(dtype, n, seed=seed) for seed in range(3))
    score[::17], score[1::17], weight[::5] = 0, -0.0, math.nan
    bits, tau = packed(n), torch.tensor(0.5, dtype=dtype)
    selected, zero = score.abs() >= tau, torch.zeros_like(weight)
    w, s, g, used = (value.to(GPU) for value in (weight, score, grad, bits))
    w.requires_grad_()
    s.requires_grad_()
    assert agrees(k.apply_bits(w.detach(), used), reference.apply(weight, bits))
    assert agrees(k.keep_unset_(g.clone(), used), reference.keep_unset(grad, bits))
    assert agrees(k.select_bits(s, tau.to(GPU)), reference.pack(selected))
    for before in (None, used):
        product = k.masked_weight(w, s, tau.to(GPU), before)
        assert agrees(product.detach(), torch.where(selected, weight, zero))
        dw, ds = torch.autograd.grad(product, (w, s), g)
        dense = torch.where(selected, grad, zero)
        assert agrees(dw, dense if before is None else reference.keep_unset(dense, bits))
        expected = grad * weight * score.sign()
        assert torch.equal(ds.isnan().cpu(), expected.isnan())
        assert agrees(ds.nan_to_num(0), expected.nan_to_num(0))


@pytest.mark.parametrize("tasks", [1, 3, 7, 8, 9, 13, 14, 16])
@pytest.mark.parametrize("n", [1, 9, 65, 4_099, 1_000_003])
def test_reference_of_symbols(n: int, tasks: int) -> None:
    masks = torch.stack([packed(n, seed) for seed in range(tasks)])
    symbols = reference.stack(masks, n)
    assert agrees(k.stack_bits(masks.to(GPU), n), symbols)
    assert agrees(k.unstack_bits(symbols.to(GPU), tasks), masks)
    counts = torch.bincount(symbols, minlength=2**tasks)
    assert agrees(k.symbol_histogram(symbols.to(GPU), tasks), counts)
    assert agrees(k.overlap_bits(masks.to(GPU)), reference.overlap(masks))


@pytest.mark.parametrize("c", [0.001, 0.3, 1.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_reference_of_thresholds(dtype: torch.dtype, c: float) -> None:
    sizes = [*range(1, 68), 4_099, 100_003, 2**20 + 3]
    scores = [values(dtype, n, seed=n) * 0.03 for n in sizes]
    scores += [torch.zeros(999, dtype=dtype), torch.arange(9_999).to(dtype)]
    expected = torch.stack([reference.threshold(score, c) for score in scores])
    there = [score.to(GPU) for score in scores]
    assert agrees(k.top_c_thresholds(there, c), expected)
    for start in (expected, expected * 1.02, expected * 0.1, expected * math.nan):
        assert agrees(k.top_c_thresholds(there, c, start.to(GPU)), expected)
    assert agrees(k.top_c_mask(there[-3], c), scores[-3].abs() >= expected[-3])


@pytest.mark.parametrize("dtype", FLOATS)
def test_reference_at_any_alignment(dtype: torch.dtype) -> None:
    for shift in range(1, 17):
        n = 1_000 + shift
        weight, score, grad = (values(dtype, n + shift, seed=seed) for seed in range(3))
        bits, tau = packed(n), torch.tensor(0.5, dtype=dtype)
        w, s, g = (value.to(GPU)[shift:] for value in (weight, score, grad))
        used = torch.cat([bits[:shift], bits]).to(GPU)[len(bits[:shift]) :]
        weight, score, grad = weight[shift:], score[shift:], grad[shift:]
        assert agrees(k.apply_bits(w, used), reference.apply(weight, bits))
        assert agrees(k.select_bits(s, tau.to(GPU)), reference.pack(score.abs() >= tau))
        expected = reference.threshold(score, 0.4)[None]
        assert agrees(k.top_c_thresholds([s], 0.4), expected)
        assert agrees(k.pack_bits(g > 0), reference.pack(grad > 0))
        assert agrees(k.keep_unset_(g, used), reference.keep_unset(grad, bits))


def shift(value: Tensor) -> Tensor:
    """A copy whose first element is not aligned to 16 bytes."""
    room = value.new_empty(value.numel() + 1)
    return room[1:].view(value.shape).copy_(value)


@pytest.mark.parametrize("by_moment", [False, True])
@pytest.mark.parametrize(("dtype", "knowledge"), TYPES)
def test_reference_of_a_step_of_tag(
    dtype: torch.dtype, knowledge: torch.dtype, by_moment: bool
) -> None:
    sizes = [(n,) for n in (0, 1, 7, 31, 33, 1_000, 4_096, 20_003)] * 7  # more than a table holds
    tasks = [(0, 1, 2, 5, 19, 40)[index % 6] for index in range(len(sizes))]
    lists = inputs(dtype, tasks, sizes)
    lists[4] = [rows.to(knowledge) for rows in lists[4]]
    there = [[tensor.to(GPU) for tensor in tensors] for tensors in lists]
    shifted = [[shift(tensor) for tensor in tensors] for tensors in there]
    wide = [[tensor.double() for tensor in tensors] for tensors in lists]
    tag_step_(*wide, **NUMBERS, by_moment=by_moment)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for found in (there, shifted):
        tag_step_(*found, **NUMBERS, by_moment=by_moment)
        for ours, theirs in zip(found, wide, strict=True):
            for mine, right in zip(ours, theirs, strict=True):
                near = mine.cpu().double(), right
                torch.testing.assert_close(*near, rtol=tolerance, atol=tolerance)


def test_scores_that_are_not_finite() -> None:
    scores = [values(torch.float32, 999, seed=seed).to(GPU) for seed in range(3)]
    scores[1][500] = math.nan
    found = k.top_c_thresholds(scores, 0.5)
    assert found.isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"^scores\[1\]: NaN or infinite values"):
        cuda.check_thresholds(found)
    assert k.masked_weight(torch.ones_like(scores[1]), scores[1], found[1]).isnan().all()


def calls(device: torch.device = GPU) -> dict[str, Callable[[], object]]:
    """One call of every function."""
    n = 100_003
    weight, score, grad = (values(torch.float32, n, seed=seed).to(device) for seed in range(3))
    mask, bits, other = draw(n).to(device), packed(n).to(device), packed(n, 1).to(device)
    masks = torch.stack([packed(n, seed) for seed in range(9)]).to(device)
    symbols = reference.stack(masks.cpu(), n).to(device)
    tau, start = torch.tensor(0.5, device=device), torch.ones(2, device=device)

    def step() -> tuple[Tensor, ...]:
        w, s = weight.clone().requires_grad_(), score.clone().requires_grad_()
        product = k.masked_weight(w, s, tau, bits)
        return product, *torch.autograd.grad(product, (w, s), grad)

    lists = inputs(torch.float32, [3, 2, 0], [(100_003,), (4_096,), (7,)])
    there = [[tensor.to(device) for tensor in tensors] for tensors in lists]

    def tag() -> tuple[Tensor, ...]:
        own = [[tensor.clone() for tensor in tensors] for tensors in there]
        tag_step_(*own, **NUMBERS, by_moment=False)
        return *own[0], *own[2], *own[6]

    return {
        "pack": lambda: k.pack_bits(mask),
        "unpack": lambda: k.unpack_bits(bits, [n]),
        "apply": lambda: k.apply_bits(weight, bits),
        "keep_unset": lambda: k.keep_unset_(grad.clone(), bits),
        "or": lambda: k.or_bits_(bits.clone(), other),
        "count": lambda: k.count_bits(bits),
        "overlap": lambda: k.overlap_bits(masks),
        "stack": lambda: k.stack_bits(masks, n),
        "unstack": lambda: k.unstack_bits(symbols, 9),
        "histogram": lambda: k.symbol_histogram(symbols, 9),
        "thresholds": lambda: k.top_c_thresholds([score, weight], 0.3),
        "warm thresholds": lambda: k.top_c_thresholds([score, weight], 0.3, start),
        "top_c_bits": lambda: k.top_c_bits(score, 0.3),
        "top_c_mask": lambda: k.top_c_mask(score, 0.3),
        "masked weight": step,
        "tag step": tag,
    }


def results(value: object) -> list[Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


NAMES = [
    *("pack", "unpack", "apply", "keep_unset", "or", "count", "overlap", "stack", "unstack"),
    *("histogram", "thresholds", "warm thresholds", "top_c_bits", "top_c_mask", "masked weight"),
    "tag step",
]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name: str) -> None:
    call = calls()[name]
    call()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_results_repeat(name: str) -> None:
    call = calls()[name]
    first = results(call())
    for _ in range(5):
        assert all(map(torch.equal, results(call()), first))


@pytest.mark.parametrize("name", NAMES)
def test_every_thread_can_launch(name: str) -> None:
    found: list[Tensor] = []
    call = calls()[name]
    expected = results(call())
    thread = threading.Thread(target=lambda: found.extend(results(call())))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


def test_work_is_put_on_the_current_stream() -> None:
    n = 2**20
    mask, result = torch.zeros(n, dtype=torch.bool, device=GPU), None
    k.pack_bits(mask)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # on another stream, the kernel would run before the fill
        mask.fill_(True)
        result = k.pack_bits(mask)
    stream.synchronize()
    assert (result == 255).all()


def test_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    other = torch.device("cuda", 1)
    for name, call in calls(other).items():
        here = results(calls()[name]())
        there = results(call())
        assert all(value.device == other for value in there)
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(here, there, strict=True)), name
    assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="on cuda:1"):
        k.or_bits_(torch.zeros(1, dtype=torch.uint8, device=GPU), torch.zeros(
            1, dtype=torch.uint8, device=other))  # fmt: skip


def test_tensors_on_the_cpu_and_the_device() -> None:
    with pytest.raises(ValueError, match="on cpu"):
        k.apply_bits(torch.ones(8, device=GPU), torch.ones(1, dtype=torch.uint8))


def test_a_graph_of_the_mask_step() -> None:
    weight, score, grad = (values(torch.float32, 5_003, seed=i).to(GPU) for i in range(3))
    used = packed(5_003).to(GPU)

    def step() -> tuple[Tensor, ...]:
        tau = k.top_c_thresholds([score], 0.3)[0]
        product = torch.ops.clearn.masked_weight(weight, score, tau, used)
        both = torch.ops.clearn.masked_weight_backward(grad, weight, score, tau, used)
        return tau, product, *both

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3, 6):
        score.copy_(values(torch.float32, 5_003, seed=seed))
        graph.replay()
        assert all(map(torch.equal, captured, step()))
        assert captured[0].cpu() == reference.threshold(score.cpu(), 0.3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_keep_the_contract_of_torch_library() -> None:
    n = 77
    weight, score = (values(torch.float32, n, seed=i).to(GPU).requires_grad_() for i in range(2))
    mask, bits = draw(n).to(GPU), packed(n).to(GPU)
    masks = torch.stack([packed(n, seed) for seed in range(3)]).to(GPU)
    symbols, tau = reference.stack(masks.cpu(), n).to(GPU), torch.tensor(0.5, device=GPU)
    lists = [[t.to(GPU) for t in ts] for ts in inputs(torch.float32, [2, 0], [(9,), (4,)])]
    ops, backward = torch.ops.clearn, (weight.detach() + 1, weight.detach(), score.detach(), tau)
    for operator, arguments in [
        (ops.pack_bits, (mask,)),
        (ops.unpack_bits, (bits, [7, 11])),
        (ops.apply_bits, (weight, bits)),
        (ops.keep_unset_, (score.detach().clone(), bits)),
        (ops.or_bits_, (bits.clone(), bits)),
        (ops.count_bits, (bits,)),
        (ops.overlap_bits, (masks,)),
        (ops.stack_bits, (masks, n)),
        (ops.unstack_bits, (symbols, 3)),
        (ops.symbol_histogram, (symbols, 3)),
        (ops.top_c_thresholds, ([score.detach()], 0.3, None)),
        (ops.select_bits, (score.detach(), tau)),
        (ops.masked_weight, (weight, score, tau, bits)),
        (ops.masked_weight_backward, (*backward, bits)),
        (ops.masked_weight_backward, (*backward, None)),
        (ops.tag_step_, (*lists, *NUMBERS.values(), False)),
    ]:
        opcheck(operator.default, arguments)


def test_more_than_2_to_the_31_elements() -> None:
    n = 2**31 + 1_003
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free device memory")
    weight = torch.zeros(n, dtype=torch.float16, device=GPU)
    for value, place in enumerate((0, 5, 2**31 - 1, 2**31, 2**31 + 9, n - 1), 1):
        weight[place] = value
    bits = k.pack_bits(weight != 0)
    assert k.count_bits(bits) == 6
    assert k.unpack_bits(bits, [n]).equal(weight != 0)
    assert k.apply_bits(weight, bits).equal(weight)
    tau = k.top_c_thresholds([weight], 3 / n)[0]
    assert topc.kept(n, 3 / n) == 4
    assert tau == 3
    assert k.masked_weight(weight, weight, tau).sum() == 3 + 4 + 5 + 6
    assert k.count_bits(k.select_bits(weight, tau)) == 4
    symbols = k.stack_bits(bits[None], n)
    assert k.symbol_histogram(symbols, 1).tolist() == [n - 6, 6]
    assert k.unstack_bits(symbols, 1)[0].equal(bits)
    assert k.overlap_bits(torch.stack([bits, bits])).tolist() == [[6, 6], [6, 6]]
    assert not k.keep_unset_(weight, bits).any()


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    if SANITIZER is None:
        pytest.skip("needs compute-sanitizer")
    choice = "reference and (9 or 65 or 4_099 or alignment or thresholds or tag)"
    # Every tensor its own allocation, so that a step over its end is seen.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
    command += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-m", "gpu", "-k", choice, __file__]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4_000:]

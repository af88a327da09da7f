"""The CUDA source of TAG, run by a host (see `tests.kernels.host`), against the CPU's step."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from clearn.kernels import _tag_cuda
from clearn.kernels.tag import tag_step_
from tests.kernels.host import Host, needs_compiler, on_cuda
from tests.kernels.tag_inputs import NUMBERS, TYPES, inputs
from tests.kernels.test_cuda_places import Place, place  # noqa: F401  (a fixture)

N = 1_000
CHUNK = {torch.float32: 4_096, torch.float64: 2_048}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def step(lists: Sequence[Sequence[Tensor]], *, by_moment: bool = False, **numbers: float) -> None:
    on_cuda("tag_step_", *lists, *(NUMBERS | numbers).values(), by_moment)


def on_the_cpu(lists: Sequence[Sequence[Tensor]], by_moment: bool = False) -> list[list[Tensor]]:
    """The step in double precision."""
    wide = [[tensor.double().clone() for tensor in tensors] for tensors in lists]
    tag_step_(*wide, **NUMBERS, by_moment=by_moment)
    return wide


def check(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> None:
    tolerance = TOLERANCE[found[0][0].dtype]
    for ours, theirs in zip(found, expected, strict=True):
        for mine, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.double(), right, rtol=tolerance, atol=tolerance)


def with_directions(lists: list[list[Tensor]], knowledge: torch.dtype) -> list[list[Tensor]]:
    lists[4] = [rows.to(knowledge) for rows in lists[4]]
    return lists


@needs_compiler
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("by_moment", [False, True])
@pytest.mark.parametrize("tasks", [0, 1, 5, 19])
def test_one_step(tasks: int, by_moment: bool, order: int, host: Host) -> None:
    host.order = order
    sizes = [(0,), (1,), (7,), (31,), (33,), (N,), (), (4, 9, 8)]
    for dtype in (torch.float32, torch.float64):
        lists = inputs(dtype, [tasks] * len(sizes), sizes)
        expected = on_the_cpu(lists, by_moment)
        step(lists, by_moment=by_moment)
        check(lists, expected)


@needs_compiler
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "knowledge"), TYPES)
def test_types_and_tensors_of_many_blocks(
    dtype: torch.dtype, knowledge: torch.dtype, order: int, host: Host
) -> None:
    host.order = order
    chunk = CHUNK[dtype]
    sizes = [(chunk - 1,), (5,), (chunk,), (chunk + 4,), (3 * chunk + 1,), (0,)]
    lists = with_directions(inputs(dtype, [2, 0, 3, 1, 2, 2], sizes), knowledge)
    expected = on_the_cpu(lists)
    step(lists)
    check(lists, expected)


@needs_compiler
@pytest.mark.parametrize("order", [0, 1, -1])
def test_more_tensors_and_tasks_than_one_table_or_tile_holds(order: int, host: Host) -> None:
    host.order = order
    sizes = [(index % 9,) for index in range(2 * _tag_cuda._BATCH + 1)]
    tasks = [31 + index % 3 if index % 10 == 0 else index % 3 for index in range(len(sizes))]
    sizes[50], tasks[50] = (1_001,), 70  # all warps have something to add in several tiles
    lists = inputs(torch.float64, tasks, sizes)
    expected = on_the_cpu(lists)
    step(lists)
    check(lists, expected)


@needs_compiler
def test_directions_of_several_types(host: Host) -> None:
    lists = inputs(torch.float32, [2, 2, 2], [(40,), (41,), (42,)])
    lists[4][1] = lists[4][1].bfloat16()
    expected = on_the_cpu(lists)
    step(lists)
    check(lists, expected)


@needs_compiler
@pytest.mark.parametrize(("dtype", "knowledge"), TYPES)
def test_any_place(
    dtype: torch.dtype,
    knowledge: torch.dtype,
    host: Host,
    place: Place,  # noqa: F811
) -> None:
    per_vector = 16 // dtype.itemsize
    for after in range(per_vector):
        for n in (per_vector - 1, per_vector, 67, 16 * per_vector):
            lists = with_directions(inputs(dtype, [2, 1], [(n,), (4 * n,)]), knowledge)
            expected = on_the_cpu(lists)
            # All aligned alike first, then each list in its own way.
            placed = [[place.put(tensor, after) for tensor in tensors] for tensors in lists]
            step(placed)
            check(placed, expected)
        for index in range(7):
            placed = [[place.put(tensor, 0) for tensor in tensors] for tensors in lists]
            placed[index] = [place.put(tensor, after) for tensor in lists[index]]
            step(placed)
            check(placed, expected)


@needs_compiler
def test_strides(host: Host) -> None:
    sizes = [(4, 3, 5, 6), (8, 9), (7,)]
    lists = inputs(torch.float64, [2, 1, 3], sizes)
    expected = on_the_cpu(lists)
    lists[0][0] = lists[0][0].contiguous(memory_format=torch.channels_last)
    lists[1][0] = lists[1][0].mT.contiguous().mT
    lists[0][1] = lists[0][1].T.contiguous().T
    lists[1][2] = lists[1][2].repeat_interleave(2)[::2]
    strides = [tensor.stride() for tensors in lists[:2] for tensor in tensors]
    step(lists)
    check(lists, expected)
    assert strides == [tensor.stride() for tensors in lists[:2] for tensor in tensors]
    for index in (2, 3, 6):  # not asked for, but then right all the same
        lists[index] = [tensor.repeat_interleave(2, -1)[..., ::2] for tensor in lists[index]]
    expected = on_the_cpu(lists)
    step(lists)
    check(lists, expected)


@needs_compiler
def test_without_gradients_and_with_ones_that_are_not_finite(host: Host) -> None:
    lists = inputs(torch.float32, [2, 2, 2, 2], [(33,), (33,), (33,), (33,)])
    for index in (1, 2):
        lists[index][0].zero_()
    lists[1][1][3] = math.nan
    lists[1][2][3] = math.inf
    before = [total.clone() for total in lists[6]]
    expected = on_the_cpu(lists)
    step(lists)
    assert torch.equal(lists[6][0], before[0] + 1)
    assert lists[6][1].isnan().all()
    for index in (0, 3):
        check([tensors[index : index + 1] for tensors in lists],
              [tensors[index : index + 1] for tensors in expected])  # fmt: skip
    for index in (1, 2):
        assert torch.equal(lists[0][index].isnan(), expected[0][index].isnan())


@needs_compiler
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cosines_stay_within_bounds(sign: float, host: Host) -> None:
    """Of a direction that is too long, as rounding to bfloat16 can make it."""
    lists = inputs(torch.float32, [1], [(64,)])
    lists[1][0].copy_(lists[2][0])
    lists[4][0].copy_(sign * 1.01 * lists[2][0] / lists[2][0].norm())
    lists[6][0].zero_()
    step(lists)
    assert lists[6][0].item() == pytest.approx(math.exp(-2 * sign), rel=1e-6)


@needs_compiler
def test_numbers_at_their_bounds(host: Host) -> None:
    for numbers in (
        {"b": 0.0, "beta": 0.0},
        {"decay": 1.0, "weight": 1.0, "eps": 0.0},
        {"beta": 0.3, "lr": 0.0},
        {"b": 50.0, "decay": 0.0},
    ):
        lists = inputs(torch.float64, [2, 0], [(9,), (4,)])
        expected = [[tensor.clone() for tensor in tensors] for tensors in lists]
        tag_step_(*expected, **(NUMBERS | numbers), by_moment=False)
        step(lists, **numbers)
        check(lists, expected)


@needs_compiler
def test_a_step_repeats_to_the_bit_in_any_order_of_blocks(host: Host) -> None:
    results = []
    for order in (0, 1, 5):
        host.order = order
        lists = inputs(torch.float32, [3, 2], [(30_001,), (20_000,)])
        step(lists)
        results.append(torch.cat([tensor.flatten() for tensors in lists for tensor in tensors]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_compiler
def test_two_launches(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []

    def run(device: Any, source: str, kernel: str, grid: Any, threads: int, values: Any) -> None:
        launched.append(kernel)
        host.run(device, source, kernel, grid, threads, values)

    monkeypatch.setattr("clearn.kernels.cuda._run", run)
    step(inputs(torch.float32, [3] * 48, [(9,)] * 48))
    assert launched == ["accumulate_float32", "apply_float32"]


def test_the_table_fits_the_arguments_of_a_launch() -> None:
    pointers = 3 * ctypes.sizeof(ctypes.c_void_p)
    assert ctypes.sizeof(_tag_cuda._Batch) + pointers <= 4_096


def test_tensors_on_several_devices_are_refused() -> None:
    lists = inputs(torch.float32, [1, 1], [(9,), (9,)])
    lists[4][1] = lists[4][1].to("meta")
    with pytest.raises(ValueError, match="tensors on cpu and meta: expected all on one device"):
        step(lists)

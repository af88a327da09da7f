"""Thresholds, masks and packed masks of the largest scores, against sorting."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from clearn.kernels import kept, pack_bits, select_bits, top_c_bits, top_c_mask, top_c_thresholds
from tests.kernels import reference
from tests.kernels.reference import FLOATS, SIZES, same, seeded, values

FRACTIONS = [1e-6, 0.03, 0.1, 0.3, 0.5, 0.7, 0.999, 1.0]
ODD_STARTS = [0.0, -1.0, 1e-40, 1e30, -1e30, math.inf, -math.inf, math.nan]


def half_even(value: Fraction) -> int:
    low = math.floor(value)
    return low + (value - low > Fraction(1, 2) or (value - low == Fraction(1, 2) and low % 2 == 1))


def expected(scores: list[Tensor], c: float) -> Tensor:
    return torch.stack([reference.threshold(score, c) for score in scores])


@pytest.mark.parametrize("c", [1e-9, 0.001, 0.03, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.75, 0.9, 1.0])
def test_kept_for_all_sizes(c: float) -> None:
    for n in range(1, 10_001):
        # The float products as IEEE rounds them; the rounding to an integer done exactly.
        count = n - half_even(Fraction((1 - c) * (n - 1)))
        assert kept(n, c) == count
        assert 1 <= count <= n


def test_kept_as_measured_of_the_official_code() -> None:
    cases = [(1000, 0.1, 101), (78400, 0.03, 2353), (1500, 0.5, 750), (10, 0.3, 4)]
    for n, c, count in cases:
        assert kept(n, c) == count
        scores = torch.randperm(n, generator=seeded()).float()
        assert int(top_c_mask(scores, c).sum()) == count
    assert kept(0, 0.5) == 0
    assert kept(2**40, 0.5) == 2**40 - round(0.5 * (2**40 - 1))


@pytest.mark.parametrize("c", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_fractions_out_of_range(c: float) -> None:
    for call in (
        lambda: kept(10, c),
        lambda: top_c_thresholds([torch.ones(3)], c),
        lambda: top_c_mask(torch.ones(3), c),
        lambda: top_c_bits(torch.ones(3), c),
    ):
        with pytest.raises(ValueError, match=r"c: .* is not valid: expected .* \(0, 1\]"):
            call()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES[1:])
def test_thresholds_masks_and_packed_masks(n: int, dtype: torch.dtype) -> None:
    scores = values(dtype, n)
    for c in FRACTIONS if n < 1000 else [0.1, 0.5]:
        tau = reference.threshold(scores, c)
        assert same(top_c_thresholds([scores], c), tau.view(1))
        assert same(top_c_mask(scores, c), scores.abs() >= tau)
        assert same(top_c_bits(scores, c), pack_bits(scores.abs() >= tau))
        assert same(select_bits(scores, tau), pack_bits(scores.abs() >= tau))


@pytest.mark.parametrize("dtype", FLOATS)
@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-7, -3.5]), min_size=1), st.data())
def test_ties_are_all_kept(dtype: torch.dtype, listed: list[float], data: st.DataObject) -> None:
    c = data.draw(st.sampled_from(FRACTIONS))
    scores = torch.tensor(listed, dtype=dtype)
    tau = sorted(abs(x) for x in scores.tolist())[len(listed) - kept(len(listed), c)]
    assert top_c_thresholds([scores], c).tolist() == [tau]
    assert top_c_mask(scores, c).tolist() == [abs(x) >= tau for x in scores.tolist()]


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1),
    st.floats(0, 1, exclude_min=True),
)
def test_any_finite_scores(listed: list[float], c: float) -> None:
    scores = torch.tensor(listed, dtype=torch.float32)
    tau = sorted(abs(x) for x in scores.tolist())[len(listed) - kept(len(listed), c)]
    assert top_c_thresholds([scores], c).tolist() == [tau]


def test_many_tensors_at_once() -> None:
    shapes = [(784, 100), (0,), (1,), (3, 4, 5), (100, 10), (), (70_000,)]
    scores = [values(torch.float32, *shape, seed=i) for i, shape in enumerate(shapes)]
    found = top_c_thresholds(scores, 0.2)
    assert found[1] == math.inf
    full = [score for score in scores if score.numel()]
    assert same(found[found < math.inf], expected(full, 0.2))


def test_nothing_of_an_empty_tensor_is_kept() -> None:
    assert top_c_mask(torch.zeros(0, 3), 0.5).shape == (0, 3)
    assert top_c_bits(torch.zeros(0, 3), 0.5).shape == (0,)


def test_strided_scores_that_require_gradients() -> None:
    scores = values(torch.float32, 50, 60).requires_grad_().t()[::3]
    found = top_c_thresholds([scores], 0.1)
    assert not found.requires_grad
    assert same(found, expected([scores], 0.1))
    assert same(top_c_bits(scores, 0.1), pack_bits(top_c_mask(scores, 0.1)))
    assert not top_c_mask(scores, 0.1).requires_grad


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 70_001, 149_999])
def test_scores_that_are_not_finite(dtype: torch.dtype, bad: float, place: int) -> None:
    scores = values(dtype, 150_000)
    start = top_c_thresholds([scores], 0.1)
    scores[place] = bad
    for warm in (None, start):
        with pytest.raises(ValueError, match=r"scores\[1\]: NaN or infinite"):
            top_c_thresholds(
                [torch.ones(3, dtype=dtype), scores],
                0.1,
                warm if warm is None else warm.expand(2).contiguous(),
            )
    for short in (scores[place : place + 1], scores[max(place - 5, 0) : place + 5]):
        with pytest.raises(ValueError, match=r"scores\[0\]: NaN or infinite"):
            top_c_mask(short, 1.0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 5, 1000, 78_400, 300_001])
def test_a_start_never_changes_the_result(n: int, dtype: torch.dtype) -> None:
    scores = values(dtype, n)
    tau = expected([scores], 0.1)
    smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    near = [float(tau) * factor for factor in (1, 0.999, 1.001, 0.9, 1.1)]
    for odd in [*ODD_STARTS, *near, smallest, torch.finfo(dtype).max, *scores[:3].tolist()]:
        start = torch.tensor([odd]).to(dtype)
        assert same(top_c_thresholds([scores], 0.1, start), tau), odd


@given(
    st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=300),
    st.floats(width=32),
    st.floats(0, 1, exclude_min=True),
)
def test_any_start(listed: list[float], first: float, c: float) -> None:
    scores = torch.tensor(listed, dtype=torch.float32).repeat(30)
    found = top_c_thresholds([scores], c, torch.tensor([first], dtype=torch.float32))
    assert same(found, expected([scores], c))


@pytest.mark.parametrize("speed", [1e-4, 1e-2, 1.0])
def test_a_random_walk_with_the_last_thresholds_as_start(speed: float) -> None:
    shapes = [(784, 100), (100, 100)]
    scores = [values(torch.float32, *shape, seed=i) / 28 for i, shape in enumerate(shapes)]
    start, generator = None, seeded(5)
    for _ in range(30):
        start = top_c_thresholds(scores, 0.1, start)
        assert same(start, expected(scores, 0.1))
        for score in scores:
            score.add_(torch.randn(score.shape, generator=generator), alpha=speed / 28)


@pytest.mark.parametrize(
    "layout", ["rising", "falling", "blocks", "equal", "two", "spikes", "tiny"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_that_mislead_a_sample(layout: str, dtype: torch.dtype) -> None:
    n = 700_000
    place = torch.arange(n)
    scores = {
        "rising": place / n,
        "falling": 1 - place / n,
        "blocks": (place % 4096 == 0) * torch.rand(n, generator=seeded()),
        "equal": torch.full((n,), -0.25),
        "two": torch.where(place < n // 2, 1.0, -2.0),
        "spikes": torch.where(place % 10 == 3, 1 + place / n, place / n),
        "tiny": torch.full((n,), 1e-40),
    }[layout].to(dtype)
    for c in (1e-6, 0.1, 0.5, 0.9, 1.0):
        tau = expected([scores], c)
        assert same(top_c_thresholds([scores], c), tau)
        assert same(top_c_thresholds([scores], c, tau), tau)


def test_the_starts_of_several_tensors_are_independent() -> None:
    scores = [values(torch.float32, 80_000, seed=i) * 10**i for i in range(3)]
    tau = expected(scores, 0.3)
    assert same(top_c_thresholds(scores, 0.3, tau), tau)
    assert same(top_c_thresholds(scores, 0.3, tau.flip(0)), tau)


def test_bad_scores_and_starts() -> None:
    one, two = torch.ones(3), torch.ones(3, dtype=torch.float64)
    for call, message in [
        (lambda: top_c_thresholds([], 0.5), "no tensors: expected at least one"),
        (lambda: top_c_thresholds([one, one.int()], 0.5), r"scores\[1\]: type torch.int32"),
        (lambda: top_c_thresholds([one, two], 0.5), r"scores\[1\]: torch.float64 on cpu"),
        (
            lambda: top_c_thresholds([one], 0.5, torch.ones(2)),
            r"start: \[2\] of .* expected \[1\] of",
        ),
        (lambda: top_c_thresholds([one], 0.5, torch.tensor(1.0)), r"start: \[\] of"),
        (lambda: top_c_thresholds([one], 0.5, two[:1]), "start: .* torch.float64"),
        (lambda: top_c_thresholds([one], 0.5, one[:1].to("meta")), "start: .* on meta"),
        (lambda: top_c_thresholds([one, one.to("meta")], 0.5), r"scores\[1\]: .* on meta"),
        (lambda: select_bits(one, one[0].to("meta")), "threshold: .* on meta"),
        (lambda: select_bits(one, torch.ones(1)), r"threshold: \[1\] of .* expected \[\] of"),
        (lambda: select_bits(one, two[0]), "threshold: .* of torch.float64"),
        (lambda: select_bits(one.int(), one[0]), "scores: type torch.int32"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_keep_the_contract_of_torch_library() -> None:
    ops = torch.ops.clearn
    scores = [values(torch.float32, 5, 7), values(torch.float32, 11)]
    opcheck(ops.top_c_thresholds.default, (scores, 0.3, None))
    opcheck(ops.top_c_thresholds.default, (scores, 0.3, torch.ones(2)))
    opcheck(ops.select_bits.default, (scores[0], torch.tensor(0.5)))


def test_under_compile() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(scores: list[Tensor], start: Tensor) -> tuple[Tensor, ...]:
        found = top_c_thresholds(scores, 0.3, start)
        return found, select_bits(scores[0], found[0]), top_c_bits(scores[1], 0.3), top_c_mask(
            scores[1], 0.3
        )  # fmt: skip

    scores = [values(torch.float32, 5, 7).requires_grad_(), values(torch.float32, 9)]
    found, first, second, mask = step(scores, torch.ones(2))
    assert same(found, expected(scores, 0.3))
    assert same(first, top_c_bits(scores[0], 0.3))
    assert same(second, pack_bits(mask))


def test_numpy_scalars_are_fractions() -> None:
    assert top_c_thresholds([torch.tensor([1.0, 2.0])], np.float32(0.5)).tolist() == [1.0]

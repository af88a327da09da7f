"""Against scipy's own functions, and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clearn.compare.statistics import Difference, holm, interval, paired, std

numbers = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=9)


@given(numbers)
def test_interval_is_scipys(values: list[float]) -> None:
    low, high = interval(values)
    scale = stats.sem(values)
    if scale < 1e-9:
        assert low == pytest.approx(high)
        return
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scale)
    np.testing.assert_allclose((low, high), expected, rtol=1e-9, atol=1e-9)


def test_interval_by_hand() -> None:
    # s = 1, t_{0.975, 2} = 4.302653, half width 4.302653 / sqrt(3)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, float("nan")]])
def test_interval_and_std_are_nan_where_undefined(values: list[float]) -> None:
    assert np.isnan(interval(values)).all()
    assert np.isnan(std(values))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=9))
def test_paired_is_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = (np.round(np.array(side), 3) for side in zip(*pairs, strict=True))
    found = paired(a, b)
    assert found.pairs == len(a)
    assert found.mean == pytest.approx(np.mean(a - b))
    if np.std(a - b) < 1e-9:
        assert np.isnan(found.p)
        return
    expected = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    ends = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-6, abs=1e-9)


def test_paired_without_and_with_one_pair() -> None:
    assert paired([], [])[0] == 0
    assert np.isnan(paired([], [])[1:]).all()
    one = paired([0.75], [0.5])
    assert (one.pairs, one.mean) == (1, 0.25)
    assert np.isnan([one.low, one.high, one.p]).all()


def test_equal_differences_are_no_evidence_even_when_rounding_makes_them_vary() -> None:
    reference = np.array([0.1, 0.2, 0.3])
    found = paired(reference + 0.4, reference)
    assert found == Difference(3, *found[1:])
    assert np.isnan(found.p)
    assert found.mean == pytest.approx(0.4)


def test_holm_by_hand() -> None:
    # m = 4, sorted .005 .01 .03 .04: 4 * .005, 3 * .01, 2 * .03, max(.06, .04)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def slow_holm(p: list[float]) -> list[float]:
    """Step down: the k-th smallest is rejected at level a when it and all before pass."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    return [
        max(min(1.0, (len(p) - rank) * p[i]) for rank, i in enumerate(order[: order.index(k) + 1]))
        for k in range(len(p))
    ]


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=8))
def test_holm_against_the_slow_version(p: list[float]) -> None:
    adjusted = holm(p)
    tested = [i for i, value in enumerate(p) if not np.isnan(value)]
    assert np.isnan(adjusted[[i for i in range(len(p)) if i not in tested]]).all()
    expected = slow_holm([p[i] for i in tested])
    np.testing.assert_allclose(adjusted[tested], expected, rtol=1e-12)

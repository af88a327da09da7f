"""What a comparison says about numbers: intervals, paired tests, and their correction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95


class Difference(NamedTuple):
    """A paired comparison: mean difference, its interval, p of the two-sided paired t-test."""

    pairs: int
    mean: float
    low: float
    high: float
    p: float


def interval(values: ArrayLike) -> tuple[float, float]:
    """Student's 95 % interval of the mean, `mean +- t_{0.975, n-1} s / sqrt(n)`.

    NaN where the values hold a NaN or are fewer than two.

    >>> interval([1.0, 2.0, 3.0])  # doctest: +ELLIPSIS
    (-0.484..., 4.484...)
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1)) * std(x) / len(x) ** 0.5
    return float(x.mean()) - half, float(x.mean()) + half


def std(values: ArrayLike) -> float:
    """Standard deviation of a sample, with n - 1; NaN for fewer than two values."""
    x = np.asarray(values, dtype=np.float64)
    return float(x.std(ddof=1)) if len(x) > 1 else float("nan")


def paired(values: ArrayLike, reference: ArrayLike) -> Difference:
    """Compare values with a reference measured under the same conditions, pair by pair.

    The test needs differences that vary: with one pair, or when all differences are equal, t has
    no finite value and p is NaN.
    """
    difference = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    n = len(difference)
    if n == 0:
        return Difference(0, *[float("nan")] * 4)
    mean, spread = float(difference.mean()), std(difference)
    # Equal differences may still vary by rounding, which must not pass for significance.
    varies = spread > 1e-12 * max(1.0, abs(mean))
    t = mean / (spread / n**0.5) if varies else float("nan")
    p = 2 * float(stats.t.sf(abs(t), n - 1)) if varies else float("nan")
    return Difference(n, mean, *interval(difference), p)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's step-down correction (1979): `p_(k) -> max_{i<=k} min(1, (m - i + 1) p_(i))`.

    NaNs are no tests: they stay NaN and do not count in m.

    >>> holm([0.01, 0.04, float("nan"), 0.03]).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    ranked = tests[np.argsort(p[tests], kind="stable")]
    factors = np.arange(len(ranked), 0, -1)
    adjusted[ranked] = np.minimum(np.maximum.accumulate(factors * p[ranked]), 1.0)
    return adjusted

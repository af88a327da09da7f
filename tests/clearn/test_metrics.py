"""Metrics against their published formulas, written out slowly."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clearn import metrics
from clearn.errors import UserError

Accuracies = st.floats(0, 1, width=32).map(float)
Matrices = st.integers(2, 7).flatmap(lambda t: arrays(np.float64, (t, t), elements=Accuracies))


# The formulas as their authors print them: tasks from 1, R(i, j) on task j after task i.


def slow_summary(
    matrix: np.ndarray, baseline: np.ndarray, sizes: list[int] | None = None
) -> dict[str, float]:
    t = len(matrix)
    n = sizes or [1] * t

    def r(i: int, j: int) -> float:
        return float(matrix[i - 1][j - 1])

    acc = 0.0
    for j in range(1, t + 1):
        acc += r(t, j) / t
    bwt = 0.0
    for j in range(1, t):
        bwt += (r(t, j) - r(j, j)) / (t - 1)
    fwt = 0.0
    for j in range(2, t + 1):
        fwt += (r(j - 1, j) - float(baseline[j - 1])) / (t - 1)
    forgetting = 0.0
    for j in range(1, t):
        forgetting += (max(r(i, j) for i in range(1, t)) - r(t, j)) / (t - 1)
    learning = sum(r(j, j) for j in range(1, t + 1)) / t
    incremental = 0.0
    for i in range(1, t + 1):  # right answers over questions, on everything seen
        right = sum(n[j - 1] * r(i, j) for j in range(1, i + 1))
        seen = right / sum(n[:i])
        incremental += seen / t
    return {
        "acc": acc,
        "forgetting": forgetting,
        "bwt": bwt,
        "fwt": fwt,
        "learning_acc": learning,
        "avg_incremental_acc": incremental,
        "final_acc": seen,
    }


@given(matrix=Matrices, data=st.data())
def test_summary_is_the_published_formulas(matrix: np.ndarray, data: Any) -> None:
    baseline = data.draw(arrays(np.float64, len(matrix), elements=Accuracies))
    ours = metrics.summary(matrix, baseline)
    assert ours == pytest.approx(slow_summary(matrix, baseline), abs=1e-12)
    assert all(type(value) is float for value in ours.values())


def test_worked_example() -> None:
    matrix = [[0.90, 0.30, 0.10], [0.70, 0.80, 0.40], [0.60, 0.50, 0.95]]
    assert metrics.summary(matrix, [0.5, 0.2, 0.1]) == pytest.approx(
        {
            "acc": (0.60 + 0.50 + 0.95) / 3,
            "forgetting": ((0.90 - 0.60) + (0.80 - 0.50)) / 2,
            "bwt": ((0.60 - 0.90) + (0.50 - 0.80)) / 2,
            "fwt": ((0.30 - 0.2) + (0.40 - 0.1)) / 2,
            "learning_acc": (0.90 + 0.80 + 0.95) / 3,
            "avg_incremental_acc": (0.90 + (0.70 + 0.80) / 2 + (0.60 + 0.50 + 0.95) / 3) / 3,
            "final_acc": (0.60 + 0.50 + 0.95) / 3,
        },
        abs=1e-12,
    )


@given(matrix=Matrices, data=st.data())
def test_tasks_of_unequal_size(matrix: np.ndarray, data: Any) -> None:
    t = len(matrix)
    baseline = data.draw(arrays(np.float64, t, elements=Accuracies))
    sizes = data.draw(st.lists(st.integers(1, 10_000), min_size=t, max_size=t))
    ours = metrics.summary(matrix, baseline, sizes)
    assert ours == pytest.approx(slow_summary(matrix, baseline, sizes), abs=1e-12)
    alike = metrics.summary(matrix, baseline)
    weighted = {"avg_incremental_acc", "final_acc"}
    assert all(ours[name] == alike[name] for name in ours.keys() - weighted)


@given(matrix=Matrices, size=st.integers(1, 10_000))
def test_equal_sizes_change_not_a_bit(matrix: np.ndarray, size: int) -> None:
    t = len(matrix)
    seen = np.tri(t, dtype=bool)
    plain = np.where(seen, matrix, 0.0).sum(axis=1) / seen.sum(axis=1)
    for sizes in (None, [size] * t):
        np.testing.assert_array_equal(metrics.accuracy_curve(matrix, sizes), plain)
        assert metrics.average_incremental_accuracy(matrix, sizes) == float(plain.mean())


def test_sessions_of_few_classes_count_by_their_test_images() -> None:
    """60 base classes and two sessions of 5 classes, 100 test images a class."""
    matrix = [[0.8, 0.0, 0.0], [0.7, 0.3, 0.0], [0.6, 0.2, 0.1]]
    curve = metrics.accuracy_curve(matrix, [6000, 500, 500])
    expected = [0.8, (60 * 0.7 + 5 * 0.3) / 65, (60 * 0.6 + 5 * 0.2 + 5 * 0.1) / 70]
    np.testing.assert_allclose(curve, expected, rtol=1e-15)


@pytest.mark.parametrize("sizes", [[1], [1, 2, 3], [1, 0], [1, -1], [[1, 2]], [1, float("nan")]])
def test_sizes_are_checked(sizes: list[Any]) -> None:
    with pytest.raises(UserError, match=r"test_examples: .* one number > 0 for each of 2 tasks"):
        metrics.summary(np.eye(2), np.zeros(2), sizes)


def test_forgetting_looks_at_the_best_and_backward_transfer_at_the_first() -> None:
    """A task that got better before it got worse."""
    matrix = [[0.5, 0.0, 0.0], [0.9, 0.7, 0.0], [0.6, 0.7, 0.8]]
    assert metrics.forgetting(matrix) == pytest.approx(((0.9 - 0.6) + 0.0) / 2)
    assert metrics.backward_transfer(matrix) == pytest.approx(((0.6 - 0.5) + 0.0) / 2)


@given(matrix=Matrices)
def test_forgetting_bounds_backward_transfer(matrix: np.ndarray) -> None:
    assert metrics.forgetting(matrix) >= -metrics.backward_transfer(matrix) - 1e-12


@given(matrix=Matrices)
def test_curve_is_the_mean_over_seen_tasks(matrix: np.ndarray) -> None:
    curve = metrics.accuracy_curve(matrix)
    assert curve.shape == (len(matrix),)
    for i in range(len(matrix)):
        assert curve[i] == pytest.approx(sum(matrix[i, j] for j in range(i + 1)) / (i + 1))
    assert curve[-1] == pytest.approx(metrics.accuracy(matrix))


@given(matrix=Matrices, data=st.data())
def test_seen_and_next_are_enough_for_all_but_forgetting(matrix: np.ndarray, data: Any) -> None:
    """`evaluate: seen+next` leaves cells out; forgetting takes its maximum over the others."""
    tasks = len(matrix)
    partial = np.where(np.tri(tasks, k=1, dtype=bool), matrix, np.nan)
    baseline = data.draw(arrays(np.float64, tasks, elements=Accuracies))
    ours, whole = metrics.summary(partial, baseline), slow_summary(matrix, baseline)
    best = [max(matrix[i, j] for i in range(tasks - 1) if j <= i + 1) for j in range(tasks - 1)]
    whole["forgetting"] = float(np.mean([b - matrix[-1, j] for j, b in enumerate(best)]))
    assert ours == pytest.approx(whole, abs=1e-12)


@given(matrix=Matrices, every=st.integers(2, 7))
def test_rows_left_out(matrix: np.ndarray, every: int) -> None:
    """`evaluate_every: k` leaves whole rows NaN."""
    tasks = len(matrix)
    done = [i for i in range(tasks) if (i + 1) % every == 0 or i == tasks - 1]
    sparse = np.full_like(matrix, np.nan)
    sparse[done] = matrix[done]
    ours = metrics.summary(sparse, np.zeros(tasks))
    curve = metrics.accuracy_curve(sparse)
    assert ours["acc"] == pytest.approx(float(matrix[-1].mean()))
    assert [i for i in range(tasks) if not math.isnan(curve[i])] == done
    kept = [float(matrix[i, : i + 1].mean()) for i in done]
    assert ours["avg_incremental_acc"] == pytest.approx(sum(kept) / len(kept))
    assert all(math.isnan(ours[name]) for name in ("bwt", "fwt", "learning_acc"))
    # Known for every task only where a row between its end and the stream's end was evaluated.
    assert math.isnan(ours["forgetting"]) == (tasks - 2 not in done)
    if tasks - 2 in done:
        best = matrix[[i for i in done if i < tasks - 1], :-1].max(axis=0)
        assert ours["forgetting"] == pytest.approx(float((best - matrix[-1, :-1]).mean()))


def test_one_task() -> None:
    ours = metrics.summary([[0.75]], [0.5])
    assert {name for name, value in ours.items() if math.isnan(value)} == {
        "forgetting",
        "bwt",
        "fwt",
    }
    assert ours["acc"] == ours["learning_acc"] == ours["avg_incremental_acc"] == 0.75


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_nothing_evaluated_is_nan_without_a_warning(tasks: int) -> None:
    ours = metrics.summary(np.full((tasks, tasks), np.nan), np.full(tasks, np.nan))
    assert all(math.isnan(value) for value in ours.values())
    assert np.isnan(metrics.accuracy_curve(np.full((tasks, tasks), np.nan))).all()


def test_unfinished_run_has_a_curve_so_far() -> None:
    matrix = np.array([[0.8, 0.1, np.nan], [0.6, 0.4, 0.2], [np.nan] * 3])
    np.testing.assert_allclose(metrics.accuracy_curve(matrix), [0.8, 0.5, np.nan])
    assert metrics.average_incremental_accuracy(matrix) == pytest.approx(0.65)
    assert math.isnan(metrics.accuracy(matrix))
    assert math.isnan(metrics.forgetting(matrix))
    assert metrics.forward_transfer(matrix, [0.0, 0.05, 0.1]) == pytest.approx(0.075)


def test_missing_baseline_costs_forward_transfer_only() -> None:
    ours = metrics.summary([[0.75, 0.5], [0.5, 0.875]], [np.nan, np.nan])
    assert {name for name, value in ours.items() if math.isnan(value)} == {"fwt"}


def test_inputs_stay_as_they_are() -> None:
    matrix = np.array([[0.75, np.nan], [0.5, 0.875]])
    before = matrix.copy()
    metrics.summary(matrix, np.zeros(2))
    np.testing.assert_array_equal(matrix, before)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (0, 0), (2, 2, 2)])
def test_matrix_must_be_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"matrix: the shape \[.*\] is not valid: expected one row"):
        metrics.summary(np.zeros(shape), np.zeros(2))


def test_baseline_must_have_a_number_per_task() -> None:
    with pytest.raises(UserError, match=r"baseline: the shape \[3\] .* each of 2 tasks"):
        metrics.summary(np.zeros((2, 2)), np.zeros(3))


def test_needs_numpy_only() -> None:
    code = "import clearn.metrics, sys; print({'torch', 'scipy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

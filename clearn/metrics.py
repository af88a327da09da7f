"""What is computed from a matrix of accuracies, each number defined once.

`R[i, j]` is the accuracy on task j after learning task i, NaN where it was not evaluated; there
are T tasks, numbered from 0, so that row T-1 is the last. `b[j]` is the accuracy of the untrained
net on task j. A number is NaN where its formula asks for a cell that was not evaluated, or for a
mean over no tasks, as with a single task; where rows may be left out, its function says so.

Task j has n[j] test examples. The accuracy on all classes seen, A, weighs tasks by them; the other
numbers weigh all tasks alike, as their authors do. Where n is not given tasks have equally many.

Shapes: `R` `[T, T]`, `b` and `n` `[T]`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearn.errors import UserError


def summary(
    matrix: ArrayLike, baseline: ArrayLike, test_examples: ArrayLike | None = None
) -> dict[str, float]:
    """All numbers of a run, by the names they have in records and tables.

    Args:
        matrix: `R`.
        baseline: `b`.
        test_examples: `n`.

    Raises:
        UserError: The shapes do not go together.
    """
    return {
        "acc": accuracy(matrix),
        "forgetting": forgetting(matrix),
        "bwt": backward_transfer(matrix),
        "fwt": forward_transfer(matrix, baseline),
        "learning_acc": learning_accuracy(matrix),
        "avg_incremental_acc": average_incremental_accuracy(matrix, test_examples),
        "final_acc": float(accuracy_curve(matrix, test_examples)[-1]),
    }


def accuracy(matrix: ArrayLike) -> float:
    """ACC = mean_j R[T-1, j], the mean accuracy in the end (Lopez-Paz and Ranzato 2017).

    >>> accuracy([[0.9, 0.5], [0.7, 0.8]])
    0.75
    """
    return _mean(_square(matrix)[-1])


def forgetting(matrix: ArrayLike) -> float:
    """Forgetting = mean_{j<T-1} (max_{i<T-1} R[i, j] - R[T-1, j]) (Chaudhry et al. 2018).

    The maximum is over the rows that were evaluated. A task that was not evaluated between
    learning it and the end makes the number NaN: how much of it was lost is not known.

    >>> forgetting([[0.75, 0.5], [0.5, 0.875]])
    0.25
    """
    r = _square(matrix)
    before, last = r[:-1, :-1], r[-1, :-1]
    best = np.fmax.reduce(before, axis=0, initial=-np.inf)
    known = (np.tri(len(before), dtype=bool) & ~np.isnan(before)).any(axis=0)
    return _mean(np.where(known, best - last, np.nan))


def backward_transfer(matrix: ArrayLike) -> float:
    """BWT = mean_{j<T-1} (R[T-1, j] - R[j, j]) (Lopez-Paz and Ranzato 2017).

    >>> backward_transfer([[0.75, 0.5], [0.5, 0.875]])
    -0.25
    """
    r = _square(matrix)
    return _mean((r[-1] - np.diagonal(r))[:-1])


def forward_transfer(matrix: ArrayLike, baseline: ArrayLike) -> float:
    """FWT = mean_{j>0} (R[j-1, j] - b[j]) (Lopez-Paz and Ranzato 2017).

    >>> forward_transfer([[0.75, 0.5], [0.5, 0.875]], [0.25, 0.25])
    0.25
    """
    r, b = _square(matrix), np.asarray(baseline, dtype=np.float64)
    if b.shape != r.shape[:1]:
        raise UserError(
            f"baseline: the shape {list(b.shape)} is not valid: expected one number for each of "
            f"{len(r)} tasks"
        )
    return _mean(np.diagonal(r, offset=1) - b[1:])


def learning_accuracy(matrix: ArrayLike) -> float:
    """Learning accuracy = mean_j R[j, j]: how well each task was learned at its own time.

    >>> learning_accuracy([[0.75, 0.5], [0.5, 1.0]])
    0.875
    """
    return _mean(np.diagonal(_square(matrix)))


def average_incremental_accuracy(
    matrix: ArrayLike, test_examples: ArrayLike | None = None
) -> float:
    """Average incremental accuracy = mean_i A[i], where A is the `accuracy_curve`.

    A[i] is the accuracy on all classes seen after task i (Rebuffi et al. 2017). Rows that were not
    evaluated are left out of the mean.

    >>> average_incremental_accuracy([[1.0, 0.5], [0.5, 1.0]])
    0.875
    """
    curve = accuracy_curve(matrix, test_examples)
    return _mean(curve[~np.isnan(curve)])


def accuracy_curve(
    matrix: ArrayLike, test_examples: ArrayLike | None = None
) -> NDArray[np.float64]:
    """The any-time curve A[i] = sum_{j<=i} n[j] R[i, j] / sum_{j<=i} n[j]: `[T]`.

    It is the accuracy on all test examples of the tasks seen, what few-shot class-incremental
    learning calls the accuracy of a session (Tao et al. 2020). NaN after tasks that were not
    evaluated.

    >>> accuracy_curve([[1.0, 0.5], [0.5, 1.0]]).tolist()
    [1.0, 0.75]
    >>> accuracy_curve([[1.0, 0.5], [0.5, 1.0]], [300, 100]).tolist()
    [1.0, 0.625]
    """
    r = _square(matrix)
    weights = np.tri(len(r)) * task_weights(len(r), test_examples)
    seen = np.tri(len(r), dtype=bool)
    curve: NDArray[np.float64] = (np.where(seen, r, 0.0) * weights).sum(axis=1) / weights.sum(
        axis=1
    )
    return curve


def task_weights(tasks: int, test_examples: ArrayLike | None = None) -> NDArray[np.float64]:
    """Weights in proportion to `n`, 1 for the largest task: with equal tasks exactly 1 for all.

    Raises:
        UserError: There is not one positive number for each task.
    """
    if test_examples is None:
        return np.ones(tasks)
    n = np.asarray(test_examples, dtype=np.float64)
    if n.shape != (tasks,) or not (n > 0).all():
        raise UserError(
            f"test_examples: {n.tolist()} is not valid: expected one number > 0 for each of "
            f"{tasks} tasks"
        )
    weights: NDArray[np.float64] = n / n.max()
    return weights


def _square(matrix: ArrayLike) -> NDArray[np.float64]:
    r = np.asarray(matrix, dtype=np.float64)
    if r.ndim != 2 or r.shape[0] != r.shape[1] or not r.size:
        raise UserError(
            f"matrix: the shape {list(r.shape)} is not valid: expected one row and one column for "
            "each of T >= 1 tasks"
        )
    return r


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")

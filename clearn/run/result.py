"""What a run measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearn.metrics import summary, task_weights

if TYPE_CHECKING:
    from clearn.chart import Chart


@dataclass
class Result:
    """What a run has measured so far; complete when `Run.fit` returns it.

    Attributes:
        matrix: Accuracy on task j after learning task i, `[T, T]`, in [0, 1]; NaN where not
            evaluated.
        baseline: Accuracy of the untrained net on each task, `[T]`.
        bytes: Bytes stored by kind, after each task.
        train_seconds: Wall seconds spent training each task, checkpoints included, `[T]`.
        eval_seconds: Wall seconds spent evaluating after each task, `[T]`; the first includes the
            untrained net's.
        test_examples: Number of test examples of each task, `[T]`.
        extra: Numbers of the strategy's own, by name; filled in at the end.
        charts: Numbers of the strategy's own for each task (see `clearn.Strategy.charts`), by name;
            filled in at the end.
        folder: The record, or None.
    """

    matrix: NDArray[np.float64]
    baseline: NDArray[np.float64]
    train_seconds: list[float]
    eval_seconds: list[float]
    test_examples: list[int]
    bytes: list[dict[str, int]] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)
    charts: dict[str, Chart] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def empty(cls, test_examples: Sequence[int], folder: Path | None) -> Result:
        """Nothing measured yet on a stream whose tasks have so many test examples."""
        tasks = len(test_examples)
        return cls(
            matrix=np.full((tasks, tasks), np.nan),
            baseline=np.full(tasks, np.nan),
            train_seconds=[0.0] * tasks,
            eval_seconds=[0.0] * tasks,
            test_examples=list(test_examples),
            folder=folder,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The summary of the matrix (see `clearn.metrics.summary`), bytes, seconds, and `extra`."""
        totals = {
            "bytes": float(sum(self.bytes[-1].values())) if self.bytes else 0.0,
            "train_seconds": sum(self.train_seconds),
            "eval_seconds": sum(self.eval_seconds),
        }
        return summary(self.matrix, self.baseline, self.test_examples) | totals | self.extra

    def seen_accuracy(self, task: int) -> float:
        """Accuracy on all test examples of the tasks up to `task`, after learning it."""
        weights = task_weights(len(self.matrix), self.test_examples)[: task + 1]
        return float(np.average(self.matrix[task, : task + 1], weights=weights))

    def state_dict(self) -> dict[str, Any]:
        """All but the folder, in plain types."""
        return {
            "matrix": self.matrix.tolist(),
            "baseline": self.baseline.tolist(),
            "bytes": self.bytes,
            "train_seconds": self.train_seconds,
            "eval_seconds": self.eval_seconds,
            "test_examples": self.test_examples,
            "extra": self.extra,
            "charts": self.charts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.matrix = np.array(state["matrix"])
        self.baseline = np.array(state["baseline"])
        self.bytes = state["bytes"]
        self.train_seconds = state["train_seconds"]
        self.eval_seconds = state["eval_seconds"]
        # Records of version 0.1 have none of these.
        self.test_examples = state.get("test_examples", self.test_examples)
        self.extra = state.get("extra", {})
        self.charts = state.get("charts", {})

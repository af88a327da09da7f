"""What a run measures, with tasks of unequal size."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from clearn import Result, Run, Stream, Training, build_net
from clearn.metrics import accuracy_curve
from clearn.strategies import Naive


def uneven() -> Stream:
    """4 base classes with 10 test rows each, then sessions of one class with 3 rows."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(6).repeat_interleave(12)
    y_test = torch.tensor([0, 1, 2, 3] * 10 + [4] * 3 + [5] * 3)
    centres = 2 * torch.randn(6, 5, generator=generator)
    x, x_test = (centres[t] + torch.randn(len(t), 5, generator=generator) for t in (y, y_test))
    return Stream.from_arrays(x, y, x_test, y_test, base_classes=4, ways=1, shots=4)


def run(folder: Path) -> Result:
    stream = uneven()
    return Run(
        Naive(build_net("MLP", stream, seed=0)), stream, training=Training(epochs=3), folder=folder
    ).fit()


def test_the_accuracy_on_what_was_seen_counts_examples(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.test_examples == [40, 3, 3]
    right = result.matrix * np.array([40, 3, 3])  # answers, whole numbers
    np.testing.assert_allclose(right, right.round(), atol=1e-9)
    seen = [right[i, : i + 1].sum() / sum([40, 3, 3][: i + 1]) for i in range(3)]
    assert [result.seen_accuracy(i) for i in range(3)] == pytest.approx(seen)
    assert result.metrics["final_acc"] == pytest.approx(seen[-1])
    assert result.metrics["final_acc"] != pytest.approx(result.metrics["acc"])
    assert result.metrics["avg_incremental_acc"] == pytest.approx(np.mean(seen))
    with (tmp_path / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = [float(row["value"]) for row in rows if row["name"] == "test/accuracy"]
    assert logged == pytest.approx(seen)


def test_a_finished_record_keeps_the_sizes(tmp_path: Path) -> None:
    first = run(tmp_path)
    again = run(tmp_path)
    assert again.test_examples == first.test_examples
    assert again.metrics == first.metrics


def test_a_state_without_sizes_is_read() -> None:
    """As records of version 0.1 have it."""
    state = Result.empty([1, 1, 1], None).state_dict()
    del state["test_examples"]
    result = Result.empty([40, 3, 3], None)
    result.load_state_dict(state)
    assert result.test_examples == [40, 3, 3]


@pytest.mark.parametrize("tasks", [1, 2, 9, 40])
def test_equal_sizes_give_the_plain_mean_to_the_bit(tasks: int) -> None:
    result = Result.empty([7] * tasks, None)
    result.matrix[:] = np.random.default_rng(0).random((tasks, tasks))
    for task in range(tasks):
        assert result.seen_accuracy(task) == float(result.matrix[task, : task + 1].mean())
    curve = accuracy_curve(result.matrix, result.test_examples)
    np.testing.assert_allclose(curve, [result.seen_accuracy(task) for task in range(tasks)])

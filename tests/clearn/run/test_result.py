"""What a run measures, with tasks of unequal size."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clearn import Result, Run, Strategy, Stream, Training, UserError, build_net
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


def run(folder: Path, kind: type[Strategy] = Naive) -> Result:
    stream = uneven()
    return Run(
        kind(build_net("MLP", stream, seed=0)), stream, training=Training(epochs=3), folder=folder
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


CHARTS = {
    "weight": {"a": [float("nan"), 0.1, 1e-7], "b": [1.0, 2.0, 3.0]},
    "similarity": [[float("nan")] * 3, [0.5, float("nan"), float("nan")], [-0.1, 0.2, 1 / 3]],
}


class WithCharts(Naive):
    def charts(self) -> dict[str, Any]:
        return CHARTS


def test_a_finished_record_keeps_the_charts(tmp_path: Path) -> None:
    first = run(tmp_path, WithCharts)
    assert repr(first.charts) == repr(CHARTS)
    assert repr(run(tmp_path, WithCharts).charts) == repr(CHARTS)  # read from the record
    assert "NaN" not in (tmp_path / "metrics.json").read_text()  # strict JSON
    assert run(tmp_path / "plain").charts == {}


def test_what_is_no_chart_leaves_the_run_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(CHARTS, "weight", {"a": [0.0]})
        with pytest.raises(UserError, match=r"charts\['weight'\]\['a'\]: the shape \[1\]"):
            run(tmp_path, WithCharts)
    assert not (tmp_path / "metrics.json").exists()
    assert repr(run(tmp_path, WithCharts).charts) == repr(CHARTS)  # once it is mended


def test_a_state_without_charts_is_read() -> None:
    """As records of version 0.1 have it."""
    state = Result.empty([1, 1], None).state_dict()
    del state["charts"]
    result = Result.empty([1, 1], None)
    result.load_state_dict(state)
    assert result.charts == {}


@pytest.mark.parametrize("tasks", [1, 2, 9, 40])
def test_equal_sizes_give_the_plain_mean_to_the_bit(tasks: int) -> None:
    result = Result.empty([7] * tasks, None)
    result.matrix[:] = np.random.default_rng(0).random((tasks, tasks))
    for task in range(tasks):
        assert result.seen_accuracy(task) == float(result.matrix[task, : task + 1].mean())
    curve = accuracy_curve(result.matrix, result.test_examples)
    np.testing.assert_allclose(curve, [result.seen_accuracy(task) for task in range(tasks)])

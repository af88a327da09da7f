"""Records of runs that never ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clearn.chart import Chart
from clearn.record import Record
from clearn.run import Result


@pytest.fixture
def make_record(tmp_path: Path) -> Callable[..., Path]:
    """`record_maker` for `tmp_path/results`."""
    return record_maker(tmp_path / "results")


@pytest.fixture(scope="session")
def make_records_in() -> Callable[[Path], Callable[..., Path]]:
    """`record_maker`, for a fixture that lives longer than a test."""
    return record_maker


def record_maker(results: Path) -> Callable[..., Path]:
    """What writes a finished record below `results/runs` and returns its folder.

    The accuracy on task j after task i is `level - drop * (i - j)`, shifted a little by the seed.
    """

    def make(
        strategy: str = "ER",
        stream: str = "Digits",
        *,
        seed: int = 0,
        order: int = 0,
        level: float = 0.9,
        drop: float = 0.1,
        scenario: str = "class",
        seconds: float = 1.5,
        finished: bool = True,
        extra: Mapping[str, float] | None = None,
        charts: Mapping[str, Chart] | None = None,
        tasks: int = 3,
        **metrics: float,
    ) -> Path:
        folder = results / "runs" / strategy / stream / f"order{order}-seed{seed}"
        record = Record(folder)
        with record.lock():
            record.create(
                {"strategy": {"name": strategy}, "stream": _stream(scenario), "seed": seed}
            )
            result = Result.empty([8] * tasks, folder)
            i, j = np.indices((tasks, tasks))
            shift = 0.01 * np.sin(12.9898 * (seed + 1) + order + len(strategy))
            result.matrix[:] = np.where(j <= i, level - drop * (i - j) + shift, np.nan)
            result.baseline[:] = 0.1
            result.bytes = [{"parameters": 4000, "buffer": 100 * task} for task in range(tasks)]
            result.train_seconds = [seconds / tasks] * tasks
            result.extra = dict(extra or {})
            result.charts = dict(charts or {})
            record.write_matrix(result.matrix)
            record.write_bytes(result.bytes)
            if finished:
                record.finish(result.metrics | metrics, result.state_dict())
        return folder

    return make


def _stream(scenario: str) -> dict[str, Any]:
    return {"name": "SplitDigits", "scenario": scenario}

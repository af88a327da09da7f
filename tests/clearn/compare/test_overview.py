"""The overview: all that it shows is there, apart, and inside the picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from clearn.compare import charts
from clearn.compare.overview import draw_overview
from clearn.compare.table import FinishedRun, read_runs


@pytest.fixture
def runs(make_record: Callable[..., Path], tmp_path: Path) -> list[FinishedRun]:
    for seed in range(2):
        make_record("ER", seed=seed)
    return read_runs(tmp_path / "results")[0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13])
def test_nothing_overlaps_or_leaves_the_picture(runs: list[FinishedRun], count: int) -> None:
    names = ["ER", "$Strategy$ with a rather long name", *map(str, range(11))][:count]
    with charts.settings():
        figure = draw_overview(dict.fromkeys(names, runs), charts.looks(names))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        curves, *matrices = figure.axes[: count + 1]
        boxes = [axes.get_tightbbox() for axes in (curves, *matrices)]
        boxes += [text.get_window_extent() for text in figure.texts]
    for box in boxes:
        assert box is not None
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other), (one, other)
    shown = ["".join(axes.get_legend().get_texts()[0].get_text().split()) for axes in matrices]
    assert shown == [name.replace(" ", "") for name in names]
    assert [line.get_label() for line in curves.lines] == names


@pytest.mark.parametrize("tasks", [1, 3, 10, 40])
def test_numbers_stand_in_cells_that_hold_them(runs: list[FinishedRun], tasks: int) -> None:
    matrix = np.tril(np.full((tasks, tasks), 1.0))
    many = [FinishedRun(**vars(runs[0]) | {"matrix": matrix, "test_examples": None})]
    with charts.settings():
        figure = draw_overview({"ER": many, "Joint": many}, charts.looks(["ER", "Joint"]))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        axes = figure.axes[1]
        cell = axes.bbox.width / tasks
        assert all(text.get_window_extent().width < cell for text in axes.texts)
    assert bool(axes.texts) == (tasks < 10)
    assert len(figure.axes) == (3 if tasks < 10 else 4)  # colours need a bar without numbers


def test_as_wide_as_a_page_and_white(runs: list[FinishedRun]) -> None:
    names = ["Naive", "ER", "Joint"]
    with charts.settings():
        png = charts.to_png(draw_overview(dict.fromkeys(names, runs), charts.looks(names)))
    pixels = imread(io.BytesIO(png))
    assert 1100 <= pixels.shape[1] <= 1300
    assert pixels.shape[0] < 500
    np.testing.assert_array_equal(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], 1.0)

"""The heat map shows each number where it belongs."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clearn.capacity import Capacity
from clearn.figures import draw_growth, draw_matrix


def pixels(figure: Figure) -> tuple[FigureCanvasAgg, np.ndarray]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas, np.asarray(canvas.buffer_rgba())[..., :3].astype(float) / 255


def test_rows_go_down_with_tasks_learned_and_colours_tell_the_value() -> None:
    matrix = np.array([[1.0, 0.2, np.nan], [0.6, 0.9, 0.0], [0.3, 0.5, 0.8]])
    figure = draw_matrix(matrix, "title")
    axes = figure.axes[0]
    canvas, picture = pixels(figure)
    for (i, j), value in np.ndenumerate(matrix):
        x, y = axes.transData.transform((j - 0.35, i - 0.35))  # beside the number
        height = canvas.get_width_height()[1]
        shown = picture[round(height - y), round(x)]
        if np.isnan(value):
            assert shown.min() > 0.7  # white or the grey of the hatching
        else:
            np.testing.assert_allclose(shown, colormaps["cividis"](value)[:3], atol=0.02)
    (_, y0), (_, y2) = axes.transData.transform([(0, 0), (0, 2)])
    assert y0 > y2
    assert axes.get_title() == "title"
    assert "learning" in axes.get_ylabel()


def test_numbers_stand_in_their_cells() -> None:
    matrix = np.array([[0.994, np.nan], [0.126, 0.5]])
    texts = draw_matrix(matrix, "").axes[0].texts
    assert {(t.get_position(), t.get_text()) for t in texts} == {
        ((0, 0), "99"),
        ((0, 1), "13"),
        ((1, 1), "50"),
    }


def test_numbers_can_be_read_on_every_colour() -> None:
    """The contrast ratio of WCAG 2 (relative luminances, 4.5 is level AA)."""
    matrix = np.linspace(0, 1, 144).reshape(12, 12)
    for text in draw_matrix(matrix, "").axes[0].texts:
        column, row = (int(place) for place in text.get_position())
        channels = np.array(colormaps["cividis"](matrix[row, column])[:3])
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        background = linear @ [0.2126, 0.7152, 0.0722]
        ink = 0.0 if text.get_color() == "black" else 1.0
        lighter, darker = max(background, ink), min(background, ink)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, matrix[row, column]


def test_rows_of_tasks_without_an_evaluation_are_left_out_of_a_whole_run() -> None:
    matrix = np.tril(np.linspace(0, 1, 49).reshape(7, 7))
    matrix[[0, 1, 3, 4]] = np.nan
    axes = draw_matrix(matrix, "").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "5", "6"]
    np.testing.assert_allclose(axes.get_yticks(), [2 / 3, 3, 16 / 3])  # thirds of -0.5 to 6.5
    (text,) = (t.get_text() for t in axes.texts if t.get_position() == pytest.approx((4, 3)))
    assert text == f"{100 * matrix[5, 4]:.0f}"
    matrix[6] = np.nan  # not over: the rows to come are shown
    axes = draw_matrix(matrix, "").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list("0123456")


@pytest.mark.parametrize("tasks", [1, 2, 12, 13, 100])
def test_any_number_of_tasks(tasks: int) -> None:
    matrix = np.tril(np.full((tasks, tasks), 0.5))
    figure = draw_matrix(matrix, "ER-SplitDigits-seed0")
    assert bool(figure.axes[0].texts) == (tasks <= 12)
    assert 1 <= len(figure.axes[0].get_xticks()) <= 20
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(("tasks", "reference"), [(1, 1), (6, 3)])
def test_growth_beside_a_straight_line(tasks: int, reference: int) -> None:
    after = [Capacity(t, 64, 8 + t, 10.0 * t, 20 * t - t * t) for t in range(1, tasks + 1)]
    left, right = draw_growth(after, reference, "masks").axes
    shares = {str(line.get_label()): line.get_ydata() for line in left.lines}
    for name in ("raw", "real", "entropy", "paper"):
        caps = [100 * each.metrics[f"cap_{name}"] for each in after]
        np.testing.assert_allclose(shares[f"CAP {name}"], caps)
    np.testing.assert_allclose(
        shares["used weights"], [100 * (8 + t) / 64 for t in range(1, tasks + 1)]
    )
    *_, straight = right.lines
    real = [8 * each.coded / 64 for each in after]
    assert real in [list(line.get_ydata()) for line in right.lines]
    np.testing.assert_allclose(straight.get_xdata(), [0, tasks])
    np.testing.assert_allclose(straight.get_ydata(), [0, real[reference - 1] * tasks / reference])


def test_global_state_of_matplotlib_is_left_alone() -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = pyplot.get_fignums() if pyplot else []
    draw_matrix(np.ones((2, 2)), "x")
    assert (pyplot.get_fignums() if pyplot else []) == before

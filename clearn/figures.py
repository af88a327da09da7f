"""Figures, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

_LABELLED = 12  # tasks up to which every cell shows its number


def draw_matrix(matrix: NDArray[np.float64], title: str) -> Figure:
    """A heat map of the accuracy matrix: see `paint_matrix`.

    Args:
        matrix: Accuracies in [0, 1], `[T, T]`.
        title: Above the figure.
    """
    from matplotlib.figure import Figure

    size = min(max(2.2 + 0.5 * len(matrix), 3.6), 9.0)
    figure = Figure(figsize=(size + 0.6, size), layout="compressed")
    axes = figure.add_subplot()
    image = paint_matrix(axes, matrix, fontsize=8 if len(matrix) <= _LABELLED else None)
    label_bar(figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04))
    axes.set_xlabel("accuracy on task")
    axes.set_ylabel("after learning task")
    axes.set_title(title)
    return figure


def paint_matrix(axes: Axes, matrix: NDArray[np.float64], fontsize: float | None) -> AxesImage:
    """Paint an accuracy matrix: row i after learning task i, column j on task j.

    Colours run from 0 to 1 in a map that reads the same in grey and for colour-blind eyes; cells
    that were not evaluated (NaN) are hatched.

    Args:
        axes: What to paint on.
        matrix: Accuracies in [0, 1], `[T, T]`.
        fontsize: Of the numbers in the cells, in points; None for no numbers.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    count = len(matrix)
    axes.add_patch(
        Rectangle(
            (-0.5, -0.5), count, count, facecolor="white", edgecolor="0.75", hatch="////", lw=0
        )
    )
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap="cividis", vmin=0.0, vmax=1.0, zorder=1)
    ticks = range(0, count, -(-count // 20))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    if fontsize is not None:
        for (i, j), value in np.ndenumerate(matrix):
            if value == value:
                colour = "black" if value > 0.47 else "white"
                text = f"{100 * value:.0f}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=fontsize)
    return image


def label_bar(bar: Colorbar) -> None:
    """Say what the colours of a matrix mean."""
    bar.set_label("accuracy")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")

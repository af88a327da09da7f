"""Figures, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

    from clearn.capacity import Capacity

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
    image = paint_matrix(axes, matrix, 20, fontsize=8 if len(matrix) <= _LABELLED else None)
    label_bar(figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04))
    axes.set_xlabel("accuracy on task")
    axes.set_ylabel("after learning task")
    axes.set_title(title)
    return figure


def paint_matrix(
    axes: Axes, matrix: NDArray[np.float64], ticks: int, fontsize: float | None
) -> AxesImage:
    """Paint an accuracy matrix: row i after learning task i, column j on task j.

    Colours run from 0 to 1; cells that were not evaluated (NaN) are hatched (see `paint_cells`).
    Of a run that was evaluated after every few tasks up to the last, there are those rows alone.

    Args:
        axes: What to paint on.
        matrix: Accuracies in [0, 1], `[T, T]`.
        ticks: Most numbers of tasks on an axis.
        fontsize: Of the numbers in the cells, in points; None for no numbers.
    """
    import numpy as np
    from matplotlib.colors import Normalize

    tasks = np.arange(len(matrix))
    evaluated = np.flatnonzero(np.isfinite(matrix).any(axis=1))
    rows = evaluated if tasks[-1] in evaluated else tasks
    image = paint_cells(axes, matrix[rows], Normalize(0.0, 1.0))
    places = (np.arange(len(rows)) + 0.5) * len(tasks) / len(rows) - 0.5
    axes.set_xticks(tasks[:: -(-len(tasks) // ticks)])
    step = -(-len(rows) // ticks)
    axes.set_yticks(places[::step], map(str, rows[::step]))
    if fontsize is not None:
        for (i, j), value in np.ndenumerate(matrix[rows]):
            if value == value:
                colour = "black" if value > 0.47 else "white"
                text = f"{100 * value:.0f}"
                axes.text(
                    j, places[i], text, ha="center", va="center", color=colour, fontsize=fontsize
                )
    return image


def paint_cells(
    axes: Axes, table: NDArray[np.float64], scale: Normalize, first: int = 0
) -> AxesImage:
    """Paint a table, in a map that reads the same in grey and for colour-blind eyes.

    Args:
        axes: What to paint on.
        table: Numbers, `[R, T]`, painted as a square; cells with NaN are hatched.
        scale: What gives the numbers their places in the map; tables that share it can be compared.
        first: Where on the axes the first row and column are.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    start, count = first - 0.5, table.shape[1]
    end = start + count
    axes.add_patch(
        Rectangle(
            (start, start), count, count, facecolor="white", edgecolor="0.75", hatch="////", lw=0
        )
    )
    return axes.imshow(
        np.ma.masked_invalid(table),
        cmap="cividis",
        norm=scale,
        interpolation="nearest",  # else small cells are blurred
        extent=(start, end, end, start),
        zorder=1,
    )


def label_bar(bar: Colorbar) -> None:
    """Say what the colours of a matrix mean."""
    bar.set_label("accuracy")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def draw_growth(after: Sequence[Capacity], reference: int, title: str) -> Figure:
    """What masks take after each task: as a share of the dense weights, and in bits per weight.

    Beside the bits stands a straight line through the origin and the bits after `reference` tasks:
    masks that grow sub-linearly are below it when as many tasks again are learned. Raw masks, which
    grow by 1 bit a task, stand among the shares only.

    Args:
        after: One or more, as `clearn.capacity.growth` gives them.
        reference: In 1..T.
        title: Above the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from clearn.compare.charts import looks

    tasks = [each.tasks for each in after]
    figure = Figure(figsize=(7.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, look in looks(("raw", "real", "entropy", "paper", "used weights")).items():
        style = {"color": look.colour, "marker": look.marker, "markevery": -(-len(after) // 12)}
        if name == "used weights":
            left.plot(tasks, [100 * each.share for each in after], label=name, **style)
        else:
            shares = [100 * each.metrics[f"cap_{name}"] for each in after]
            left.plot(tasks, shares, label=f"CAP {name}", **style)
            if name != "raw":
                right.plot(tasks, [each.mask_bits[name] for each in after], **style)
    slope = after[reference - 1].mask_bits["real"] / reference
    line = {"color": "0.4", "linestyle": ":", "zorder": 1}
    label = f"as fast as the first {reference}"
    right.plot([0, tasks[-1]], [0, slope * tasks[-1]], label=label, **line)
    left.set_ylabel("% of the dense weights")
    right.set_ylabel("bits of all masks per weight")
    for axes in (left, right):
        axes.grid(True)
        axes.set_xlabel("tasks learned")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=6, columnspacing=1.2, handlelength=1.8)
    return figure

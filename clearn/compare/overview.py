"""One picture of a comparison: the curves of all strategies and the accuracy matrix of each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clearn.compare.charts import Look, mean_matrix, plot_curves
from clearn.compare.table import FinishedRun
from clearn.figures import label_bar, paint_matrix

_SETTINGS: dict[Any, Any] = {
    "font.size": 7.5,
    "legend.borderpad": 0.1,
    "lines.markersize": 4,
}
_WIDTH = 6.4
_LEFT = 2.75  # of the matrices; the curves stand before them
_GAP = 0.28  # between matrices, with the numbers of the tasks


def draw_overview(groups: Mapping[str, Sequence[FinishedRun]], look: Mapping[str, Look]) -> Figure:
    """Any-time accuracy of all strategies, beside the mean accuracy matrix of each.

    The names above the matrices, with their lines, are the legend of the curves too.
    """
    matrices = {name: mean_matrix(runs) for name, runs in groups.items()}
    with matplotlib.rc_context(_SETTINGS):
        plan = _Plan(groups, max(map(len, matrices.values())))
        curves = plan.axes(0.48, 0.4, _LEFT - 0.98, plan.height - 0.5)
        plot_curves(curves, groups, look)
        for index, (name, line) in enumerate(zip(groups, curves.lines, strict=True)):
            axes = plan.axes(*plan.corner(index), plan.side, plan.side)
            image = paint_matrix(axes, matrices[name], 5, plan.fontsize)
            label = "\n".join(plan.labels[name])
            axes.legend([line], [label], loc="lower center", bbox_to_anchor=(0.5, 1))
        plan.text(_LEFT + plan.span / 2, plan.bottom, "accuracy on task")
        middle = plan.bottom + _GAP + (plan.top - plan.bottom - _GAP - 0.15) / 2
        plan.text(_LEFT - 0.3, middle, "after learning task", rotation=90)
        if plan.fontsize is None:
            bar = plan.axes(_LEFT + plan.span + 0.1, plan.bottom + _GAP, 0.08, plan.side)
            label_bar(plan.figure.colorbar(image, cax=bar))
    return plan.figure


class _Plan:
    """Where the parts stand, in inches from the lower left corner.

    Automatic layouts would shrink the matrices for the sake of long names.

    Args:
        names: Of the strategies.
        tasks: Rows of their matrices.

    Attributes:
        figure: The figure.
        labels: Each name in lines.
        fontsize: Of the numbers in the matrices; None when they would be too small to read.
        side: Of a matrix.
        span: Of all matrices, from left to right.
        top: Of the matrices and their names.
        bottom: Of the matrices and what is written below.
        height: Of the figure.
    """

    def __init__(self, names: Collection[str], tasks: int) -> None:
        self._across = len(names) if len(names) <= 3 else math.ceil(len(names) ** 0.5)
        down = -(-len(names) // self._across)
        numbers = tasks * self._across <= 15
        margin = 0.05 if numbers else 0.65
        self.side = min((_WIDTH - _LEFT - margin + _GAP) / self._across - _GAP, 1.7)
        self.fontsize = min(0.42 * 72 * self.side / tasks, 7.0) if numbers else None
        letters = max(8, int(16 * self.side) - 2)
        self.labels = {name: textwrap.wrap(name, letters) for name in names}
        self._row = self.side + _GAP + 0.14 * max(map(len, self.labels.values()))
        self.span = self._across * (self.side + _GAP) - _GAP
        self.height = max(2.1, down * self._row + 0.35)
        self._width = _LEFT + self.span + margin
        self.top = (self.height + down * self._row + 0.15) / 2
        self.bottom = self.top - down * self._row
        self.figure = Figure(figsize=(self._width, self.height))

    def corner(self, index: int) -> tuple[float, float]:
        """The lower left corner of a matrix."""
        row, column = divmod(index, self._across)
        return _LEFT + column * (self.side + _GAP), self.top - (row + 1) * self._row + _GAP

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """New axes there."""
        w, h = self._width, self.height
        return self.figure.add_axes((x / w, y / h, width / w, height / h))

    def text(self, x: float, y: float, text: str, rotation: float = 0.0) -> None:
        """Write around a point."""
        x, y = x / self._width, y / self.height
        self.figure.text(x, y, text, ha="center", va="center", rotation=rotation)

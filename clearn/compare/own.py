"""The figures of what strategies show of their own: a panel for each strategy."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from clearn.compare.charts import Look, looks, stacked
from clearn.compare.table import FinishedRun
from clearn.figures import paint_cells

_WIDTH = 7.4
_ACROSS = 4  # panels in a row, at most
_SIDE = 2.8  # of a table, at most
_LETTERS = 12  # in an inch of a title or a legend, at least


class Drawn(NamedTuple):
    """A figure, what its files are called and what stands below it."""

    name: str
    caption: str
    figure: Figure


def draw_own(groups: Mapping[str, Sequence[FinishedRun]]) -> Iterator[Drawn]:
    """A figure for each chart that some strategy has of its own.

    A chart of which some strategies have lines and others a table gives one figure of each kind.
    Lines without any number get no panel.

    Args:
        groups: The runs on one stream, by strategy.
    """
    names = dict.fromkeys(name for runs in groups.values() for run in runs for name in run.charts)
    for name, file in zip(names, _file_names(names), strict=True):
        lines: dict[str, dict[str, NDArray[np.float64]]] = {}
        tables: dict[str, NDArray[np.float64]] = {}
        for strategy, runs in groups.items():
            charts = [run.charts[name] for run in runs if name in run.charts]
            if with_lines := [chart for chart in charts if isinstance(chart, Mapping)]:
                labels = dict.fromkeys(label for chart in with_lines for label in chart)
                drawn = {
                    label: stacked([np.array(c[label]) for c in with_lines if label in c])
                    for label in labels
                }
                if any(np.isfinite(line).any() for line in drawn.values()):
                    lines[strategy] = drawn
            if each := [np.array(chart) for chart in charts if not isinstance(chart, Mapping)]:
                tables[strategy] = _moments(stacked(each))[0]
        if lines:
            caption = f"{name}: mean over runs for each task, band of one standard deviation"
            yield Drawn(f"own-lines-{file}", caption, draw_lines(lines, name))
        if tables:
            caption = f"{name}: mean over runs, hatched where there is no number"
            yield Drawn(f"own-table-{file}", caption, draw_tables(tables, name))


def _file_names(names: Collection[str]) -> list[str]:
    """Names of charts as files may be called anywhere, no two the same."""
    files, taken = [], Counter[str]()
    for name in names:
        file = re.sub(r"\W+", "_", name).strip("_").lower()[:40]
        taken[file] += 1
        files.append(file if taken[file] == 1 else f"{file}.{taken[file]}")
    return files


def _moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (n - 1) over the runs that have a number; NaN where too few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the places with too few
        return np.nanmean(values, axis=0), np.nanstd(values, axis=0, ddof=1)


def draw_lines(groups: Mapping[str, Mapping[str, NDArray[np.float64]]], name: str) -> Figure:
    """Lines over tasks, in panels with one scale and one legend.

    Args:
        groups: By strategy and label, a number per run and task, `[runs, T]`, or NaN. A strategy's
            runs may be fewer for some labels.
        name: What the numbers are.
    """
    look = looks(list(dict.fromkeys(label for lines in groups.values() for label in lines)))
    columns = max(1, int(_WIDTH * _LETTERS / (max(map(len, look)) + 6)))
    across, down = _grid(len(groups))
    height = down * (1.4 + 2 / across) + 0.2 * -(-len(look) // columns)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    panels = _panels(figure, groups, _WIDTH / across, "task")
    handles: dict[str, Line2D] = {}
    for axes, lines in zip(panels, groups.values(), strict=True):
        axes.grid(True)
        for label, values in lines.items():
            handles[label] = _plot(axes, values, look[label])
    tasks = max(values.shape[1] for lines in groups.values() for values in lines.values())
    panels[0].set_xlim(max(0.95 - 0.05 * tasks, 0.2), 1.05 * tasks + 0.05)
    panels[0].xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    figure.supylabel(textwrap.fill(name, int(height * _LETTERS)), fontsize="medium")
    figure.legend(
        [handles[label] for label in look], list(look), loc="outside lower center", ncols=columns
    )
    return figure


def _plot(axes: Axes, values: NDArray[np.float64], look: Look) -> Line2D:
    """The mean over runs, with a gap where no run has a number, and the band around it."""
    mean, spread = _moments(values)
    tasks = np.arange(1, len(mean) + 1)
    size = 4 if len(mean) <= 20 else 2.5
    colour, marker, style = look
    (line,) = axes.plot(tasks, mean, color=colour, marker=marker, linestyle=style, ms=size)
    if not np.isnan(spread).all():
        axes.fill_between(
            tasks, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0
        )
    return line


def draw_tables(tables: Mapping[str, NDArray[np.float64]], name: str) -> Figure:
    """Tables as heat maps, with one scale of colours that spans the numbers of all.

    Args:
        tables: By strategy, `[T, T]`, a row per current task; NaN where there is no number.
        name: What the numbers are.
    """
    numbers = np.concatenate([table[~np.isnan(table)] for table in tables.values()])
    scale = Normalize(*((numbers.min(), numbers.max()) if len(numbers) else (0, 1)))
    across, down = _grid(len(tables))
    side = min((_WIDTH - 1.2) / across, _SIDE)
    figure = Figure(figsize=(side * across + 1.2, (side + 0.3) * down + 0.2), layout="compressed")
    panels = _panels(figure, tables, side, "earlier task")
    for axes, table in zip(panels, tables.values(), strict=True):
        image = paint_cells(axes, table, scale, first=1)
    tasks = max(map(len, tables.values()))
    panels[0].set_xlim(0.5, tasks + 0.5)
    panels[0].set_ylim(tasks + 0.5, 0.5)
    for axis in (panels[0].xaxis, panels[0].yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    figure.supylabel("current task", fontsize="medium")
    bar = figure.colorbar(image, ax=panels, fraction=0.046, pad=0.02)
    bar.set_label(textwrap.fill(name, int(side * down * _LETTERS)))
    return figure


def _grid(count: int) -> tuple[int, int]:
    """Panels in a row, and rows, about evenly filled."""
    down = -(-count // _ACROSS)
    return -(-count // down), down


def _panels(figure: Figure, names: Collection[str], width: float, label: str) -> list[Axes]:
    """A panel for each name, with shared axes whose numbers and label stand at the edges only."""
    across, down = _grid(len(names))
    panels: list[Axes] = []
    for index, name in enumerate(names):
        first = panels[0] if panels else None
        axes = figure.add_subplot(down, across, index + 1, sharex=first, sharey=first)
        axes.set_title(textwrap.fill(name, int(width * _LETTERS)), fontsize="medium")
        lowest = index + across >= len(names)
        axes.tick_params(labelbottom=lowest, labelleft=index % across == 0)
        axes.set_xlabel(label if lowest else "")
        panels.append(axes)
    return panels

"""The figures of a report."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from clearn.compare.table import FinishedRun
from clearn.metrics import accuracy_curve

# Okabe and Ito (2008): told apart by people with any common colour blindness; their yellow is
# left out, being too light on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
_LINES = ("-", "--", "-.", ":")
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": "#555555",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # alone: an SVG names the whole list with every text
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.markersize": 5,
    "svg.hashsalt": "clearn",  # equal figures are equal files
    "svg.fonttype": "none",  # text stays text: to be searched and copied, in a third of the bytes
    "text.parse_math": False,  # a label with a dollar is no formula
}


class Look(NamedTuple):
    """How a strategy looks in every figure of a report: never by colour alone."""

    colour: str
    marker: str
    line: str


def looks(strategies: Sequence[str]) -> dict[str, Look]:
    """A look for each strategy, by its place among them."""
    return {
        name: Look(
            _COLOURS[index % len(_COLOURS)],
            _MARKERS[index % len(_MARKERS)],
            _LINES[index // len(_COLOURS) % len(_LINES)],
        )
        for index, name in enumerate(strategies)
    }


@contextmanager
def settings() -> Iterator[None]:
    """The look of all figures drawn or saved inside the block."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def mean_matrix(runs: Sequence[FinishedRun]) -> NDArray[np.float64]:
    """The accuracy matrix averaged over runs, NaN where none was evaluated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        mean: NDArray[np.float64] = np.nanmean(stacked([run.matrix for run in runs]), axis=0)
    return mean


def stacked(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One array from several, `[runs, T]` or `[runs, T, T]`, NaN where a run has fewer tasks."""
    tasks = max(map(len, arrays))
    padded = [
        np.pad(array, [(0, tasks - size) for size in array.shape], constant_values=np.nan)
        for array in arrays
    ]
    return np.stack(padded)


def draw_curves(groups: Mapping[str, Sequence[FinishedRun]], look: Mapping[str, Look]) -> Figure:
    """Any-time accuracy of each strategy: the mean over runs, and one standard deviation."""
    figure = Figure(figsize=(5.6, 3.5), layout="constrained")
    plot_curves(figure.add_subplot(), groups, look)
    figure.legend(loc="outside right upper")
    return figure


def plot_curves(
    axes: Axes, groups: Mapping[str, Sequence[FinishedRun]], look: Mapping[str, Look]
) -> None:
    """Plot the any-time accuracy of each strategy, one line each in their order."""
    for name, runs in groups.items():
        curves = 100 * stacked([accuracy_curve(run.matrix, run.test_examples) for run in runs])
        tasks = np.arange(1, curves.shape[1] + 1)
        kept = ~np.isnan(curves).any(axis=0)
        mean = curves.mean(axis=0)
        colour, marker, line = look[name]
        axes.plot(tasks[kept], mean[kept], color=colour, marker=marker, linestyle=line, label=name)
        if len(runs) > 1:
            spread = curves.std(axis=0, ddof=1)
            low, high = np.clip([mean - spread, mean + spread], 0, 100)
            axes.fill_between(
                tasks[kept], low[kept], high[kept], color=colour, alpha=0.18, linewidth=0
            )
    axes.grid(True)
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("accuracy on the tasks so far (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 102)


def draw_costs(table: pd.DataFrame, look: Mapping[str, Look]) -> Figure:
    """Accuracy against bytes stored and against training time; bars are standard deviations."""
    figure = Figure(figsize=(7.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _scatter(left, table, look, "bytes")
    _scatter(right, table, look, "seconds")
    left.set_xlabel("stored after the last task")
    left.xaxis.set_major_formatter(EngFormatter("B"))
    right.set_xlabel("training time")
    right.xaxis.set_major_formatter(EngFormatter("s"))
    left.set_ylabel("accuracy after the last task (%)")
    left.set_ylim(0, 102)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _scatter(axes: Axes, table: pd.DataFrame, look: Mapping[str, Look], cost: str) -> None:
    axes.grid(True)
    costs = table[f"{cost}_mean"].to_numpy()
    reach = costs + np.nan_to_num(table[f"{cost}_std"].to_numpy())
    for row in table.to_dict("records"):
        colour, marker, _ = look[row["strategy"]]
        x, y = row[f"{cost}_mean"], 100 * row["acc_mean"]
        axes.errorbar(
            x,
            y,
            xerr=np.nan_to_num(row[f"{cost}_std"]),
            yerr=100 * np.nan_to_num(row["acc_std"]),
            color=colour,
            capsize=3,
        )
        axes.plot(x, y, color=colour, marker=marker, linestyle="none", ms=7, label=row["strategy"])
    if costs.min() > 0 and costs.max() > 20 * costs.min():
        axes.set_xscale("log")
        subs = (1, 3) if costs.max() < 100 * costs.min() else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, 1.1 * max(reach.max(), 1e-9))
        axes.xaxis.set_major_locator(MaxNLocator(4))


def to_svg(figure: Figure) -> str:
    """The figure as SVG; the same text for the same figure."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    for pattern, shorter in _SHORTER:
        text = pattern.sub(shorter, text)
    return text.strip() + "\n"


_SHORTER: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"<!DOCTYPE.*?>|<metadata>.*?</metadata>", re.DOTALL), ""),
    (re.compile(r'(?<=<g) id="[^"]*"'), ""),
    (re.compile(r' transform="rotate\(-0 [^"]*"'), ""),
    # A hundredth of a point in paths and places; in texts a number is not among others.
    (
        re.compile(r"(?<=[\s\"(-])\d+\.\d{3,}(?=[\s\")])(?=[^<>]*>)"),
        lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."),
    ),
    (re.compile(r">\s+<"), "><"),
    (re.compile(r"\s*\n\s*(?=[^<>]*>)"), " "),
)
"""What makes a third less of matplotlib's SVG and shows the same."""


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, fit for print."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200)
    return file.getvalue()

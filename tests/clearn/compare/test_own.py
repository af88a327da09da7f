"""The figures of strategies' own charts: panels, numbers, gaps, names of files."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from clearn.chart import Chart
from clearn.compare import charts
from clearn.compare.own import Drawn, draw_own, draw_tables
from clearn.compare.table import FinishedRun, read_runs

NAN = math.nan
Draw = Callable[[Mapping[str, list[Mapping[str, Chart]]]], dict[str, Drawn]]


@pytest.fixture
def draw(make_record: Callable[..., Path], tmp_path: Path) -> Iterator[Draw]:
    """Figures by the names of their files, from the charts of each run of each strategy."""

    def draw(given: Mapping[str, list[Mapping[str, Chart]]]) -> dict[str, Drawn]:
        for strategy, runs in given.items():
            for seed, each in enumerate(runs):
                make_record(strategy, seed=seed, charts=each)
        groups: dict[str, list[FinishedRun]] = {name: [] for name in given}
        for run in read_runs(tmp_path / "results")[0]:
            groups[run.strategy].append(run)
        return {drawn.name: drawn for drawn in draw_own(groups)}

    with charts.settings():
        yield draw


def panels(figure: Figure) -> list[str]:
    """Titles of the panels, on one line."""
    return [axes.get_title().replace("\n", " ") for axes in figure.axes if axes.get_title()]


def test_lines_are_means_with_gaps_and_bands(draw: Draw) -> None:
    runs = [[NAN, NAN, 0.5, 1.0], [NAN, 0.3, NAN, 2.0], [NAN, NAN, 0.7, 6.0]]
    drawn = draw({"RER": [{"mean weight": {"new": line}} for line in runs]})
    ((name, (_, caption, figure)),) = drawn.items()
    assert name == "own-lines-mean_weight"
    assert caption.startswith("mean weight: ")
    (axes,) = figure.axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(line.get_ydata(), [NAN, 0.3, 0.6, 3.0])
    (band,) = axes.collections
    ends = band.get_datalim(axes.transData)
    spread = statistics.stdev([1.0, 2.0, 6.0])
    np.testing.assert_allclose(ends.intervalx, [3, 4])
    np.testing.assert_allclose(ends.intervaly, [min(0.6 - 0.02**0.5, 3 - spread), 3 + spread])
    assert (axes.get_xlabel(), figure.get_supylabel()) == ("task", "mean weight")
    assert axes.get_xlim()[0] < 1 < 4 < axes.get_xlim()[1]


def test_one_run_has_no_band(draw: Draw) -> None:
    drawn = draw({"RER": [{"w": {"a": [1.0, 2.0, 3.0]}}]})
    assert not drawn["own-lines-w"].figure.axes[0].collections


def test_lines_without_a_number_get_no_panel(draw: Draw) -> None:
    some: Mapping[str, Chart] = {"w": {"a": [NAN, 2.0, NAN]}}
    none: Mapping[str, Chart] = {"w": {"a": [NAN] * 3}, "v": {"a": [NAN] * 3}}
    drawn = draw({"RER": [some], "fixed": [none, none]})
    assert {name: panels(each.figure) for name, each in drawn.items()} == {"own-lines-w": ["RER"]}


def test_each_strategy_has_a_panel_and_each_label_a_look(draw: Draw) -> None:
    labels = {"A": "xy", "B": "y", "C": "zx", "D": "x", "E, with quite a long name": "_$"}
    given: dict[str, list[Mapping[str, Chart]]] = {
        name: [{"w": {label: [1.0, 2.0, 3.0 + len(name)] for label in of}}]
        for name, of in labels.items()
    }
    figure = draw(given | {"Naive": [{}]})["own-lines-w"].figure
    assert panels(figure) == list(labels)
    first = figure.axes[0]
    assert all(axes.get_xlim() == first.get_xlim() for axes in figure.axes)
    assert all(axes.get_ylim() == first.get_ylim() for axes in figure.axes)
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["x", "y", "z", "_", "$"]
    looks = {
        label: (line.get_color(), line.get_marker())
        for label, line in zip(shown, legend.get_lines(), strict=True)
    }
    assert len({marker for _, marker in looks.values()}) == 5
    for axes, of in zip(figure.axes, labels.values(), strict=True):
        assert [(line.get_color(), line.get_marker()) for line in axes.lines] == [
            looks[label] for label in of
        ]


@pytest.mark.parametrize(
    ("count", "grid"), [(1, (1, 1)), (3, (1, 3)), (4, (1, 4)), (5, (2, 3)), (9, (3, 3))]
)
@pytest.mark.parametrize("kind", ["lines", "table"])
def test_a_row_has_at_most_four_panels(
    draw: Draw, kind: str, count: int, grid: tuple[int, int]
) -> None:
    chart: Chart = {"a": [1.0, 2.0, 3.0]} if kind == "lines" else [[1.0, 2.0, NAN]] * 3
    figure = draw({f"s{k}": [{"w": chart}] for k in range(count)})[f"own-{kind}-w"].figure
    assert panels(figure) == [f"s{k}" for k in range(count)]
    specs = [axes.get_subplotspec() for axes in figure.axes[:count]]
    assert {(s.get_gridspec().nrows, s.get_gridspec().ncols) for s in specs if s} == {grid}
    numbered = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes[:count]]
    assert numbered == [k + grid[1] >= count for k in range(count)]  # where none stands below


def test_tables_are_means_on_one_scale_of_their_own(draw: Draw) -> None:
    first = [[NAN, NAN, NAN], [2.0, NAN, NAN], [-4.0, 6.0, NAN]]
    second = [[NAN, NAN, NAN], [4.0, 5.0, NAN], [-4.0, 8.0, NAN]]
    other = [[NAN] * 3, [NAN] * 3, [9.0, 0.0, NAN]]
    given = {"TAG": [{"s": first}, {"s": second}], "B": [{"s": other}]}
    figure = draw(given)["own-table-s"].figure
    tag, b, bar = figure.axes
    mean = np.array([[NAN, NAN, NAN], [3.0, 5.0, NAN], [-4.0, 7.0, NAN]])
    for axes, table in ((tag, mean), (b, np.array(other))):
        (image,) = axes.images
        np.testing.assert_array_equal(np.ma.filled(image.get_array(), NAN), table)
        assert image.get_clim() == (-4.0, 9.0)
        assert image.get_cmap().name == "cividis"
        assert tuple(image.get_extent()) == (0.5, 3.5, 3.5, 0.5)  # counted from 1, first row on top
        assert axes.get_ylim() == (3.5, 0.5)
        assert [patch.get_hatch() for patch in axes.patches] == ["////"]
        assert axes.get_xlabel() == "earlier task"
    assert figure.get_supylabel() == "current task"
    assert bar.get_ylabel() == "s"
    assert any(isinstance(each, QuadMesh) for each in bar.collections)


@pytest.mark.parametrize("value", [NAN, 0.0, 0.5, -1e-9])
def test_tables_of_one_number_have_one_colour(value: float) -> None:
    tables = {name: np.full((2, 2), value) for name in "ab"}
    figure = draw_tables(tables, "s")
    charts.to_png(figure)
    (a,), (b,) = (axes.images for axes in figure.axes[:2])
    assert a.get_clim() == b.get_clim()
    assert a.get_clim()[0] < a.get_clim()[1]


def test_charts_are_found_wherever_they_are(draw: Draw) -> None:
    """In some runs only, as lines here and as a table there, and with names that look alike."""
    line, table = {"a": [1.0, 2.0, 3.0]}, [[1.0] * 3] * 3
    runs: list[Mapping[str, Chart]] = [{"a b": line}, {"A/b": line, "../é": table, "∑": table}]
    drawn = draw({"A": [{}, *runs], "B": [{"a b": table}]})
    assert list(drawn) == [
        *("own-lines-a_b", "own-table-a_b", "own-lines-a_b.2", "own-table-é", "own-table-"),
    ]
    assert panels(drawn["own-lines-a_b"].figure) == ["A"]
    assert panels(drawn["own-table-a_b"].figure) == ["B"]


@pytest.mark.parametrize("tasks", [1, 2, 40])
def test_any_number_of_tasks_and_any_names_can_be_drawn(draw: Draw, tasks: int) -> None:
    """Without a warning, too."""
    long = "a name of more words than there is room for " * 4
    lines = {f"$x_{k}$ {long}": [NAN] * (tasks - 1) + [1.0] for k in range(30)}
    drawn = draw({long.strip(): [{long: lines}, {f"{long} ": np.eye(tasks).tolist()}]})
    assert len({name.lower() for name in drawn}) == len(drawn) == 2
    for name, (_, _, figure) in drawn.items():
        svg = charts.to_svg(figure)
        assert ("$x_29$" in svg) == name.startswith("own-lines")  # as text, not as a formula

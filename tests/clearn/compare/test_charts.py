"""Figures: what is drawn, and that it can be told apart."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from clearn.compare import charts
from clearn.compare.table import FinishedRun, read_runs, runs_table, summary_table


@pytest.fixture
def runs(make_record: Callable[..., Path], tmp_path: Path) -> list[FinishedRun]:
    for seed in range(3):
        make_record("ER", seed=seed)
    return read_runs(tmp_path / "results")[0]


def test_mean_matrix_leaves_out_what_was_not_evaluated(runs: list[FinishedRun]) -> None:
    mean = charts.mean_matrix(runs)
    assert np.isnan(mean[np.triu_indices(3, 1)]).all()
    expected = np.mean([run.matrix[2, 1] for run in runs])
    assert mean[2, 1] == pytest.approx(expected)


def test_curves_hold_mean_and_deviation(runs: list[FinishedRun]) -> None:
    look = charts.looks(["Naive", "ER"])
    (axes,) = charts.draw_curves({"ER": runs}, look).axes
    (line,) = axes.lines
    each = 100 * np.array([[r.matrix[i, : i + 1].mean() for i in range(3)] for r in runs])
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), each.mean(axis=0))
    assert line.get_color() == look["ER"].colour
    (band,) = axes.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    spread = each.std(axis=0, ddof=1)
    assert low == pytest.approx((each.mean(axis=0) - spread).min())
    assert high == pytest.approx((each.mean(axis=0) + spread).max())


def test_curves_count_test_examples(runs: list[FinishedRun]) -> None:
    uneven = FinishedRun(**vars(runs[0]) | {"test_examples": [60, 5, 5]})
    (axes,) = charts.draw_curves({"ER": [uneven]}, charts.looks(["ER"])).axes
    last = 100 * np.average(uneven.matrix[2], weights=[60, 5, 5])
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(last)


def test_a_single_run_has_no_band(runs: list[FinishedRun]) -> None:
    (axes,) = charts.draw_curves({"ER": runs[:1]}, charts.looks(["ER"])).axes
    assert not axes.collections


def test_costs_are_log_only_when_they_span_much(runs: list[FinishedRun]) -> None:
    table = summary_table(runs_table(runs), None, ["ER"], ["Digits"])
    look = charts.looks(["ER", "Big"])
    left, right = charts.draw_costs(table, look).axes
    assert (left.get_xscale(), right.get_xscale()) == ("linear", "linear")
    big = table.assign(strategy="Big", bytes_mean=1e9, seconds_mean=2.0)
    both: pd.DataFrame = pd.concat([table, big], ignore_index=True)
    left, right = charts.draw_costs(both, look).axes
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")


@pytest.mark.parametrize("most", [21, 99, 101, 1e3, 1e6])
def test_numbers_on_a_log_axis_can_be_read(runs: list[FinishedRun], most: float) -> None:
    table = summary_table(runs_table(runs), None, ["ER"], ["Digits"]).assign(bytes_mean=2e6)
    big = table.assign(strategy="Big", bytes_mean=2e6 * most)
    both: pd.DataFrame = pd.concat([table, big], ignore_index=True)
    with charts.settings():
        figure = charts.draw_costs(both, charts.looks(["ER", "Big"]))
        figure.draw_without_rendering()
        axes = figure.axes[0]
        labels = [*axes.get_xticklabels(), *axes.get_xticklabels(minor=True)]
    low, high = axes.get_xlim()
    shown = [label for label in labels if low <= label.get_position()[0] <= high]
    assert 2 <= len(shown) <= 6
    for label in shown:
        assert re.fullmatch(r"\d+ [kMGT]B", label.get_text())
    boxes = [label.get_window_extent() for label in shown]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_a_free_strategy_can_be_drawn(runs: list[FinishedRun]) -> None:
    table = summary_table(runs_table(runs), None, ["ER"], ["Digits"])
    figure = charts.draw_costs(table.assign(bytes_mean=0.0), charts.looks(["ER"]))
    assert figure.axes[0].get_xscale() == "linear"


def test_looks_differ_by_more_than_colour() -> None:
    look = charts.looks([f"s{k}" for k in range(28)])
    assert len(set(look.values())) == 28
    assert len({(each.marker, each.line) for each in list(look.values())[:7]}) == 7
    assert look["s0"] == charts.looks(["s0"])["s0"]


def test_equal_figures_are_equal_files(runs: list[FinishedRun]) -> None:
    def draw() -> tuple[str, bytes]:
        with charts.settings():
            figure = charts.draw_curves({"ER": runs}, charts.looks(["ER"]))
            return charts.to_svg(figure), charts.to_png(figure)

    svg, png = draw()
    assert (svg, png) == draw()
    assert svg.startswith("<?xml")
    assert png.startswith(b"\x89PNG")


def test_an_svg_is_short_and_keeps_texts_as_they_are() -> None:
    """Nothing but ids, white space and digits is lost, and none of them inside a text."""
    label = 'a  name "0.123456" <b> & (1.98765) 5'
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0.123456, 1], [0, 1], label=label)
    axes.legend()
    with charts.settings():
        plain, short = io.StringIO(), charts.to_svg(figure)
        figure.savefig(plain, format="svg", metadata={"Date": None})
    before, after = ElementTree.fromstring(plain.getvalue()), ElementTree.fromstring(short)
    assert len(short) < 0.8 * len(plain.getvalue())
    assert label in [element.text for element in after.iter()]
    kept = [element for element in before.iter() if "metadata" not in element.tag]
    drawn = ("path", "text", "use", "image", "style")
    for name in drawn:
        ours, theirs = (
            [e for e in tree if e.tag.endswith("}" + name)] for tree in (after.iter(), kept)
        )
        assert len(ours) == len(theirs) > 0 or name == "image"
        for one, other in zip(ours, theirs, strict=True):
            assert one.text == other.text or not (one.text or "").strip()
            for key in ("d", "x", "y"):
                numbers = [
                    np.array(re.findall(r"-?[\d.]+", element.get(key, "")), float)
                    for element in (one, other)
                ]
                np.testing.assert_allclose(*numbers, atol=0.0051)

"""Numbers for people."""

from __future__ import annotations

import math

import pytest

from clearn.compare.text import (
    escape,
    headings,
    markdown_table,
    notes,
    percent,
    probability,
    run_headings,
    run_values,
    seconds,
    size,
    values,
)

NAN = math.nan
ROW = {
    "n": 3,
    "acc_mean": 0.8149,
    "acc_std": 0.0251,
    "acc_low": 0.7523,
    "acc_high": 0.8775,
    "diff_mean": 0.57,
    "diff_low": 0.505,
    "diff_high": 0.6351,
    "p_holm": 0.0004,
    "forgetting_mean": 0.1,
    "forgetting_std": 0.02,
    "bwt_mean": -0.1,
    "bwt_std": 0.02,
    "fwt_mean": NAN,
    "fwt_std": NAN,
    "bytes_mean": 45_678.0,
    "seconds_mean": 12.34,
}


def test_a_row_as_people_read_it() -> None:
    assert dict(zip(headings("Naive"), values(ROW, "Naive"), strict=True)) == {
        "n": "3",
        "ACC %": "81.5 ± 2.5",
        "95 % interval": "[75.2, 87.8]",
        "ACC - Naive": "+57.0 [+50.5, +63.5]",
        "p": "< 0.001",
        "forgetting": "10.0 ± 2.0",
        "BWT": "-10.0 ± 2.0",
        "FWT": "-",
        "stored": "45.7 kB",
        "time": "12.3 s",
    }


def test_a_row_that_compares_average_incremental_accuracy() -> None:
    metric = "avg_incremental_acc"
    given = {f"{metric}_{part}": ROW[f"acc_{part}"] for part in ("mean", "std", "low", "high")}
    others = {name: number for name, number in ROW.items() if name not in ("acc_low", "acc_high")}
    row = others | {"acc_mean": 0.5, "acc_std": 0.01} | given
    cells = zip(
        headings("Naive", ["live_acc"], metric),
        values(row | {"live_acc_mean": 0.4, "live_acc_std": 0.2}, "Naive", ["live_acc"], metric),
        strict=True,
    )
    assert list(cells) == [
        ("n", "3"),
        ("AIA %", "81.5 ± 2.5"),
        ("95 % interval", "[75.2, 87.8]"),
        ("AIA - Naive", "+57.0 [+50.5, +63.5]"),
        ("p", "< 0.001"),
        ("ACC %", "50.0 ± 1.0"),
        ("forgetting", "10.0 ± 2.0"),
        ("BWT", "-10.0 ± 2.0"),
        ("FWT", "-"),
        ("stored", "45.7 kB"),
        ("time", "12.3 s"),
        ("live acc %", "40.0 ± 20.0"),
    ]
    assert any(note.startswith("AIA: ") for note in notes("Naive", metric=metric))
    assert notes("Naive", metric=metric)[-1].startswith("AIA - Naive: ")
    assert not any("AIA" in note for note in notes("Naive"))


def test_a_row_with_a_baseline_of_its_own() -> None:
    baseline = {"ER": "Naive"}
    row = dict(zip(headings(baseline), values(ROW | {"baseline": "Naive"}, baseline), strict=True))
    assert (row["baseline"], row["ACC - baseline"]) == ("Naive", "+57.0 [+50.5, +63.5]")
    none = ROW | dict.fromkeys(["baseline", "diff_mean", "diff_low", "p_holm"], NAN)
    row = dict(zip(headings(baseline), values(none, baseline), strict=True))
    assert [row[name] for name in ("baseline", "ACC - baseline", "p")] == ["-", "-", "-"]


def test_a_row_without_baseline_or_spread() -> None:
    assert len(values(ROW, None)) == len(headings(None)) == 8
    undefined = dict.fromkeys(["acc_std", "acc_low", "diff_mean", "diff_low", "p_holm"], NAN)
    row = dict(zip(headings("Naive"), values(ROW | undefined, "Naive"), strict=True))
    assert [row[name] for name in ("ACC %", "95 % interval", "ACC - Naive", "p")] == [
        "81.5",
        "-",
        "-",
        "-",
    ]


def test_metrics_of_strategies_own() -> None:
    extra = ["cap_real", "bytes_per_task", "depth", "width"]
    own = {"cap_real": (1.206, 0.012), "bytes_per_task": (4040.0, 0.0), "depth": (2.51, 0.1234)}
    row = ROW | {
        f"{name}_{part}": value
        for name in extra
        for part, value in zip(("mean", "std"), own.get(name, (NAN, NAN)), strict=True)
    }
    table = dict(zip(headings(None, extra), values(row, None, extra), strict=True))
    assert list(table.items())[-4:] == [
        ("CAP real %", "120.6 ± 1.2"),
        ("bytes per task", "4.04 kB"),
        ("depth", "2.51 ± 0.12"),
        ("width", "-"),
    ]
    metrics = dict.fromkeys(("acc", "forgetting", "bwt", "fwt", "bytes", "seconds"), 0.5)
    run = dict(zip(run_headings(extra), run_values(metrics | {"depth": 3.0}, extra), strict=True))
    assert run["depth"] == "3"
    assert run["CAP real %"] == run["width"] == "-"
    assert notes("Naive", extra)[-2].startswith("CAP: ")
    assert len(notes("Naive", ["depth"])) == len(notes("Naive", extra)) - 1


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (999_400, "999 kB"),
        (12_345_678, "12.3 MB"),
        (3e15, "3.00 PB"),
        (NAN, "-"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (0.0, "0.00 s"),
        (9.999, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1:00 min"),
        (60, "1:00 min"),
        (3599.9, "1:00 h"),
        (7384, "2:03 h"),
        (NAN, "-"),
    ],
)
def test_seconds(duration: float, text: str) -> None:
    assert seconds(duration) == text


def test_small_shares_have_no_negative_zero() -> None:
    assert percent(-0.0001) == "0.0"
    assert percent(-0.0001, sign=True) == "+0.0"
    assert probability(0.0999) == "0.100"
    assert probability(1.0) == "1.00"


def test_markdown_shows_labels_as_they_are() -> None:
    table = markdown_table(["strategy", "n"], [["a|b_*<x>", "[1, 2]"]], labels=1)
    assert table == "| strategy | n |\n| --- | ---: |\n| a\\|b\\_\\*\\<x> | [1, 2] |\n"
    assert escape("\\") == "\\\\"

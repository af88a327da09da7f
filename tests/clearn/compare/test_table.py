"""The table against numbers computed from the accuracies by hand and by scipy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from clearn.compare.table import read_runs, runs_table, summary_table

Make = Callable[..., Path]
METRICS = {"forgetting": 0.1, "bwt": -0.1, "fwt": 0.0, "learning_acc": 0.9, "bytes": 10.0}


def frame(*runs: tuple[str, int, float], stream: str = "Digits") -> pd.DataFrame:
    """Runs as (strategy, seed, accuracy)."""
    columns = {"stream": stream, "scenario": "class", "order": 0, **METRICS}
    return pd.DataFrame(
        [
            {"strategy": name, "seed": seed, "acc": acc}
            | {"avg_incremental_acc": acc, "seconds": 2.0 * seed, "eval_seconds": 1.0}
            | columns
            for name, seed, acc in runs
        ]
    )


def test_summary_by_hand_and_by_scipy() -> None:
    naive, er, joint = [0.2, 0.3, 0.25], [0.8, 0.82, 0.84], [0.9, 0.95, 0.91]
    runs = frame(
        *(("Naive", seed, acc) for seed, acc in enumerate(naive)),
        *(("ER", seed, acc) for seed, acc in enumerate(er)),
        *(("Joint", seed, acc) for seed, acc in enumerate(joint)),
    )
    table = summary_table(runs, "Naive", ["Naive", "ER", "Joint"], ["Digits"])
    assert table["strategy"].to_list() == ["Naive", "ER", "Joint"]
    assert table["n"].to_list() == [3, 3, 3]
    np.testing.assert_allclose(table["acc_mean"], [0.25, 0.82, 0.92])
    np.testing.assert_allclose(table["acc_std"], [0.05, 0.02, np.std(joint, ddof=1)])
    assert table["seconds_mean"].to_list() == [2.0, 2.0, 2.0]
    assert table["bytes_std"].to_list() == [0.0, 0.0, 0.0]
    p = [stats.ttest_rel(other, naive).pvalue for other in (er, joint)]
    np.testing.assert_allclose(table["p"], [np.nan, *p])
    np.testing.assert_allclose(table["p_holm"], [np.nan, *stats_holm(p)])
    np.testing.assert_allclose(table["diff_mean"], [np.nan, 0.57, 0.67])
    assert table["pairs"].isna().to_list() == [True, False, False]


def test_average_incremental_accuracy_can_be_what_is_compared() -> None:
    runs = frame(*(("A", seed, 0.1) for seed in range(3)), *(("B", seed, 0.1) for seed in range(3)))
    runs["avg_incremental_acc"] = [0.3, 0.35, 0.31, 0.5, 0.45, 0.52]
    table = summary_table(runs, "A", ["A", "B"], ["Digits"], "avg_incremental_acc")
    b = table.set_index("strategy").loc["B"]
    found = stats.ttest_rel([0.5, 0.45, 0.52], [0.3, 0.35, 0.31])
    ends = found.confidence_interval()
    assert b["diff_mean"] == pytest.approx(0.17)
    assert (b["diff_low"], b["diff_high"], b["p"]) == pytest.approx((*ends, found.pvalue))
    ends = stats.ttest_1samp([0.5, 0.45, 0.52], 0).confidence_interval()
    assert (b["avg_incremental_acc_low"], b["avg_incremental_acc_high"]) == pytest.approx(ends)
    assert "acc_low" not in table


def stats_holm(p: list[float]) -> list[float]:
    """For two tests: twice the smaller, and the larger or that."""
    smaller = 2 * min(p)
    return [smaller if value == min(p) else max(smaller, value) for value in p]


def test_pairs_are_runs_with_the_same_order_and_seed() -> None:
    runs = frame(("Naive", 0, 0.1), ("Naive", 1, 0.2), ("Naive", 3, 0.4), ("ER", 3, 0.9))
    runs = pd.concat([runs, frame(("ER", 0, 0.5), ("ER", 2, 0.5))], ignore_index=True)
    other_order = frame(("ER", 1, 0.7)).assign(order=1)
    table = summary_table(pd.concat([runs, other_order]), "Naive", ["Naive", "ER"], ["Digits"])
    er = table.set_index("strategy").loc["ER"]
    assert (er["n"], er["pairs"]) == (4, 2)
    assert er["diff_mean"] == pytest.approx(np.mean([0.9 - 0.4, 0.5 - 0.1]))


def test_one_run_has_a_mean_and_no_spread() -> None:
    table = summary_table(
        frame(("Naive", 0, 0.1), ("ER", 0, 0.6)), "Naive", ["Naive", "ER"], ["Digits"]
    )
    er = table.set_index("strategy").loc["ER"]
    assert (er["n"], er["acc_mean"], er["diff_mean"]) == (1, 0.6, 0.5)
    assert (
        er[["acc_std", "acc_low", "acc_high", "diff_low", "diff_high", "p", "p_holm"]].isna().all()
    )


def test_nan_metrics_stay_nan() -> None:
    runs = frame(("Naive", 0, 0.1), ("Naive", 1, 0.2)).assign(fwt=[np.nan, 0.1])
    (row,) = summary_table(runs, "Naive", ["Naive"], ["Digits"]).to_dict("records")
    assert np.isnan([row["fwt_mean"], row["fwt_std"], row["p"]]).all()
    assert row["acc_mean"] == pytest.approx(0.15)


def test_each_strategy_against_a_baseline_of_its_own() -> None:
    runs = frame(("A", 0, 0.1), ("A", 1, 0.2), ("B", 0, 0.2), ("B", 1, 0.3), ("C", 0, 0.5))
    table = summary_table(runs, {"B": "A", "C": "B"}, ["A", "B", "C"], ["Digits"])
    rows = table.set_index("strategy")
    assert rows.loc[["B", "C"], "baseline"].tolist() == ["A", "B"]
    assert rows.loc[["B", "C"], "diff_mean"].tolist() == pytest.approx([0.1, 0.3])
    assert rows.loc["A", ["baseline", "diff_mean"]].isna().all()


def test_without_a_baseline_nothing_is_compared() -> None:
    runs = frame(("A", 0, 0.1), ("A", 1, 0.2), ("B", 0, 0.1), ("B", 1, 0.2))
    for baseline in (None, "C"):
        table = summary_table(runs, baseline, ["A", "B"], ["Digits"])
        assert table[["pairs", "diff_mean", "p", "p_holm"]].isna().all(axis=None)


def test_a_row_per_strategy_stream_and_scenario() -> None:
    runs = pd.concat(
        [
            frame(("A", 0, 0.1), ("B", 0, 0.2)),
            frame(("A", 0, 0.3), ("B", 0, 0.4)).assign(scenario="task"),
            frame(("A", 0, 0.5), stream="Letters"),
        ]
    )
    table = summary_table(runs, "A", ["B", "A"], ["Letters", "Digits"])
    assert table[["strategy", "stream", "scenario", "acc_mean"]].to_numpy().tolist() == [
        ["A", "Letters", "class", 0.5],
        ["B", "Digits", "class", 0.2],
        ["A", "Digits", "class", 0.1],
        ["B", "Digits", "task", 0.4],
        ["A", "Digits", "task", 0.3],
    ]


def test_reads_finished_records_only(make_record: Make, tmp_path: Path) -> None:
    make_record("ER", seed=1, level=0.8, drop=0.2, order=2, scenario="task")
    make_record("ER", seed=0)
    make_record("Naive", seed=10)
    make_record("Naive", seed=9)
    make_record("Naive", seed=0, finished=False)
    broken = make_record("Naive", seed=1)
    (broken / "metrics.json").write_text('{"metrics": {')
    (tmp_path / "results/runs/ER/Digits/notes.txt").write_text("not a record")
    (tmp_path / "results/runs/ER/Digits/other").mkdir()
    finished, unfinished = read_runs(tmp_path / "results")
    assert [str(run) for run in finished] == [
        "ER/Digits/order0-seed0",
        "ER/Digits/order2-seed1",
        "Naive/Digits/order0-seed9",
        "Naive/Digits/order0-seed10",
    ]
    assert unfinished == ["Naive/Digits/order0-seed0", "Naive/Digits/order0-seed1"]
    run = finished[1]
    assert (run.order, run.seed, run.scenario) == (2, 1, "task")
    assert run.matrix[2, 0] == pytest.approx(run.matrix[0, 0] - 0.4)
    assert run.metrics["seconds"] == pytest.approx(1.5)
    assert run.bytes == [4000, 4100, 4200]
    assert run.environment["versions"]["clearn"] == "0.1.0"
    row = runs_table(finished).iloc[1]
    assert row["acc"] == pytest.approx(run.matrix[2].mean())
    assert (row["strategy"], row["order"], row["seed"], row["bytes"]) == ("ER", 2, 1, 4200)


def test_a_record_without_environment_still_counts(make_record: Make, tmp_path: Path) -> None:
    record = make_record()
    (record / "environment.json").unlink()
    assert [run.environment for run in read_runs(tmp_path / "results")[0]] == [{}]
    (record / "environment.json").write_text(json.dumps([1]))
    assert [run.environment for run in read_runs(tmp_path / "results")[0]] == [{}]


def test_a_record_without_numbers_of_test_examples_still_counts(
    make_record: Make, tmp_path: Path
) -> None:
    """As version 0.1 wrote them; tasks then count alike."""
    path = make_record() / "metrics.json"
    ((run,), _) = read_runs(tmp_path / "results")
    assert run.test_examples == [8, 8, 8]
    content = json.loads(path.read_text())
    del content["result"]["test_examples"]
    path.write_text(json.dumps(content))
    ((run,), _) = read_runs(tmp_path / "results")
    assert run.test_examples is None


def test_metrics_of_strategies_own_are_columns(make_record: Make, tmp_path: Path) -> None:
    for seed, cap in enumerate((0.4, 0.5)):
        make_record("WSN", seed=seed, extra={"cap_paper": cap, "acc": 0.0})
    make_record("Naive")
    make_record("Other", extra={"depth": 3.0, "cap_paper": 0.1})
    runs = runs_table(read_runs(tmp_path / "results")[0])
    assert runs.columns.to_list()[-2:] == ["depth", "cap_paper"]
    assert runs["cap_paper"].to_list() == pytest.approx([np.nan, 0.1, 0.4, 0.5], nan_ok=True)
    table = summary_table(runs, None, ["Naive", "WSN", "Other"], ["Digits"])
    found = table.set_index("strategy")
    assert found.loc["WSN", "cap_paper_mean"] == pytest.approx(0.45)
    assert found.loc["WSN", "cap_paper_std"] == pytest.approx(np.std([0.4, 0.5], ddof=1))
    assert found.loc["Naive", ["cap_paper_mean", "depth_mean"]].isna().all()
    assert found.loc["Other", "depth_mean"] == 3.0
    assert list(table.columns).count("acc_mean") == 1


def test_a_record_without_metrics_of_its_own_still_counts(
    make_record: Make, tmp_path: Path
) -> None:
    """As version 0.1 wrote them."""
    path = make_record() / "metrics.json"
    content = json.loads(path.read_text())
    del content["result"]["extra"]
    path.write_text(json.dumps(content))
    runs = read_runs(tmp_path / "results")[0]
    assert [run.extra for run in runs] == [()]
    table = summary_table(runs_table(runs), None, ["ER"], ["Digits"])
    assert table.columns.to_list()[-1] == "p_holm"

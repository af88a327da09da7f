"""The numbers of an experiment: one row per run, and one per strategy, stream and scenario."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearn.chart import Chart
from clearn.compare.experiment import Baseline
from clearn.compare.statistics import holm, interval, paired, std
from clearn.errors import UserError
from clearn.record import Record

METRICS = (
    "acc",
    "forgetting",
    "bwt",
    "fwt",
    "learning_acc",
    "avg_incremental_acc",
    "bytes",
    "seconds",
    "eval_seconds",
)
GROUP = ["strategy", "stream", "scenario"]
_LABELS = [*GROUP, "order", "seed"]
_FOLDER = re.compile(r"order(\d+)-seed(\d+)")


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What the report takes from one record.

    Attributes:
        strategy: Label of the strategy.
        stream: Label of the stream.
        scenario: What is known at test time: task, class or domain.
        order: Position of the class order among those of the experiment.
        seed: The run's seed.
        metrics: The summary, with `METRICS` among its keys; seconds are those of training.
        matrix: The accuracy matrix, `[T, T]`, NaN where not evaluated.
        bytes: Bytes stored in all, after each task.
        test_examples: Of each task, or None in a record of version 0.1, which has not kept them.
        extra: Names of the metrics that are the strategy's own.
        charts: The strategy's own charts, by name; none in a record of version 0.1.
        config: The resolved config.
        environment: What `clearn.environment.environment` said.
    """

    strategy: str
    stream: str
    scenario: str
    order: int
    seed: int
    metrics: dict[str, float]
    matrix: NDArray[np.float64]
    bytes: list[int]
    test_examples: list[int] | None
    extra: tuple[str, ...]
    charts: dict[str, Chart]
    config: dict[str, Any]
    environment: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.strategy}/{self.stream}/order{self.order}-seed{self.seed}"


def read_runs(folder: Path) -> tuple[list[FinishedRun], list[str]]:
    """The finished runs below `folder/runs`, and the names of those that are not finished.

    Sorted by strategy, stream, order and seed. What is no record is left out.
    """
    finished: list[FinishedRun] = []
    unfinished: list[str] = []
    for path in sorted(folder.glob("runs/*/*/*")):
        match = _FOLDER.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        strategy, stream = path.parts[-3:-1]
        try:
            finished.append(_read(path, strategy, stream, int(match[1]), int(match[2])))
        except UserError:
            unfinished.append(f"{strategy}/{stream}/{path.name}")
    finished.sort(key=lambda run: (run.strategy, run.stream, run.order, run.seed))
    return finished, unfinished


def _read(path: Path, strategy: str, stream: str, order: int, seed: int) -> FinishedRun:
    record = Record(path)
    metrics, result, config = record.load_metrics(), record.load_result(), record.config
    return FinishedRun(
        strategy=strategy,
        stream=stream,
        scenario=str(config["stream"].get("scenario", "")),
        order=order,
        seed=seed,
        metrics=metrics | {"seconds": metrics["train_seconds"]},
        matrix=np.array(result["matrix"], dtype=np.float64),
        bytes=[sum(kinds.values()) for kinds in result["bytes"]],
        test_examples=result.get("test_examples"),
        extra=tuple(result.get("extra", ())),
        charts=result.get("charts", {}),
        config=config,
        environment=_environment(path / "environment.json"),
    )


def _environment(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def extra_metrics(runs: Sequence[FinishedRun]) -> list[str]:
    """Names of the metrics that some strategy has of its own, each once."""
    return [
        name
        for name in dict.fromkeys(name for run in runs for name in run.extra)
        if name not in METRICS
    ]


def runs_table(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """A row per run: its labels, class order and seed, its metrics, and those of strategies' own.

    NaN where a run does not have a metric.
    """
    metrics = [*METRICS, *extra_metrics(runs)]
    rows = [
        {name: getattr(run, name) for name in _LABELS}
        | {name: run.metrics.get(name, float("nan")) for name in metrics}
        for run in runs
    ]
    table: pd.DataFrame = pd.DataFrame(rows, columns=[*_LABELS, *metrics])
    return table


def summary_table(
    runs: pd.DataFrame,
    baseline: Baseline | None,
    strategies: Sequence[str],
    streams: Sequence[str],
    metric: str = "acc",
) -> pd.DataFrame:
    """A row per strategy, stream and scenario, streams first, in the given orders.

    `<name>_mean` and `<name>_std` (with n - 1) are over runs, `<metric>_low` and `<metric>_high`
    the 95 % interval of the mean of what is compared; `diff_mean`, `diff_low`, `diff_high` and `p`
    compare it with that of the row's `baseline`, paired by class order and seed (`pairs` of them);
    `p_holm` is p corrected for all tests of the table. What is not defined is NaN.

    Args:
        runs: As `runs_table` gives it.
        baseline: Label of the strategy to compare with, or by label whom to compare a strategy
            with, or None to compare with none.
        strategies: Labels, in the order of the rows.
        streams: Labels, in the order of the rows.
        metric: What is compared, one of `METRICS_COMPARED`.
    """
    extra = [name for name in runs.columns if name not in (*_LABELS, *METRICS)]
    rows = []
    for stream in streams:
        for scenario in sorted(runs.loc[runs["stream"] == stream, "scenario"].unique()):
            same = runs[(runs["stream"] == stream) & (runs["scenario"] == scenario)]
            for strategy in strategies:
                group = same[same["strategy"] == strategy]
                other = baseline.get(strategy) if isinstance(baseline, dict) else baseline
                reference = same[same["strategy"] == other]
                if len(group):
                    row: dict[str, Any] = {
                        "strategy": strategy,
                        "stream": stream,
                        "scenario": scenario,
                    }
                    row |= _summary(group, extra, metric)
                    rows.append(row | _compared(group, reference, metric))
    ends = [f"{metric}_low", f"{metric}_high"]
    columns = [*GROUP, "n", *_moments(METRICS), *ends, *_COMPARED, *_moments(extra)]
    table: pd.DataFrame = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = holm(table["p"].to_list())
    return table


_COMPARED = (
    "baseline",
    "pairs",
    "diff_mean",
    "diff_low",
    "diff_high",
    "p",
    "p_holm",
)


def _moments(metrics: Sequence[str]) -> list[str]:
    return [f"{metric}_{part}" for metric in metrics for part in ("mean", "std")]


def _summary(group: pd.DataFrame, extra: Sequence[str], compared: str) -> dict[str, float]:
    row: dict[str, float] = {"n": len(group)}
    for metric in (*METRICS, *extra):
        values = group[metric].to_numpy(dtype=np.float64)
        row |= {f"{metric}_mean": float(values.mean()), f"{metric}_std": std(values)}
    row[f"{compared}_low"], row[f"{compared}_high"] = interval(group[compared].to_numpy())
    return row


def _compared(group: pd.DataFrame, reference: pd.DataFrame, metric: str) -> dict[str, Any]:
    """The paired comparison with the baseline; nothing for the baseline itself."""
    if set(group["strategy"]) == set(reference["strategy"]) or reference.empty:
        return {}
    pairs = group.merge(reference, on=["order", "seed"], suffixes=("", "_reference"))
    found = paired(pairs[metric].to_numpy(), pairs[f"{metric}_reference"].to_numpy())
    named = {"diff_mean": found.mean, "diff_low": found.low, "diff_high": found.high}
    label = reference["strategy"].iloc[0]
    return {"baseline": label, "pairs": found.pairs, **named, "p": found.p}

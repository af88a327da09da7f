"""The report on an experiment, made from its records alone."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import jinja2
import pandas as pd
import yaml

from clearn.compare import charts, text
from clearn.compare.experiment import METRICS_COMPARED, Baseline, read_experiment
from clearn.compare.overview import draw_overview
from clearn.compare.own import draw_own
from clearn.compare.table import (
    GROUP,
    FinishedRun,
    extra_metrics,
    read_runs,
    runs_table,
    summary_table,
)
from clearn.errors import UserError
from clearn.figures import draw_matrix
from clearn.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCENARIOS = {
    "task": "task-incremental: the task is given at test time",
    "class": "class-incremental: the task is not given at test time",
    "domain": "domain-incremental: all tasks share their labels",
}
_FIGURE = re.compile(r"(overview(-.+)?|(curves|costs|matrix|own-lines|own-table)-.+)\.(svg|png)")
"""Names of the figures that a report may have made."""

_PLAIN = " '=:/;,().-_*!?@[]|$~+<>"
"""Signs that may stand in an image's address between double quotes."""

_OVERVIEW = (
    "Left: accuracy on the tasks so far, mean and one standard deviation over runs. Right: mean "
    "accuracy in % on each task after learning each task."
)
_CURVES = (
    "Accuracy on the tasks so far, after each task: mean over runs, band of one standard deviation"
)
_COSTS = (
    "Accuracy after the last task against what is stored and against training time: "
    "mean over runs, bars of one standard deviation"
)


@dataclass(frozen=True)
class Results:
    """What the folder of an experiment's results holds.

    Attributes:
        folder: The folder.
        title: A heading.
        baseline: Label of the strategy to compare with, or by label whom to compare a strategy
            with; None when no experiment file names it.
        metric: What is compared.
        strategies: Labels of those with finished runs, in the experiment's order.
        streams: Likewise.
        runs: The finished runs.
        missing: Names of the runs that are not finished.
        command: What makes the results again.
    """

    folder: Path
    title: str
    baseline: Baseline | None
    metric: str
    strategies: list[str]
    streams: list[str]
    runs: list[FinishedRun]
    missing: list[str]
    command: str

    @cached_property
    def extra(self) -> list[str]:
        """Names of the metrics that strategies have of their own."""
        return extra_metrics(self.runs)

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per strategy, stream and scenario: see `summary_table`."""
        return summary_table(
            runs_table(self.runs), self.baseline, self.strategies, self.streams, self.metric
        )

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the runs say of where they were made: one value where all agree, else a list."""
        return _common([run.environment for run in self.runs])


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: Of its files, without suffix.
        caption: What it shows.
        svg: The figure.
        png: The same.
    """

    name: str
    caption: str
    svg: str
    png: bytes

    @property
    def uri(self) -> str:
        """The figure inside a page; an image of its own, so that the ids of two do not clash."""
        text = re.sub(r"""="([^"']*)\"""", r"='\1'", self.svg)
        return f"data:image/svg+xml,{quote(text, safe=_PLAIN)}"  # a quarter less than base64


class Line(NamedTuple):
    """A row of a table: a strategy, the colour it has in the figures, what stands beside it."""

    strategy: str
    colour: str
    values: list[str]


@dataclass(frozen=True)
class Section:
    """The part of the report about one stream in one scenario."""

    stream: str
    scenario: str
    note: str
    lines: list[Line]
    overview: Picture
    charts: list[Picture]
    own: list[Picture]
    matrices: list[Picture]

    @property
    def pictures(self) -> list[Picture]:
        """All of them."""
        return [self.overview, *self.charts, *self.own, *self.matrices]


def write_report(folder: Path) -> Path:
    """Write table.csv, table.md, figures/, environment.json and report.html into a results folder.

    Reads finished records and says how many are missing. Equal records give equal files; each is
    replaced as a whole, report.html last. Then figures of an earlier report that this one lacks
    are removed.

    Args:
        folder: Holds `runs/<strategy>/<stream>/order<k>-seed<s>` and, where `clearn compare` made
            it, the experiment file, which gives title, baseline and order.

    Returns:
        The path of report.html.

    Raises:
        UserError: No run is finished, or the folder cannot be written to.
    """
    results = read_results(folder)
    sections = _sections(results)
    figures: dict[str, str | bytes] = {}
    for section in sections:
        for picture in section.pictures:
            figures |= {f"{picture.name}.svg": picture.svg, f"{picture.name}.png": picture.png}
    for name, content in figures.items():
        write_atomic(folder / "figures" / name, content)
    write_atomic(folder / "environment.json", json.dumps(results.environment, indent=2) + "\n")
    write_atomic(
        folder / "table.csv",
        results.table.to_csv(index=False, float_format="%.9g", lineterminator="\n"),
    )
    write_atomic(folder / "table.md", _markdown(results, sections))
    write_atomic(folder / "report.html", _html(results, sections))
    for path in (folder / "figures").iterdir():
        if path.name not in figures and _FIGURE.fullmatch(path.name):
            path.unlink(missing_ok=True)  # of a strategy or stream that is there no more
    return folder / "report.html"


def read_results(folder: Path) -> Results:
    """Read the records in a results folder.

    Raises:
        UserError: No run is finished, or the experiment file in the folder is not valid.
    """
    runs, missing = read_runs(folder)
    title = folder.resolve().name
    baseline: Baseline | None = None
    metric = METRICS_COMPARED[0]
    strategies: Sequence[str] = ()
    streams: Sequence[str] = ()
    if (folder / "experiment.yaml").is_file():
        experiment = read_experiment(folder / "experiment.yaml", folder)
        title, baseline, metric = experiment.title, experiment.baseline, experiment.metric
        strategies, streams = experiment.strategies, experiment.streams
        wanted = [str(cell) for cell in experiment.cells]
        runs = [run for run in runs if str(run) in set(wanted)]
        missing = sorted(set(wanted) - {str(run) for run in runs}, key=wanted.index)
    if not runs:
        raise UserError(
            f"folder: {folder} holds no finished run (runs/<strategy>/<stream>/order<k>-seed<s>); "
            "name the results folder of an experiment"
        )
    return Results(
        folder=folder,
        title=title,
        baseline=baseline,
        metric=metric,
        strategies=_ordered({run.strategy for run in runs}, strategies),
        streams=_ordered({run.stream for run in runs}, streams),
        runs=runs,
        missing=missing,
        command=_command(folder),
    )


def _ordered(labels: Collection[str], first: Sequence[str]) -> list[str]:
    """Labels in the order of `first`, the others after them by name."""
    return [*(x for x in first if x in labels), *sorted(x for x in labels if x not in first)]


def _command(folder: Path) -> str:
    """What makes the results again, as it is typed beside `experiments` and `results`."""
    parts = folder.resolve().parts
    if "results" in parts[:-1]:
        split = len(parts) - 1 - parts[::-1].index("results")
        name = "/".join(parts[split + 1 :])
        if Path(*parts[:split], "experiments", f"{name}.yaml").is_file():
            return f"clearn compare experiments/{name}.yaml"
    if (folder / "experiment.yaml").is_file():
        return f"clearn compare {parts[-1]}/experiment.yaml --folder {parts[-1]}"
    return f"clearn report {parts[-1]}"


def _common(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for environment in environments for key in environment)
    merged: dict[str, Any] = {}
    for key in keys:
        values: list[Any] = []
        for value in (environment.get(key) for environment in environments):
            if value not in values:
                values.append(value)
        merged[key] = values[0] if len(values) == 1 else values
    return merged


# Sections


def _sections(results: Results) -> list[Section]:
    look = charts.looks(results.strategies)
    runs = defaultdict(list)
    for run in results.runs:
        runs[run.strategy, run.stream, run.scenario].append(run)
    tables = list(results.table.groupby(["stream", "scenario"], sort=False))
    sections = []
    for group, table in tables:
        stream, scenario = map(str, group)
        of = {name: runs[name, stream, scenario] for name in table["strategy"]}
        place = "-".join(filter(None, (stream, scenario)))
        overview = "overview" if len(tables) == 1 else f"overview-{place}"
        with charts.settings():
            sections.append(
                Section(
                    stream=stream,
                    scenario=scenario,
                    note=_SCENARIOS.get(scenario, ""),
                    lines=_lines(table, look, results),
                    overview=_picture(overview, _OVERVIEW, draw_overview(of, look)),
                    charts=[
                        _picture(f"curves-{place}", _CURVES, charts.draw_curves(of, look)),
                        _picture(f"costs-{place}", _COSTS, charts.draw_costs(table, look)),
                    ],
                    own=[
                        _picture(f"{drawn.name}-{place}", drawn.caption, drawn.figure)
                        for drawn in draw_own(of)
                    ],
                    matrices=_matrices(of, place),
                )
            )
    return sections


def _lines(table: pd.DataFrame, look: Mapping[str, charts.Look], results: Results) -> list[Line]:
    return [
        Line(
            row["strategy"],
            look[row["strategy"]].colour,
            text.values(row, results.baseline, results.extra, results.metric),
        )
        for row in table.to_dict("records")
    ]


def _matrices(runs: Mapping[str, Sequence[FinishedRun]], place: str) -> list[Picture]:
    return [
        _picture(
            f"matrix-{name}-{place}",
            f"{name}: accuracy matrix, mean of n = {len(same)}",
            draw_matrix(charts.mean_matrix(same), name),
        )
        for name, same in runs.items()
    ]


def _picture(name: str, caption: str, figure: Figure) -> Picture:
    return Picture(name, caption, charts.to_svg(figure), charts.to_png(figure))


# Texts


def _status(results: Results) -> str:
    """How many runs the report stands on, and which it lacks."""
    total = len(results.runs) + len(results.missing)
    status = f"{len(results.runs)} of {total} runs finished"
    return f"{status}; missing: {', '.join(results.missing)}" if results.missing else status


def _facts(results: Results) -> dict[str, str]:
    """Where the numbers come from, by name."""
    said = results.environment
    versions = said.get("versions", {})
    listed = versions if isinstance(versions, list) else [versions]
    return {
        "command": results.command,
        "runs": _status(results),
        "seeds": ", ".join(map(str, sorted({run.seed for run in results.runs}))),
        "class orders": str(len({run.order for run in results.runs})),
        "device": _said(said.get("device")),
        "threads per run": _said(said.get("threads")),
        "python": _said(said.get("python")),
        "versions": "; ".join(
            ", ".join(f"{name} {version}" for name, version in each.items())
            for each in filter(None, listed)
        ),
        "commit": _said(said.get("commit")),
    }


def _said(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_said, value))
    return "unknown" if value is None else str(value)


def _markdown(results: Results, sections: Sequence[Section]) -> str:
    head = [*GROUP, *text.headings(results.baseline, results.extra, results.metric)]
    rows = [
        [line.strategy, section.stream, section.scenario, *line.values]
        for section in sections
        for line in section.lines
    ]
    facts = [f"* {name}: {text.escape(value)}" for name, value in _facts(results).items()]
    notes = text.notes(results.baseline, results.extra, results.metric)
    parts = [
        f"# {text.escape(results.title)}",
        text.markdown_table(head, rows, labels=len(GROUP)).rstrip(),
        *map(text.escape, notes),
        "\n".join(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _html(results: Results, sections: Sequence[Section]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clearn.compare"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        results=results,
        sections=sections,
        headings=text.headings(results.baseline, results.extra, results.metric),
        notes=text.notes(results.baseline, results.extra, results.metric),
        facts=_facts(results),
        runs=[(run, text.run_values(run.metrics, results.extra)) for run in results.runs],
        run_headings=text.run_headings(results.extra),
        configs=_configs(results.runs),
    )


def _configs(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """The config of the first run of each strategy on each stream, as YAML."""
    configs: dict[str, str] = {}
    for run in runs:
        configs.setdefault(
            f"{run.strategy} on {run.stream}", yaml.safe_dump(run.config, sort_keys=False)
        )
    return configs

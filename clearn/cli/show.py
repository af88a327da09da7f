"""Results and names, as tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from clearn.run import Result


def plain_table(*headers: str, **options: Any) -> Table:
    """A table without a frame, which reads the same in a file as in a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold", **options)
    for header in headers:
        table.add_column(header)
    return table


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or without a terminal as wide as it gets."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000
    with console.capture() as text:
        console.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


def print_result(result: Result) -> None:
    """Print the accuracy matrix and the summary of a finished run."""
    from clearn.compare.text import heading, own_value, percent, seconds, size

    tasks = range(len(result.matrix))
    table = plain_table("accuracy in %", *(f"task {task}" for task in tasks))
    for task, row in zip(tasks, result.matrix, strict=True):
        if not all(math.isnan(value) for value in row):
            table.add_row(f"after task {task}", *map(percent, row))
    metrics = result.metrics
    print_table(table)
    print(
        f"ACC {percent(metrics['acc'])} %   forgetting {percent(metrics['forgetting'])}   "
        f"stored {size(metrics['bytes'])}   training {seconds(metrics['train_seconds'])}   "
        f"evaluation {seconds(metrics['eval_seconds'])}"
    )
    own = []
    for name, value in result.extra.items():
        label = heading(name)
        unit = " %" if label.endswith(" %") else ""
        own.append(f"{label.removesuffix(unit)} {own_value(name, value)}{unit}")
    if own:
        print("   ".join(own))
    if result.folder is not None:
        print(f"record: {result.folder}")


_REPORT_ONLY = {"95 % interval", "BWT", "FWT"}  # a terminal has no room for them


def print_comparison(folder: Path) -> None:
    """Print the main columns of an experiment's table, stream by stream, and where the rest is."""
    from clearn.compare.report import read_results
    from clearn.compare.text import headings, values

    results = read_results(folder)
    heads = headings(results.baseline, metric=results.metric)
    for group, rows in results.table.groupby(["stream", "scenario"], sort=False):
        print(", ".join(filter(None, map(str, group))))
        table = plain_table("strategy", *(head for head in heads if head not in _REPORT_ONLY))
        for row in rows.to_dict("records"):
            cells = zip(heads, values(row, results.baseline, metric=results.metric), strict=True)
            shown = (cell for head, cell in cells if head not in _REPORT_ONLY)
            table.add_row(row["strategy"], *shown)
        print_table(table)
        print()
    print(f"report: {folder / 'report.html'}")


_OTHERS = {
    "strategies": "One of your own is named by its class path: package.module:Class.",
    "streams": "Other data: Stream.from_arrays, from_dataset and from_avalanche, in Python.",
    "nets": "torchvision/<name> and timm/<name> are models of theirs, as torchvision/resnet18.",
}


def print_names(kind: str) -> None:
    """Print what can be named, with the first line of each docstring and where it is from."""
    table = plain_table("name", "what it is", "from")
    for name, (function, package) in sorted(_named(kind).items()):
        doc = (function.__doc__ or "").strip().partition("\n")[0]
        table.add_row(name, doc.rstrip("."), package)
    print_table(table)
    print(f"\n{_OTHERS[kind]}")
    print(f"Packages that are installed add theirs by entry points of the group clearn.{kind}.")


def _named(kind: str) -> dict[str, tuple[Any, str]]:
    """Class or function and distribution of each name, those of other packages included."""
    from clearn.nets import NETS
    from clearn.streams import STREAMS

    named: dict[str, tuple[Any, str]] = {}
    for point in entry_points(group=f"clearn.{kind}"):
        package = point.dist.name if point.dist else ""
        try:
            named[point.name] = (point.load(), package)
        except Exception as error:  # another package's fault must not hide the rest
            print(f"clearn: {package}: {point.name} cannot be imported: {error}", file=sys.stderr)
    ours: dict[str, Mapping[str, Any]] = {"streams": STREAMS, "nets": NETS}
    return named | {name: (value, "clearn") for name, value in ours.get(kind, {}).items()}

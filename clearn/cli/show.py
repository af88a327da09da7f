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
    tasks = len(result.matrix)
    table = plain_table("accuracy after", *(f"task {j}" for j in range(tasks)))
    for index, row in enumerate(result.matrix):
        if not all(math.isnan(value) for value in row):
            table.add_row(f"task {index}", *map(_percent, row))
    metrics = result.metrics
    print_table(table)
    print(
        f"acc {_percent(metrics['acc'])}   forgetting {_percent(metrics['forgetting'])}   "
        f"bytes {int(metrics['bytes']):,}   training {metrics['train_seconds']:.1f} s   "
        f"evaluation {metrics['eval_seconds']:.1f} s"
    )
    if result.folder is not None:
        print(f"record: {result.folder}")


def print_comparison(folder: Path) -> None:
    """Print the table of an experiment's results, and where its report is."""
    from clearn.compare.report import read_results
    from clearn.compare.table import GROUP
    from clearn.compare.text import headings, values

    results = read_results(folder)
    table = plain_table(*GROUP, *headings(results.baseline))
    for row in results.table.to_dict("records"):
        table.add_row(*(row[name] for name in GROUP), *values(row, results.baseline))
    print_table(table)
    print(f"report: {folder / 'report.html'}")


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def print_names(kind: str) -> None:
    """Print what can be named, with the first line of each docstring and where it is from."""
    table = plain_table("name", "what it is", "from")
    for name, (function, package) in sorted(_named(kind).items()):
        doc = (function.__doc__ or "").strip().partition("\n")[0]
        table.add_row(name, doc.rstrip("."), package)
    if kind == "nets":
        for library in ("timm", "torchvision"):
            table.add_row(f"{library}/<name>", f"A classification model of {library}", library)
    print_table(table)


def _named(kind: str) -> dict[str, tuple[Any, str]]:
    """Class or function and distribution of each name, those of other packages included."""
    from clearn.nets import NETS
    from clearn.streams import STREAMS

    ours: dict[str, Mapping[str, Any]] = {"streams": STREAMS, "nets": NETS}
    named = {name: (value, "clearn") for name, value in ours.get(kind, {}).items()}
    for point in entry_points(group=f"clearn.{kind}"):
        package = point.dist.name if point.dist else ""
        try:
            named[point.name] = (point.load(), package)
        except Exception as error:  # another package's fault must not hide the rest
            print(f"clearn: {package}: {point.name} cannot be imported: {error}", file=sys.stderr)
    return named

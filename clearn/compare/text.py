"""Numbers as people read them, and table.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clearn.compare.experiment import Baseline

Row = Mapping[Any, Any]
"""A row of `summary_table`."""

NONE = "-"
"""What stands for a number that is not defined."""

NOTES = (
    "Mean ± standard deviation (n - 1) over n runs. ACC: mean accuracy on all tasks after the "
    "last. Brackets: 95 % interval of the mean (Student's t).",
    "Forgetting: mean over tasks of best minus last accuracy. BWT, FWT: backward and forward "
    "transfer. All in percentage points.",
    "Stored: all that is kept after the last task (parameters, buffers, masks, examples). "
    "Time: seconds of training alone.",
)


_CAP_NOTE = (
    "CAP: the weights that some task uses and the masks of all tasks, in % of the float32 weights "
    "that can be masked; heads and what else is kept per task are not in it. Masks count as "
    "published (paper, 0.22 bits per weight and task), by their entropy, as coded in an archive "
    "(real), or with 1 bit per weight and task (raw)."
)


_NAMES = {"acc": "ACC", "avg_incremental_acc": "AIA"}
_AIA_NOTE = "AIA: mean over i of the accuracy after task i on all test examples so far."


def notes(baseline: Baseline | None, extra: Sequence[str] = (), metric: str = "acc") -> list[str]:
    """What the columns mean, and how the comparison with the baseline was made."""
    averaged = [] if metric == "acc" else [_AIA_NOTE]
    capacity = [_CAP_NOTE] if any(name.startswith("cap_") for name in extra) else []
    return [*NOTES, *averaged, *capacity, compared(baseline, metric)]


def headings(
    baseline: Baseline | None, extra: Sequence[str] = (), metric: str = "acc"
) -> list[str]:
    """The columns of a table for people.

    Args:
        baseline: What the others are compared with, or what each is, or None.
        extra: Names of metrics that strategies have of their own.
        metric: What is compared, one of `METRICS_COMPARED`.
    """
    compared = [] if baseline is None else [_difference(baseline, metric), "p"]
    if isinstance(baseline, dict):
        compared.insert(0, "baseline")
    final = [] if metric == "acc" else ["ACC %"]
    first = ["n", f"{_NAMES[metric]} %", "95 % interval"]
    return [*first, *compared, *final, *_MORE, *map(heading, extra)]


_MORE = ("forgetting", "BWT", "FWT", "stored", "time")


def values(
    row: Row, baseline: Baseline | None, extra: Sequence[str] = (), metric: str = "acc"
) -> list[str]:
    """One row under `headings`."""
    compared = []
    if baseline is not None:
        difference = [row[f"diff_{name}"] for name in ("low", "high")]
        text = f"{percent(row['diff_mean'], sign=True)} {_range(difference, sign=True)}"
        compared = [text.removesuffix(f" {NONE}"), probability(row["p_holm"])]
        if isinstance(baseline, dict):
            compared.insert(0, row["baseline"] if isinstance(row["baseline"], str) else NONE)
    return [
        str(int(row["n"])),
        _spread(row, metric),
        _range([row[f"{metric}_low"], row[f"{metric}_high"]]),
        *compared,
        *([] if metric == "acc" else [_spread(row, "acc")]),
        _spread(row, "forgetting"),
        _spread(row, "bwt", sign=True),
        _spread(row, "fwt", sign=True),
        size(row["bytes_mean"]),
        seconds(row["seconds_mean"]),
        *(own_value(name, row[f"{name}_mean"], row[f"{name}_std"]) for name in extra),
    ]


def run_headings(extra: Sequence[str] = ()) -> list[str]:
    """The columns of a table of single runs."""
    return ["ACC %", *_MORE, *map(heading, extra)]


def run_values(metrics: Mapping[str, float], extra: Sequence[str] = ()) -> list[str]:
    """The numbers of one run under `run_headings`."""
    return [
        percent(metrics["acc"]),
        percent(metrics["forgetting"]),
        percent(metrics["bwt"], sign=True),
        percent(metrics["fwt"], sign=True),
        size(metrics["bytes"]),
        seconds(metrics["seconds"]),
        *(own_value(name, metrics.get(name, math.nan)) for name in extra),
    ]


def heading(name: str) -> str:
    """The heading of a strategy's own metric.

    >>> heading("cap_paper"), heading("live_acc"), heading("bytes_per_task")
    ('CAP paper %', 'live acc %', 'bytes per task')
    """
    words = name.replace("_", " ")
    return f"{words.replace('cap ', 'CAP ')} %" if _is_share(name) else words


def own_value(name: str, value: float, spread: float = math.nan) -> str:
    """A strategy's own metric, in the unit that its name tells, with its deviation if there is one.

    >>> own_value("cap_paper", 0.4012, 0.001), own_value("bytes_per_task", 4040)
    ('40.1 ± 0.1', '4.04 kB')
    """
    if _is_share(name):
        return _with_spread(value, spread)
    if name.startswith("bytes"):
        return size(value)
    text = NONE if math.isnan(value) else f"{value:.4g}"
    return text if math.isnan(spread) else f"{text} ± {spread:.2g}"


def _is_share(name: str) -> bool:
    return name.startswith("cap_") or name.endswith("_acc") or name == "sparsity"


def percent(share: float, *, sign: bool = False) -> str:
    """A share in [-1, 1] in per cent, with one decimal.

    >>> percent(0.12345), percent(0.5, sign=True), percent(float("nan"))
    ('12.3', '+50.0', '-')
    """
    if math.isnan(share):
        return NONE
    rounded = round(100 * share, 1) + 0.0  # no -0.0
    return f"{rounded:+.1f}" if sign else f"{rounded:.1f}"


def probability(p: float) -> str:
    """A p-value with as many digits as mean something.

    >>> probability(0.5), probability(0.0123), probability(1e-7)
    ('0.50', '0.012', '< 0.001')
    """
    if math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


_PREFIXES = ("", "k", "M", "G", "T", "P")


def size(count: float) -> str:
    """Bytes with an SI prefix.

    >>> size(999), size(12_345), size(2.5e9)
    ('999 B', '12.3 kB', '2.50 GB')
    """
    if math.isnan(count):
        return NONE
    power = 0
    while count >= 999.5 and power < len(_PREFIXES) - 1:
        count, power = count / 1000, power + 1
    number = f"{count:.0f}" if power == 0 else f"{count:#.3g}".rstrip(".")
    return f"{number} {_PREFIXES[power]}B"


def seconds(duration: float) -> str:
    """A duration; minutes and hours where they read better.

    >>> seconds(0.1234), seconds(75.3), seconds(4000)
    ('0.12 s', '1:15 min', '1:06 h')
    """
    if math.isnan(duration):
        return NONE
    if round(duration, 1) < 60:
        return f"{duration:.2f} s" if round(duration, 2) < 10 else f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _spread(row: Row, metric: str, *, sign: bool = False) -> str:
    return _with_spread(row[f"{metric}_mean"], row[f"{metric}_std"], sign=sign)


def _with_spread(mean: float, spread: float, *, sign: bool = False) -> str:
    text = percent(mean, sign=sign)
    return text if math.isnan(spread) else f"{text} ± {percent(spread)}"


def _range(ends: Sequence[float], *, sign: bool = False) -> str:
    if any(math.isnan(end) for end in ends):
        return NONE
    return f"[{', '.join(percent(end, sign=sign) for end in ends)}]"


def compared(baseline: Baseline | None, metric: str = "acc") -> str:
    """How the comparison with the baseline was made."""
    if baseline is None:
        return "No baseline is named, so no strategy is tested against another."
    return (
        f"{_difference(baseline, metric)}: mean difference over runs with the same class order and "
        "seed, with its 95 % interval; p: two-sided paired t-test, Holm-corrected for all tests of "
        "the experiment."
    )


def _difference(baseline: Baseline, metric: str) -> str:
    return f"{_NAMES[metric]} - {'baseline' if isinstance(baseline, dict) else baseline}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], labels: int) -> str:
    """A Markdown table whose first `labels` columns are text and the others numbers."""
    line = ["---"] * labels + ["---:"] * (len(head) - labels)
    escaped = [[*map(escape, row[:labels]), *row[labels:]] for row in rows]
    table = [[escape(cell) for cell in head], line, *escaped]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    for sign in "\\`*_<|[":
        text = text.replace(sign, f"\\{sign}")
    return text

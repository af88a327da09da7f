"""What a strategy shows of its own, task by task: lines or a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np

from clearn.errors import UserError

Chart: TypeAlias = Mapping[str, Sequence[float]] | Sequence[Sequence[float]]
"""Lines by their labels, a number per task each; or a table `[T, T]`, a row per current task and a
column per earlier task. NaN where there is no number."""


def plain_charts(charts: Any, tasks: int) -> dict[str, Chart]:
    """The charts of a strategy as dicts, lists and floats, which a record can keep.

    Args:
        charts: What `Strategy.charts` returns; arrays and CPU tensors stand for their numbers.
        tasks: T, the number of tasks of the stream.

    Raises:
        UserError: They are not what `Strategy.charts` may return.
    """
    if not isinstance(charts, Mapping):
        raise UserError(f"charts: a {type(charts).__name__} is not valid: expected a dict by name")
    return {_name("charts", name): _chart(name, chart, tasks) for name, chart in charts.items()}


def _chart(name: str, chart: Any, tasks: int) -> Chart:
    field = f"charts[{name!r}]"
    if not isinstance(chart, Mapping):
        each = "a table with a row and a column per task, or a dict of lines by label"
        return cast("Chart", _numbers(field, chart, (tasks, tasks), each))
    if not chart:
        raise UserError(f"{field}: it has no lines; give it one, or leave the chart out")
    return {
        _name(field, label): cast(
            "list[float]", _numbers(f"{field}[{label!r}]", line, (tasks,), "a number per task")
        )
        for label, line in chart.items()
    }


def _name(field: str, name: Any) -> str:
    if not (isinstance(name, str) and name.strip()):
        raise UserError(f"{field}: the name {name!r} is not valid: expected some text")
    return name


def _numbers(field: str, values: Any, shape: tuple[int, ...], expected: str) -> Any:
    """Nested lists of floats, of that shape, without infinities."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # each by some kind of value
        raise UserError(f"{field}: not numbers ({error}); expected {expected}") from error
    if array.shape != shape:
        raise UserError(
            f"{field}: the shape {list(array.shape)} is not valid: expected {list(shape)}, "
            f"{expected}, with NaN where there is none"
        )
    if np.isinf(array).any():
        raise UserError(
            f"{field}: it holds an infinity; expected finite numbers, and NaN where there is none"
        )
    return array.tolist()

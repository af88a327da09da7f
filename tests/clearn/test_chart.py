"""Charts of strategies' own: what is taken and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from clearn.chart import plain_charts
from clearn.errors import UserError

NAN = math.nan


def test_arrays_and_tensors_become_lists() -> None:
    lines = {"list": [1, NAN, 2.5], "array": np.arange(3, dtype=np.float32), "tuple": (0, 1, 2)}
    table = torch.eye(3, dtype=torch.int64)
    charts = plain_charts({"weights": lines, "similarity": table}, 3)
    assert repr(charts) == repr(
        {
            "weights": {
                "list": [1.0, NAN, 2.5],
                "array": [0.0, 1.0, 2.0],
                "tuple": [0.0, 1.0, 2.0],
            },
            "similarity": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        }
    )


def test_one_task_is_enough() -> None:
    charts = {"line": {"a": [NAN]}, "table": [[1.0]]}
    assert repr(plain_charts(charts, 1)) == repr(charts)
    assert plain_charts({}, 1) == {}


@pytest.mark.parametrize(
    ("charts", "problem"),
    [
        ([[0.0] * 2] * 2, r"charts: a list is not valid: expected a dict by name"),
        ({1: [[0.0] * 2] * 2}, r"charts: the name 1 is not valid: expected some text"),
        ({" ": [[0.0] * 2] * 2}, r"charts: the name ' ' is not valid"),
        ({"w": {}}, r"charts\['w'\]: it has no lines; .*leave the chart out"),
        ({"w": {("a",): [0.0, 0.0]}}, r"charts\['w'\]: the name \('a',\) is not valid"),
        ({"w": {"a": [0.0]}}, r"charts\['w'\]\['a'\]: the shape \[1\] .*expected \[2\], a number"),
        ({"w": {"a": [[0.0, 0.0]]}}, r"\['a'\]: the shape \[1, 2\] is not valid: expected \[2\]"),
        ({"w": {"a": [0.0, math.inf]}}, r"\['a'\]: it holds an infinity; expected finite numbers"),
        ({"w": {"a": [0.0, "x"]}}, r"\['a'\]: not numbers .*expected a number per task"),
        (
            {"w": {"a": torch.ones(2, requires_grad=True)}},
            r"\['a'\]: not numbers \(.*requires grad",
        ),
        ({"w": {"a": [0.0, 1j]}}, r"\['a'\]: not numbers"),
        ({"w": [0.0, 0.0]}, r"charts\['w'\]: the shape \[2\] .*expected \[2, 2\], a table with a"),
        ({"w": [[0.0, 0.0]]}, r"the shape \[1, 2\] is not valid: .*or a dict of lines by label"),
        ({"w": [[0.0], [0.0, 0.0]]}, r"charts\['w'\]: not numbers .*expected a table"),
        ({"w": [[0.0, 0.0], [-math.inf, 0.0]]}, r"charts\['w'\]: it holds an infinity"),
        ({"w": None}, r"charts\['w'\]: the shape \[\] is not valid"),
    ],
)
def test_what_is_no_chart_is_refused(charts: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        plain_charts(charts, 2)

"""What tells two states apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from clearn.laboratory import differences

NAN = math.nan


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), True),
        (torch.tensor([1.0, NAN]), torch.tensor([NAN, 1.0]), False),
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, 0.0]), False),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.inf]), True),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), False),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), False),
        (torch.tensor([True]), torch.tensor([False]), False),
        (torch.zeros(2), None, False),
        (0.0, torch.zeros(2), False),
        (torch.empty(0, 3), torch.empty(0, 3), True),
        (NAN, float("nan"), True),
        (1, 1.0, False),
    ],
)
def test_differences(a: Any, b: Any, same: bool) -> None:
    assert differences({"x": [a]}, {"x": [b]}) == ([] if same else ["x"])

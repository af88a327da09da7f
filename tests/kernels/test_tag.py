"""The operator of TAG: the contract of torch.library, and tensors that know different tasks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.library import opcheck

from clearn.kernels.tag import tag_step_
from tests.kernels.tag_inputs import NUMBERS, TASKS, inputs


@pytest.mark.parametrize("by_moment", [False, True])
@pytest.mark.parametrize("tasks", [TASKS, [0] * 5, [2] * 5])
def test_one_step(tasks: list[int], by_moment: bool) -> None:
    lists = inputs(torch.float64, tasks)
    kept = [[tensor.clone() for tensor in tensors] for tensors in lists]
    tag_step_(*lists, **NUMBERS, by_moment=by_moment)
    for index, (param, grad, moment, variance, directions, past, total) in enumerate(
        zip(*kept, strict=True)
    ):
        moment = 0.9 * moment + 0.1 * grad
        variance = 0.99 * variance + 0.01 * grad**2
        root, t = variance, len(past)
        if t:
            cosines = (directions * moment).view(t, -1).sum(1) / max(float(moment.norm()), 1e-300)
            alphas = torch.exp(-2 * cosines)
            root = math.exp(-2) * variance + (alphas.view(t, *[1] * moment.ndim) * past).sum(0)
            total = total + alphas
        param = param - 0.1 * (moment if by_moment else grad) / (root.sqrt() + 1e-8)
        expected = [param, grad, moment, variance, directions, past, total]
        for tensors, right in zip(lists, expected, strict=True):
            torch.testing.assert_close(tensors[index], right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("knowledge", [torch.float32, torch.bfloat16])
def test_directions_of_a_smaller_type(knowledge: torch.dtype) -> None:
    """As if they were of the parameters' type; long enough to be widened in several pieces."""
    n = 150_001
    grad = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.stack([grad, -grad]) / grad.norm()
    rows[0, n // 2 :] = 0
    results = []
    for directions in (rows.to(knowledge), rows.to(knowledge).double()):
        zeros = [[torch.zeros(n, dtype=torch.float64)] for _ in range(3)]
        param, moment, variance = zeros
        past, total = [rows.square()], [torch.zeros(2, dtype=torch.float64)]
        lists = [param, [grad], moment, variance, [directions], past, total]
        tag_step_(*lists, **NUMBERS, by_moment=False)
        results.append((total[0], param[0]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    expected = torch.tensor([-2 * 0.5**0.5 * 0.5**0.5, 2.0], dtype=torch.float64).exp()
    torch.testing.assert_close(results[0][0], expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("tasks", [TASKS, [0] * 5])
@pytest.mark.parametrize("knowledge", [torch.float32, torch.bfloat16])
def test_contract_of_torch_library(tasks: list[int], knowledge: torch.dtype) -> None:
    lists = inputs(torch.float32, tasks)
    lists[4] = [rows.to(knowledge) for rows in lists[4]]
    opcheck(torch.ops.clearn.tag_step_.default, (*lists, *NUMBERS.values(), True))


@pytest.mark.parametrize(
    ("index", "name"),
    list(enumerate(["grads", "moments", "variances", "directions", "past", "totals"], 1)),
)
def test_a_list_that_is_too_short(index: int, name: str) -> None:
    lists: list[Any] = inputs(torch.float32, TASKS)
    lists[index] = lists[index][1:]
    with pytest.raises(ValueError, match=f"{name}: 4 for 5 params: expected one each"):
        tag_step_(*lists, **NUMBERS, by_moment=False)


def test_no_tensors() -> None:
    with pytest.raises(ValueError, match="grads: 0 for 0 params"):
        tag_step_(*[[]] * 7, **NUMBERS, by_moment=False)

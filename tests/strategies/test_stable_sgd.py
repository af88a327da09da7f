"""Stable SGD: the learning rate of each task."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from clearn.errors import UserError
from clearn.nets import build_net
from clearn.run import Run, Training
from clearn.strategies import StableSGD
from clearn.stream import Task
from clearn.testing import check_strategy
from tests.strategies.by_hand import batches


class Spy(StableSGD):
    rates: tuple[float, ...] = ()

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        optimizer = self.optimizers()
        self.rates += (optimizer.param_groups[0]["lr"],)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("lr", "gamma", "expected"),
    [
        (0.1, 0.9, (0.09, 0.081, 0.0729)),
        (0.1, 1.0, (0.1, 0.1, 0.1)),
        (0.1, 0.02, (2e-3, 5e-5, 5e-5)),  # the second would be 4e-5
        (1e-6, 0.5, (5e-5, 5e-5, 5e-5)),
    ],
)
def test_rates(lr: float, gamma: float, expected: tuple[float, ...], tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task")
    strategy = Spy(build_net("MLP", stream, seed=0), gamma=gamma, lr=lr)
    Run(strategy, stream, training=Training(epochs=1, batch_size=16)).fit()
    assert strategy.rates == pytest.approx(expected, rel=1e-12)


def test_equals_a_loop_written_by_hand(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    net = build_net("MLP", stream, head="single", seed=0, hidden=(7,))
    plain = copy.deepcopy(net)
    Run(
        StableSGD(net, gamma=0.5, lr=0.2),
        stream,
        seed=2,
        training=Training(epochs=2, batch_size=7),
    ).fit()
    for task, lr in zip(stream, (0.1, 0.05, 0.025), strict=True):
        optimizer = torch.optim.SGD(plain.parameters(), lr=lr)
        for epoch in range(2):
            for batch in batches(task, seed=2, epoch=epoch, batch_size=7):
                optimizer.zero_grad()
                cross_entropy(plain(batch.x), batch.y).backward()
                optimizer.step()
    for name, value in plain.named_parameters():
        assert torch.equal(net.get_parameter(name), value)


def test_contract() -> None:
    check_strategy(StableSGD, scenarios=["task"], heads=["single"])


@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.5, math.nan, math.inf])
def test_gamma_is_checked(gamma: float, tiny_stream: Any) -> None:
    net = build_net("MLP", tiny_stream())
    with pytest.raises(UserError, match=rf"^strategy\.gamma: {gamma} is not valid: expected 0 <"):
        StableSGD(net, gamma=gamma)
    with pytest.raises(UserError, match=r"^strategy\.lr: 0 is not valid"):
        StableSGD(net, lr=0)

"""A tiny stream and ways to run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearn.nets import Net, SingleHead
from clearn.strategies import Naive
from clearn.strategy import Strategy
from clearn.stream import Stream

MakeStream = Callable[..., Stream]
MakeStrategy = Callable[..., Strategy]


class Backbone(nn.Module):
    """With dropout, so that the global generator matters."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 16
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.fixture
def make_stream() -> Callable[..., Stream]:
    def make(num_tasks: int = 3, per_class: int = 21, **options: Any) -> Stream:
        generator = torch.Generator().manual_seed(7)
        classes = 2 * num_tasks
        centres = 3 * torch.randn(classes, 12, generator=generator)

        def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            y = torch.arange(classes).repeat_interleave(count)
            return centres[y] + torch.randn(len(y), 12, generator=generator), y

        return Stream.from_arrays(*draw(per_class), *draw(5), num_tasks=num_tasks, **options)

    return make


@pytest.fixture
def make_strategy() -> Callable[..., Strategy]:
    def make(kind: type[Strategy] = Naive, **options: Any) -> Strategy:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            net = Net(Backbone(), SingleHead(16, 6))
        return kind(net, **options)

    return make


def weights(strategy: Strategy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in strategy.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])), name

"""Fine-tuning: the contract and the loss. A test of the run loop compares it to a plain loop."""

from __future__ import annotations

from typing import Any

import torch

from clearn.nets import build_net
from clearn.run import Run, Training
from clearn.seeding import Generators
from clearn.strategies import Naive
from clearn.testing import check_strategy


def test_contract() -> None:
    check_strategy(Naive)


def test_forgets_in_the_class_scenario(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    result = Run(
        Naive(build_net("MLP", stream, seed=0)), stream, training=Training(epochs=10, batch_size=8)
    ).fit()
    assert result.metrics["learning_acc"] > 0.9
    assert result.metrics["forgetting"] > 0.8


def test_loss_is_the_mean_cross_entropy(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy = Naive(build_net("MLP", stream, seed=0))
    strategy.prepare(stream, Generators(0))
    batch = next(stream[0].train.batches(7))
    p = strategy.net(batch.x).softmax(dim=1)
    slow = -sum(p[i, y].log() for i, y in enumerate(batch.y.tolist())) / 7
    torch.testing.assert_close(strategy.loss(batch), slow)

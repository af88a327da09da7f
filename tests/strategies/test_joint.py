"""Joint training sees everything so far, and pays for it in bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from clearn.batch import Batch
from clearn.nets import build_net
from clearn.run import Run, Training
from clearn.strategies import ER, Joint, Naive
from clearn.testing import check_strategy


def test_contract() -> None:
    check_strategy(Joint)


class Counting(Joint):
    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.presented: list[tuple[int, int]] = []

    def loss(self, batch: Batch) -> torch.Tensor:
        ids = torch.as_tensor(batch.task_id).expand(len(batch))
        self.presented += [(self.task.index, int(i)) for i in ids]
        return super().loss(batch)


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_each_epoch_presents_all_examples_so_far(scenario: str, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario=scenario)
    strategy = Counting(build_net("MLP", stream, seed=0))
    Run(strategy, stream, training=Training(epochs=2, batch_size=10)).fit()
    sizes = [len(task.train) for task in stream]
    expected = {(now, of): 2 * sizes[of] for now in range(3) for of in range(now + 1)}
    assert Counter(strategy.presented) == expected


def test_bytes_grow_with_the_tasks(tiny_stream: Any) -> None:
    stream = tiny_stream()
    result = Run(Joint(build_net("MLP", stream, seed=0)), stream).fit()
    one = 5 * 4 + 8 + 8  # five floats, a label, a task id
    seen = [sum(len(task.train) for task in stream.tasks[: i + 1]) for i in range(3)]
    assert [stored["buffer"] for stored in result.bytes] == [one * count for count in seen]
    assert len({stored["parameters"] for stored in result.bytes}) == 1


def test_joint_beats_er_beats_naive_on_real_digits() -> None:
    from clearn.streams import build_stream

    stream = build_stream("SplitDigits", scenario="class")
    acc = {}
    for kind in (Joint, ER, Naive):
        net = build_net("MLP", stream, seed=0, hidden=(64,))
        run = Run(kind(net), stream, training=Training(epochs=3, batch_size=32))
        acc[kind] = run.fit().metrics["acc"]
    assert acc[Joint] > acc[ER] + 0.1 > acc[Naive] + 0.3

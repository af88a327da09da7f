"""Strategies that each break the contract in one way, and what the conformance suite says of it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.chart import Chart
from clearn.examples import Examples
from clearn.seeding import Generators
from clearn.strategies import Naive
from clearn.stream import Stream, Task


class TrainingStep(Naive):
    def training_step(self, chunk: Any, batch_idx: int) -> Any:
        return super().training_step(chunk, batch_idx)


class NeverLearns(Naive):
    def loss(self, batch: Batch) -> Tensor:
        return 0 * super().loss(batch)


class ForgetsTheNet(Naive):
    """No row for new classes in a growing head."""

    def begin_task(self, task: Task) -> None:
        pass


class PythonRandom(Naive):
    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) * (0.5 + random.random())


class NumpyRandom(Naive):
    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) * (0.5 + np.random.rand())


class Threads(Naive):
    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        torch.set_num_threads(torch.get_num_threads() + 1)


class NoGrad(Naive):
    def end_task(self, task: Task) -> None:
        torch.set_grad_enabled(False)


class SeedsInConstructor(Naive):
    def __init__(self, net: Any, **options: Any) -> None:
        super().__init__(net, **options)
        torch.manual_seed(42)


class SeedsInRun(Naive):
    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        torch.manual_seed(42)


class Clock(Naive):
    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) * (1 + 1e-3 * (time.perf_counter_ns() % 1000))


class ClassState(Naive):
    weights: list[float] = []  # noqa: RUF012 - the fault

    def loss(self, batch: Batch) -> Tensor:
        self.weights.append(1.0)
        return super().loss(batch) / len(self.weights) ** 0.1


class CountsChunks(Naive):
    chunks = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.chunks += 1

    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) / (1 + self.chunks)


class CountsFits(Naive):
    fits = 0

    def on_fit_start(self) -> None:
        self.fits += 1

    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) / self.fits


class StatefulPredict(Naive):
    def __init__(self, net: Any, **options: Any) -> None:
        super().__init__(net, **options)
        self.register_buffer("calls", torch.zeros(()))

    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        self.calls += 1
        return super().predict(x, task_id)


class DrawingPredict(Naive):
    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        noise = torch.rand(x.shape, generator=self.generators.get("noise"))
        return super().predict(x + 1e-3 * noise, task_id)


class BatchPredict(Naive):
    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        return super().predict(x - x.mean(dim=0), task_id)


class NarrowPredict(Naive):
    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        return torch.cat([super().predict(x, task_id), x[:, :1] - 1e6], dim=1)


class Peeks(Naive):
    """Trains on everything from the start."""

    def loss(self, batch: Batch) -> Tensor:
        later = next(self.stream[2].train.batches(8))
        return super().loss(batch) + 0.1 * cross_entropy(self.net(later.x), later.y)


class LosesState(Naive):
    """A running mean that no checkpoint holds."""

    mean: Tensor | float = 0.0

    def loss(self, batch: Batch) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * batch.x.mean().detach()
        return super().loss(batch) * (1 + self.mean)


class LosesItAtTheBoundary(Naive):
    """Remembers the first net; right inside the first task, lost afterwards."""

    def end_task(self, task: Task) -> None:
        self.anchor = [p.detach().clone() for p in self.net.parameters()]

    def loss(self, batch: Batch) -> Tensor:
        loss = super().loss(batch)
        anchors = getattr(self, "anchor", list(self.net.parameters()))
        for parameter, anchor in zip(self.net.parameters(), anchors, strict=True):
            loss = loss + 0.01 * (parameter - anchor).square().sum()
        return loss


class LazyBuffer(Naive):
    def end_task(self, task: Task) -> None:
        self.register_buffer("kept", torch.zeros(3))


class Unpicklable(Naive):
    def get_extra_state(self) -> Any:
        return {"path": Path("x")}

    def set_extra_state(self, state: Any) -> None:
        pass


class EvalAfterBegin(Naive):
    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.eval()


class EvalAfterEnd(Naive):
    def end_task(self, task: Task) -> None:
        self.net.eval()


class FloatBytes(Naive):
    def bytes_stored(self) -> Any:
        return super().bytes_stored() | {"masks": 12 / 8}


class Counts(Naive):
    """Shows numbers of its own, and keeps what they are made from."""

    steps: Tensor

    def prepare(self, stream: Stream, generators: Generators) -> None:
        super().prepare(stream, generators)
        self.register_buffer("steps", torch.zeros(len(stream)))

    def step(self, batch: Batch) -> Tensor:
        self.steps[self.task.index] += 1
        return super().step(batch)

    def charts(self) -> dict[str, Chart]:
        steps = self.steps.tolist()
        table = [
            [math.nan if j >= i else a - b for j, b in enumerate(steps)]
            for i, a in enumerate(steps)
        ]
        return {"steps": {"all": steps, "later": [math.nan, *steps[1:]]}, "more steps": table}


class LosesItsChart(Counts):
    """The numbers are not in its state."""

    def prepare(self, stream: Stream, generators: Generators) -> None:
        Naive.prepare(self, stream, generators)
        self.register_buffer("steps", torch.zeros(len(stream)), persistent=False)


class ShortChart(Naive):
    def charts(self) -> dict[str, Chart]:
        return {"weight": {"new": [1.0, 2.0]}}


class AttachedLoss(Naive):
    def step(self, batch: Batch) -> Tensor:
        super().step(batch)
        return self.loss(batch)


class Raises(Naive):
    def loss(self, batch: Batch) -> Tensor:
        raise RuntimeError("shapes do not match")


class OtherOrder(Naive):
    """Trains on a subset that depends on how often it was asked for."""

    asked = 0

    def examples(self, task: Task, past: Sequence[Task]) -> Examples:
        self.asked += 1
        return task.train.select(torch.arange(len(task.train)).roll(self.asked * 5))


BROKEN = {
    TrainingStep: "overrides training_step, .* override step",
    NeverLearns: r"task scenario, multi head: accuracy on the tasks just learned is 0\.\d\d",
    ForgetsTheNet: r"growing head: .*(super\(\)\.begin_task|parameter)",
    PythonRandom: r"changes global state \(Python's generator\)",
    NumpyRandom: r"changes global state \(NumPy's generator\)",
    Threads: r"changes global state \(torch's number of threads\)",
    NoGrad: r"changes global state \(torch's grad mode\)|does not require grad",
    SeedsInConstructor: "constructor draws from or seeds torch's global generator",
    SeedsInRun: "seeds torch's global generator: the run has seeded it",
    Clock: "a second run with the same seed ends with other",
    ClassState: "a second run with the same seed ends with other .* not in its class",
    CountsChunks: r"with training\.chunk_size 1 the run ends with other",
    CountsFits: "with all tasks in one Lightning fit the run ends with other",
    StatefulPredict: "predict changes calls",
    DrawingPredict: "predict changes named/noise",
    BatchPredict: "predict gives an input other logits when it comes with other inputs",
    NarrowPredict: r"predict returns the shape \[32, 7\] for 32 inputs: expected logits \[32, 6\]",
    Peeks: "examples of the last task change .* after the tasks before it",
    LosesState: "stopped inside a task and resumed, the run ends with other",
    LosesItAtTheBoundary: "stopped .* and resumed, the run ends with other .*register_buffer",
    LazyBuffer: r"Unexpected key.*kept.*when resuming after a stop .*: allocate",
    Unpicklable: r"weights_only=True\): keep tensors",
    EvalAfterBegin: "begin_task leaves the strategy or its net in eval mode",
    EvalAfterEnd: "end_task leaves the strategy or its net in eval mode",
    FloatBytes: r"bytes_stored returns .*'masks': 1\.5.*: expected integers",
    LosesItsChart: r"stopped inside a task and resumed, the run .* other charts\(\)\['steps'\]",
    ShortChart: r"charts\['weight'\]\['new'\]: the shape \[2\] is not valid: expected \[3\]",
    AttachedLoss: "step does not return a detached scalar tensor",
    Raises: "Raises, task scenario, multi head: RuntimeError: shapes do not match",
    OtherOrder: "stopped inside a task and resumed, the run ends with other",
}

"""A step of replay: DER++ against a plain loop, and small buffers against large ones.

    OMP_NUM_THREADS=1 python experiments/speed/replay.py

Random 32x32 RGB images, crop with padding 4, flip, normalise, batch 32, two tasks. The plain loop
is DER++ written by hand with three forward passes, tensors for a buffer, the library's batched
augmentation, and a reservoir that is written to in one go. clearn's run is whole: its begin, its
end and the evaluation on two images are in the figure. Bar: <= 1.1x the plain loop, with the
reduced ResNet-18 (256 images) and the small CNN (1 600 images).

A step with a full buffer of 100 000 examples against one of 200, small CNN: the median over the
steps of a run whose buffer is full when it begins, and has seen as many examples as it holds. So a
reservoir of 100 000 takes in most of each batch, and one of 200 less and less of it. Bar: <= 1.1x
for reservoir and ring; the balanced buffer sorts all its labels in each step and has none.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from harness import interleave, keep
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from clearn.batch import Batch
from clearn.buffers import Buffer, Kind, make_buffer
from clearn.nets import build_net
from clearn.preprocess import Preprocess
from clearn.run import Run, Training
from clearn.seeding import Generators
from clearn.strategies import ER, DERpp
from clearn.stream import Stream

torch.set_num_threads(1)
BATCH, STORED, LARGE, ALPHA, BETA, LR = 32, 200, 100_000, 0.2, 0.5, 0.03
PREPROCESS = Preprocess((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615), padding=4, flip=True)
generator = torch.Generator().manual_seed(0)


def images(count: int) -> Stream:
    """Two classes, one in each task."""
    x = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.arange(count) % 2
    return Stream.from_arrays(x, y, x[:2], y[:2], num_tasks=2, preprocess=PREPROCESS)


# DER++ against a plain loop


def clearn(net: str, stream: Stream) -> None:
    """One epoch of each task."""
    strategy = DERpp(
        build_net(net, stream, head="single", seed=0),
        alpha=ALPHA,
        beta=BETA,
        buffer_size=STORED,
        lr=LR,
    )
    Run(strategy, stream, training=Training(batch_size=BATCH, evaluate_every=2)).fit()


class PlainBuffer:
    """A reservoir as one writes it in a script."""

    def __init__(self, classes: int) -> None:
        self.raw = torch.zeros(STORED, 3, 32, 32, dtype=torch.uint8)
        self.y = torch.zeros(STORED, dtype=torch.int64)
        self.logits = torch.zeros(STORED, classes)
        self.seen = 0

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randperm(min(self.seen, STORED), generator=generator)[:BATCH]
        return PREPROCESS.train(self.raw[rows], generator), self.y[rows], self.logits[rows]

    def add(self, raw: Tensor, y: Tensor, logits: Tensor) -> None:
        numbers = torch.arange(self.seen, self.seen + len(y))
        drawn = (torch.rand(len(y), generator=generator) * (numbers + 1)).long()
        slots = torch.where(numbers < STORED, numbers, drawn)
        rows = (slots < STORED).nonzero().flatten()
        self.raw[slots[rows]] = raw[rows]
        self.y[slots[rows]] = y[rows]
        self.logits[slots[rows]] = logits[rows]
        self.seen += len(y)


def plain(name: str, stream: Stream) -> None:
    """The same by hand."""
    net = build_net(name, stream, head="single", seed=0)
    buffer = PlainBuffer(stream.num_classes)
    for task in stream:
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        order = torch.randperm(len(task.train), generator=generator)
        for batch in task.train.batches(BATCH, order=order, train=True, generator=generator):
            logits = net(batch.x)
            loss = cross_entropy(logits, batch.y)
            if buffer.seen:
                x, _, stored = buffer.draw()
                loss = loss + ALPHA * mse_loss(net(x), stored)
                x, y, _ = buffer.draw()
                loss = loss + BETA * cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            buffer.add(batch.raw, batch.y, logits.detach())


for net, name, count, rounds in (
    ("ReducedResNet18", "reduced ResNet-18", 256, 3),
    ("SmallCNN", "small CNN", 1_600, 7),
):
    stream = images(count)
    interleave(
        f"DER++, {name}, batch {BATCH}, {count} images",
        {"plain torch": partial(plain, net, stream), "clearn": partial(clearn, net, stream)},
        reference="plain torch",
        rounds=rounds,
        bar="<= 1.1",
    )


# Small buffers against large ones

STREAM = images(2 * 20 * BATCH)


def full(kind: Kind, size: int, logits: bool) -> Buffer:
    """A buffer that has seen as many examples as it holds, half of each task."""
    buffer = make_buffer(kind, STREAM, size=size, logits=logits)
    draws = Generators(0).get("buffer")
    for task in (0, 1):
        for count in torch.arange(size // 2).split(10_000):
            raw = torch.randint(256, (len(count), 3, 32, 32), dtype=torch.uint8)
            y = torch.full((len(count),), task)
            buffer.add(raw, y, task, draws, logits=torch.randn(len(y), 2) if logits else None)
    return buffer


def median_step(method: type[ER], buffer: Buffer) -> float:
    """CPU milliseconds of a step, with a buffer that is there already."""
    steps: list[float] = []

    class Timed(method):  # type: ignore[misc, valid-type]
        """The method with its steps timed."""

        def prepare(self, stream: Stream, generators: Generators) -> None:
            super().prepare(stream, generators)
            self.buffer = buffer

        def step(self, batch: Batch) -> Tensor:
            started = time.process_time()
            loss: Tensor = super().step(batch)
            steps.append(time.process_time() - started)
            return loss

    strategy = Timed(build_net("SmallCNN", STREAM, head="single", seed=0), lr=0.01)
    Run(strategy, STREAM, training=Training(batch_size=BATCH, evaluate_every=2)).fit()
    return 1e3 * float(np.median(steps))


KINDS: dict[Kind, str] = {"reservoir": "<= 1.1", "ring": "<= 1.1", "balanced": ""}
for kind, bar in KINDS.items():
    for method in (ER, DERpp):
        buffers = {size: full(kind, size, method is DERpp) for size in (STORED, LARGE)}
        rounds = [[median_step(method, each) for each in buffers.values()] for _ in range(6)][1:]
        small, large = np.transpose(rounds).tolist()
        bench = f"{method.__name__}, {kind} buffer, small CNN, batch {BATCH}: step"
        names = [f"{size} examples" for size in buffers]
        for name, values in zip(names, (small, large), strict=True):
            ratios = np.divide(values, small)
            keep(bench, name, values, "CPU ms", ratios=ratios, reference=names[0], bar=bar)

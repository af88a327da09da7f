"""Steps of Q-tuning and progressive prompts at tasks 10, 30 and 70; what memory retention costs.

    OMP_NUM_THREADS=1 python experiments/speed/qtuning.py

MiniLM, 16 texts of 64 tokens, prompts of 5 rows as in experiments/qtuning/xl.yaml: a shared prompt
of 5 and a queue of 20 rows, which fills after 4 tasks. A step is a forward and a backward pass and
Adam. The tasks before are gone through without training, which changes no length. Needs the extra
`text`.

Bars: Q-tuning at tasks 30 and 70 <= 1.1x its step at task 10; with memory retention <= 1.35x the
step without it, by default on 0.4 of each batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import interleave

from clearn.nets import build_net
from clearn.seeding import Generators
from clearn.strategies import ProgressivePrompts, QTuning
from clearn.strategies.prompts import PromptStrategy
from clearn.stream import Stream

torch.set_num_threads(1)
TASKS, BATCH, TOKENS = 70, 16, 64
WHAT = f"soft prompts, MiniLM, {BATCH} texts of {TOKENS} tokens"
XL: dict[str, Any] = {"length": 5, "shared_length": 5, "capacity": 20}


def make_stream() -> Stream:
    """70 tasks of two classes, whose texts are all of one length."""
    words = " ".join(["word"] * (TOKENS - 3))
    rows = [
        (f"{words} {label % 2}", label) for label in range(2 * TASKS) for _ in range(BATCH // 2)
    ]
    return Stream.from_texts(rows, rows[:: BATCH // 2], num_tasks=TASKS, scenario="task")


def step_at(
    stream: Stream, task: int, kind: type[PromptStrategy], **options: Any
) -> Callable[[], None]:
    """A step in a task, counted from 1, that is ready to go."""
    net = build_net("transformers/all-minilm-l6-v2", stream, head="multi", seed=0)
    strategy = kind(net, **options)
    strategy.prepare(stream, Generators(0))
    for each in stream.tasks[:task]:
        strategy.task = each
        strategy.begin_task(each)
        if each.index < task - 1:
            strategy.end_task(each)
    optimizer: Any = strategy.configure_optimizers()
    (batch,) = strategy.task.train.batches(BATCH)

    def step() -> None:
        optimizer.zero_grad()
        strategy.loss(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step()  # fills what is kept for the task
    return step


stream = make_stream()
for name, kind, options in (
    ("Q-tuning", QTuning, XL),
    ("progressive prompts", ProgressivePrompts, {"length": 5}),
):
    steps = {f"task {task}": step_at(stream, task, kind, **options) for task in (10, 30, 70)}
    interleave(
        f"{WHAT}: step of {name}", steps, reference="task 10", rounds=5,
        bar="<= 1.1" if kind is QTuning else "",
    )  # fmt: skip
make = partial(step_at, stream, 10, QTuning, **XL)
shares = {f"on {share:.2g} of the batch": make(retention_share=share) for share in (1.0, 0.5, 0.4)}
interleave(
    f"{WHAT}: memory retention", {"none": make(retention=0), **shares}, reference="none", rounds=5,
    bar="<= 1.35",
)  # fmt: skip

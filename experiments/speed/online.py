"""Does a step get slower as the stream goes on? Ten examples per task, ER with a reservoir of 500.

    OMP_NUM_THREADS=1 python experiments/speed/online.py

Bar: seconds per task around task 800 <= 1.1x those around task 50.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from harness import keep

from clearn.batch import Batch
from clearn.nets import build_net
from clearn.run import Run, Training
from clearn.strategies import ER
from clearn.stream import Stream, Task

torch.set_num_threads(1)
TASKS, WINDOW = 850, 40
generator = torch.Generator().manual_seed(0)
X = torch.rand(10 * TASKS, 784, generator=generator)
Y = torch.arange(10).repeat(TASKS)
STREAM = Stream.from_arrays(X, Y, X, Y, num_tasks=TASKS, scenario="domain", split="instances")


class Timed(ER):
    """ER that takes down its CPU seconds from task to task."""

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.moments.append(time.process_time())

    def step(self, batch: Batch) -> torch.Tensor:
        started = time.process_time()
        loss = super().step(batch)
        self.steps.append(time.process_time() - started)
        return loss


def once() -> tuple[np.ndarray, np.ndarray]:
    strategy = Timed(build_net("MLP", STREAM, head="single", hidden=(256,)), buffer_size=500)
    strategy.moments, strategy.steps = [], []
    training = Training(batch_size=10, evaluate_every=TASKS, eval_batch_size=4096)
    Run(strategy, STREAM, training=training).fit()
    return np.array(strategy.steps), np.diff(strategy.moments)


def window(values: np.ndarray, task: int) -> float:
    return float(np.median(values[task - WINDOW // 2 : task + WINDOW // 2]))


rounds = [once() for _ in range(6)][1:]
for name, series in (("step", [r[0] for r in rounds]), ("whole task", [r[1] for r in rounds])):
    early, late = ([1e3 * window(s, task) for s in series] for task in (50, 800))
    bench = f"online ER, 10 examples per task, reservoir 500: {name}"
    keep(bench, "task 50", early, "CPU ms", ratios=np.divide(early, early), reference="task 50")
    keep(
        bench,
        "task 800",
        late,
        "CPU ms",
        ratios=np.divide(late, early),
        reference="task 50",
        bar="<= 1.1",
    )

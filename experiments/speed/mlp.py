"""What the library costs on a small net: clearn's Naive against a plain torch loop.

    OMP_NUM_THREADS=1 python experiments/speed/mlp.py

MLP 784-256-10, batch 64, 20 000 in-memory rows, 5 tasks of 4 000, one epoch, SGD. Nobody
evaluates. Bar: <= 1.10x.
"""

from __future__ import annotations

import torch
from harness import interleave
from torch import nn

from clearn.nets import build_net
from clearn.run import Run, Training
from clearn.strategies import Naive
from clearn.stream import Stream

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
X = torch.rand(20_000, 784, generator=generator)
Y = torch.arange(10).repeat_interleave(2_000)
STREAM = Stream.from_arrays(X, Y, X[::2_000], Y[::2_000], num_tasks=5)


def plain() -> None:
    net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    for task in STREAM:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for index in torch.randperm(len(task.train)).split(64):
            rows = task.train.rows[index]
            loss = nn.functional.cross_entropy(net(X[rows]), Y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def clearn(evaluate_every: int) -> None:
    net = build_net("MLP", STREAM, head="single", hidden=(256,))
    training = Training(batch_size=64, evaluate_every=evaluate_every)
    Run(Naive(net), STREAM, training=training).fit()


interleave(
    "mlp 784-256-10, 5 tasks x 4000, batch 64",
    {
        "plain torch": plain,
        "clearn, one fit for the stream": lambda: clearn(5),
        "clearn, one fit and evaluation per task": lambda: clearn(1),
    },
    reference="plain torch",
    rounds=15,
    bar="<= 1.10 (one fit for the stream)",
)

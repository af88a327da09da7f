"""What masks cost a training step: WSN against dense training of the same net.

    OMP_NUM_THREADS=1 python experiments/speed/wsn.py

AlexNet-norm of the WSN paper (6,499,328 masked weights), batch 64, Adam, in the second task, when
some weights are frozen already. Both sides train on the same batch. Bar: <= 1.6x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import interleave
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from clearn.nets import build_net
from clearn.seeding import Generators
from clearn.strategies import WSN
from clearn.stream import Stream

STEPS = 4

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
X = torch.rand(256, 3, 32, 32, generator=generator)
Y = torch.arange(20).repeat(13)[:256]
STREAM = Stream.from_arrays(X, Y, X[:20], Y[:20], num_tasks=2, scenario="task")
BATCH = next(STREAM[1].train.batches(64))


def steps(loss: Callable[[], Tensor], optimizer: Optimizer) -> Callable[[], None]:
    def run() -> None:
        for _ in range(STEPS):
            value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return run


def dense() -> Callable[[], None]:
    net = build_net("AlexNetNorm", STREAM, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    return steps(lambda: cross_entropy(net(BATCH.x, 1), BATCH.y), optimizer)


def masked(c: float) -> Callable[[], None]:
    strategy = WSN(build_net("AlexNetNorm", STREAM, seed=0), c=c)
    strategy.prepare(STREAM, Generators(0))
    strategy.subnetworks.keep(strategy.subnetworks.selection())
    return steps(lambda: strategy.loss(BATCH), strategy.configure_optimizers())


interleave(
    f"WSN training step, AlexNet-norm, batch 64, {STEPS} steps",
    {"dense": dense(), **{f"WSN, c = {c}": masked(c) for c in (0.1, 0.5)}},
    reference="dense",
    rounds=9,
    bar="<= 1.6",
)

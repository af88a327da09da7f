"""Optimizers for sequences of tasks: ordinary `torch.optim` optimizers, for any training loop.

They need nothing of the rest of clearn but the word when a task ends:

    optimizer = TAGRMSprop(net.parameters(), lr=2.5e-4, b=5)
    for loader in tasks:
        optimizer.begin_task()
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        optimizer.end_task()
"""

from clearn.optim.base import Similarity, TAGOptimizer
from clearn.optim.choice import OPTIMIZERS, Choice, TaskOptimizer
from clearn.optim.tag import TAGAdagrad, TAGAdam, TAGRMSprop

__all__ = [
    "OPTIMIZERS",
    "Choice",
    "Similarity",
    "TAGAdagrad",
    "TAGAdam",
    "TAGOptimizer",
    "TAGRMSprop",
    "TaskOptimizer",
]

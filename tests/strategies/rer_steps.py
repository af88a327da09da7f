"""Steps of Relational Experience Replay in its second task, on nets of every kind."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearn.batch import Batch
from clearn.nets import Net, build_net
from clearn.seeding import Generators
from clearn.strategies import ER, ERACE, RER, DERpp
from clearn.stream import Stream, Task
from tests.strategies.rer_reference import draws, reference_gradient

BASES: dict[str, tuple[type[ER], list[float]]] = {
    "ER": (ER, [1, 1]),
    "ERACE": (ERACE, [1, 1]),
    "DERpp": (DERpp, [1, 0.2, 0.5]),
}
each_base = pytest.mark.parametrize("base", BASES)


class SharedNoise(nn.Module):
    """Dropout that takes the same units from all rows, so that passes can be compared."""

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = 2 * (torch.rand(x.shape[1]) < 0.5).to(x.dtype)
        return x * kept


class Layers(nn.Sequential):
    """A backbone over 5 numbers, 9 features."""

    num_features = 9

    def __init__(self, norm: bool = True, noise: nn.Module | None = None) -> None:
        norms = [nn.BatchNorm1d(8), nn.BatchNorm1d(9)] if norm else [nn.Identity(), nn.Identity()]
        layers = nn.Linear(5, 8), norms[0], nn.ReLU(inplace=True), noise or nn.Identity()
        super().__init__(*layers, nn.Linear(8, 9), norms[1], nn.Tanh())


class Attention(nn.Module):
    """A transformer over 5 numbers, read as a sequence."""

    num_features = 8

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layer(self.embedding(x[:, :, None])).mean(dim=1)
        return features


def net_of(backbone: type[nn.Module], stream: Stream, head: Any = "auto", **options: Any) -> Net:
    """A net whose initial weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = backbone(**options)
    head = build_net("MLP", stream, head=head, seed=0, hidden=(made.num_features,)).head
    return Net(made, head)


def in_task_one(
    net: Net,
    stream: Stream,
    base: Any,
    *,
    stored: int = 11,
    count: int = 7,
    lr: float = 0.3,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> tuple[RER, Batch]:
    """A strategy in task 1 with examples of task 0 and some of task 1 stored, and a batch."""
    strategy = RER(net, base=base, **options)
    strategy.prepare(stream, Generators(0))
    strategy.to(dtype)
    learning: Any = strategy
    learning.optimizers = lambda: SimpleNamespace(param_groups=[{"lr": lr}])
    learning.augment = lambda raw, generator: raw  # of whatever type; nothing is augmented here
    noise = torch.Generator().manual_seed(1)
    for task in stream.tasks[:2]:
        strategy.task = task
        strategy.begin_task(task)
        order = torch.randperm(len(task.train), generator=noise)
        batch = next(task.train.batches(stored if task.index == 0 else 2, order=order))
        batch = replace(batch, x=batch.x.to(dtype), raw=batch.raw.to(dtype))
        kept = None
        if strategy.objective.keeps_logits:
            with torch.no_grad():
                kept = copy.deepcopy(net).eval()(batch.x, _id(stream, task)).float()
            kept += torch.randn(kept.shape, generator=noise)
        draw = strategy.generators.get("buffer")
        strategy.buffer.add(batch.raw, batch.y, task.index, draw, logits=kept)
        strategy.met[batch.y] = True
    batch = next(task.train.batches(count, order=order.flip(0)))
    return strategy, replace(batch, x=batch.x.to(dtype), raw=batch.raw.to(dtype))


def _id(stream: Stream, task: Task) -> int | None:
    return task.index if stream.scenario == "task" else None


def gradient(strategy: RER, batch: Batch) -> list[Tensor]:
    """What `learn_relation` hands to Adam."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategy._adam, "step", lambda: None)
        strategy.learn_relation(batch)
    return [p.grad for p in strategy.relation.parameters() if p.grad is not None]


def check_gradient(
    strategy: RER, base: str, batch: Batch, *, lr: float = 0.3, together: bool = False
) -> None:
    inner, outer = draws(strategy, batch)
    expected = reference_gradient(strategy, base, inner, outer, lr, together=together)
    found = gradient(strategy, batch)
    assert len(found) == len(expected) == 6
    error, size = 0.0, 0.0
    for ours, theirs in zip(found, expected, strict=True):
        error += float((ours - theirs).square().sum())
        size += float(theirs.square().sum())
    assert size > 0
    assert math.sqrt(error / size) <= 1e-8

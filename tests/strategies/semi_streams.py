"""Small streams of coloured images with few labels, and nets for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clearn.nets import JoinedHead, Net
from clearn.preprocess import Preprocess
from clearn.run import Run, Training
from clearn.semi import Labels
from clearn.strategy import Strategy
from clearn.stream import Stream

CLASSES = ((0, 1, 2), (3, 4))  # the first task is larger


def images(per_class: int, seed: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    """uint8 `[N, 3, 8, 8]`, a colour per class with noise, and labels."""
    colours = torch.randint(40, 216, (classes, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    y = torch.arange(classes).repeat_interleave(per_class)
    noise = torch.randn(len(y), 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (colours[y] + 20 * noise).clamp(0, 255).byte(), y


def coloured(*, per_class: int = 17, labels: int | None = 3, **split: Any) -> Stream:
    """Two tasks of three and two classes."""
    options = {"classes": CLASSES, "preprocess": Preprocess((0.5,), (0.25,))} | split
    stream = Stream.from_arrays(*images(per_class, 1), *images(6, 2), **options)
    return stream if labels is None else stream.semi_supervised(Labels(labels_per_class=labels))


class Body(nn.Sequential):
    """Pixels to 6 features, with the given normalisation in between."""

    num_features = 6

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 6), norm(6), nn.Tanh())


def joined_net(classes: Sequence[Sequence[int]] = CLASSES, norm: Any = nn.LayerNorm) -> Net:
    """A net with a head `joined`, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(Body(norm), JoinedHead(6, 1 + max(map(max, classes)), classes))


def learn(strategy: Strategy, stream: Stream, *, epochs: int = 3, batch_size: int = 16) -> Run:
    """A whole run."""
    training = Training(epochs=epochs, batch_size=batch_size)
    run = Run(strategy, stream, training=training, seed=3, trainer={"accelerator": "cpu"})
    run.fit()
    return run


def learned(run: Run) -> float:
    """Mean accuracy on each task when it had just been learned."""
    return float(run.result.matrix.diagonal().mean())

"""A net that is never trained, and the nearest class mean: a floor for pre-trained nets."""

from __future__ import annotations

import torch
from torch import Tensor

from clearn.batch import Batch
from clearn.nets import Net
from clearn.prototypes import Metric, Prototypes
from clearn.strategy import Strategy
from clearn.stream import Task


class NearestMean(Strategy):
    """Assign an example to the class whose labelled examples have the nearest mean of features.

    The net stays as it is, so it should be a pre-trained one; its head is not used. One epoch is
    as good as any number.

    Args:
        net: The network that makes features.
        metric: cosine or euclidean.
    """

    def __init__(self, net: Net, *, metric: Metric = "cosine") -> None:
        super().__init__(net)
        self.prototypes = Prototypes(net.num_classes, net.head.in_features, metric)

    def step(self, batch: Batch) -> Tensor:
        """Learns nothing."""
        return torch.zeros((), device=self.device)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Keep the means of the task's classes."""
        self.net.eval()
        batches = task.train.batches(256, device=self.device)
        self.prototypes.keep((self.net.features(batch.x), batch.y) for batch in batches)
        self.net.train()

    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        """Negative distances `[B, C]` to the means; those of classes not met are ruled out."""
        distances: Tensor = self.prototypes(self.net.features(x))
        return distances

    def bytes_stored(self) -> dict[str, int]:
        """Parameters and means."""
        return super().bytes_stored() | {"prototypes": self.prototypes.bytes_stored()}

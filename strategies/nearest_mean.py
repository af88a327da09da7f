"""A net that is never trained, and the nearest class mean: a floor for pre-trained nets."""

from __future__ import annotations

import torch
from torch import Tensor

from clearn.batch import Batch
from clearn.nets import Net
from clearn.nets.heads import MASKED
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

    counts: Tensor

    def __init__(self, net: Net, *, metric: Metric = "cosine") -> None:
        super().__init__(net)
        self.prototypes = Prototypes(net.num_classes, net.head.in_features, metric)
        self.register_buffer("counts", torch.zeros(net.num_classes))  # examples behind each mean

    def step(self, batch: Batch) -> Tensor:
        """Learns nothing."""
        return torch.zeros((), device=self.device)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Keep the means of the task's classes, over all tasks in which they were met."""
        self.net.eval()
        before = self.prototypes.means.clone()
        batches = task.train.batches(256, device=self.device)
        self.prototypes.keep((self.net.features(batch.x), batch.y) for batch in batches)
        new = torch.bincount(task.train.labels, minlength=len(before)).to(before)
        share = new / (self.counts + new).clamp(min=1)
        self.prototypes.means.copy_(before.lerp(self.prototypes.means, share[:, None]))
        self.counts += new
        self.net.train()

    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        """Negative distances `[B, C]` to the means.

        Classes not met are ruled out, and with a task id those of other tasks.
        """
        distances: Tensor = self.prototypes(self.net.features(x))
        if task_id is None:
            return distances
        own = torch.zeros_like(self.prototypes.known)
        own[list(self.stream[task_id].classes)] = True
        return torch.where(own, distances, MASKED)

    def bytes_stored(self) -> dict[str, int]:
        """Parameters and means."""
        counts = int(self.prototypes.known.sum()) * self.counts.itemsize
        return super().bytes_stored() | {"prototypes": self.prototypes.bytes_stored() + counts}

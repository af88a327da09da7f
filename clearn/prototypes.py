"""The mean of each class in feature space, and the nearest of these means.

Shapes: B batch, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clearn.nets.heads import MASKED

Metric = Literal["cosine", "euclidean"]


class Prototypes(nn.Module):
    """Means of classes, kept as buffers; a class that is not known has none.

    Args:
        num_classes: C.
        num_features: F.
        metric: Distance to a mean. cosine: features are brought to length 1 before their mean is
            taken. euclidean: the mean is that of the features as they are.

    Attributes:
        means: `[C, F]`, 0 of a class that is not known.
        known: bool `[C]`.
    """

    means: Tensor
    known: Tensor

    def __init__(self, num_classes: int, num_features: int, metric: Metric) -> None:
        super().__init__()
        self.metric: Metric = metric
        self.register_buffer("means", torch.zeros(num_classes, num_features))
        self.register_buffer("known", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def keep(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Keep the mean of every class that occurs.

        Args:
            batches: Features `[B, F]` and labels int64 `[B]`.
        """
        sums, counts = torch.zeros_like(self.means), torch.zeros_like(self.means[:, 0])
        for features, y in batches:
            some, count = self._sums(self._embedded(features), y)
            sums, counts = sums + some, counts + count
        met = counts > 0
        self.means.copy_(torch.where(met[:, None], _mean(sums, counts), self.means))
        self.known |= met

    def forward(self, features: Tensor) -> Tensor:
        """Negative distances `[B, C]` of features `[B, F]`; `MASKED` for classes not known."""
        z = self._embedded(features)
        if self.metric == "cosine":
            distances = 1 - z @ normalize(self.means).T
        else:
            # Not as a product of matrices, whose rounding would depend on the other rows.
            mode = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(z, self.means, compute_mode=mode)
        return torch.where(self.known, -distances, MASKED)

    def with_batch(self, features: Tensor, y: Tensor) -> Tensor:
        """Negative cosine distances `[B, C]` where classes not known have the mean of the batch.

        That mean can be differentiated. Classes neither known nor in the batch are `MASKED`.

        Args:
            features: `[B, F]`.
            y: Labels, int64 `[B]`.
        """
        z = self._embedded(features)
        sums, counts = self._sums(z, y)
        means = torch.where(self.known[:, None], self.means, _mean(sums, counts))
        distances = 1 - normalize(z) @ normalize(means).T
        return torch.where(self.known | (counts > 0), -distances, MASKED)

    def bytes_stored(self) -> int:
        """Bytes of the means of known classes."""
        return int(self.known.sum()) * self.means[0].nbytes

    def _embedded(self, features: Tensor) -> Tensor:
        return normalize(features) if self.metric == "cosine" else features

    def _sums(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Sum `[C, F]` over the rows of each class, and their number `[C]`."""
        labels = torch.arange(len(self.known), device=y.device)
        member = (y[:, None] == labels).to(z.dtype)
        return member.T @ z, member.sum(dim=0)


def _mean(sums: Tensor, counts: Tensor) -> Tensor:
    return sums / counts.clamp(min=1)[:, None]

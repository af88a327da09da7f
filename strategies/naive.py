"""Fine-tuning: the lower bound every strategy is compared with."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.strategy import Strategy


class Naive(Strategy):
    """Train on each task in turn and do nothing against forgetting."""

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch."""
        return cross_entropy(self.logits(batch), batch.y)

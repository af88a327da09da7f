"""Stable SGD: a training regime that forgets less (Mirzadeh et al. 2020, arXiv 2006.06958)."""

from __future__ import annotations

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.nets import Net
from clearn.optim import TaskOptimizer
from clearn.strategy import Strategy

_LOWEST = 5e-5


class StableSGD(Strategy):
    """SGD whose learning rate falls from task to task: lr_t = max(lr gamma^(t + 1), 5e-5).

    Dropout, the other half of the regime, is an option of the net (StableResNet18, MLP); small
    batches are the third.

    Args:
        net: The network to train.
        gamma: Factor from one task to the next, in (0, 1].
        lr: Learning rate, > 0; the first task has gamma times it, as in the code of TAG.
    """

    def __init__(self, net: Net, *, gamma: float = 0.9, lr: float = 0.1) -> None:
        super().__init__(net, lr=lr)
        if not 0 < gamma <= 1:
            raise UserError(f"strategy.gamma: {gamma} is not valid: expected 0 < number <= 1")
        self.gamma = gamma

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch."""
        return cross_entropy(self.logits(batch), batch.y)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with the learning rate of the task."""
        lr = max(self.lr * self.gamma ** (self.task.index + 1), _LOWEST)
        return TaskOptimizer("SGD", lr=lr).for_task(self.net.named_parameters(), self.task.index)

"""Elastic weight consolidation (Kirkpatrick et al. 2017, doi:10.1073/pnas.1611835114)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.nets import GrowingHead, Net
from clearn.strategy import Strategy
from clearn.stream import Task


class EWC(Strategy):
    """Hold each parameter near where earlier tasks left it, as firmly as they need it.

        L = mean_i CE(f(x_i), y_i) + strength / 2 sum_j sum_tau F_tau,j (theta_j - theta_tau,j)^2

    F_tau is the diagonal of the empirical Fisher information when task tau ends: the mean over its
    examples of the squared gradient of log p(y | x), net in eval mode. The penalties of all tasks
    are one quadratic in theta, so that two numbers per parameter are kept, however many the tasks:
    the sum of all F, and the mean of all theta_tau weighted by F.

    All parameters that train are held, but those of a growing head. A step of SGD along the penalty
    overshoots, and the loss grows without bound, once lr * strength * F exceeds 2 for some
    parameter: lower the one when raising the other.

    Args:
        net: The network to train.
        strength: Weight of the penalty, >= 0.
        fisher_examples: Examples of a task to take the mean over, >= 1; all when it has fewer.
        **options: Those of any strategy: lr, momentum, weight_decay, optimizer.
    """

    importance: Tensor
    anchor: Tensor

    def __init__(
        self, net: Net, *, strength: float = 1.0, fisher_examples: int = 200, **options: Any
    ) -> None:
        super().__init__(net, **options)
        if not 0 <= strength < math.inf:
            raise UserError(f"strategy.strength: {strength} is not valid: expected a number >= 0")
        if fisher_examples < 1:
            raise UserError(
                f"strategy.fisher_examples: {fisher_examples} is not valid: expected >= 1"
            )
        self.strength = strength
        self.fisher_examples = fisher_examples
        if not self._held():
            raise UserError(
                "net: nothing of it can be held, for only a growing head trains; set net.head to "
                "single or multi"
            )
        flat = self._flat().detach()
        self.register_buffer("importance", torch.zeros_like(flat))
        self.register_buffer("anchor", torch.zeros_like(flat))

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch, and the penalty."""
        fit = cross_entropy(self.logits(batch), batch.y)
        if self.task.index == 0 or not self.strength:
            return fit
        return fit + self.strength / 2 * self.importance.dot((self._flat() - self.anchor).square())

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Measure how much the task needs each parameter."""
        fisher, theta = self.fisher(task), self._flat()
        total = self.importance + fisher
        moved = (fisher * (theta - self.anchor)).div_(total).nan_to_num_(0.0)  # 0 / 0: not needed
        self.anchor += moved
        self.importance.copy_(total)

    def fisher(self, task: Task) -> Tensor:
        """Diagonal of the empirical Fisher information on examples of a task, flat."""
        draws = self.generators.get("fisher", "cpu")
        order = torch.randperm(len(task.train), generator=draws)[: self.fisher_examples]
        held = list(self._held().values())
        total = torch.zeros_like(self.importance)
        self.net.eval()
        # One by one: torch.func.vmap would do them together, but not for every net.
        for batch in task.train.batches(1, order=order, device=self.device):
            with torch.enable_grad():
                surprise = cross_entropy(self.logits(batch), batch.y)
            gradients = torch.autograd.grad(
                surprise, held, allow_unused=True, materialize_grads=True
            )
            total += torch.cat([g.flatten() for g in gradients]).square_()
        self.net.train()
        return total / len(order)

    def _held(self) -> dict[str, nn.Parameter]:
        grows = isinstance(self.net.head, GrowingHead)
        return {
            name: p
            for name, p in self.net.named_parameters()
            if p.requires_grad and not (grows and name.startswith("head."))
        }

    def _flat(self) -> Tensor:
        return torch.cat([p.flatten() for p in self._held().values()])

    def bytes_stored(self) -> dict[str, int]:
        """Parameters, and the two numbers for each."""
        return super().bytes_stored() | {"importance": self.importance.nbytes + self.anchor.nbytes}

"""Averaged gradient episodic memory (Chaudhry et al. 2019, arXiv 1812.00420)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.buffers import DEFAULT_SIZE, Kind, make_buffer
from clearn.errors import UserError
from clearn.nets import Net
from clearn.seeding import Generators
from clearn.strategy import Strategy
from clearn.stream import Stream, Task

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer


class AGEM(Strategy):
    """Do not take a step that raises the loss on examples of earlier tasks, to first order.

    With g the gradient of the batch and r that of examples drawn from the memory, a step uses

        g - min(0, <g, r>) / <r, r> r,

    the vector nearest to g that does not point against r. The memory holds examples of earlier
    tasks only: a task's are offered to it, unaugmented and in random order, when the task ends.

    Args:
        net: The network to train.
        buffer: Which examples are kept. ring: equally many of every task. balanced: of every class.
            reservoir: a uniform sample of all.
        buffer_size: Examples the memory holds, >= 1.
        buffer_bytes: Bytes the memory may take, in place of a number of examples.
        replay_batch_size: Examples drawn per step, >= 1; None for as many as the batch has.
        **options: Those of any strategy: lr, momentum, weight_decay, optimizer.
    """

    def __init__(
        self,
        net: Net,
        *,
        buffer: Kind = "ring",
        buffer_size: int = DEFAULT_SIZE,
        buffer_bytes: int | None = None,
        replay_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        if replay_batch_size is not None and replay_batch_size < 1:
            raise UserError(
                f"strategy.replay_batch_size: {replay_batch_size} is not valid: expected >= 1, "
                "or none for as many as the batch has"
            )
        self.buffer_kind: Kind = buffer
        self.buffer_size = buffer_size
        self.buffer_bytes = buffer_bytes
        self.replay_batch_size = replay_batch_size
        self._reference: tuple[Tensor | None, ...] = ()

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Allocate the memory.

        Raises:
            UserError: Its size or its bytes are not valid for the stream.
        """
        super().prepare(stream, generators)
        self.buffer = make_buffer(
            self.buffer_kind, stream, size=self.buffer_size, budget=self.buffer_bytes
        )

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch."""
        return cross_entropy(self.logits(batch), batch.y)

    def step(self, batch: Batch) -> Tensor:
        """One update, along or across the gradient of the memory."""
        self._reference = self._memory_gradient(len(batch)) if len(self.buffer) else ()
        return super().step(batch)

    def update(self, optimizer: LightningOptimizer) -> None:
        """Correct the gradient, then step."""
        if self._reference:
            pairs = zip(self._trained(), self._reference, strict=True)
            known = [(p, r) for p, r in pairs if r is not None]
            for p, _ in known:
                if p.grad is None:  # the batch does not depend on it: the head of another task
                    p.grad = torch.zeros_like(p)
            project([cast("Tensor", p.grad) for p, _ in known], [r for _, r in known])
        super().update(optimizer)

    def _memory_gradient(self, count: int) -> tuple[Tensor | None, ...]:
        """Gradient of the mean loss on a draw from the memory, None where it does not depend."""
        entries = self.buffer.sample(self.replay_batch_size or count, self.generators.get("buffer"))
        x = self.augment(entries.raw)
        loss = self.loss(Batch(x, entries.y, entries.task_id, entries.raw))
        return torch.autograd.grad(loss, self._trained(), allow_unused=True)

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.net.parameters() if p.requires_grad]

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Offer the task's examples to the memory."""
        draws = self.generators.get("buffer")
        order = torch.randperm(len(task.train), generator=draws)
        for batch in task.train.batches(256, order=order, device=self.device):
            self.buffer.add(batch.raw, batch.y, batch.task_id, draws)

    def bytes_stored(self) -> dict[str, int]:
        """Parameters and memory."""
        return super().bytes_stored() | {"buffer": self.buffer.bytes_stored()}


def project(gradients: list[Tensor], references: list[Tensor]) -> None:
    """Take from `gradients`, in place, what points against `references`.

    Both are one vector in parts. Costs no synchronisation; a reference of 0 changes nothing.
    """
    pairs = list(zip(gradients, references, strict=True))
    along = torch.stack([(g * r).sum() for g, r in pairs]).sum()
    length = torch.stack([r.square().sum() for r in references]).sum()
    share = torch.where(length > 0, along.clamp(max=0) / length, 0.0)
    for gradient, reference in pairs:
        gradient.sub_(reference * share)

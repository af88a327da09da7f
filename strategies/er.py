"""Experience replay: rehearse a few stored examples (Chaudhry et al. 2019, arXiv 1902.10486)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.buffers import BalancedBuffer, ReservoirBuffer
from clearn.errors import UserError
from clearn.nets import Net
from clearn.seeding import Generators
from clearn.strategy import Strategy
from clearn.stream import Stream


class ER(Strategy):
    """Train on each batch together with as many examples drawn from a buffer of the past.

    The loss is one mean over the current and the replayed examples,

        L = 1 / (B + K) (sum_i CE(f(x_i), y_i) + sum_k CE(f(x'_k), y'_k)),

    from one forward pass over both (batch normalisation sees them together), as in the ER of
    mammoth; methods that add up two means take steps twice as long at the same `lr`. Replayed
    examples are augmented afresh. After the update the batch is offered to the buffer, in every
    epoch; so the buffer also holds examples of the current task, and may hold one twice.

    Args:
        net: The network to train.
        buffer_size: Examples the buffer holds, >= 1.
        replay_batch_size: Examples replayed per step, >= 1; None for as many as the batch has.
        balanced: Give every class seen an equal share of the buffer, instead of keeping a
            uniform sample of all examples seen.
        lr: Learning rate of SGD, > 0.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: L2 penalty of SGD, >= 0.
    """

    def __init__(
        self,
        net: Net,
        *,
        buffer_size: int = 200,
        replay_batch_size: int | None = None,
        balanced: bool = False,
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(net, lr=lr, momentum=momentum, weight_decay=weight_decay)
        if buffer_size < 1:
            raise UserError(f"strategy.buffer_size: {buffer_size} is not valid: expected >= 1")
        if replay_batch_size is not None and replay_batch_size < 1:
            raise UserError(
                f"strategy.replay_batch_size: {replay_batch_size} is not valid: expected >= 1, "
                "or none for as many as the batch has"
            )
        self.buffer_size = buffer_size
        self.replay_batch_size = replay_batch_size
        self.balanced = balanced

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Allocate the buffer."""
        super().prepare(stream, generators)
        kind = BalancedBuffer if self.balanced else ReservoirBuffer
        examples = stream[0].train
        self.buffer = kind(self.buffer_size, examples.shape, examples.dtype)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch and the replayed examples together."""
        if not len(self.buffer):
            return cross_entropy(self.logits(batch), batch.y)
        count = self.replay_batch_size or len(batch)
        raw, y, task_id, _ = self.buffer.sample(count, self.generators.get("buffer"))
        task_ids = None
        if self.stream.scenario == "task":
            task_ids = torch.cat([torch.zeros_like(batch.y) + batch.task_id, task_id])
        logits = self.net(torch.cat([batch.x, self.augment(raw)]), task_ids)
        return cross_entropy(logits, torch.cat([batch.y, y]))

    def step(self, batch: Batch) -> Tensor:
        """One update, after which the batch is offered to the buffer."""
        loss = super().step(batch)
        self.buffer.add(batch.raw, batch.y, batch.task_id, self.generators.get("buffer"))
        return loss

    def bytes_stored(self) -> dict[str, int]:
        """Parameters and buffer."""
        return super().bytes_stored() | {"buffer": self.buffer.bytes_stored()}

"""Accuracy and loss of a strategy on examples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from clearn.examples import Examples
from clearn.strategy import Strategy, Validation


@torch.no_grad()
def accuracy(
    strategy: Strategy,
    examples: Examples,
    task_id: int | None,
    *,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
) -> float:
    """Share of `examples` whose largest logit is that of their label, in [0, 1].

    Args:
        strategy: In eval mode.
        examples: At least one.
        task_id: Handed to `strategy.predict`; None outside the task scenario.
        batch_size: Examples per forward pass.
        check: Called before every batch; may raise to leave.
    """
    correct = torch.zeros((), dtype=torch.int64, device=strategy.device)
    for batch in examples.batches(batch_size, order=examples.by_length(), device=strategy.device):
        check()
        correct += (strategy.predict(batch.x, task_id).argmax(dim=1) == batch.y).sum()
    return correct.item() / len(examples)


@torch.no_grad()
def validate(
    strategy: Strategy, examples: Examples, task_id: int | None, *, batch_size: int
) -> Validation:
    """Accuracy and mean cross-entropy on `examples`.

    Args:
        strategy: In eval mode.
        examples: At least one.
        task_id: Handed to `strategy.predict`; None outside the task scenario.
        batch_size: Examples per forward pass.
    """
    correct = torch.zeros((), dtype=torch.int64, device=strategy.device)
    loss = torch.zeros((), dtype=torch.float64, device=strategy.device)
    for batch in examples.batches(batch_size, order=examples.by_length(), device=strategy.device):
        logits = strategy.predict(batch.x, task_id)
        correct += (logits.argmax(dim=1) == batch.y).sum()
        loss += cross_entropy(logits.float(), batch.y, reduction="sum")
    return Validation(correct.item() / len(examples), loss.item() / len(examples))

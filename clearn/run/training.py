"""How a run trains and evaluates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clearn.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a run trains and evaluates.

    Args:
        epochs: Passes over the examples of each task, >= 1.
        batch_size: Examples per step, >= 1; the last batch of an epoch may be smaller.
        eval_batch_size: Examples per forward pass when evaluating, >= 1.
        chunk_size: Batches handed to Lightning at once, >= 1. Costs and results do not depend on
            it beyond Lightning's price per call; checkpoints fall on its boundaries.
        evaluate: Which tasks to evaluate: those seen and the next one (all that forward transfer
            needs), or all.
        evaluate_every: Evaluate after every that many tasks, and after the last. The tasks in
            between run inside one Lightning fit, which is what streams of many tiny tasks need.
        patience: Stop a task when the accuracy on its validation share has not improved for
            that many epochs, >= 1. Needs a stream with a validation share.
        clip_grad: Clip gradients to this norm, > 0.
        checkpoint_minutes: Write a checkpoint inside a task when the last is that old, >= 0.
        log_every: Steps between two log lines, >= 1.
    """

    epochs: int = 1
    batch_size: int = 64
    eval_batch_size: int = 512
    chunk_size: int = 16
    evaluate: Literal["seen+next", "all"] = "seen+next"
    evaluate_every: int = 1
    patience: int | None = None
    clip_grad: float | None = None
    checkpoint_minutes: float = 10.0
    log_every: int = 50

    def __post_init__(self) -> None:
        at_least_one = ("epochs", "batch_size", "eval_batch_size", "chunk_size", "evaluate_every")
        for name in (*at_least_one, "log_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(
                    f"training.{name}: {value!r} is not valid: expected an integer >= 1"
                )
        if self.evaluate not in ("seen+next", "all"):
            raise UserError(
                f"training.evaluate: {self.evaluate!r} is not valid: expected seen+next or all"
            )
        if self.patience is not None and self.patience < 1:
            raise UserError(f"training.patience: {self.patience} is not valid: expected >= 1")
        if self.patience is not None and self.evaluate_every > 1:
            raise UserError(
                f"training.patience: {self.patience} does not go with training.evaluate_every: "
                f"{self.evaluate_every}; leave one of them out"
            )
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise UserError(f"training.clip_grad: {self.clip_grad} is not valid: expected > 0")
        if not self.checkpoint_minutes >= 0:
            raise UserError(
                f"training.checkpoint_minutes: {self.checkpoint_minutes} is not valid: "
                "expected minutes >= 0"
            )

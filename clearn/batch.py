"""The one type that carries examples from a stream to a strategy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of labelled examples, on the training device.

    Attributes:
        x: Network input, float32 `[B, *input_shape]`, augmented when training and normalised; or
            int64 tokens `[B, L]`.
        y: Class labels, int64 `[B]`, numbered over the whole stream; -1 where there is no label.
        task_id: The task all rows belong to, or an int64 tensor `[B]` when tasks are mixed.
        raw: The examples before augmentation and normalisation, as stored: uint8 `[B, C, H, W]`,
            float32 `[B, D]`, or int32 tokens `[B, L]`. This is what a buffer keeps.
        position: Which of the examples of their `Examples` these are, int64 `[B]`: what was worked
            out once for each example is found by it. None where a strategy made the batch.
    """

    x: Tensor
    y: Tensor
    task_id: int | Tensor
    raw: Tensor
    position: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

"""The network a strategy trains: a backbone and a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from clearn.errors import UserError
from clearn.nets.heads import Head


class Net(nn.Module):
    """A backbone, which makes features, and a head, which makes logits of them.

    Args:
        backbone: Maps `[B, *input_shape]` to `[B, num_features]` and says so in an attribute
            `num_features`.
        head: Takes that many features.

    Raises:
        UserError: The two do not fit.
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        features = getattr(backbone, "num_features", None)
        if not isinstance(features, int):
            raise UserError(
                f"net: the backbone {type(backbone).__name__} has no integer attribute num_features"
            )
        if features != head.in_features:
            raise UserError(
                f"net: a backbone with {features} features does not fit a head for "
                f"{head.in_features}"
            )
        self.backbone = backbone
        self.head = head

    @property
    def num_classes(self) -> int:
        """Columns of the logits: the classes of the whole stream."""
        return self.head.num_classes

    def begin_task(self, index: int, classes: Sequence[int], generator: torch.Generator) -> None:
        """Make the head ready for a task; it may get new parameters.

        Called once for each task, before its first step; a resumed run gets the state instead.

        Args:
            index: Of the task, from 0.
            classes: Labels of the task, in stream numbering.
            generator: Draws new weights, on the CPU.

        Raises:
            UserError: A label is out of range.
        """
        for label in classes:
            if not 0 <= label < self.num_classes:
                raise UserError(
                    f"net: task {index} has class {label}, but the head has classes 0 to "
                    f"{self.num_classes - 1}; make the net for this stream"
                )
        self.head.begin_task(index, classes, generator)

    def features(self, x: Tensor) -> Tensor:
        """Features `[B, num_features]` of inputs `[B, *input_shape]`."""
        return cast("Tensor", self.backbone(x))

    def forward(self, x: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Logits `[B, num_classes]` in stream numbering.

        Args:
            x: Inputs `[B, *input_shape]`.
            task_id: The task of all rows, of each row (int64 `[B]`), or None when it is not known.
        """
        return cast("Tensor", self.head(self.backbone(x), task_id))

"""A layer per task whose logits stand side by side, so that tasks compete without a task id.

Shapes: B batch, F features, C classes of the stream, T tasks, K classes of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets.heads import MASKED, Head


class JoinedHead(Head):
    """One linear layer per task, all made at construction, joined into logits for all classes.

    The head of SLCA (Zhang et al. 2023). The logits of tasks that have not begun are `MASKED`, and
    so are those of other tasks when a task id is given. With one task id for all rows only that
    task's layer takes part, and the others keep `grad` None. Weights are drawn from torch's global
    generator, normal with standard deviation 0.02 (cut off at +-2); biases are 0.

    Args:
        in_features: F.
        num_classes: C.
        classes: Labels of each task; no two tasks share one.

    Attributes:
        layers: Of each task; outputs are in the order of its classes.
        classes: Labels of each task.
        begun: Number of tasks that have begun, kept in the state.

    Raises:
        UserError: Two tasks share a class; or, when the head is used, a task id is out of range.
    """

    columns: Tensor
    task_of: Tensor

    def __init__(
        self, in_features: int, num_classes: int, classes: Sequence[Sequence[int]]
    ) -> None:
        super().__init__(in_features, num_classes)
        self.classes = tuple(tuple(labels) for labels in classes)
        self.begun = 0
        self.layers = nn.ModuleList(nn.Linear(in_features, len(k)) for k in self.classes)
        for layer in cast("list[nn.Linear]", list(self.layers)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        # Derived from the arguments, hence not in the state: the label of each output of all layers
        # side by side, and the task of each label, -1 where no task has it.
        task_of = torch.full((num_classes,), -1)
        for index, labels in enumerate(self.classes):
            for label in labels:
                if task_of[label] >= 0:
                    raise UserError(
                        f"net.head: joined needs tasks without classes in common, and task {index} "
                        f"has class {label} of task {int(task_of[label])}; set net.head to single"
                    )
            task_of[list(labels)] = index
        self.register_buffer("task_of", task_of, persistent=False)
        joined = [label for labels in self.classes for label in labels]
        self.register_buffer("columns", torch.tensor(joined), persistent=False)

    def begin_task(self, index: int, classes: Sequence[int], generator: torch.Generator) -> None:
        """Show the logits of the task and of those before it; draws nothing.

        Raises:
            UserError: The head was not made for this task.
        """
        if not 0 <= index < len(self.classes) or set(classes) != set(self.classes[index]):
            raise UserError(
                f"net.head: the joined head has no layer for task {index} with classes "
                f"{list(classes)}; make the net for this stream"
            )
        self.begun = max(self.begun, index + 1)

    def forward(self, features: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Logits `[B, C]`.

        Raises:
            UserError: A single task id is out of range. A row whose id in a tensor is out of range
                has `MASKED` logits only.
        """
        if task_id is None:
            return self._logits(features, 0, self.begun)
        if isinstance(task_id, Tensor):
            own = self.task_of == task_id[:, None]
            return torch.where(own, self._logits(features, 0, self.begun), MASKED)
        if not 0 <= task_id < len(self.layers):
            raise UserError(
                f"task_id: {task_id} is not valid: the joined head has tasks 0 to "
                f"{len(self.layers) - 1}"
            )
        return self._logits(features, task_id, min(task_id + 1, self.begun))

    def task_logits(self, features: Tensor, index: int) -> Tensor:
        """Logits `[B, K]` of one task's layer, begun or not, in the order of its classes."""
        return cast("Tensor", self.layers[index](features))

    def get_extra_state(self) -> Tensor:
        """The number of tasks begun, which is needed on the host and so is no buffer."""
        return torch.tensor(self.begun)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        self.begun = int(state)

    def _logits(self, features: Tensor, first: int, end: int) -> Tensor:
        """Logits `[B, C]` of the layers in [first, end), all in one product."""
        layers = cast("list[nn.Linear]", list(self.layers[first:end]))
        if not layers:
            return features.new_full((len(features), self.num_classes), MASKED)
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        start = sum(map(len, self.classes[:first]))
        outputs = F.linear(features, weight, bias)
        logits = outputs.new_full((len(features), self.num_classes), MASKED)
        return logits.index_copy_(1, self.columns[start : start + len(bias)], outputs)

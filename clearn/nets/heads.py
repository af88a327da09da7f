"""From features to logits over the classes of the whole stream.

Shapes: B batch, F features, C classes of the stream, T tasks, K classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError

MASKED = -1e4
"""The logit of a class that is ruled out: probability 0 in float32, and finite differences."""


def ruled_out(logits: Tensor) -> Tensor:
    """Where logits are `MASKED`, or what a shorter type of float makes of it: bool, their shape."""
    return logits < MASKED / 2


class Head(nn.Module):
    """Turns features `[B, F]` into logits `[B, C]`; columns are the stream's class labels.

    Args:
        in_features: F.
        num_classes: C.

    Attributes:
        per_task: Whether every task has parameters of its own, so that none can disturb another.
    """

    per_task = False

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.num_classes = num_classes

    def begin_task(self, index: int, classes: Sequence[int], generator: torch.Generator) -> None:
        """Make room for a task; called once before its first step, and not again on a resume.

        Args:
            index: Of the task, from 0.
            classes: Labels of the task, each in [0, C).
            generator: Draws new weights, on the CPU.
        """
        raise NotImplementedError

    def forward(self, features: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Logits `[B, C]`.

        Args:
            features: `[B, F]`.
            task_id: The task of all rows, of each row (int64 `[B]`), or None when it is not known.
        """
        raise NotImplementedError


class TaskMask(nn.Module):
    """Rules out the classes that do not belong to a task.

    Rows of `allowed`, bool `[T + 1, C]`, are tasks; the last one stands for any task whose classes
    are not known yet and allows all. Loading a state takes over its number of tasks.

    Args:
        num_classes: C.
        classes: Labels of each task, as far as they are known.
    """

    allowed: Tensor

    def __init__(self, num_classes: int, classes: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.register_buffer("allowed", torch.ones(1, num_classes, dtype=torch.bool))
        for index, labels in enumerate(classes):
            self.register(index, labels)

    def register(self, index: int, classes: Sequence[int]) -> None:
        """Take down the labels of task `index`."""
        _, num_classes = self.allowed.shape
        missing = index + 2 - len(self.allowed)
        if missing > 0:
            self.allowed = torch.cat([self.allowed, self.allowed.new_ones(missing, num_classes)])
        row = torch.zeros(num_classes, dtype=torch.bool)
        row[list(classes)] = True
        self.allowed[index] = row.to(self.allowed.device)

    def forward(self, logits: Tensor, task_id: int | Tensor) -> Tensor:
        """`logits` `[B, C]`, `MASKED` outside the classes of the task of all rows or of each."""
        last = len(self.allowed) - 1
        if isinstance(task_id, Tensor):
            return torch.where(self.allowed[task_id.clamp(max=last)], logits, MASKED)
        return torch.where(self.allowed[min(task_id, last)], logits, MASKED)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        _resize(self, ("allowed",), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class SingleHead(Head):
    """One linear layer for all classes.

    Given a task id, the logits of other tasks' classes are `MASKED`; a task whose classes were
    neither given nor announced by `begin_task` keeps all of them.

    Args:
        in_features: F.
        num_classes: C.
        classes: Labels of each task, where they are known from the start.
    """

    def __init__(
        self, in_features: int, num_classes: int, classes: Sequence[Sequence[int]] = ()
    ) -> None:
        super().__init__(in_features, num_classes)
        self.linear = nn.Linear(in_features, num_classes)
        self.mask = TaskMask(num_classes, classes)

    def begin_task(self, index: int, classes: Sequence[int], generator: torch.Generator) -> None:
        """Note which classes the task has; draws nothing."""
        self.mask.register(index, classes)

    def forward(self, features: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Logits `[B, C]`."""
        logits = cast("Tensor", self.linear(features))
        return logits if task_id is None else cast("Tensor", self.mask(logits, task_id))


class GrowingHead(Head):
    """One linear layer that gets a row for each class when the class first appears.

    The logits of classes that have not appeared are `MASKED`, and so are those of other tasks'
    classes when a task id is given. Until the first task begins all are, and `argmax` is 0.
    Rows stand in order of appearance; new ones are drawn as `nn.Linear` draws its own, uniform in
    +-1 / sqrt(F). Loading a state takes over its number of rows; the parameters are then new
    objects, so make optimizers afterwards, as after `begin_task`.

    Args:
        in_features: F.
        num_classes: C.
    """

    rows: Tensor

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.weight = nn.Parameter(torch.empty(0, in_features))
        self.bias = nn.Parameter(torch.empty(0))
        self.register_buffer("rows", torch.empty(0, dtype=torch.int64))  # row -> class label
        self.mask = TaskMask(num_classes)

    def begin_task(self, index: int, classes: Sequence[int], generator: torch.Generator) -> None:
        """Add a row for each class that has not appeared; the others keep theirs."""
        self.mask.register(index, classes)
        seen = set(self.rows.tolist())
        new = [label for label in classes if label not in seen]
        bound = self.in_features**-0.5
        fresh = torch.empty(len(new), self.in_features + 1)
        fresh.uniform_(-bound, bound, generator=generator)
        weight, bias = fresh.to(self.weight)[:, :-1], fresh.to(self.bias)[:, -1]
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), weight]))
        self.bias = nn.Parameter(torch.cat([self.bias.detach(), bias]))
        self.rows = torch.cat([self.rows, torch.tensor(new, dtype=torch.int64).to(self.rows)])

    def forward(self, features: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Logits `[B, C]`."""
        known = F.linear(features, self.weight, self.bias)
        logits = _spread(known, self.rows, self.num_classes)
        return logits if task_id is None else cast("Tensor", self.mask(logits, task_id))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        _resize(self, ("weight", "bias", "rows"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class MultiHead(Head):
    """One linear layer per task, all made at construction; needs the task id.

    Logits outside the task's classes are `MASKED`. With one task id for all rows only that task's
    layer takes part, and the others keep `grad` None. A batch of mixed tasks runs through all
    layers in one product; the layers of absent tasks then get gradients of zero.

    Args:
        in_features: F.
        classes: Labels of each task; tasks may differ in number and may share labels.
        num_classes: C; the largest label + 1 when missing.

    Raises:
        UserError: A task id is missing or out of range when the head is used.
    """

    per_task = True
    columns: Tensor

    def __init__(
        self,
        in_features: int,
        classes: Sequence[Sequence[int]],
        num_classes: int | None = None,
    ) -> None:
        super().__init__(in_features, num_classes or 1 + max(max(labels) for labels in classes))
        self.classes = tuple(tuple(labels) for labels in classes)
        self.linears = nn.ModuleList(nn.Linear(in_features, len(k)) for k in self.classes)
        # Derived from the arguments, hence not in the state: for every task and class the column
        # among all layers' outputs laid side by side; the column after the last holds MASKED.
        width = sum(len(labels) for labels in self.classes)
        columns = torch.full((len(self.classes), self.num_classes), width)
        start = 0
        for row, labels in zip(columns, self.classes, strict=True):
            row[list(labels)] = torch.arange(start, start + len(labels))
            start += len(labels)
        self.register_buffer("columns", columns, persistent=False)
        for index, labels in enumerate(self.classes):
            self.register_buffer(f"labels_{index}", torch.tensor(labels), persistent=False)

    def begin_task(self, index: int, classes: Sequence[int], generator: torch.Generator) -> None:
        """Check that the task is one the head was made for.

        Raises:
            UserError: It is not.
        """
        if not 0 <= index < len(self.classes) or set(classes) != set(self.classes[index]):
            raise UserError(
                f"net.head: the multi head has no layer for task {index} with classes "
                f"{list(classes)}; make the net for this stream"
            )

    def forward(self, features: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Logits `[B, C]`.

        Raises:
            UserError: The task id is missing or out of range. Ids in a tensor are checked on the
                CPU only, for on other devices looking at them would wait for the device.
        """
        task_id = _checked(task_id, "multi", len(self.classes))
        if isinstance(task_id, Tensor):
            return self._mixed(features, task_id)
        labels = cast("Tensor", getattr(self, f"labels_{task_id}"))
        return _spread(self.linears[task_id](features), labels, self.num_classes)

    def _mixed(self, features: Tensor, task_id: Tensor) -> Tensor:
        layers = cast("list[nn.Linear]", list(self.linears))
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        outputs = F.pad(F.linear(features, weight, bias), (0, 1), value=MASKED)
        return outputs.gather(1, self.columns[task_id])


class WideHead(Head):
    """One linear layer without bias per task, each with outputs for all classes of the stream.

    The head of Winning SubNetworks (Kang et al. 2022) in their code for Split CIFAR-100 and Split
    TinyImageNet. It masks nothing: a task learns that other tasks' classes are not among its own,
    and `argmax` may give one. As with `MultiHead`, the layers of other tasks keep `grad` None, or
    get gradients of zero when the tasks in a batch are mixed.

    Args:
        in_features: F.
        num_classes: C.
        num_tasks: T.

    Raises:
        UserError: A task id is missing or out of range when the head is used.
    """

    per_task = True

    def __init__(self, in_features: int, num_classes: int, num_tasks: int) -> None:
        super().__init__(in_features, num_classes)
        self.linears = nn.ModuleList(
            nn.Linear(in_features, num_classes, bias=False) for _ in range(num_tasks)
        )

    def begin_task(self, index: int, classes: Sequence[int], generator: torch.Generator) -> None:
        """Check that the task is one the head was made for.

        Raises:
            UserError: It is not.
        """
        if not 0 <= index < len(self.linears):
            raise UserError(
                f"net.head: the wide head has no layer for task {index}, only for "
                f"{len(self.linears)} tasks; make the net for this stream"
            )

    def forward(self, features: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Logits `[B, C]`.

        Raises:
            UserError: The task id is missing or out of range. Ids in a tensor are checked on the
                CPU only, for on other devices looking at them would wait for the device.
        """
        task_id = _checked(task_id, "wide", len(self.linears))
        if not isinstance(task_id, Tensor):
            return cast("Tensor", self.linears[task_id](features))
        layers = cast("list[nn.Linear]", list(self.linears))
        outputs = F.linear(features, torch.cat([layer.weight for layer in layers]))
        outputs = outputs.view(len(features), len(layers), self.num_classes)
        chosen = task_id[:, None, None].expand(-1, 1, self.num_classes)
        return outputs.gather(1, chosen).squeeze(1)


def _checked(task_id: int | Tensor | None, kind: str, tasks: int) -> int | Tensor:
    """The task id given to a head with a layer for each of `tasks` tasks.

    Raises:
        UserError: It is missing, or out of range; ids on other devices than the CPU are not looked
            at.
    """
    if task_id is None:
        raise UserError(
            f"net.head: {kind} needs the task id, which is given in the task scenario only; "
            "set net.head to single or growing, or stream.scenario to task"
        )
    extremes: list[int] = []
    if not isinstance(task_id, Tensor):
        extremes = [task_id]
    elif task_id.device.type == "cpu" and len(task_id):
        extremes = [int(task_id.min()), int(task_id.max())]
    for extreme in extremes:
        if not 0 <= extreme < tasks:
            raise UserError(
                f"task_id: {extreme} is not valid: the {kind} head has tasks 0 to {tasks - 1}"
            )
    return task_id


def _spread(known: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Logits `[B, C]`: `known` `[B, K]` in the columns `labels` `[K]`, `MASKED` in the others."""
    logits = known.new_full((len(known), num_classes), MASKED)
    return logits.index_copy_(1, labels, known)


def _resize(
    module: nn.Module, names: Sequence[str], state_dict: Mapping[str, Any], prefix: str
) -> None:
    """Give the named tensors of `module` the shapes they have in a state about to be loaded."""
    for name in names:
        own, stored = getattr(module, name), state_dict.get(prefix + name)
        if stored is None or stored.shape == own.shape:
            continue
        resized = own.new_empty(stored.shape)
        setattr(module, name, nn.Parameter(resized) if isinstance(own, nn.Parameter) else resized)

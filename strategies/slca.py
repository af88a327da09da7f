"""SLCA: slow learner with classifier alignment (Zhang et al. 2023, ICCV, arXiv 2303.05118).

Shapes: B batch, F features, C classes of the stream, K classes of a task, T tasks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.alignment import align, mean_scale
from clearn.batch import Batch
from clearn.chart import Chart
from clearn.errors import UserError
from clearn.examples import Examples
from clearn.gaussians import ClassGaussians
from clearn.nets import JoinedHead, Net
from clearn.seeding import Generators, derive_seed
from clearn.strategy import Strategy, Validation
from clearn.stream import Stream, Task
from clearn.views import Views

if TYPE_CHECKING:
    from typing_extensions import Self

_EVAL_BATCH = 256
_DRAWS = 256  # features of each class in an epoch of alignment, and features in a batch


def _are_epochs(numbers: Sequence[int]) -> bool:
    return all(isinstance(number, int) and number >= 1 for number in numbers)


class SLCA(Strategy):
    """Fine-tune a pre-trained net slowly, then align its classifier with Gaussians of all classes.

    A task trains the backbone at a fraction of the learning rate and a layer of its own with the
    cross-entropy over its own classes. When it ends, each of its classes leaves a Gaussian in
    feature space, and the layers of all tasks are trained on draws from the Gaussians of all
    classes (see `clearn.alignment`). The next task goes on from the layers as they were before.

    On a stream with few labels an epoch has as many steps as the pool of unlabelled examples has
    batches; each learns from weak views of labelled ones only. What alignment adds to the accuracy
    is reported where the stream has a validation share.

    Args:
        net: The network to train, pre-trained, with the head `joined`.
        slow: Learning rate of the backbone, as a share of the head's, >= 0; at 0 the backbone is
            not trained and stays in eval mode.
        milestones: After so many epochs of a task, >= 1, the learning rate falls to a tenth.
        ca_epochs: Epochs of alignment, >= 0; 0 leaves it out.
        tau: Temperature of its loss, > 0; None for a plain cross-entropy.
        align_first: Align after the first task too.
        labelled_batch_size: Labelled examples per step on a stream with unlabelled ones, >= 1; one
            that is left over joins the last batch of its turn.
        lr: Learning rate of the head, > 0.
        momentum: Of SGD, in [0, 1).
        weight_decay: L2 penalty, >= 0.
    """

    places: Tensor

    def __init__(
        self,
        net: Net,
        *,
        slow: float = 0.01,
        milestones: Sequence[int] = (18,),
        ca_epochs: int = 5,
        tau: float | None = 0.1,
        align_first: bool = False,
        labelled_batch_size: int = 40,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__(net, lr=lr, momentum=momentum, weight_decay=weight_decay)
        if not isinstance(net.head, JoinedHead):
            raise UserError(
                f"net.head: a {type(net.head).__name__} is not valid for {type(self).__name__}, "
                "whose tasks have layers of their own that compete; set net.head to joined"
            )
        for name, value, valid, expected in (
            ("slow", slow, 0 <= slow < math.inf, "a number >= 0"),
            ("milestones", milestones, _are_epochs(milestones), "integers >= 1"),
            (
                "ca_epochs",
                ca_epochs,
                isinstance(ca_epochs, int) and ca_epochs >= 0,
                "an integer >= 0",
            ),
            ("tau", tau, tau is None or 0 < tau < math.inf, "a number > 0, or none"),
            ("labelled_batch_size", labelled_batch_size, labelled_batch_size >= 1, "a number >= 1"),
        ):
            if not valid:
                raise UserError(f"strategy.{name}: {value} is not valid: expected {expected}")
        self.slow = slow
        self.milestones = sorted(milestones)
        self.ca_epochs = ca_epochs
        self.tau = tau
        self.align_first = align_first
        self.labelled_batch_size = labelled_batch_size
        self.unaligned = deepcopy(net.head).requires_grad_(False)
        self.gaussians = ClassGaussians(net.num_classes, net.head.in_features)
        places = torch.zeros(net.num_classes, dtype=torch.int64)
        for labels in net.head.classes:
            places[list(labels)] = torch.arange(len(labels))
        self.register_buffer("places", places, persistent=False)  # label -> output of its layer
        self._epoch = 0
        self._taken = 0  # labelled batches of the task so far
        self._gains: list[float] = []

    @property
    def head(self) -> JoinedHead:
        """The net's."""
        return cast("JoinedHead", self.net.head)

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Meet the stream."""
        super().prepare(stream, generators)
        self.views = Views(stream.preprocess)

    # Stage 1: the slow learner

    def begin_task(self, task: Task) -> None:
        """Go on from the layers as they were before they were aligned."""
        if task.index:
            self.head.load_state_dict(self.unaligned.state_dict())
        super().begin_task(task)
        self._epoch = self._taken = 0

    def examples(self, task: Task, past: Sequence[Task]) -> Examples:
        """The pool of unlabelled examples, or the labelled ones when there is none."""
        return task.train if task.unlabelled is None else task.unlabelled

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the task's own classes."""
        labelled = batch if self.task.unlabelled is None else self.labelled_batch()
        return cross_entropy(self.own_logits(self.features(labelled.x)), self.places[labelled.y])

    def labelled_batch(self) -> Batch:
        """Weak views of the next labelled examples of the task, which are gone through in turns."""
        train, size = self.task.train, self.labelled_batch_size
        # One that is left over joins the last batch: batch normalisation takes none of one.
        batches = max(1, -(-(len(train) - 1) // size))
        turn, index = divmod(self._taken, batches)
        self._taken += 1
        seed = derive_seed(self.generators.seed, "labelled", self.task.index, turn)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        order = order[index * size :] if index == batches - 1 else order[index * size :][:size]
        (batch,) = train.batches(len(order), order=order, device=self.device)
        return replace(batch, x=self.weak(batch.raw))

    def weak(self, raw: Tensor) -> Tensor:
        """Weak views, float32 `[B, C, H, W]`."""
        return self.views.weak(raw, self.generators.get("views", "cpu"))

    def features(self, x: Tensor) -> Tensor:
        """Features `[B, F]`, without a gradient where the backbone is not trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.slow > 0):
            return self.net.features(x)

    def own_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, K]` of the task's own classes, in their order."""
        return self.head.task_logits(features, self.task.index)

    def end_epoch(self, task: Task, validation: Validation | None) -> bool:
        """Count."""
        self._epoch += 1
        return super().end_epoch(task, validation)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a backbone that is not trained stays in eval mode."""
        super().train(mode)
        if not self.slow:
            self.net.backbone.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD over the backbone and the task's own layer, a tenth as fast after each milestone."""
        groups = [{"params": list(self.head.layers[self.task.index].parameters()), "lr": self.lr}]
        if self.slow:
            body = [p for p in self.net.backbone.parameters() if p.requires_grad]
            groups.append({"params": body, "lr": self.lr * self.slow})
        optimizer = torch.optim.SGD(
            groups, self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    # Stage 2: alignment

    def end_task(self, task: Task) -> None:
        """Keep a Gaussian of each class, and align the layers of all tasks."""
        self.unaligned.load_state_dict(self.head.state_dict())
        self.eval()
        with torch.no_grad():
            self._keep(self.statistics(task))
            before = self._accuracy()
        if self.ca_epochs and (task.index or self.align_first):
            align(
                self.head,
                self.gaussians,
                scale=mean_scale(self.head.task_of, task.index),
                epochs=self.ca_epochs,
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                tau=self.tau,
                per_class=_DRAWS,
                generator=self.generators.get("alignment", "cpu"),
            )
        with torch.no_grad():
            self._gains.append(self._accuracy() - before)
        self.train()

    def statistics(self, task: Task) -> Iterable[tuple[Tensor, Tensor]]:
        """Features `[B, F]` and labels `[B]` that a task's Gaussians are made of, in batches."""
        for batch in task.train.batches(_EVAL_BATCH, device=self.device):
            yield self.net.features(batch.x), batch.y

    def _keep(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        rows: dict[int, list[Tensor]] = defaultdict(list)
        for features, y in batches:
            for label in torch.unique(y).tolist():
                rows[label].append(features[y == label])
        for label, parts in rows.items():
            self.gaussians.keep(label, torch.cat(parts))

    def _accuracy(self) -> float:
        """Accuracy on the validation examples of all tasks so far; NaN where there are none."""
        correct, total = torch.zeros((), dtype=torch.int64, device=self.device), 0
        for task in self.stream.tasks[: self.task.index + 1]:
            if task.validation is None:
                return math.nan
            task_id = task.index if self.stream.scenario == "task" else None
            for batch in task.validation.batches(_EVAL_BATCH, device=self.device):
                correct += (self.predict(batch.x, task_id).argmax(dim=1) == batch.y).sum()
            total += len(task.validation)
        return correct.item() / total

    # State

    def get_extra_state(self) -> dict[str, Any]:
        """How far the task is, and what charts are made from."""
        return {"epoch": self._epoch, "taken": self._taken, "gains": list(self._gains)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        self._epoch, self._taken = state["epoch"], state["taken"]
        self._gains = list(state["gains"])

    def bytes_stored(self) -> dict[str, int]:
        """Parameters, the layers before alignment, and the Gaussians."""
        layers = cast("Iterable[Tensor]", self.unaligned.state_dict().values())
        return super().bytes_stored() | {
            "unaligned head": sum(tensor.nbytes for tensor in layers),
            "gaussians": self.gaussians.bytes_stored(),
        }

    def charts(self) -> dict[str, Chart]:
        """What alignment adds to the accuracy on validation examples, after each task."""
        return {"gain by alignment": {"validation accuracy": self._line(self._gains)}}

    def _line(self, values: Sequence[float]) -> list[float]:
        """One number per task of the stream, NaN for those to come."""
        return [*values, *[math.nan] * (len(self.stream) - len(values))]

"""The contract between a strategy and the run loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from clearn.batch import Batch
from clearn.chart import Chart
from clearn.errors import UserError
from clearn.given import given_arguments
from clearn.nets import GrowingHead, Net
from clearn.optim import Choice, TaskOptimizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning.pytorch.core.optimizer import LightningOptimizer
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

    from clearn.examples import Examples
    from clearn.seeding import Generators
    from clearn.stream import Stream, Task


class Validation(NamedTuple):
    """How a strategy does on the validation share of the current task.

    Attributes:
        accuracy: In [0, 1].
        loss: Mean cross-entropy of its logits, in nats.
    """

    accuracy: float
    loss: float


class Strategy(LightningModule):
    """A method that learns a stream of tasks: a net, a loss and a memory.

    Override `loss` for a method that is a loss, `step` for one with its own update (bi-level
    methods), and `begin_task` / `end_task` for what happens between tasks. Three rules:

    * All that is needed to resume is in `state_dict` (parameters, registered buffers,
      `get_extra_state`) and loads with `torch.load(..., weights_only=True)`.
    * No global state; random draws come from `self.generators`.
    * No host-device synchronisation in a step: use `track` to report a number.

    The run loop sets `epochs`, the epochs per task, before `prepare`, and `task` to the current
    task before `begin_task` and after a resume; it puts the module on its device before any of
    these methods is called.

    Args:
        net: The network to train.
        lr: Learning rate, > 0.
        momentum: Of SGD and RMSprop, in [0, 1).
        weight_decay: L2 penalty, or AdamW's decay, >= 0; TAG has none.
        optimizer: SGD, RMSprop, Adagrad, Adam, AdamW, TAGRMSprop, TAGAdagrad or TAGAdam, made
            afresh for every task; or {name: ...} with options of that class, and keep: true for one
            that goes on from task to task.
    """

    stream: Stream
    task: Task
    generators: Generators

    def __init__(
        self,
        net: Net,
        *,
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        optimizer: Choice = "SGD",
    ) -> None:
        super().__init__()
        if not isinstance(net, Net):
            raise UserError(
                f"net: a {type(net).__name__} is not a clearn.nets.Net; "
                "wrap it: Net(backbone, head)"
            )
        if not 0 < lr < math.inf:
            raise UserError(f"strategy.lr: {lr} is not valid: expected a number > 0")
        if not 0 <= momentum < 1:
            raise UserError(f"strategy.momentum: {momentum} is not valid: expected 0 <= number < 1")
        if not 0 <= weight_decay < math.inf:
            raise UserError(f"strategy.weight_decay: {weight_decay} is not valid: expected >= 0")
        self.automatic_optimization = False
        self.net = net
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.task_optimizer = TaskOptimizer(
            optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay
        )
        if self.task_optimizer.kept is not None and isinstance(net.head, GrowingHead):
            raise UserError(
                "net.head: growing is not valid with an optimizer that is kept from task to task, "
                "for it replaces the parameters that this one knows; set net.head to single or "
                "multi, or take another strategy.optimizer"
            )
        self.made_with = given_arguments(self, leave_out="net")  # what the record of a run keeps
        self.clip_grad: float | None = None
        self.epochs = 1
        self.tracked: dict[str, list[Tensor]] = {}  # read and emptied by the run loop

    def __setattr__(self, name: str, value: Any) -> None:
        """As in any module, but at once for what Lightning writes around each of its hooks.

        That is a dozen times a step, and `torch.nn.Module` takes long to find out that a string
        is no parameter: together a good part of the step of a small net.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Meet the stream, once, before the first task and before any state is loaded.

        Allocate here what depends on the shapes of the data (a buffer, say).
        """
        self.stream = stream
        self.generators = generators

    def begin_task(self, task: Task) -> None:
        """Called before the first step of a task; the optimizer is made afterwards."""
        self.net.begin_task(task.index, task.classes, self.generators.get("net", "cpu"))

    def examples(self, task: Task, past: Sequence[Task]) -> Examples:
        """What to train on during `task`; `past` holds the tasks before it, oldest first.

        A function of its arguments and the state only: a resumed run calls it again.
        """
        return task.train

    def loss(self, batch: Batch) -> Tensor:
        """The scalar to minimise on a batch."""
        raise UserError(f"{type(self).__name__} defines neither loss(batch) nor step(batch)")

    def step(self, batch: Batch) -> Tensor:
        """One update; returns the detached loss, a scalar on the device."""
        return self.minimise(self.loss(batch))

    def minimise(self, loss: Tensor) -> Tensor:
        """Propagate a scalar loss back and `update`; returns it detached.

        Raises:
            UserError: It depends on nothing that could be trained.
        """
        if not loss.requires_grad:
            raise UserError(
                f"net: nothing of it is trained by {type(self).__name__}, since all that the loss "
                "depends on is frozen; take another head, or a strategy that trains prompts"
            )
        optimizer = cast("LightningOptimizer", self.optimizers())
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.update(optimizer)
        return loss.detach()

    def update(self, optimizer: LightningOptimizer) -> None:
        """Clip the gradients as the run asks for, then step `optimizer`."""
        if self.clip_grad is not None:
            # Not by Lightning, which compares gradients that a scaler has scaled with the limit
            # as it is, and refuses fused optimizers. They are scaled until the step.
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            limit = self.clip_grad * (1.0 if scaler is None else scaler.get_scale())
            clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], limit)
        optimizer.step()

    def end_epoch(self, task: Task, validation: Validation | None) -> bool:
        """Called after each epoch; return True to end the task.

        Args:
            task: The current task.
            validation: On its validation share; None when the stream sets none apart, or when
                several tasks are trained between two evaluations.
        """
        self.task_optimizer.begin_epoch()
        return False

    def end_task(self, task: Task) -> None:
        """Called after the last step of a task, before it is evaluated."""

    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        """Logits `[B, num_classes]` for inputs `[B, *input_shape]`, module in eval mode.

        Args:
            x: Preprocessed inputs.
            task_id: The task of all rows, given in the task scenario only.
        """
        return cast("Tensor", self.net(x, task_id))

    def logits(self, batch: Batch) -> Tensor:
        """The net's logits `[B, num_classes]`; the task id reaches it in the task scenario only."""
        task_id = batch.task_id if self.stream.scenario == "task" else None
        return cast("Tensor", self.net(batch.x, task_id))

    def augment(self, raw: Tensor, generator: str = "replay augmentation") -> Tensor:
        """Augment and normalise replayed examples, as a training batch is: `[B, *input_shape]`.

        Args:
            raw: The examples as stored.
            generator: Name of the generator that draws crops and flips.
        """
        return self.stream.preprocess.train(raw, self.generators.get(generator, self.device))

    def bytes_stored(self) -> dict[str, int]:
        """Bytes kept for the tasks so far, by kind: parameters, buffer, masks, prompts."""
        tensors: Iterable[Tensor] = self.net.state_dict().values()
        parameters = {"parameters": sum(t.numel() * t.element_size() for t in tensors)}
        return parameters | self.task_optimizer.bytes_stored()

    def metrics(self) -> dict[str, float]:
        """Numbers of the method's own that belong into the record, at the end of a run."""
        return {}

    def charts(self) -> dict[str, Chart]:
        """Numbers of the method's own for each task, which the report draws; at the end of a run.

        A chart is drawn beside the charts of the same name that other strategies have, with one
        scale for all, so its name says what is shown and in which unit ("mean weight"). As with
        all that a resumed run needs, what the numbers are made from is in `state_dict`.

        Returns:
            By name either lines by their labels, each a sequence of T numbers, one per task of the
            stream; or a table `[T, T]` (similarities of tasks, say), a row per current task and a
            column per earlier task. All finite, or NaN where there is no number: lines have a gap
            there, cells are hatched, and means over runs leave it out. Here, what the optimizer has
            to show.
        """
        return self.task_optimizer.charts(len(self.stream))

    def export(self, folder: Path) -> list[Path]:
        """Write what others can read without this class (an archive of masks, say).

        Called once, at the end of a run that keeps a record.

        Args:
            folder: The record's.

        Returns:
            The files written, which trackers with artifacts keep as well. Here, those of the
            optimizer.
        """
        return self.task_optimizer.export(folder)

    def track(self, name: str, value: Tensor) -> None:
        """Report a detached scalar; its mean since the last log line appears as `train/<name>`.

        Costs no synchronisation: the values stay on the device until the line is written.
        """
        self.tracked.setdefault(name, []).append(value)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of the net's parameters for the task that begins."""
        return self.task_optimizer.for_task(self.net.named_parameters(), self.task.index)

    def training_step(self, chunk: Any, batch_idx: int) -> dict[str, Tensor]:
        """Loop over the batches of a chunk, so that Lightning's cost is paid once per chunk."""
        losses = []
        per_step = [c for c in self.trainer.lr_scheduler_configs if c.interval == "step"]
        mixed = torch.is_autocast_enabled(self.device.type)
        for batch in chunk.batches():
            losses.append(self.step(batch))
            if mixed:  # autocast caches casts of the weights, which this step has just changed
                torch.clear_autocast_cache()
            for config in per_step:
                self.lr_scheduler_step(config.scheduler, None)
        return {"losses": torch.stack(losses) if losses else torch.empty(0)}

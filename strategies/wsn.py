"""Winning subnetworks: a mask per task over one net (Kang et al. 2022, PMLR 162:10734)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.capacity import capacity, stacks
from clearn.errors import UserError
from clearn.kernels.archive import MaskArchive
from clearn.masks import Subnetworks
from clearn.nets import Net
from clearn.seeding import Generators
from clearn.strategy import Strategy, Validation
from clearn.stream import Stream, Task
from clearn.taskwise import Taskwise

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from torch.optim import Optimizer
    from typing_extensions import Self


class WSN(Strategy):
    """Learn a mask per task over the backbone's weights, and freeze the weights a mask selects.

    Every weight w has a score s. A task trains both through

        min CE(f(x; w * m(s)), y),    m(s) = 1 where |s| is among the share c largest of its layer,

    where w gets its gradient only where it is selected and no earlier task uses it, and s gets
    dL/d(w m) * w * sign(s) everywhere (straight through m). When the task ends its mask is kept,
    1 bit per weight, and the weights under it never change again; the scores go on to the next
    task. So no task is forgotten: backward transfer is exactly 0.

    What cannot be masked (biases, normalisation with its running statistics, embeddings) is kept
    once per task, and counted in `bytes_stored`; running statistics start afresh with each task.
    Parameters that shall not train at all are left alone: set `requires_grad` to False.

    With a validation share, the state with the lowest validation loss is what a task ends with,
    and the learning rate is halved when that loss has not improved for `patience` epochs.

    Args:
        net: Any backbone, and a head with a layer per task (net.head: multi or wide).
        c: Share of each layer's weights that a task selects, in (0, 1].
        optimizer: Made afresh for every task. Frozen weights stay bit-equal under each of them.
        lr: Learning rate, > 0.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: L2 penalty (AdamW: decoupled), of weights and scores, >= 0.
        patience: Epochs without a lower validation loss before the learning rate is halved, >= 1.
        lr_min: End a task when the learning rate falls below this, >= 0.
        official_stale_mask: As the authors' code: validate, and end the task, with the mask of the
            last training step instead of the one that the restored scores select.
    """

    def __init__(
        self,
        net: Net,
        *,
        c: float = 0.5,
        optimizer: Literal["Adam", "AdamW", "SGD"] = "Adam",
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        patience: int = 6,
        lr_min: float = 1e-6,
        official_stale_mask: bool = False,
    ) -> None:
        super().__init__(net, lr=lr, momentum=momentum, weight_decay=weight_decay)
        if optimizer not in ("Adam", "AdamW", "SGD"):
            raise UserError(
                f"strategy.optimizer: {optimizer!r} is not valid: expected Adam, AdamW or SGD"
            )
        if patience < 1:
            raise UserError(f"strategy.patience: {patience} is not valid: expected >= 1")
        if not 0 <= lr_min < math.inf:
            raise UserError(f"strategy.lr_min: {lr_min} is not valid: expected a number >= 0")
        self.optimizer_name = optimizer
        self.patience = patience
        self.lr_min = lr_min
        self.official_stale_mask = official_stale_mask
        self.subnetworks = Subnetworks(net.backbone, c)
        self._rest = _unmasked(net.backbone, self.subnetworks)
        self.rest = Taskwise(list(self._rest.values()))
        self._best: dict[str, Tensor] = {}  # what the task trains, at the lowest validation loss
        self._best_loss, self._waited = math.inf, 0
        self._frozen: list[Tensor] | None = None
        self._stale: Tensor | None = None
        self._ready: tuple[int, dict[str, Tensor]] | None = None

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Draw the scores.

        Raises:
            UserError: The stream is not in the task scenario, or the head has no layer per task.
        """
        super().prepare(stream, generators)
        if stream.scenario != "task":
            raise UserError(
                f"stream.scenario: {stream.scenario} is not valid for {type(self).__name__}, which "
                "picks a mask by the task's id: expected task"
            )
        if not self.net.head.per_task:
            raise UserError(
                f"net.head: a {type(self.net.head).__name__} is shared by all tasks, which "
                f"{type(self).__name__} cannot protect: expected multi or wide"
            )
        self.subnetworks.draw_scores(generators.get("scores", "cpu"))

    # Training

    def begin_task(self, task: Task) -> None:
        """Make ready for a task: running statistics start afresh, the scores go on."""
        super().begin_task(task)
        for module in self.net.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.reset_running_stats()
        self._best, self._best_loss, self._waited = {}, math.inf, 0

    def logits(self, batch: Batch) -> Tensor:
        """Logits `[B, C]` through the subnetwork that the scores select now."""
        if self.official_stale_mask:
            self._stale = self.subnetworks.selection()
        return self._forward(self.subnetworks.selected(), batch.x, cast("int", batch.task_id))

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch."""
        return cross_entropy(self.logits(batch), batch.y)

    def update(self, optimizer: LightningOptimizer) -> None:
        """Step, and put used weights back where the optimizer may have moved them."""
        if not len(self.subnetworks) or _moves_only_by_gradient(optimizer.optimizer):
            super().update(optimizer)
            return
        if self._frozen is None:
            self._frozen = [weight.detach().clone() for weight in self.subnetworks.weights]
        super().update(optimizer)
        self.subnetworks.restore(self._frozen)

    def end_epoch(self, task: Task, validation: Validation | None) -> bool:
        """Remember the best state; halve the learning rate when it has not improved for long."""
        if validation is None:
            return False
        if validation.loss < self._best_loss:
            self._best_loss, self._waited = validation.loss, 0
            self._remember()
            return False
        self._waited += 1
        if self._waited < self.patience:
            return False
        self._waited = 0
        groups = cast("LightningOptimizer", self.optimizers()).param_groups
        for group in groups:
            group["lr"] /= 2
        return bool(max(group["lr"] for group in groups) < self.lr_min)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Go back to the best state, keep its mask, and freeze what it selects."""
        current = dict(self.named_parameters()) | dict(self.named_buffers())
        for name, best in self._best.items():
            current[name].copy_(best)
        stale = self._stale if self.official_stale_mask else None
        self.subnetworks.keep(self.subnetworks.selection() if stale is None else stale)
        self.rest.append(list(self._rest.values()))
        self._best, self._frozen, self._stale = {}, None, None

    @torch.no_grad()
    def _remember(self) -> None:
        """Copy what this task trains: parameters with a gradient, and the backbone's buffers."""
        buffers = {f"net.backbone.{name}": b for name, b in self.net.backbone.named_buffers()}
        trained = {name: p for name, p in self.named_parameters() if p.grad is not None}
        for name, tensor in (trained | buffers).items():
            if name in self._best:
                self._best[name].copy_(tensor)
            else:
                self._best[name] = tensor.detach().clone()

    # Prediction

    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        """Logits `[B, C]` through the mask of a task; of one not learned yet, through the last.

        In eval mode the masked weights of a task are made once, and kept until the mode changes
        or another task is asked for.
        """
        assert task_id is not None
        if self.training or self._ready is None or self._ready[0] != task_id:
            self._ready = task_id, self._tensors_of(task_id)
        return self._forward(self._ready[1], x, task_id)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; weights made ready for prediction are let go."""
        self._ready = None
        return super().train(mode)

    def _tensors_of(self, task_id: int) -> dict[str, Tensor]:
        if task_id < len(self.subnetworks):
            rest = dict(zip(self._rest, self.rest.of_task(task_id), strict=True))
            return self.subnetworks.of_mask(self.subnetworks.mask(task_id)) | rest
        bits = self.subnetworks.selection() if self._stale is None else self._stale
        return self.subnetworks.of_mask(bits)

    def _forward(self, tensors: dict[str, Tensor], x: Tensor, task_id: int) -> Tensor:
        """The net's logits with `tensors` in the place of those of the backbone."""
        named = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        # Shared weights are in `tensors` under each of their names already.
        return cast("Tensor", functional_call(self.net, named, (x, task_id), tie_weights=False))

    # State

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of one task, over weights, scores, heads and what cannot be masked."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer_name == "SGD":
            return torch.optim.SGD(
                parameters, self.lr, self.momentum, weight_decay=self.weight_decay
            )
        kind = torch.optim.Adam if self.optimizer_name == "Adam" else torch.optim.AdamW
        return kind(parameters, self.lr, weight_decay=self.weight_decay, fused=True)

    def _apply(self, *args: Any, **options: Any) -> Self:
        """Move or convert the module, as `to` does; weights made ready stay behind."""
        self._ready = None
        return cast("Self", super()._apply(*args, **options))  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any) -> None:
        self._ready = None
        super()._load_from_state_dict(*args)

    def get_extra_state(self) -> dict[str, Any]:
        """The best state of the task at hand, to go on with inside it."""
        return {"best": self._best, "best_loss": self._best_loss, "waited": self._waited}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        self._best = {name: tensor.to(self.device) for name, tensor in state["best"].items()}
        self._best_loss, self._waited = state["best_loss"], state["waited"]

    def metrics(self) -> dict[str, float]:
        """The capacity (see `clearn.capacity`), and `bytes_per_task` of what it does not count.

        That is a task's layer of the head, and what of the backbone is kept once per task.
        """
        measured = capacity(stacks(self.subnetworks.named_masks(), self._shapes()))
        head = sum(p.numel() * p.element_size() for p in self.net.head.parameters())
        beside = (head + self.rest.bytes_stored()) / len(self.stream)
        return measured.metrics | {"bytes_per_task": beside}

    def export(self, folder: Path) -> list[Path]:
        """Write the masks of all tasks as an archive, which `clearn masks info` shows."""
        path = folder / "masks.clmask"
        MaskArchive.write(path, list(self.subnetworks.named_masks()), self._shapes())
        return [*super().export(folder), path]

    def _shapes(self) -> dict[str, Sequence[int]]:
        return dict(zip(self.subnetworks.names, self.subnetworks.shapes, strict=True))

    def bytes_stored(self) -> dict[str, int]:
        """Parameters, masks (1 bit per weight and task), and what is kept once per task."""
        stored = super().bytes_stored() | {"masks": self.subnetworks.masks.bytes_stored()}
        return stored | ({"per task": self.rest.bytes_stored()} if self._rest else {})


def _unmasked(backbone: nn.Module, subnetworks: Subnetworks) -> dict[str, Tensor]:
    """What changes with training but has no mask, by name: parameters, and saved buffers."""
    masked = {id(weight) for weight in subnetworks.weights}
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    fixed = {name for name, _ in backbone.named_parameters()} - trained
    state = backbone.state_dict(keep_vars=True)
    return {n: t for n, t in state.items() if n not in fixed and id(t) not in masked}


def _moves_only_by_gradient(optimizer: Optimizer) -> bool:
    """Whether a step leaves an element alone that had no gradient since the task began.

    Known of these two when they decay nothing; others are corrected after each step.
    """
    plain = type(optimizer) in (torch.optim.Adam, torch.optim.SGD)
    return plain and not any(group["weight_decay"] for group in optimizer.param_groups)

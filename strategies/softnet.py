"""Soft subnetworks for few-shot class-incremental learning (Kang et al. 2023, arXiv 2209.07529).

Shapes: B batch, F features, C classes of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.errors import UserError, unknown_name
from clearn.examples import Examples
from clearn.kernels.bitmask import unpack_bits
from clearn.masks import Subnetworks
from clearn.nets import Net
from clearn.prototypes import Metric, Prototypes
from clearn.seeding import Generators, derive_seed
from clearn.strategy import Strategy, Validation
from clearn.stream import Stream, Task

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from typing_extensions import Self

_BATCH = 512  # examples per forward pass where nothing is trained
_HARD = -1  # the number of the draw before the minor weights appear


class SoftNet(Strategy):
    """Learn a soft mask in the base task; afterwards move only its minor weights.

    Every weight w of the backbone has a score s. Task 0, the base task, trains both and a linear
    classifier through

        min CE(f(x; w * m(s)), y),    m = 1 where |s| is among the share c largest of its layer,
                                      m = u, drawn from U(0, 1), elsewhere (the minor weights),

    where w gets dL/d(w m) * m, and s gets dL/d(w m) * w * sign(s), as if m were 1. Then the mask is
    kept for good: 1 bit per weight, and the seed that draws the u again.

    In the later tasks, the sessions, the minor weights of one stage learn by the metric loss

        -log softmax_o(cos(z, p_o) - 1)[y],    z = f(x; w * m),    w <- w - session_lr dL/d(w m) u,

    over all classes o seen so far, where p_o is the mean of z over the training examples of a class
    of an earlier task, and over those in the batch for a class of this one. Classes are told by the
    nearest of these means, which are kept; until the base task has ended, by the classifier.

    Args:
        net: Any backbone, and a head for all classes.
        c: Share of each layer's weights that are major, in (0, 1].
        stage: Whose minor weights learn in the sessions: the first part of their names in the
            backbone, as `blocks.7`, or several of these. None: the last layer.
        lr: Learning rate of SGD in the base task, > 0.
        momentum: Momentum of SGD in the base task, in [0, 1).
        weight_decay: L2 penalty of the base task, of weights and scores, >= 0.
        milestones: Epochs of the base task after which the learning rate is multiplied by `gamma`.
        gamma: In (0, 1].
        redraw: When u is drawn anew: for every epoch (paper), or every forward pass (the authors'
            code). What the last step used is kept.
        soft_epoch: Epochs of the base task with u = 0 (their code: 200 of 240). None: all.
        session_epochs: Epochs of a session, >= 1, and no more than `training.epochs`.
        session_lr: Learning rate of a session, > 0.
        temperature: The logits of the metric loss are divided by it, > 0.
        exemplars_per_class: Training examples of each class of an earlier session (not of the base
            task) that are rehearsed in a session, >= 0.
        bn_mode: Batch normalisation in a session. frozen: the statistics and parameters of the base
            task. official: both go on learning, as in the authors' code.
        ncm_metric: Distance to the means. cosine: features have length 1 before the mean is taken.
    """

    def __init__(
        self,
        net: Net,
        *,
        c: float = 0.9,
        stage: str | list[str] | None = None,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        milestones: Sequence[int] = (),
        gamma: float = 0.01,
        redraw: Literal["epoch", "forward"] = "epoch",
        soft_epoch: int | None = 0,
        session_epochs: int = 6,
        session_lr: float = 0.02,
        temperature: float = 1.0,
        exemplars_per_class: int = 0,
        bn_mode: Literal["frozen", "official"] = "frozen",
        ncm_metric: Metric = "cosine",
    ) -> None:
        super().__init__(net, lr=lr, momentum=momentum, weight_decay=weight_decay)
        _check_choice("redraw", redraw, ("epoch", "forward"))
        _check_choice("bn_mode", bn_mode, ("frozen", "official"))
        _check_choice("ncm_metric", ncm_metric, ("cosine", "euclidean"))
        _check("stage", repr(stage), stage is None or bool(stage), "a name, several names or null")
        _check("gamma", gamma, 0 < gamma <= 1, "a number in (0, 1]")
        _check(
            "milestones",
            milestones,
            all(isinstance(m, int) and m >= 1 for m in milestones),
            "integers >= 1",
        )
        _check("soft_epoch", soft_epoch, soft_epoch is None or soft_epoch >= 0, "an epoch >= 0")
        _check("session_epochs", session_epochs, session_epochs >= 1, "an integer >= 1")
        _check("session_lr", session_lr, 0 < session_lr < math.inf, "a number > 0")
        _check("temperature", temperature, 0 < temperature < math.inf, "a number > 0")
        _check("exemplars_per_class", exemplars_per_class, exemplars_per_class >= 0, ">= 0")
        self.milestones = sorted(milestones)
        self.gamma = gamma
        self.redraw = redraw
        self.soft_epoch = soft_epoch
        self.session_epochs = session_epochs
        self.session_lr = session_lr
        self.temperature = temperature
        self.exemplars_per_class = exemplars_per_class
        self.bn_mode = bn_mode
        self.subnetworks = Subnetworks(net.backbone, c)
        self._stage = _indices_of(stage, self.subnetworks.names)
        norms = nn.modules.batchnorm._NormBase
        self._norms = tuple(m for m in net.backbone.modules() if isinstance(m, norms))
        features = cast("int", net.backbone.num_features)
        self.prototypes = Prototypes(net.num_classes, features, ncm_metric)
        self._seed, self._draw, self._epochs = 0, _HARD, 0
        self._drawn: tuple[tuple[int, int], list[Tensor]] | None = None
        self._ready: list[Tensor] | None = None

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Draw the scores.

        Raises:
            UserError: The stream is not in the class scenario, or the head needs the task's id.
        """
        super().prepare(stream, generators)
        name = type(self).__name__
        if stream.scenario != "class":
            raise UserError(
                f"stream.scenario: {stream.scenario} is not valid for {name}, which tells all "
                "classes apart by their means: expected class"
            )
        if self.net.head.per_task:
            raise UserError(
                f"net.head: a {type(self.net.head).__name__} needs the task's id, which {name} "
                "does without: expected single or growing"
            )
        self.subnetworks.draw_scores(generators.get("scores", "cpu"))
        self._seed = derive_seed(generators.seed, "minor weights")

    # Training

    @property
    def _in_base(self) -> bool:
        """Whether the base task has not ended."""
        return not len(self.subnetworks)

    def begin_task(self, task: Task) -> None:
        """Make the classifier ready for the base task; the sessions have none."""
        if self._in_base:
            super().begin_task(task)
        self._epochs = 0

    def examples(self, task: Task, past: Sequence[Task]) -> Examples:
        """The examples of the task, and the exemplars of the sessions before it."""
        return Examples.concat([task.train, *map(self._exemplars, past[1:])])

    def _exemplars(self, task: Task) -> Examples:
        """The first few examples of each class."""
        labels = task.train.labels
        rows = [(labels == label).nonzero()[: self.exemplars_per_class] for label in task.classes]
        return task.train.select(torch.cat(rows).flatten())

    def step(self, batch: Batch) -> Tensor:
        """One update; in the base task with the minor weights that are due."""
        if self._in_base:
            if self.soft_epoch is None or self._epochs < self.soft_epoch:
                self._draw = _HARD
            else:
                self._draw = self._epochs if self.redraw == "epoch" else self._draw + 1
        return super().step(batch)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the classifier in the base task, in a session of the metric loss."""
        if self._in_base:
            weights = self.subnetworks.softly_selected(self._minors())
            return cross_entropy(self.net.head(self._features(weights, batch.x)), batch.y)
        if self.bn_mode == "frozen":
            for norm in self._norms:  # each evaluation sets the mode of the whole net
                norm.eval()
        logits = self.prototypes.with_batch(
            self._features(self._session_tensors(), batch.x), batch.y
        )
        return cross_entropy(logits / self.temperature, batch.y)

    def end_epoch(self, task: Task, validation: Validation | None) -> bool:
        """End a session after its own number of epochs."""
        self._epochs += 1
        return not self._in_base and self._epochs >= self.session_epochs

    def end_task(self, task: Task) -> None:
        """Keep the mask when the base task ends, and the mean of each class of any task."""
        if self._in_base:
            self.subnetworks.keep(self.subnetworks.selection())
        self._keep_prototypes(task.train)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD: in the base task over all that trains, in a session over the stage, plain."""
        if not self._in_base:
            return torch.optim.SGD(self._session_parameters(), self.session_lr)
        optimizer = torch.optim.SGD(
            [p for p in self.parameters() if p.requires_grad],
            self.lr,
            self.momentum,
            weight_decay=self.weight_decay,
        )
        if not self.milestones:
            return optimizer
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones, self.gamma)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _session_parameters(self) -> list[nn.Parameter]:
        stage = [self.subnetworks.weights[index] for index in self._stage]
        norms = self._norms if self.bn_mode == "official" else ()
        return [*stage, *(p for norm in norms for p in norm.parameters() if p.requires_grad)]

    # The net under the mask

    def _minors(self) -> list[Tensor]:
        """The u of each weight, of its shape; 0 before the minor weights appear."""
        key = self._seed, self._draw
        if self._drawn is None or self._drawn[0] != key:
            if self._draw == _HARD:
                minors = [torch.zeros_like(weight) for weight in self.subnetworks.weights]
            else:
                minors = self.subnetworks.uniform(derive_seed(*key))
            self._drawn = key, minors
        return self._drawn[1]

    @torch.no_grad()
    def _fixed_weights(self) -> list[Tensor]:
        """The soft weights as constants, made once and kept until the mode changes."""
        if self._ready is None:
            nets = self.subnetworks
            bits = nets.split(nets.selection() if self._in_base else nets.mask(0))
            rows = zip(nets.weights, bits, self._minors(), strict=True)
            self._ready = [torch.where(unpack_bits(b, w.shape), w, w * u) for w, b, u in rows]
        return self._ready

    def _session_tensors(self) -> dict[str, Tensor]:
        """Parameters of the backbone by name: constants, but for what a session trains."""
        nets, soft = self.subnetworks, list(self._fixed_weights())
        bits, minors = nets.split(nets.mask(0)), self._minors()
        for k in self._stage:
            weight = nets.weights[k]
            major = unpack_bits(bits[k], weight.shape)
            soft[k] = torch.where(major, weight.detach(), weight * minors[k])
        trained = {id(p) for p in self._session_parameters()}
        named = self.net.backbone.named_parameters(remove_duplicate=False)
        return {n: p.detach() for n, p in named if id(p) not in trained} | nets.named(soft)

    def _features(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        """Features `[B, F]`, with `tensors` in the place of those of the backbone."""
        # Shared weights are in `tensors` under each of their names already.
        return cast("Tensor", functional_call(self.net.backbone, tensors, (x,), tie_weights=False))

    # Prediction

    @torch.no_grad()
    def _keep_prototypes(self, examples: Examples) -> None:
        """Keep the mean of each class of some examples, seen as in a test."""
        self.eval()
        batches = examples.batches(_BATCH, device=self.device)
        self.prototypes.keep((self._fixed_features(batch.x), batch.y) for batch in batches)
        self.train()

    def _fixed_features(self, x: Tensor) -> Tensor:
        return self._features(self.subnetworks.named(self._fixed_weights()), x)

    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        """Negative distances `[B, C]` to the means; in the base task logits of the classifier."""
        if self.training:
            self._ready = None
        judge = self.net.head if self._in_base else self.prototypes
        return cast("Tensor", judge(self._fixed_features(x)))

    # State

    def train(self, mode: bool = True) -> Self:
        """Set the mode; weights made ready are let go."""
        self._ready = None
        return super().train(mode)

    def _apply(self, *args: Any, **options: Any) -> Self:
        """Move or convert the module, as `to` does; what is made from it stays behind."""
        self._ready = self._drawn = None
        return cast("Self", super()._apply(*args, **options))  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any) -> None:
        self._ready = None
        super()._load_from_state_dict(*args)

    def get_extra_state(self) -> dict[str, int]:
        """What draws the minor weights again, and the epochs of the task so far."""
        return {"seed": self._seed, "draw": self._draw, "epochs": self._epochs}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take over what `get_extra_state` gave."""
        self._seed, self._draw, self._epochs = state["seed"], state["draw"], state["epochs"]

    def bytes_stored(self) -> dict[str, int]:
        """Parameters, mask (1 bit per weight and two numbers of 8 bytes), means and exemplars."""
        stored = super().bytes_stored() | {
            "masks": self.subnetworks.masks.bytes_stored() + 2 * 8,
            "prototypes": self.prototypes.bytes_stored(),
        }
        if self.exemplars_per_class:
            kept = [self._exemplars(task) for task in self.stream.tasks[1 : self.task.index + 1]]
            sizes = [len(e) * (math.prod(e.shape) * e.dtype.itemsize + 8) for e in kept]
            stored["exemplars"] = sum(sizes)
        return stored


class HardNet(SoftNet):
    """SoftNet without minor weights: what the mask does not select is 0.

    After the base task nothing learns but the means of the classes.

    Args:
        net: Any backbone, and a head for all classes.
        c: Share of each layer's weights that the mask selects, in (0, 1].
        lr: Learning rate of SGD in the base task, > 0.
        momentum: Momentum of SGD in the base task, in [0, 1).
        weight_decay: L2 penalty of the base task, of weights and scores, >= 0.
        milestones: Epochs of the base task after which the learning rate is multiplied by `gamma`.
        gamma: In (0, 1].
        ncm_metric: Distance to the means. cosine: features have length 1 before the mean is taken.
    """

    def __init__(
        self,
        net: Net,
        *,
        c: float = 0.9,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        milestones: Sequence[int] = (),
        gamma: float = 0.01,
        ncm_metric: Metric = "cosine",
    ) -> None:
        super().__init__(
            net,
            c=c,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            milestones=milestones,
            gamma=gamma,
            soft_epoch=None,
            session_epochs=1,
            ncm_metric=ncm_metric,
        )


def _indices_of(stage: str | list[str] | None, names: Sequence[str]) -> list[int]:
    """Positions of the weights whose names begin with the stage's.

    Raises:
        UserError: There are none for one of them.
    """
    if stage is None:
        return [len(names) - 1]
    found: set[int] = set()
    for start in [stage] if isinstance(stage, str) else stage:
        inside = {k for k, name in enumerate(names) if f"{name}.".startswith(f"{start}.")}
        if not inside:
            parts = [name.split(".") for name in names]
            known = {".".join(p[:n]) for p in parts for n in range(1, max(len(p), 2))}
            raise unknown_name("strategy.stage", start, known)
        found |= inside
    return sorted(found)


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise UserError(f"strategy.{name}: {value} is not valid: expected {expected}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    _check(name, repr(value), value in choices, " or ".join(choices))

"""TACLE: thresholds by task and weights by class for few labels (Kalla et al. 2025, 2407.08041).

What is here follows the authors' released code (rokmr/TACLE) where that and the paper differ.

Shapes: B batch of the pool, L labelled batch, C classes of the stream, K classes of a task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.chart import Chart
from clearn.errors import UserError, unknown_name
from clearn.nets import Net
from clearn.seeding import Generators
from clearn.strategies.slca import SLCA
from clearn.strategy import Validation
from clearn.stream import Stream, Task
from clearn.views import Policy, Views

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer


ClassWeights = Literal["code", "paper", "none"]
Scope = Literal["seen", "task"]

_EVAL_BATCH = 256


def adaptive_threshold(task: int, alpha: float, beta: float) -> float:
    """Gamma(t) = alpha / (1 + exp(alpha t)) + beta, t from 0; it falls to beta."""
    return alpha / (1 + math.exp(alpha * task)) + beta


def class_weights(counts: Tensor, form: ClassWeights) -> Tensor:
    """Weights of classes, in [1, 2]: the rarer among the pseudo-labels, the larger.

    Args:
        counts: Pseudo-labels of each class and one more, `[K]`.
        form: code: 1 + min n / n, as the authors' code. paper: 2 - n / max n, as the paper, which
            leaves open by what n is divided. none: 1.
    """
    if form == "code":
        return 1 + counts.min() / counts
    if form == "paper":
        return 2 - counts / counts.max()
    return torch.ones_like(counts)


class _Outputs(NamedTuple):
    """What the net makes of a step's views, over the task's own K classes.

    Attributes:
        known: Logits `[L, K]` of labelled views.
        guess: The likeliest class of weak views, `[B]`.
        confident: Whether it is likely enough, bool `[B]`.
        strong: Logits `[R, K]` of strong views.
        rows: Which of the B these are of.
    """

    known: Tensor
    guess: Tensor
    confident: Tensor
    strong: Tensor | None
    rows: Tensor | slice = slice(None)


class TACLE(SLCA):
    """SLCA that also learns from unlabelled examples of the task's classes, as FixMatch does.

        L   = L_s / 2 + L_u, or L_s / 2 in the first epochs of a task
        L_s = sum_i w(y_i) CE(x_i, y_i) / sum_i w(y_i)
        L_u = 1 / B sum_j [p_j > gamma] w(c_j) CE(strong view of u_j, c_j)

    c_j is the class that the net gives the weak view of u_j, and p_j its probability; both losses
    are over the task's own classes. gamma falls from task to task, since confidence does
    (`adaptive_threshold`), and w is larger for classes that are rare among the confident guesses
    (`class_weights`). Confident examples count in the Gaussians of their classes too.

    In a net without batch normalisation the weak views pass first and need no gradient, and the
    strong views wait for the end of the warm-up; on a CPU only those pass that are learned from.
    In other nets all views are one batch, whose statistics are those of the authors' code.

    The ablations of the paper: `threshold: 0.9, class_weights: none, unlabelled_statistics: false`
    is SLCA with a fixed threshold; the parts come back one by one.

    Args:
        net: As for SLCA.
        threshold: Confidence above which a guess is learned from, in [0, 1); None for the one that
            adapts to the task.
        alpha: Of the threshold that adapts, > 0.
        beta: Its limit, in [0, 1), with alpha / 2 + beta < 1.
        class_weights: code, paper or none.
        unlabelled_statistics: Whether confident examples count in the Gaussians of their classes.
        warm_up: Epochs of each task that leave L_u out, >= 0.
        scope: Among which classes the guesses at an epoch's end must win to be counted: those seen
            so far, as in the authors' code, or those of the task.
        strong: What makes strong views strong: autoaugment or randaugment.
        slow: As for SLCA, like what follows.
        milestones: The same.
        ca_epochs: The same.
        tau: The same.
        align_first: The same.
        labelled_batch_size: L.
        lr: Learning rate of the head, > 0.
        momentum: Of SGD, in [0, 1).
        weight_decay: L2 penalty, >= 0.
    """

    pool: Tensor
    weights: Tensor

    def __init__(
        self,
        net: Net,
        *,
        threshold: float | None = None,
        alpha: float = 0.5,
        beta: float = 0.65,
        class_weights: ClassWeights = "code",
        unlabelled_statistics: bool = True,
        warm_up: int = 2,
        scope: Scope = "seen",
        strong: Policy = "autoaugment",
        slow: float = 0.01,
        milestones: Sequence[int] = (8,),
        ca_epochs: int = 5,
        tau: float | None = 0.5,
        align_first: bool = True,
        labelled_batch_size: int = 40,
        lr: float = 0.005,
        momentum: float = 0.9,
        weight_decay: float = 5e-3,
    ) -> None:
        super().__init__(
            net,
            slow=slow,
            milestones=milestones,
            ca_epochs=ca_epochs,
            tau=tau,
            align_first=align_first,
            labelled_batch_size=labelled_batch_size,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        for name, value, valid, expected in (
            ("threshold", threshold, threshold is None or 0 <= threshold < 1, "[0, 1), or none"),
            ("alpha", alpha, 0 < alpha < math.inf, "a number > 0"),
            ("beta", beta, 0 <= beta < 1 - alpha / 2, "a number in [0, 1 - alpha / 2)"),
            ("warm_up", warm_up, warm_up >= 0, "an integer >= 0"),
        ):
            if not valid:
                raise UserError(f"strategy.{name}: {value} is not valid: expected {expected}")
        for name, given, allowed in (
            ("class_weights", class_weights, get_args(ClassWeights)),
            ("scope", scope, get_args(Scope)),
            ("strong", strong, get_args(Policy)),
        ):
            if given not in allowed:
                raise unknown_name(f"strategy.{name}", given, allowed)
        self.threshold = threshold
        self.alpha = alpha
        self.beta = beta
        self.class_weights: ClassWeights = class_weights
        self.unlabelled_statistics = unlabelled_statistics
        self.warm_up = warm_up
        self.scope: Scope = scope
        self.strong: Policy = strong
        self.register_buffer("pool", torch.ones(net.num_classes))  # guesses by class, and one
        self.register_buffer("weights", torch.ones(net.num_classes))
        self._mixes_rows = slow > 0 and any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.backbone.modules()
        )
        self._guesses: tuple[Tensor, Tensor] | None = None
        self._used: list[float] = []
        self._right: list[float] = []
        self._heaviest: list[float] = []

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Meet the stream.

        Raises:
            UserError: It has no unlabelled examples.
        """
        super().prepare(stream, generators)
        if any(task.unlabelled is None for task in stream):
            raise UserError(
                f"stream.labels_per_class: {type(self).__name__} learns from unlabelled examples "
                "too, and all of this stream are labelled; set it, say to 4"
            )
        self.views = Views(stream.preprocess, strong=self.strong)

    def begin_task(self, task: Task) -> None:
        """Count pseudo-labels anew."""
        super().begin_task(task)
        self.pool.fill_(1.0)
        self.weights.fill_(1.0)
        self._used.append(math.nan)
        self._right.append(math.nan)
        self._heaviest.append(math.nan)

    def gamma(self) -> float:
        """The threshold of the task."""
        if self.threshold is not None:
            return self.threshold
        return adaptive_threshold(self.task.index, self.alpha, self.beta)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a labelled batch and of a batch of the pool."""
        labelled, weak = self.labelled_batch(), self.weak(batch.raw)
        warm = self._epoch < self.warm_up
        unseen = warm and not self._mixes_rows
        strong = None if unseen else self.views.strong(batch.raw, self._draws())
        seen = self._outputs(labelled.x, weak, strong)
        self._guesses = guess, confident = seen.guess, seen.confident
        weights = self.weights[self._labels()]
        loss = 0.5 * cross_entropy(seen.known, self.places[labelled.y], weights)
        if warm or seen.strong is None:
            return loss
        each = cross_entropy(seen.strong, guess[seen.rows], weights, reduction="none")
        return loss + (each * confident[seen.rows]).sum() / len(weak)

    def _outputs(self, labelled: Tensor, weak: Tensor, strong: Tensor | None) -> _Outputs:
        if self._mixes_rows:
            assert strong is not None
            known, learned, weak_logits = self._split([labelled, strong, weak])
            return _Outputs(known, *self._guess(weak_logits.detach()), learned)
        with torch.no_grad():
            guesses = self._guess(self.own_logits(self.net.features(weak)))
        # Older torch would use the weights that autocast has cast there, which have no gradient.
        torch.clear_autocast_cache()
        if strong is None:
            return _Outputs(self.own_logits(self.features(labelled)), *guesses, None)
        # A GPU would have to be waited for to know how many there are.
        rows = guesses[1] if self.device.type == "cpu" else slice(None)
        known, learned = self._split([labelled, strong[rows]])
        return _Outputs(known, *guesses, learned, rows)

    def _split(self, parts: Sequence[Tensor]) -> list[Tensor]:
        logits = self.own_logits(self.features(torch.cat(list(parts))))
        return list(torch.split(logits, [len(part) for part in parts]))

    def _guess(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Places `[B]` of the likeliest classes, and whether they are likely enough, bool `[B]`."""
        likeliest, guess = logits.softmax(dim=1).max(dim=1)
        return guess, likeliest > self.gamma()

    def update(self, optimizer: LightningOptimizer) -> None:
        """Step, and count the confident guesses of the batch."""
        super().update(optimizer)
        assert self._guesses is not None
        guess, confident = self._guesses
        self._count(self._labels()[guess], confident)
        self.track("share of the pool used", confident.float().mean())

    def _count(self, labels: Tensor, confident: Tensor) -> None:
        """Count labels `[B]` where `confident`, and weigh classes by the counts."""
        self.pool.index_add_(0, labels, confident.to(self.pool.dtype))
        own = self._labels()
        self.weights[own] = class_weights(self.pool[own], self.class_weights)

    def _labels(self) -> Tensor:
        """Labels `[K]` of the task."""
        sizes = [len(labels) for labels in self.head.classes]
        return torch.split(self.head.columns, sizes)[self.task.index]

    def _draws(self) -> torch.Generator:
        return self.generators.get("views", "cpu")

    def end_epoch(self, task: Task, validation: Validation | None) -> bool:
        """Count the pool anew, with the net as it now is, where that weighs classes."""
        if self.class_weights != "none":
            self._survey(task)
        return super().end_epoch(task, validation)

    def end_task(self, task: Task) -> None:
        """Count the pool where it was not counted before; then as SLCA."""
        if self.class_weights == "none":
            self._survey(task)
        super().end_task(task)

    @torch.no_grad()
    def _survey(self, task: Task) -> None:
        """Guess the class of every example of the pool, not augmented."""
        assert task.unlabelled is not None
        self.eval()
        self.pool.fill_(1.0)
        own, gamma = self._labels(), self.gamma()
        used = torch.zeros((), dtype=torch.int64, device=self.device)
        right = torch.zeros_like(used)
        for batch in task.unlabelled.batches(_EVAL_BATCH, device=self.device):
            features = self.net.features(batch.x)
            guess, confident = self._guess(self.own_logits(features))
            labels = own[guess]
            used += confident.sum()
            assert batch.position is not None
            right += task.unlabelled.correct(batch.position, torch.where(confident, labels, -1))
            if self.scope == "seen":
                confidence, labels = self.head(features).softmax(dim=1).max(dim=1)
                confident = (confidence > gamma) & (self.head.task_of[labels] == self.task.index)
            self._count(labels, confident)
        count = int(used)
        self._used[-1] = count / len(task.unlabelled)
        self._right[-1] = int(right) / count if count else math.nan
        self._heaviest[-1] = float(self.weights[own].max() / self.weights[own].min())
        self.train()

    def statistics(self, task: Task) -> Iterable[tuple[Tensor, Tensor]]:
        """Features of labelled examples, and of weak views of the confident ones of the pool."""
        yield from super().statistics(task)
        if not self.unlabelled_statistics:
            return
        assert task.unlabelled is not None
        own = self._labels()
        for batch in task.unlabelled.batches(_EVAL_BATCH, device=self.device):
            features = self.net.features(self.weak(batch.raw))
            guess, confident = self._guess(self.own_logits(features))
            yield features[confident], own[guess[confident]]

    def get_extra_state(self) -> dict[str, Any]:
        """As of SLCA, and how much of the pool was used."""
        return super().get_extra_state() | {
            "used": list(self._used),
            "right": list(self._right),
            "heaviest": list(self._heaviest),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        super().set_extra_state(state)
        self._used, self._right = list(state["used"]), list(state["right"])
        self._heaviest = list(state["heaviest"])

    def charts(self) -> dict[str, Chart]:
        """Threshold, use of the pool, rightness of its pseudo-labels, and spread of class weights.

        At the end of each task; the spread is the largest weight over the smallest, in [1, 2].
        """
        thresholds = [
            adaptive_threshold(task, self.alpha, self.beta)
            if self.threshold is None
            else self.threshold
            for task in range(len(self.stream))
        ]
        return super().charts() | {
            "unlabelled examples": {
                "share used": self._line(self._used),
                "pseudo-labels that are right": self._line(self._right),
                "threshold": thresholds,
            },
            "spread of class weights": {"largest over smallest": self._line(self._heaviest)},
        }

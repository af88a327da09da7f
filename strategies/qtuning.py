"""Q-tuning: a bounded queue of prompts for lifelong learning (Guo et al. 2024, arXiv 2404.14607).

The body of the paper and a code of the authors' were not at hand. What follows is a reading of its
abstract, its reviews and summaries; where these leave something open, an option or our choice
stands in, and no figure of the paper can be held against it.

Shapes: B batch, L tokens, l rows of a prompt, l* of the shared one, R rows of all that stands
before a text, E width of the embeddings, D features, C capacity of the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from clearn.batch import Batch
from clearn.errors import UserError, unknown_name
from clearn.nets import Net
from clearn.prompts import (
    EVICTIONS,
    EvictionOptions,
    JSDCritic,
    PromptQueue,
    aggregate,
    jsd_bound,
)
from clearn.seeding import Generators
from clearn.strategies.prompts import PromptStrategy
from clearn.stream import Stream, Task

if TYPE_CHECKING:
    from typing_extensions import Self

Order = Literal["old_first", "new_first"]
Scope = Literal["all", "queue"]
Inference = Literal["snapshot", "live", "shared"]

_EVAL_BATCH = 64


class QTuning(PromptStrategy):
    """A queue of earlier prompts, cut back when it is full, re-weighted by each task.

    A text of task i is read after W o [P*; Q; P]: the shared prompt P*, which all tasks go on
    training, the queue Q of the frozen prompts of earlier tasks, and the task's own P. W = u v' has
    rank one and is the task's own; it begins with ones. A full queue is cut back before the task to
    make room for its prompt (`clearn.prompts.eviction`), so that the length, and with it the time
    per step, stays bounded. So that P* does not follow the newest task alone, the information that
    two features of a text share is kept high: that after P* by itself, and that after all the task
    before had (memory retention, `clearn.prompts.jsd_bound`).

    A snapshot W o [P*; Q; P] is what each task leaves for its test, and nothing is forgotten.
    Inference `live` has but the queue and P* as they now are, and W up to the first eviction after
    the task: its memory is bounded, and what it forgets is measured. Inference `shared` has P*
    alone, and shows what retention does. The accuracy of each at the end is in the record's metrics
    (`snapshot_acc`, `live_acc`, `shared_acc`).

    With `shared_length: 0, capacity: null, aggregation: false, order: new_first` it is
    `ProgressivePrompts`.

    Args:
        net: A language model (`transformers/<name>`) and a head.
        length: l, >= 1.
        shared_length: l*, >= 0; 0 leaves the shared prompt out, and retention with it.
        capacity: C, >= l; None for no bound.
        eviction: pca, fifo, random or merge.
        keep_mean: Add the mean that pca takes off to the rows it makes.
        rescale: Give these the mean length of the rows before.
        aggregation: Whether tasks re-weight rows by W.
        scope: What W weighs: all, or all but P*.
        order: old_first: as above. new_first: P before Q, whose newest prompts come first.
        retention: Weight of the memory retention, >= 0; 0 leaves it out.
        retention_share: Share of a batch that it is computed on, in (0, 1]; 2 texts at the least.
            All of it would nearly double the time of a step.
        inference: What the accuracy matrix shows: snapshot, live or shared.
        lr: Learning rate of prompts, > 0.
        gate_lr: That of u and v, > 0.
        head_lr: That of the head, > 0.
        critic_lr: That of the critic of retention, > 0.
    """

    u: nn.Parameter

    def __init__(
        self,
        net: Net,
        *,
        length: int = 10,
        shared_length: int = 10,
        capacity: int | None = 50,
        eviction: str = "pca",
        keep_mean: bool = False,
        rescale: bool = False,
        aggregation: bool = True,
        scope: Scope = "all",
        order: Order = "old_first",
        retention: float = 0.01,
        retention_share: float = 0.4,
        inference: Inference = "snapshot",
        lr: float = 0.01,
        gate_lr: float = 0.001,
        head_lr: float = 0.005,
        critic_lr: float = 0.001,
    ) -> None:
        super().__init__(net, length=length, lr=lr, head_lr=head_lr)
        for name, value, valid, expected in (
            ("shared_length", shared_length, shared_length >= 0, "a number >= 0"),
            ("retention", retention, retention >= 0, "a number >= 0"),
            ("retention_share", retention_share, 0 < retention_share <= 1, "a number in (0, 1]"),
            ("gate_lr", gate_lr, gate_lr > 0, "a number > 0"),
            ("critic_lr", critic_lr, critic_lr > 0, "a number > 0"),
        ):
            if not valid:
                raise UserError(f"strategy.{name}: {value} is not valid: expected {expected}")
        for name, given, allowed in (
            ("eviction", eviction, tuple(EVICTIONS)),
            ("scope", scope, get_args(Scope)),
            ("order", order, get_args(Order)),
            ("inference", inference, get_args(Inference)),
        ):
            if given not in allowed:
                raise unknown_name(f"strategy.{name}", given, allowed)
        if inference == "shared" and not shared_length:
            raise UserError(
                "strategy.inference: shared is not valid without a shared prompt; "
                "set strategy.shared_length to 1 or more, or take snapshot or live"
            )
        width = self.language_model.embeddings.shape[1]
        self.eviction = eviction
        self.keep_mean = keep_mean
        self.rescale = rescale
        self.aggregation = aggregation
        self.scope: Scope = scope
        self.order: Order = order
        self.retention = retention if shared_length else 0.0
        self.retention_share = retention_share
        self.inference: Inference = inference
        self.gate_lr = gate_lr
        self.critic_lr = critic_lr
        self.shared = nn.Parameter(torch.zeros(shared_length, width))
        self.queue = PromptQueue(length, width, capacity)
        self.v = nn.Parameter(torch.ones(width))
        self.critic = JSDCritic(self.language_model.num_features) if self.retention else None
        self._gates: dict[int, tuple[Tensor, Tensor]] = {}  # u and v by task, of rows still there
        self._cache: Tensor | None = None  # features of the task's examples, by the task before

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Allocate a weight for each row that there can be."""
        super().prepare(stream, generators)
        self.u = nn.Parameter(torch.ones(self.most_rows(len(stream)), device=self.device))

    def most_rows(self, tasks: int) -> int:
        """P*, and a prompt for each task or what the queue has room for."""
        rows, capacity = tasks * self.length, self.queue.capacity
        return len(self.shared) + (rows if capacity is None else min(rows, capacity))

    # Training

    def begin_task(self, task: Task) -> None:
        """Make room in the queue; start the task's prompt, weights and critic."""
        draws = self.generators.get("prompts", "cpu")
        if not task.index and len(self.shared):
            self.shared.data.copy_(self.draw(len(self.shared)))
        options = EvictionOptions(
            block=self.length, generator=draws, keep_mean=self.keep_mean, rescale=self.rescale
        )
        self.queue.make_room(EVICTIONS[self.eviction](options))
        self._gates = {k: gates for k, gates in self._gates.items() if self.queue.untouched(k)}
        super().begin_task(task)
        self.u.data.fill_(1.0)
        self.v.data.fill_(1.0)
        if self.critic is not None:
            self.critic.draw(self.generators.get("critic", "cpu"))
        self._cache = None

    def rows(self) -> Tensor:
        """W o [P*; Q; P] in the order asked for, `[R, E]`."""
        rows = torch.cat([self.shared, self.queue.rows, self.prompt])
        if self.aggregation:
            rows = self._weighed(rows, self.u[: len(rows)], self.v)
        return self._ordered(rows)

    def _weighed(self, rows: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The first `len(u)` rows re-weighted, in the scope asked for; the others stay."""
        first, last = len(self.shared) if self.scope == "queue" else 0, len(u)
        weighed = aggregate(rows[first:last], u[first:], v)
        return torch.cat([rows[:first], weighed, rows[last:]])

    def _ordered(self, rows: Tensor) -> Tensor:
        if self.order == "old_first":
            return rows
        shared, rest = rows[: len(self.shared)], rows[len(self.shared) :]
        oldest = len(rest) % self.length  # what an eviction has left of a prompt
        blocks = [rest[:oldest], *torch.split(rest[oldest:], self.length)]
        return torch.cat([shared, *reversed(blocks)])

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch, less the information retained."""
        loss = super().loss(batch)
        count = min(len(batch), max(2, round(self.retention_share * len(batch))))
        if self.critic is None or not self._kept or count < 2:
            return loss
        assert batch.position is not None
        if self._cache is None:
            self._cache = self._features_before()
        before = self._cache[batch.position[:count]]
        alone = self.language_model(batch.x[:count], self.shared)
        draws = self.generators.get("retention", "cpu")
        bound = jsd_bound(self.critic, alone, before, draws)
        self.track("retained", bound.detach())
        return loss - self.retention * bound

    @torch.no_grad()
    def _features_before(self) -> Tensor:
        """Features `[N, D]` of the task's examples after all that the task before had."""
        batches = self.task.train.batches(_EVAL_BATCH, device=self.device)
        return torch.cat([self.language_model(batch.x, self._kept[-1]) for batch in batches])

    def end_task(self, task: Task) -> None:
        """Keep the snapshot and the weights, and move the prompt into the queue."""
        with torch.no_grad():
            rows = self.rows().clone()
        self._kept.append(rows)
        if self.aggregation:
            u, v = self.u.detach()[: len(rows)], self.v.detach()
            self._gates[task.index] = u.clone(), v.clone()
        self.queue.append(self.prompt)

    def groups(self) -> list[dict[str, Any]]:
        """Prompts, weights and critic."""
        groups = [{"params": [self.prompt, self.shared], "lr": self.lr}]
        if self.aggregation:
            groups.append({"params": [self.u, self.v], "lr": self.gate_lr})
        if self.critic is not None:
            groups.append({"params": list(self.critic.parameters()), "lr": self.critic_lr})
        return groups

    # Inference

    def rows_of(self, task: int) -> Tensor:
        """What stands before the texts of a task that has been learned, `[R, E]`."""
        if self.inference == "snapshot":
            return self._kept[task]
        return self._live(task) if self.inference == "live" else self.shared.detach()

    def _live(self, task: int) -> Tensor:
        """P* and the queue as they now are, re-weighted while the rows are still the task's."""
        rows = torch.cat([self.shared.detach(), self.queue.rows])
        if task in self._gates:
            rows = self._weighed(rows, *self._gates[task])
        return self._ordered(rows)

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Also the mean accuracy at the end by each kind of inference, such as `live_acc`."""
        self.eval()
        chosen = self.inference
        found = super().metrics()
        for name in get_args(Inference):
            if name == "shared" and not len(self.shared):
                continue
            self.inference = name
            found[f"{name}_acc"] = sum(map(self._accuracy, self.stream)) / len(self.stream)
        self.inference = chosen
        self.train()
        return found

    def _accuracy(self, task: Task) -> float:
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in task.test.batches(
            _EVAL_BATCH, order=task.test.by_length(), device=self.device
        ):
            right += (self.predict(batch.x, task.index).argmax(dim=1) == batch.y).sum()
        return right.item() / len(task.test)

    # State

    def get_extra_state(self) -> dict[str, Any]:
        """Snapshots and weights."""
        return super().get_extra_state() | {"gates": dict(self._gates)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        super().set_extra_state(state)
        self._gates = dict(state["gates"])
        self._cache = None

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        """Move the weights of tasks along."""
        super()._apply(fn, *args, **kwargs)
        self._gates = {task: (fn(u), fn(v)) for task, (u, v) in self._gates.items()}
        return self

    def bytes_stored(self) -> dict[str, int]:
        """The head's parameters; snapshots, or what another kind of inference needs instead."""
        stored = super().bytes_stored()
        if self.inference == "snapshot":
            return stored
        prompts = self.shared.nbytes
        if self.inference == "live":
            gates = sum(u.nbytes + v.nbytes for u, v in self._gates.values())
            prompts += self.queue.bytes_stored() + gates
        return stored | {"prompts": prompts}

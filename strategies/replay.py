"""Rehearsal of stored examples: ER, ER-ACE, DER and DER++.

All four, and Relational Experience Replay on top of them (`clearn.strategies.rer`), keep one
convention, so that they can be compared at one learning rate. A step sees K branches of examples:
the current batch first, then independent draws from the buffer, as many examples each. Branch k has
a loss per example and a weight w_k, and the step minimises the weighted sum of the branches' means,

    L = sum_k w_k / n_k sum_i l_k(x_ki).

A branch has its own statistics in batch normalisation, as in a forward pass of its own, though one
pass serves all branches. Code elsewhere differs: one mean over both parts and joint statistics (ER
of mammoth, whose steps are half as long at the same `lr`), or each part halved (ER-ACE in the code
of RER's authors).

Shapes: B batch, n examples of a branch, C classes of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.buffers import DEFAULT_SIZE, Kind, make_buffer
from clearn.errors import UserError
from clearn.nets import Net
from clearn.nets.branches import separate_statistics
from clearn.nets.heads import MASKED, ruled_out
from clearn.seeding import Generators
from clearn.strategy import Strategy
from clearn.stream import Stream


class Branch(NamedTuple):
    """Examples of one forward pass.

    Attributes:
        x: Network input `[n, *input_shape]`.
        y: Labels, int64 `[n]`.
        task_id: The task of all rows, or of each, int64 `[n]`.
        logits: What the net gave for them when they were stored, `[n, C]`, where that is kept.
    """

    x: Tensor
    y: Tensor
    task_id: int | Tensor
    logits: Tensor | None = None


class Term(NamedTuple):
    """What a branch adds to the loss.

    Attributes:
        name: Of the branch, in metrics and figures.
        weight: Of its mean.
        loss: Losses `[n]` of logits `[n, C]` on a branch, given which classes were met: bool `[C]`.
    """

    name: str
    weight: float
    loss: Callable[[Tensor, Branch, Tensor], Tensor]


class Objective(NamedTuple):
    """The loss of a method.

    Attributes:
        terms: One per branch, that of the current batch first.
        from_task: The first task in which examples are replayed.
    """

    terms: tuple[Term, ...]
    from_task: int = 0

    @property
    def keeps_logits(self) -> bool:
        """Whether the buffer has to keep logits."""
        return any(term.loss is distance for term in self.terms)

    def losses(
        self, branches: Sequence[Branch], logits: Sequence[Tensor], met: Tensor
    ) -> list[Tensor]:
        """Losses `[n]` of each branch, of which there may be fewer than terms.

        Args:
            branches: In the order of the terms.
            logits: `[n, C]` of each branch.
            met: Which classes were met, bool `[C]`.
        """
        terms = self.terms[: len(branches)]
        return [
            term.loss(given, branch, met)
            for term, branch, given in zip(terms, branches, logits, strict=True)
        ]


def labels(logits: Tensor, branch: Branch, met: Tensor) -> Tensor:
    """Cross-entropy with the labels."""
    return cross_entropy(logits, branch.y, reduction="none")


def current_labels(logits: Tensor, branch: Branch, met: Tensor) -> Tensor:
    """Cross-entropy among the classes of this branch and those never met (ER-ACE).

    So the batch at hand does not push down the logits of classes that are only in the buffer.
    """
    rivals = (~met).index_fill(0, branch.y, True)
    return cross_entropy(torch.where(rivals, logits, MASKED), branch.y, reduction="none")


def distance(logits: Tensor, branch: Branch, met: Tensor) -> Tensor:
    """Squared distance to the stored logits, divided by C.

    A stored logit that the head ruled out, because its class was yet to come, counts as 0: so old
    examples keep off the classes that came since. Where the head still rules the class out, as one
    of another task, there is no distance.
    """
    assert branch.logits is not None
    stored = torch.where(ruled_out(branch.logits), 0.0, branch.logits)
    apart = torch.where(ruled_out(logits), 0.0, logits - stored)
    return apart.square().mean(dim=1)


def er() -> Objective:
    """Of ER."""
    return Objective((Term("new", 1.0, labels), Term("replayed", 1.0, labels)))


def er_ace() -> Objective:
    """Of ER-ACE, which does not replay in task 0."""
    terms = (Term("new", 1.0, current_labels), Term("replayed", 1.0, labels))
    return Objective(terms, from_task=1)


def der(alpha: float) -> Objective:
    """Of DER."""
    _check_weight("alpha", alpha)
    return Objective((Term("new", 1.0, labels), Term("logits", alpha, distance)))


def der_pp(alpha: float, beta: float) -> Objective:
    """Of DER++."""
    _check_weight("beta", beta)
    return Objective((*der(alpha).terms, Term("labels", beta, labels)))


def _check_weight(name: str, weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise UserError(f"strategy.{name}: {weight} is not valid: expected a number >= 0")


class ER(Strategy):
    """Experience replay: train on the batch and on examples of a buffer (arXiv 1902.10486).

        L = mean_i CE(f(x_i), y_i) + mean_k CE(f(x'_k), y'_k)

    Replayed examples x' are drawn from the whole buffer, without replacement, and augmented afresh.
    After the update the batch is offered to the buffer, in every epoch; so the buffer also holds
    examples of the current task, and may hold one twice. In task 0 they are replayed too.

    Args:
        net: The network to train.
        buffer: Which examples are kept. reservoir: a uniform sample of all that were seen.
            balanced: an equal share for every class. ring: the last ones of every task.
        buffer_size: Examples the buffer holds, >= 1.
        buffer_bytes: Bytes the buffer may take, in place of a number of examples.
        replay_batch_size: Examples per draw, >= 1; None for as many as the batch has. All that are
            stored, when these are fewer.
        **options: Those of any strategy: lr, momentum, weight_decay, optimizer.
    """

    met: Tensor

    def __init__(
        self,
        net: Net,
        *,
        buffer: Kind = "reservoir",
        buffer_size: int = DEFAULT_SIZE,
        buffer_bytes: int | None = None,
        replay_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        if replay_batch_size is not None and replay_batch_size < 1:
            raise UserError(
                f"strategy.replay_batch_size: {replay_batch_size} is not valid: expected >= 1, "
                "or none for as many as the batch has"
            )
        self.buffer_kind: Kind = buffer
        self.buffer_size = buffer_size
        self.buffer_bytes = buffer_bytes
        self.replay_batch_size = replay_batch_size
        self.objective = er()
        self.register_buffer("met", torch.zeros(net.num_classes, dtype=torch.bool))

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Allocate the buffer.

        Raises:
            UserError: Its size or its bytes are not valid for the stream.
        """
        super().prepare(stream, generators)
        self.buffer = make_buffer(
            self.buffer_kind,
            stream,
            size=self.buffer_size,
            budget=self.buffer_bytes,
            logits=self.objective.keeps_logits,
        )

    def step(self, batch: Batch) -> Tensor:
        """One update, after which the batch is offered to the buffer."""
        branches = self.branches(batch)
        logits = self.forward_branches(branches)
        loss = self.minimise(self.combine(branches, logits))
        kept = logits[0].detach() if self.objective.keeps_logits else None
        draws = self.generators.get("buffer")
        self.buffer.add(batch.raw, batch.y, batch.task_id, draws, logits=kept)
        self.met.index_fill_(0, batch.y, True)
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """The weighted sum over the branches, examples to replay being drawn."""
        branches = self.branches(batch)
        return self.combine(branches, self.forward_branches(branches))

    def branches(self, batch: Batch) -> list[Branch]:
        """The current batch, and a draw for each further term once there is something to draw."""
        new = Branch(batch.x, batch.y, batch.task_id)
        if self.task.index < self.objective.from_task or not len(self.buffer):
            return [new]
        return [new, *self.draw(self.replay_batch_size or len(batch))]

    def draw(self, count: int, purpose: str = "") -> list[Branch]:
        """A draw from the buffer, augmented, for each term but the first.

        Args:
            count: Examples per draw, >= 1.
            purpose: Names the generators to use, so that other draws go on as they would.
        """
        return [self._draw(count, purpose) for _ in self.objective.terms[1:]]

    def _draw(self, count: int, purpose: str) -> Branch:
        entries = self.buffer.sample(count, self.generators.get(purpose + "buffer"))
        x = self.augment(entries.raw, purpose + "replay augmentation")
        return Branch(x, entries.y, entries.task_id, entries.logits)

    def forward_branches(self, branches: Sequence[Branch]) -> tuple[Tensor, ...]:
        """Logits `[n, C]` of each branch, all from one pass through the net."""
        x, task_ids, sizes = self.joined(branches)
        with separate_statistics(self.net, sizes):
            logits: Tensor = self.net(x, task_ids)
        return torch.split(logits, sizes)

    def joined(self, branches: Sequence[Branch]) -> tuple[Tensor, int | Tensor | None, list[int]]:
        """All rows as the net takes them: inputs, task ids if it is told them, rows by branch."""
        task_id: int | Tensor | None = None
        if self.stream.scenario == "task":
            ids = [torch.zeros_like(b.y) + b.task_id for b in branches[1:]]
            task_id = branches[0].task_id
            if ids:  # one id for all rows is cheaper for most heads
                task_id = torch.cat([torch.zeros_like(branches[0].y) + task_id, *ids])
        x = branches[0].x if len(branches) == 1 else torch.cat([b.x for b in branches])
        return x, task_id, [len(b.y) for b in branches]

    def combine(self, branches: Sequence[Branch], logits: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar, of branches and their logits."""
        losses = self.objective.losses(branches, logits, self.met)
        weights = self.weights(losses, logits)
        means = [(w * each).mean() for w, each in zip(weights, losses, strict=True)]
        return torch.stack(means).sum()

    def weights(
        self, losses: Sequence[Tensor], logits: Sequence[Tensor]
    ) -> Sequence[float | Tensor]:
        """The weight of each branch, or of each of its examples `[n]`; here the method's own."""
        return [term.weight for term in self.objective.terms[: len(losses)]]

    def bytes_stored(self) -> dict[str, int]:
        """Parameters and buffer."""
        return super().bytes_stored() | {"buffer": self.buffer.bytes_stored()}


class ERACE(ER):
    """ER with asymmetric cross-entropy (ER-ACE, Caccia et al. 2022, arXiv 2104.05025).

    The current batch competes only among its own classes and those never met, so that learning new
    classes does not push the old ones away; replayed examples compete among all. Examples are
    replayed from task 1 on. (In mammoth the last class met so far competes as well.)

    Args:
        net: The network to train.
        **options: Those of ER.
    """

    def __init__(self, net: Net, **options: Any) -> None:
        super().__init__(net, **options)
        self.objective = er_ace()


class DER(ER):
    """Dark experience replay: stay close to stored logits (Buzzega et al. 2020, arXiv 2004.07211).

        L = mean_i CE(f(x_i), y_i) + alpha mean_k ||f(x'_k) - z'_k||^2 / C

    where z' are the logits the net gave for x' when it was stored, before that step's update.

    Args:
        net: The network to train.
        alpha: Weight of the distance, >= 0.
        **options: Those of ER.
    """

    def __init__(self, net: Net, *, alpha: float = 0.2, **options: Any) -> None:
        super().__init__(net, **options)
        self.objective = der(alpha)


class DERpp(ER):
    """DER++: dark experience replay with labels as well (Buzzega et al. 2020, arXiv 2004.07211).

        L = mean_i CE(f(x_i), y_i) + alpha mean_k ||f(x'_k) - z'_k||^2 / C
            + beta mean_k CE(f(x''_k), y''_k)

    where x' and x'' are independent draws.

    Args:
        net: The network to train.
        alpha: Weight of the distance to the stored logits, >= 0.
        beta: Weight of the cross-entropy of replayed examples, >= 0.
        **options: Those of ER.
    """

    def __init__(self, net: Net, *, alpha: float = 0.2, beta: float = 0.5, **options: Any) -> None:
        super().__init__(net, **options)
        self.objective = der_pp(alpha, beta)

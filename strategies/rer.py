"""Relational Experience Replay: weights of a pair learned on the buffer (Wang et al., 2112.15402).

What is here follows the authors' released code (wqza/RelationalExperienceReplay-CL), whose
equations are written out below; of the paper only the abstract was at hand. Where the code does not
do what it is meant to, this does: the network of RER on ER-ACE is trained too, and a task of less
than 10 epochs has an update in every step in place of none.

Shapes: N pairs, K branches, B batch, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearn.batch import Batch
from clearn.chart import Chart
from clearn.errors import UserError, unknown_name
from clearn.nets import Net
from clearn.nets.branches import separate_statistics
from clearn.nets.heads import ruled_out
from clearn.seeding import Generators
from clearn.strategies.replay import ER, Branch, Objective, der_pp, er, er_ace
from clearn.strategy import Validation
from clearn.stream import Stream, Task

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from typing_extensions import Self

_BASES = ("ER", "ERACE", "DERpp")
_RELATIONS = ("learned", "random", "fixed")

Tensors = dict[str, Tensor]
Measure = Callable[[Tensors], tuple[Tensor, Tensor]]
"""From parameters to losses and norms of the logits, each `[N, K]`."""


class RelationNet(nn.Module):
    """Weights of the examples of a pair, from their losses u and the norms n of their logits.

        h = ReLU(A u + a) + ReLU(D n + d),    weights = sigmoid(E h + e) in (0, 1)

    Its parameters are 0 until `draw`.

    Args:
        branches: K.
        hidden: Width of h.
    """

    def __init__(self, branches: int, hidden: int = 16) -> None:
        super().__init__()
        with torch.device("meta"):  # made without drawing from torch's global generator
            self.losses = nn.Linear(branches, hidden)
            self.norms = nn.Linear(branches, hidden)
            self.output = nn.Linear(hidden, branches)
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw the parameters as `nn.Linear` draws its own, uniform in +-1 / sqrt(inputs)."""
        for layer in (self.losses, self.norms, self.output):
            bound = layer.in_features**-0.5
            for parameter in (layer.weight, layer.bias):
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(drawn)

    def forward(self, losses: Tensor, norms: Tensor) -> Tensor:
        """Weights `[N, K]` of losses and norms, each `[N, K]`."""
        dtype = self.output.weight.dtype  # the net's may be shorter in mixed precision
        hidden = self.losses(losses.to(dtype)).relu() + self.norms(norms.to(dtype)).relu()
        return cast("Tensor", self.output(hidden).sigmoid())


class RER(ER):
    """Relational experience replay: learn how much each example of a pair counts.

    The i-th example of the batch is paired with the i-th of each draw from the buffer. A small
    network maps the pair's losses l_i and the norms of its logits, both as plain numbers, to
    weights v_i in (0, 1), one per branch, and the net learns from

        L_in(theta, phi) = 1/N sum_i sum_k v_ik(phi) l_ik(theta).

    The network learns that a step on it shall serve the buffer: every `period` steps

        theta'(phi) = theta - lr dL_in/dtheta,    phi <- Adam(phi, dL_out(theta'(phi)) / dphi)

    where L_out adds up the mean losses of the base's replayed branches on fresh draws, all with
    weight 1. As theta' is linear in v, its gradient needs no second back-propagation: with
    g = dL_out/dtheta' and s_ik = <dl_ik/dtheta, g>, which is one forward-mode derivative along g,

        dL_out/dphi = -lr/N sum_i sum_k s_ik dv_ik/dphi.

    In the first epochs of a task, and in all of task 0, the base's own constants are the weights;
    the network learns all the same from task 1 on, and goes on from task to task. Examples without
    a partner, where a draw is smaller than the batch, keep the constants. The steps on phi leave
    running statistics and the generators of the other steps alone. The network and its steps are
    in float32, whatever the precision of the net's steps.

    The means of the weights applied are tracked (train/weight_<branch>), reported, and drawn per
    task.

    Args:
        net: The network to train.
        base: What is weighted: ER, ERACE or DERpp.
        alpha: Of DER++: weight of the distance to stored logits, >= 0.
        beta: Of DER++: weight of the cross-entropy of replayed examples, >= 0.
        relation: learned: as above. random: the network is drawn and never learns. fixed: the
            base's constants throughout, which is the base itself.
        last_layer: theta is the head alone in the look-ahead, which saves all passes back through
            the backbone; features are computed once.
        warm_up: First epochs of a task with the base's constants, >= 0; None for one more than half
            of them, as in the authors' code, hence all of 1 or 2.
        period: Steps from one update of the network to the next, counted in every epoch, >= 1; None
            for a tenth of the epochs, at least 1.
        **options: Those of ER.
    """

    weight_sums: Tensor
    weight_counts: Tensor

    def __init__(
        self,
        net: Net,
        *,
        base: Literal["ER", "ERACE", "DERpp"] = "ER",
        alpha: float = 0.2,
        beta: float = 0.5,
        relation: Literal["learned", "random", "fixed"] = "learned",
        last_layer: bool = False,
        warm_up: int | None = None,
        period: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        if relation not in _RELATIONS:
            raise unknown_name("strategy.relation", relation, _RELATIONS)
        if warm_up is not None and warm_up < 0:
            raise UserError(f"strategy.warm_up: {warm_up} is not valid: expected >= 0")
        if period is not None and period < 1:
            raise UserError(f"strategy.period: {period} is not valid: expected >= 1")
        if last_layer and not _trained(net.head):
            raise UserError("strategy.last_layer: the net's head does not train; set it to false")
        self.objective = _objective(base, alpha, beta)
        self.relation_kind = relation
        self.last_layer = last_layer
        self.warm_up = warm_up
        self.period = period
        self.relation = RelationNet(len(self.objective.terms))
        self._adam = torch.optim.Adam(
            self.relation.parameters(), lr=1e-3, weight_decay=1e-4, fused=True
        )
        self._epoch, self._steps = 0, 0  # done of the task, and of the epoch

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Allocate the buffer, and draw the relation network."""
        super().prepare(stream, generators)
        self.relation.draw(generators.get("relation", "cpu"))
        sums = torch.zeros(len(stream), len(self.objective.terms))
        self.register_buffer("weight_sums", sums.to(self.device))
        self.register_buffer("weight_counts", sums[:, 0].clone().to(self.device))

    def begin_task(self, task: Task) -> None:
        """As any strategy; epochs are counted from here."""
        super().begin_task(task)
        self._epoch, self._steps = 0, 0

    def step(self, batch: Batch) -> Tensor:
        """Update the relation network when it is its turn, then the net."""
        self._steps += 1
        learns = self.relation_kind == "learned" and self.task.index > 0
        period = self.period or max(1, self.epochs // 10)
        if learns and self._steps % period == 0:
            self.learn_relation(batch)
        return super().step(batch)

    def end_epoch(self, task: Task, validation: Validation | None) -> bool:
        """Count the epoch."""
        self._epoch, self._steps = self._epoch + 1, 0
        return super().end_epoch(task, validation)

    # The net's step

    @torch.no_grad()
    def weights(
        self, losses: Sequence[Tensor], logits: Sequence[Tensor]
    ) -> Sequence[float | Tensor]:
        """The relation network's weights, or the base's constants while those apply."""
        constants = [float(w) for w in super().weights(losses, logits)]
        if not self.applies or len(losses) < len(self.objective.terms):
            return constants
        pairs = min(len(each) for each in losses)
        norms = [norm(each[:pairs]) for each in logits]
        with torch.autocast(self.device.type, enabled=False):
            learned = self.relation(_columns([each[:pairs] for each in losses]), _columns(norms))
        means = learned.mean(dim=0)
        self.weight_sums[self.task.index] += means
        self.weight_counts[self.task.index] += 1
        for term, mean in zip(self.objective.terms, means, strict=True):
            self.track(f"weight_{term.name}", mean)
        return [
            torch.cat([own, own.new_full((len(each) - pairs,), constant)])
            for own, each, constant in zip(learned.unbind(1), losses, constants, strict=True)
        ]

    @property
    def applies(self) -> bool:
        """Whether the relation network weighs in this epoch."""
        warm_up = self.epochs // 2 + 1 if self.warm_up is None else self.warm_up
        return self.relation_kind != "fixed" and self.task.index > 0 and self._epoch >= warm_up

    # The relation network's step

    def learn_relation(self, batch: Batch) -> None:
        """One update of the relation network."""
        lr = cast("LightningOptimizer", self.optimizers()).param_groups[0]["lr"]
        pairs = min(len(batch), self.replay_batch_size or len(batch), len(self.buffer))
        inner = [
            Branch(batch.x[:pairs], batch.y[:pairs], _first(batch.task_id, pairs)),
            *self.draw(pairs, "relation "),
        ]
        outer = self.draw(pairs, "relation ")
        module: nn.Module = self.net
        with torch.autocast(self.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            if self.last_layer:
                inner, outer, module = *self._features(inner, outer), self.net.head
            measure = self._measure(module, inner, self.objective)
            replayed = self._measure(module, outer, Objective(self.objective.terms[1:]))
            self._adam.zero_grad()
            loss = self.relation_loss(measure, replayed, _trained(module), lr)
            torch.autograd.backward(loss)
        self._adam.step()

    def relation_loss(
        self, measure: Measure, replayed: Measure, theta: Tensors, lr: float
    ) -> Tensor:
        """A scalar whose gradient in phi is that of L_out(theta'(phi)).

        Args:
            measure: Losses and norms of the logits of the pairs.
            replayed: Of the draws that L_out is made of.
            theta: The parameters to look ahead with.
            lr: Length of that step.
        """
        with self._same_noise():
            losses, norms = measure(theta)
        weights: Tensor = self.relation(losses.detach(), norms.detach())
        step = _gradient((weights.detach() * losses).sum(dim=1).mean(), theta)
        del losses
        ahead = {name: (p - lr * step[name]).detach().requires_grad_() for name, p in theta.items()}
        with self._same_noise():
            along = _gradient(replayed(ahead)[0].mean(dim=0).sum(), ahead)
        del ahead, step
        _load_forward_mode()
        with torch.no_grad(), self._same_noise(), forward_ad.dual_level():
            moving = {name: _dual(p.detach(), along[name]) for name, p in theta.items()}
            products = _tangent(measure(moving)[0])
        return -lr * (products * weights).sum(dim=1).mean()

    def _measure(
        self, module: nn.Module, branches: Sequence[Branch], objective: Objective
    ) -> Measure:
        """Losses and norms of branches as a function of the module's parameters."""
        x, task_ids, sizes = self.joined(branches)
        buffers = {name: b.clone() for name, b in module.named_buffers()}  # may be written to

        def measure(parameters: Tensors) -> tuple[Tensor, Tensor]:
            with separate_statistics(module, sizes):
                out: Tensor = functional_call(module, parameters | buffers, (x, task_ids))
            logits = torch.split(out, sizes)
            losses = objective.losses(branches, logits, self.met)
            return _columns(losses), _columns([norm(each) for each in logits])

        return measure

    @torch.no_grad()
    def _features(
        self, inner: Sequence[Branch], outer: Sequence[Branch]
    ) -> tuple[list[Branch], list[Branch]]:
        """The branches with features `[N, F]` in the place of inputs."""
        branches = [*inner, *outer]
        x, _, sizes = self.joined(branches)
        backbone = self.net.backbone
        buffers = {name: b.clone() for name, b in backbone.named_buffers()}
        with self._same_noise(), separate_statistics(backbone, sizes):
            features = torch.split(functional_call(backbone, buffers, (x,)), sizes)
        made = [b._replace(x=x) for b, x in zip(branches, features, strict=True)]
        return made[: len(inner)], made[len(inner) :]

    @contextmanager
    def _same_noise(self) -> Iterator[None]:
        """Inside, torch's global generators, which dropout draws from, begin where they are now.

        So the derivative is that of the losses, and the net's own steps draw what they would.
        """
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            yield

    # State and report

    def get_extra_state(self) -> dict[str, Any]:
        """The relation network's optimizer, and how far the task has come."""
        return {"adam": self._adam.state_dict(), "epoch": self._epoch, "steps": self._steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        self._adam.load_state_dict(deepcopy(state["adam"]))  # it would share the tensors
        self._epoch, self._steps = state["epoch"], state["steps"]

    def _apply(self, *args: Any, **options: Any) -> Self:
        """Move or convert the module, as `to` does, and with it the state of Adam."""
        moved = cast("Self", super()._apply(*args, **options))  # type: ignore[no-untyped-call]
        self._adam.load_state_dict(self._adam.state_dict())
        return moved

    def metrics(self) -> dict[str, float]:
        """`weight_<branch>`: the mean of the weights applied, where there were any."""
        count = float(self.weight_counts.sum())
        if not count:
            return {}
        means = (self.weight_sums.sum(dim=0) / count).tolist()
        return {f"weight_{t.name}": m for t, m in zip(self.objective.terms, means, strict=True)}

    def charts(self) -> dict[str, Chart]:
        """The mean weight of each branch in each task."""
        means = (self.weight_sums / self.weight_counts[:, None]).T.tolist()
        names = [term.name for term in self.objective.terms]
        return super().charts() | {"mean weight": dict(zip(names, means, strict=True))}


def norm(logits: Tensor) -> Tensor:
    """Length `[N]` of logits `[N, C]`, those that the head rules out left aside."""
    length: Tensor = torch.linalg.vector_norm(torch.where(ruled_out(logits), 0.0, logits), dim=1)
    return length


def _objective(base: str, alpha: float, beta: float) -> Objective:
    if base not in _BASES:
        raise unknown_name("strategy.base", base, _BASES)
    return {"ER": er(), "ERACE": er_ace(), "DERpp": der_pp(alpha, beta)}[base]


def _columns(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values), dim=1)


def _first(task_id: int | Tensor, count: int) -> int | Tensor:
    return task_id[:count] if isinstance(task_id, Tensor) else task_id


def _trained(module: nn.Module) -> Tensors:
    """The parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@cache
def _load_forward_mode() -> None:
    """Have torch load what its forward mode needs, which deprecates a part of torch itself."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        _dual(torch.zeros(()), torch.zeros(()))


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    return cast("Tensor", forward_ad.make_dual(value, tangent))  # type: ignore[no-untyped-call]


def _tangent(dual: Tensor) -> Tensor:
    return cast("Tensor", forward_ad.unpack_dual(dual).tangent)  # type: ignore[no-untyped-call]


def _gradient(loss: Tensor, parameters: Mapping[str, Tensor]) -> Tensors:
    """dloss/dp by name; 0 where the loss does not depend on p."""
    found = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, found, strict=True))

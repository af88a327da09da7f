"""RER's gradient by back-propagation through back-propagation, as in the authors' code.

One forward pass for each branch, one step of look-ahead whose graph is kept, and the loss after it
differentiated down to the relation network. Shared by tests and benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, one_hot

from clearn.batch import Batch
from clearn.strategies import RER
from clearn.strategies.replay import Branch

RULED_OUT = -1000.0
"""Logits below stand for classes that a head rules out."""


def draws(strategy: RER, batch: Batch) -> tuple[list[Branch], list[Branch]]:
    """The branches that `strategy.learn_relation(batch)` is going to see, inner and outer.

    When it returns, the generators stand where they stood.
    """
    used = [
        strategy.generators.get("relation buffer"),
        strategy.generators.get("relation replay augmentation", strategy.device),
    ]
    before = [generator.get_state() for generator in used]
    pairs = min(len(batch), len(strategy.buffer))
    ids = batch.task_id if isinstance(batch.task_id, int) else batch.task_id[:pairs]
    new = Branch(batch.x[:pairs], batch.y[:pairs], ids)
    inner = [new, *strategy.draw(pairs, "relation ")]
    outer = strategy.draw(pairs, "relation ")
    for generator, state in zip(used, before, strict=True):
        generator.set_state(state)
    return inner, outer


def reference_gradient(
    strategy: RER,
    base: str,
    inner: Sequence[Branch],
    outer: Sequence[Branch],
    lr: float,
    *,
    together: bool = False,
) -> list[Tensor]:
    """dL_out(theta'(phi)) / dphi, a tensor for each parameter of `strategy.relation`.

    With `last_layer`, theta is the head alone; the passes go through the whole net all the same.

    Args:
        strategy: Gives the nets; nothing of it is changed.
        base: ER, ERACE or DERpp.
        inner: The current batch and its partners.
        outer: The draws that L_out is made of.
        lr: Of the look-ahead.
        together: One forward pass for all branches, for layers that draw noise row by row. With
            batch normalisation that would be another method.
    """
    theta = {
        name: parameter
        for name, parameter in strategy.net.named_parameters()
        if parameter.requires_grad and (name.startswith("head.") or not strategy.last_layer)
    }
    with sdpa_kernel(SDPBackend.MATH):  # the other kinds of attention have no second derivative
        logits = _forward(strategy, theta, inner, together)
        new = _rivals(logits[0], inner[0].y, strategy.met) if base == "ERACE" else logits[0]
        first = cross_entropy(new, inner[0].y, reduction="none")
        losses = torch.stack([first, *_replayed(base, logits[1:], inner[1:])], dim=1)
        norms = torch.stack([_norm(each) for each in logits], dim=1)
        weights = strategy.relation(losses.detach(), norms.detach())
        step = torch.autograd.grad(
            (weights * losses).sum(dim=1).mean(),
            list(theta.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        ahead = {name: p - lr * g for (name, p), g in zip(theta.items(), step, strict=True)}
        after = _replayed(base, _forward(strategy, ahead, outer, together), outer)
        loss = torch.stack([each.mean() for each in after]).sum()
        return list(torch.autograd.grad(loss, list(strategy.relation.parameters())))


def _forward(
    strategy: RER, parameters: dict[str, Tensor], branches: Sequence[Branch], together: bool
) -> list[Tensor]:
    """Logits `[n, C]` of each branch; noise and running statistics are as before afterwards."""
    given = [(b.x, torch.zeros_like(b.y) + b.task_id) for b in branches]
    if together:
        given = [(torch.cat([x for x, _ in given]), torch.cat([ids for _, ids in given]))]
    passes = []
    for x, ids in given:
        buffers = {name: b.clone() for name, b in strategy.net.named_buffers()}
        arguments = (x, ids) if strategy.stream.scenario == "task" else (x,)
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            passes.append(functional_call(strategy.net, parameters | buffers, arguments))
    return list(torch.cat(passes).split([len(b.y) for b in branches]))


def _replayed(base: str, logits: Sequence[Tensor], branches: Sequence[Branch]) -> list[Tensor]:
    """Losses `[n]` of each branch of stored examples."""
    labels = cross_entropy(logits[-1], branches[-1].y, reduction="none")
    if base != "DERpp":
        return [labels]
    stored = branches[0].logits
    assert stored is not None
    apart = (logits[0] - stored * (stored > RULED_OUT)) * (logits[0] > RULED_OUT)
    return [apart.square().sum(dim=1) / apart.shape[1], labels]


def _rivals(logits: Tensor, y: Tensor, met: Tensor) -> Tensor:
    """Logits without those of classes that were met and are not in the batch."""
    in_batch = one_hot(y, logits.shape[1]).sum(dim=0) > 0
    return logits.masked_fill(met & ~in_batch, 10 * RULED_OUT)


def _norm(logits: Tensor) -> Tensor:
    return (logits * (logits > RULED_OUT)).square().sum(dim=1).sqrt()

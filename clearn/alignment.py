"""Classifier alignment: a head with a layer per task is trained on features drawn from Gaussians.

Stage 2 of SLCA (Zhang et al. 2023, https://arxiv.org/abs/2303.05118) and of TACLE (Kalla et al.
2025, https://arxiv.org/abs/2407.08041).

Shapes: B batch, F features, C classes of the stream, T tasks begun, S classes of these.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from clearn.errors import UserError
from clearn.gaussians import ClassGaussians
from clearn.nets.joined import JoinedHead

_EPS = 1e-7  # added to the norm of the logits of each task


def mean_scale(task_of_class: Tensor, current: int) -> Tensor:
    """What the means of classes are multiplied by: 0.9 + 0.1 (k + 1) / (current + 1), `[C]`.

    The features of earlier tasks have drifted since their means were taken, and their classes are
    drawn nearer to the origin for it; those of the current task are drawn where they are.

    Args:
        task_of_class: k, the task of each class, int64 `[C]`.
        current: The current task, from 0.

    >>> mean_scale(torch.tensor([0, 0, 1]), 1)
    tensor([0.9500, 0.9500, 1.0000])
    """
    return 0.9 + 0.1 * (task_of_class + 1) / (current + 1)


def alignment_loss(logits: Tensor, y: Tensor, member: Tensor, tau: float | None) -> Tensor:
    """Mean of the cross-entropy of z / n(z) / tau, where n is the mean norm of a task's logits.

    n(z) = mean over tasks k of (||z_k||_2 + 1e-7), z_k being the logits of the classes of task k.
    The gradient goes through n.

    Args:
        logits: z, `[B, S]`.
        y: The right columns, int64 `[B]`.
        member: 1 where a column is of a task, otherwise 0: `[S, T]`, in the type of the logits.
        tau: The temperature, > 0. None: plain cross-entropy of z.
    """
    if tau is None:
        return cross_entropy(logits, y)
    # The derivative of a root at 0 is infinite, that of the norm is taken as 0: so it is here too.
    squares = (logits.square() @ member).clamp(min=torch.finfo(logits.dtype).tiny)
    norms = squares.sqrt().mean(dim=1, keepdim=True) + _EPS
    return cross_entropy(logits / (norms * tau), y)


def align(
    head: JoinedHead,
    gaussians: ClassGaussians,
    *,
    scale: Tensor,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    tau: float | None,
    per_class: int,
    generator: torch.Generator,
) -> Tensor:
    """Train the layers of all tasks begun, in place and together, on features drawn afresh.

    In each epoch `per_class` features of every known class are drawn, shuffled, and passed through
    in batches of `per_class`, which is 256 in the published code. The learning rate of epoch e is
    lr (1 + cos(pi e / epochs)) / 2, e = 0, 1, ...: it changes from epoch to epoch, not from step
    to step, and so it is not 0 in the last. Layers are trained whether or not their parameters
    require gradients; their `grad` stays as it is.

    Args:
        head: Its tasks are those begun.
        gaussians: What features are drawn from; on the head's device.
        scale: Of the mean of each class, `[C]`; see `mean_scale`.
        epochs: >= 0.
        lr: Of SGD, in the first epoch.
        momentum: Of SGD.
        weight_decay: Of SGD, for weights and biases.
        tau: See `alignment_loss`.
        per_class: Features of each class in an epoch, and features in a batch.
        generator: Draws features and their order.

    Returns:
        The mean loss in each epoch, `[epochs]`, on the device.

    Raises:
        UserError: No class is known, or one that is has a task that has not begun.
    """
    _check(head, gaussians)
    weight, bias = _joined(head)
    column, member = _columns(head)
    sgd = torch.optim.SGD([weight, bias], lr=lr, momentum=momentum, weight_decay=weight_decay)
    losses = weight.new_zeros(epochs)
    for epoch in range(epochs):
        sgd.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        features, y = gaussians.sample(per_class, scale, generator)
        order = torch.randperm(len(y), generator=generator, device=generator.device).to(y.device)
        for start in range(0, len(y), per_class):
            rows = order[start : start + per_class]
            sgd.zero_grad()
            logits = linear(features[rows], weight, bias)
            loss = alignment_loss(logits, column[y[rows]], member, tau)
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            losses[epoch] += loss.detach() * len(rows) / len(y)
    _put_back(head, weight, bias)
    return losses


def _check(head: JoinedHead, gaussians: ClassGaussians) -> None:
    if not gaussians.known:
        raise UserError("gaussians: no class is known; keep the features of one at least")
    begun = {label for labels in head.classes[: head.begun] for label in labels}
    if strangers := set(gaussians.known) - begun:
        raise UserError(
            f"gaussians: class {min(strangers)} is not of the {head.begun} tasks that have begun; "
            "begin its task in the head first"
        )


def _begun(head: JoinedHead) -> list[nn.Linear]:
    return cast("list[nn.Linear]", list(head.layers[: head.begun]))


def _joined(head: JoinedHead) -> tuple[Tensor, Tensor]:
    """Copies of all weights `[S, F]` and biases `[S]`, to train as one layer.

    SGD takes every number by itself, so that this changes the speed only.
    """
    weight = torch.cat([layer.weight.detach() for layer in _begun(head)])
    bias = torch.cat([layer.bias.detach() for layer in _begun(head)])
    return weight.requires_grad_(), bias.requires_grad_()


def _put_back(head: JoinedHead, weight: Tensor, bias: Tensor) -> None:
    start = 0
    for layer in _begun(head):
        end = start + layer.out_features
        layer.weight.data.copy_(weight.detach()[start:end])
        layer.bias.data.copy_(bias.detach()[start:end])
        start = end


def _columns(head: JoinedHead) -> tuple[Tensor, Tensor]:
    """The row in the joined layer of each class, int64 `[C]`, and which rows a task has, `[S, T]`.

    Classes of tasks that have not begun have no row: -1.
    """
    like = _begun(head)[0].weight
    sizes = [len(labels) for labels in head.classes[: head.begun]]
    column = torch.full((head.num_classes,), -1)
    labels = [label for task in head.classes[: head.begun] for label in task]
    column[labels] = torch.arange(len(labels))
    member = torch.eye(head.begun).repeat_interleave(torch.tensor(sizes), dim=0)
    return column.to(like.device), member.to(like)

"""One forward pass over several batches that batch normalisation keeps apart.

Shapes: B batch, P parts of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clearn.errors import UserError


@contextmanager
def separate_statistics(module: nn.Module, sizes: Sequence[int]) -> Iterator[None]:
    """Inside, `module` gives one batch the numbers of a forward pass for each part of it.

    The batch is made of P consecutive parts of `sizes` rows. Each `nn.BatchNorm1d`, `2d` or `3d`
    that uses statistics of its batch, in training or because it keeps no running ones, uses those
    of each part, and takes them into its running statistics part by part, in order. All other
    layers run once over the whole batch, and are expected to treat each row by itself.

    Outputs, gradients of any order, forward-mode tangents and buffers are those of separate passes
    up to rounding, also under `torch.func.functional_call`. One thing differs: a normalisation that
    the net uses in several places takes in the statistics place by place, not pass by pass.

    Contexts of one module cannot be nested. Copies of the module made inside are ordinary.

    Args:
        module: The net; its normalisations may change mode inside.
        sizes: Rows of each part, each >= 1.

    Raises:
        UserError: A size is not valid; a normalisation is a `SyncBatchNorm`, or is in another
            such context; or, when the net is used, the sizes do not add up to B.
    """
    if not sizes or min(sizes) < 1:
        raise UserError(f"sizes: {list(sizes)} is not valid: expected one or more integers >= 1")
    norms = _normalisations(module)
    for norm in norms:
        if isinstance(norm, nn.SyncBatchNorm):
            raise UserError(
                "net: SyncBatchNorm shares its statistics between processes and cannot keep parts "
                "of a batch apart; use BatchNorm, or one forward pass for each part"
            )
        if isinstance(norm.forward, _ByParts):
            raise UserError(
                f"sizes: {list(sizes)} comes inside another separate_statistics of the same net; "
                "leave that one first"
            )
    # Past Module.__setattr__, which is slow. A net may come with forwards of its own.
    before = [vars(norm).get("forward") for norm in norms]
    sizes, total = list(sizes), sum(sizes)
    try:
        for norm in norms:
            vars(norm)["forward"] = _ByParts(norm, sizes, total)
        yield
    finally:
        for norm, forward in zip(norms, before, strict=True):
            if forward is None:
                vars(norm).pop("forward", None)
            else:
                vars(norm)["forward"] = forward


def _normalisations(module: nn.Module) -> list[_BatchNorm]:
    """All batch normalisations in `module`, each once.

    This is the walk of `Module.modules`, in a fraction of its time: it happens in every step.
    """
    found: dict[_BatchNorm, None] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        child = waiting.pop()
        if isinstance(child, _BatchNorm):
            found[child] = None
        elif child is not None and child._modules:
            waiting.extend(child._modules.values())
    return list(found)


class _ByParts:
    """Stands for the `forward` of a batch normalisation.

    Args:
        norm: The normalisation.
        sizes: Rows of each part.
        total: Their sum.
    """

    def __init__(self, norm: _BatchNorm, sizes: list[int], total: int) -> None:
        self.norm = norm
        self.forward = norm.forward
        self.sizes = sizes
        self.total = total

    def __call__(self, x: Tensor) -> Tensor:
        """`[B, ...]`, each part normalised by itself."""
        alike = not self.norm.training and self.norm.running_mean is not None
        if not alike and len(x) != self.total:
            raise UserError(
                f"sizes: {self.sizes} is not valid: they add up to {self.total}, and the batch has "
                f"{len(x)} rows"
            )
        if alike or len(self.sizes) == 1:
            return self.forward(x)
        # This copies the batch once here and once in the backward pass. An autograd function that
        # writes all parts into one output saved 1 to 2 % of a step of ResNet-18 on the CPU, too
        # little for its own double backward and tangents.
        return torch.cat([self.forward(part) for part in torch.split(x, self.sizes)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied or pickled along with its normalisation, it does what it stands for."""
        return partial, (self.forward,)

"""Subnetworks of any module: the weights that can be masked, their scores, and the tasks' masks.

Shapes: n elements of a weight, T tasks learned so far, N = sum of ceil(n / 8) over the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from clearn.errors import UserError
from clearn.kernels.bitmask import apply_bits, unpack_bits
from clearn.kernels.masked import masked_weight
from clearn.kernels.topc import top_c_bits, top_c_thresholds
from clearn.taskwise import Taskwise

_WEIGHTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    nn.Conv3d: ("weight",),
    nn.ConvTranspose1d: ("weight",),
    nn.ConvTranspose2d: ("weight",),
    nn.ConvTranspose3d: ("weight",),
    # Attention keeps its projections in parameters of its own, not in linear layers.
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}


def maskable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a module's linear, convolutional and attention layers, by name.

    Weights that do not train (`requires_grad` is False) are left out: they need no mask. A weight
    that several layers share appears under each of its names.
    """
    found: dict[str, nn.Parameter] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        for kind, names in _WEIGHTS.items():
            if isinstance(layer, kind):
                for name in names:
                    weight = getattr(layer, name)
                    if isinstance(weight, nn.Parameter) and weight.requires_grad:
                        found[f"{path}.{name}" if path else name] = weight
    return found


class Subnetworks(nn.Module):
    """Scores that select a subnetwork of a module, and the packed masks of the tasks so far.

    The share c of each weight's elements with the largest absolute scores is selected (Kang et al.
    2022, "Forget-free Continual Learning with Winning Subnetworks", equation 4). The module itself
    stays as it is: its forward pass runs with other weights, through `torch.func.functional_call`.

    Args:
        module: Whose weights are masked; they stay its parameters.
        c: Share of each weight that a task selects, in (0, 1].

    Attributes:
        names: Of the weights in `module`, in order.
        shapes: Of the weights.
        scores: One parameter per weight, of its shape.
        used: uint8 `[N]`, packed: which elements some task so far has selected. Every weight
            begins at a whole byte.

    Raises:
        UserError: c is out of range, or there is nothing to mask.
    """

    used: Tensor

    def __init__(self, module: nn.Module, c: float) -> None:
        super().__init__()
        if not 0 < c <= 1:
            raise UserError(f"strategy.c: {c} is not valid: expected a number in (0, 1]")
        found = maskable(module)
        unique = {id(weight): name for name, weight in reversed(found.items())}
        self.names = tuple(name for name, weight in found.items() if unique[id(weight)] == name)
        if not self.names:
            raise UserError(
                f"net: {type(module).__name__} has no linear or convolutional layer whose weights "
                "train: nothing can be masked"
            )
        self.c = c
        # In tuples, where torch.nn does not look: the weights are the module's, not ours.
        self._weights = tuple(found[name] for name in self.names)
        self._aliases = tuple((name, unique[id(weight)]) for name, weight in found.items())
        self.shapes = tuple(weight.shape for weight in self._weights)
        self._sizes = [-(-weight.numel() // 8) for weight in self._weights]
        self.scores = nn.ParameterList(torch.empty_like(weight) for weight in self._weights)
        self.register_buffer("used", torch.zeros(sum(self._sizes), dtype=torch.uint8))
        self.masks = Taskwise([self.used])
        self._warm: Tensor | None = None  # the last thresholds: where the next search starts

    def __len__(self) -> int:
        """Tasks whose masks are kept."""
        return len(self.masks.rows[0])

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """The module's weights, in the order of `names`."""
        return self._weights

    @torch.no_grad()
    def draw_scores(self, generator: torch.Generator) -> None:
        """Draw all scores from U(-b, b), b = 1 / sqrt(fan in): the law of torch's own weights.

        Args:
            generator: On the CPU.
        """
        for score in self.scores:
            bound = 1 / math.sqrt(max(math.prod(score.shape[1:]), 1))
            drawn = torch.empty(score.shape).uniform_(-bound, bound, generator=generator)
            score.copy_(drawn)

    def thresholds(self) -> Tensor:
        """The smallest absolute score that is selected, of each weight."""
        scores = [score.detach() for score in self.scores]
        warm = None if self._warm is None else self._warm.to(scores[0])
        self._warm = top_c_thresholds(scores, self.c, warm)
        return self._warm

    def selected(self) -> dict[str, Tensor]:
        """The weights by name, zero where the scores do not select them; for training.

        The backward pass gives selected and not yet used weights their gradient and all scores
        theirs: dL/dscore = dL/dw' * w * sign(score), straight through the indicator.
        """
        used = self.split(self.used) if len(self) else [None] * len(self.names)
        rows = zip(self._weights, self.scores, self.thresholds(), used, strict=True)
        return self.named([masked_weight(*row) for row in rows])

    def softly_selected(self, minors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The weights by name, times 1 where the scores select them, else times `minors`.

        The gradient of a weight is dL/dw' times the same mask; that of a score is as in `selected`.

        Args:
            minors: One tensor of its shape per weight.
        """
        rows = zip(self._weights, self.scores, self.thresholds(), minors, strict=True)
        return self.named([cast("Tensor", _SoftWeight.apply(*row)) for row in rows])

    def uniform(self, seed: int) -> list[Tensor]:
        """For each weight a tensor of its shape, drawn from U(0, 1), ends excluded.

        Drawn on the CPU, so that a seed gives the same on all devices.
        """
        generator = torch.Generator().manual_seed(seed)
        least = 2**-25  # instead of 0, which is drawn once in 2^24
        return [
            torch.rand(weight.shape, generator=generator)
            .clamp_(min=least)
            .to(weight.device, weight.dtype, non_blocking=True)
            for weight in self._weights
        ]

    @torch.no_grad()
    def of_mask(self, bits: Tensor) -> dict[str, Tensor]:
        """The weights by name, zero where packed `bits`, uint8 `[N]`, are not set."""
        parts = zip(self._weights, self.split(bits), strict=True)
        return self.named([apply_bits(weight, part) for weight, part in parts])

    @torch.no_grad()
    def selection(self) -> Tensor:
        """What the scores select now, packed: uint8 `[N]`."""
        return torch.cat([top_c_bits(score, self.c) for score in self.scores])

    def keep(self, bits: Tensor) -> None:
        """Keep packed `bits`, uint8 `[N]`, as the mask of the next task."""
        self.masks.append([bits])
        self.used |= bits

    def mask(self, task: int) -> Tensor:
        """The packed mask of a task: uint8 `[N]`."""
        return self.masks.of_task(task)[0]

    def named_masks(self) -> Iterator[dict[str, Tensor]]:
        """For each task the packed mask of every weight by name, uint8 `[ceil(n / 8)]`."""
        for task in range(len(self)):
            yield dict(zip(self.names, self.split(self.mask(task)), strict=True))

    @torch.no_grad()
    def restore(self, frozen: Sequence[Tensor]) -> None:
        """Put back the values that used elements have in `frozen`, one tensor per weight."""
        for weight, old, used in zip(self._weights, frozen, self.split(self.used), strict=True):
            weight.copy_(torch.where(unpack_bits(used, weight.shape), old, weight))

    def split(self, bits: Tensor) -> list[Tensor]:
        """Packed `bits`, uint8 `[N]`, by weight: uint8 `[ceil(n / 8)]` each."""
        return list(torch.split(bits, self._sizes))

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """One tensor per weight by name, shared weights under each of their names."""
        own = dict(zip(self.names, tensors, strict=True))
        return {name: own[first] for name, first in self._aliases}


class _SoftWeight(torch.autograd.Function):
    """w m with m = 1 where |s| >= threshold, else u; s gets its gradient as if m were 1."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, score: Tensor, threshold: Tensor, minor: Tensor
    ) -> Tensor:
        mask = torch.where(score.abs() >= threshold, 1, minor)
        ctx.save_for_backward(weight, score, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, score, mask = ctx.saved_tensors
        return grad * mask, grad * weight * score.sign(), None, None

"""Soft subnetworks at inference: winning subnetworks with noise behind them (arXiv 2303.14962)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from clearn.errors import UserError
from clearn.kernels.bitmask import keep_unset_
from clearn.nets import Net
from clearn.seeding import Generators, derive_seed
from clearn.strategies.wsn import WSN
from clearn.stream import Stream, Task
from clearn.taskwise import Taskwise


class SoftNetTIL(WSN):
    """WSN that predicts with a little of the weights which a task's mask leaves out.

    Masks are learned as in WSN (`clearn.strategies.WSN`, whose options it has as well). Predictions
    for task t use the weights

        w m_t + noise * u_t * b_t,    u_t drawn from U(0, 1) per weight, once for the task,

    where b_t, 0 where m_t is 1, is the background. That is meant to help tasks not learned yet,
    which are predicted with the mask of the last one; run with `training.evaluate: all` to see it.
    The paper's abstract is all that was at hand: scale and kind of the noise are a choice.

    Either background leaves predictions for a learned task as they are ever after, so that backward
    transfer stays exactly 0. A weight outside all masks so far can still change, whatever masks
    come; hence it has no noise, or the noise of what it was.

    Args:
        net: Any backbone, and a head with a layer per task (net.head: multi or wide).
        noise: Scale of the background, >= 0; 0 is WSN, 1e-3 to 1e-1 are worth a try.
        background: frozen: weights that earlier tasks use, so that the first task has none.
            snapshot: all weights as they are when the task ends, kept at 4 bytes per weight.
        **options: Those of WSN.
    """

    def __init__(
        self,
        net: Net,
        *,
        noise: float = 0.0,
        background: Literal["frozen", "snapshot"] = "frozen",
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        if not 0 <= noise < math.inf:
            raise UserError(f"strategy.noise: {noise} is not valid: expected a number >= 0")
        if background not in ("frozen", "snapshot"):
            raise UserError(
                f"strategy.background: {background!r} is not valid: expected frozen or snapshot"
            )
        self.noise = noise
        snapshot = background == "snapshot" and noise > 0
        self.snapshots = Taskwise(self.subnetworks.weights) if snapshot else None
        self._seed = 0

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Draw the scores, and note the seed of the noise."""
        super().prepare(stream, generators)
        self._seed = derive_seed(generators.seed, "background")

    def end_task(self, task: Task) -> None:
        """As WSN; keep the weights if the background is to be a snapshot."""
        super().end_task(task)
        if self.snapshots is not None:
            self.snapshots.append(self.subnetworks.weights)

    def _tensors_of(self, task_id: int) -> dict[str, Tensor]:
        learned = len(self.subnetworks)
        if not self.noise or (task_id >= learned and self._is_learning()):
            return super()._tensors_of(task_id)
        task = min(task_id, learned - 1)
        tensors = super()._tensors_of(task)
        return tensors | {name: tensors[name] + b for name, b in self._background(task).items()}

    def _is_learning(self) -> bool:
        """Whether a task has begun (or none at all) whose mask is not kept yet."""
        return not len(self.subnetworks) or self.task.index == len(self.subnetworks)

    @torch.no_grad()
    def _background(self, task: int) -> dict[str, Tensor]:
        """The weights noise * u * b by name."""
        nets, mask = self.subnetworks, self.subnetworks.mask(task)
        if self.snapshots is None:
            frozen = torch.zeros_like(mask)
            for earlier in range(task):
                frozen |= nets.mask(earlier)
            behind = nets.of_mask(frozen & ~mask)
        else:
            rows = zip(self.snapshots.of_task(task), nets.split(mask), strict=True)
            behind = nets.named([keep_unset_(weight.clone(), bits) for weight, bits in rows])
        u = nets.named(nets.uniform(derive_seed(self._seed, task)))
        return {name: self.noise * u[name] * b for name, b in behind.items()}

    def get_extra_state(self) -> dict[str, Any]:
        """As WSN, and the seed of the noise."""
        return super().get_extra_state() | {"seed": self._seed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        super().set_extra_state(state)
        self._seed = state["seed"]

    def metrics(self) -> dict[str, float]:
        """As WSN; a snapshot counts among the `bytes_per_task`."""
        found = super().metrics()
        if self.snapshots is not None:
            found["bytes_per_task"] += self.snapshots.bytes_stored() / len(self.stream)
        return found

    def bytes_stored(self) -> dict[str, int]:
        """As WSN; the seed of the noise, and the snapshots."""
        stored = super().bytes_stored() | ({"noise": 8} if self.noise else {})
        if self.snapshots is not None:
            stored["snapshots"] = self.snapshots.bytes_stored()
        return stored

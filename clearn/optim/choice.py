"""The optimizer of a strategy, by name: made for every task, or kept from task to task.

Shapes: T tasks.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clearn.chart import Chart
from clearn.errors import UserError, unknown_name
from clearn.optim.base import TAGOptimizer
from clearn.optim.tag import TAGAdagrad, TAGAdam, TAGRMSprop

Choice: TypeAlias = str | dict[str, Any]
"""Name of an optimizer, or that and its options: {name: Adam, betas: [0.9, 0.99], keep: true}."""

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "SGD": torch.optim.SGD,
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "TAGRMSprop": TAGRMSprop,
    "TAGAdagrad": TAGAdagrad,
    "TAGAdam": TAGAdam,
}


class TaskOptimizer(nn.Module):
    """Gives a strategy its optimizer for each task; one that is kept is part of the state.

    Args:
        choice: A name of `OPTIMIZERS`, or a dict with it as `name`, options of that class, and
            `keep`: whether the optimizer goes on from task to task with all it remembers, rather
            than begin afresh. Those of TAG always go on.
        lr: Learning rate.
        momentum: Must be 0 for a class that has none.
        weight_decay: Likewise.

    Raises:
        UserError: The name or an option is unknown, or not valid.
    """

    def __init__(
        self, choice: Choice, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"name": choice} if isinstance(choice, str) else dict(choice)
        name = options.pop("name", None)
        if name not in OPTIMIZERS:
            raise unknown_name("strategy.optimizer", str(name), OPTIMIZERS)
        self._class = OPTIMIZERS[name]
        tag = issubclass(self._class, TAGOptimizer)
        self.keep = options.pop("keep", tag)
        if not isinstance(self.keep, bool) or (tag and not self.keep):
            allowed = "true, for it is all about earlier tasks" if tag else "true or false"
            raise UserError(
                f"strategy.optimizer.keep: {self.keep!r} is not valid for {name}: expected "
                f"{allowed}"
            )
        own = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        known = list(inspect.signature(self._class).parameters)[1:]
        for key in options:
            if key in own:
                raise UserError(f"strategy.optimizer.{key}: set strategy.{key} in its place")
            if key not in known:
                others = [each for each in known if each not in own]
                raise unknown_name(f"strategy.optimizer, option of {name}", key, others)
        for key, value in own.items():
            if key in known:
                options[key] = value
            elif value:
                raise UserError(
                    f"strategy.{key}: {value} is not valid: {name} has no {key}; expected 0"
                )
        self._options = options
        self._make([[nn.Parameter(torch.zeros(1))]])  # values that are not valid are told at once
        self._optimizer: Optimizer | None = None
        self._names: list[list[str]] = []  # of the parameters of each group
        self._loaded: dict[str, Any] | None = None
        self._weights: list[list[float]] = []  # of earlier tasks, a row per task

    def for_task(self, parameters: Iterable[tuple[str, nn.Parameter]], index: int) -> Optimizer:
        """The optimizer for a task.

        Args:
            parameters: What to train, by name; new ones may have come since the last task.
            index: Of the task, from 0.

        Raises:
            UserError: Parameters that a kept optimizer knows are gone or replaced, or are of a
                type that it cannot train.
        """
        wanted = dict(parameters)
        if not self.keep:
            return self._make([list(wanted.values())])
        optimizer = self._kept(wanted)
        if isinstance(optimizer, TAGOptimizer):
            while optimizer.task < index:
                self._note()
                optimizer.end_task()
        return optimizer

    def _make(self, groups: Sequence[Sequence[nn.Parameter]]) -> Optimizer:
        try:
            return self._class([{"params": list(group)} for group in groups], **self._options)
        except (TypeError, ValueError) as error:
            raise UserError(f"strategy.optimizer: {error}") from error

    def _kept(self, wanted: dict[str, nn.Parameter]) -> Optimizer:
        """The optimizer that is kept, made or resumed if need be, with all that is wanted."""
        if self._optimizer is None:
            self._names = self._names or [list(wanted)]
            groups = [[wanted[n] for n in names if n in wanted] for names in self._names]
            self._optimizer = self._make(groups)
        for names, group in zip(self._names, self._optimizer.param_groups, strict=True):
            for name, param in zip_longest(names, group["params"]):
                if param is None or wanted.get(name) is not param:
                    raise UserError(
                        f"strategy.optimizer: {name} is gone or replaced, and an optimizer that is "
                        "kept from task to task needs the parameters it began with; set "
                        "optimizer.keep to false"
                    )
        if self._loaded is not None:
            self._optimizer.load_state_dict(self._loaded)
            self._loaded = None
        known = set(chain(*self._names))
        if new := [name for name in wanted if name not in known]:
            self._optimizer.add_param_group({"params": [wanted[name] for name in new]})
            self._names.append(new)
        return self._optimizer

    def _note(self) -> list[list[float]]:
        """The weights of earlier tasks in each task, with the one at hand brought up to date."""
        if isinstance(self._optimizer, TAGOptimizer):
            self._weights[self._optimizer.task :] = [_mean_weights(self._optimizer)]
        return self._weights

    def begin_epoch(self) -> None:
        """Tell an optimizer that counts by epoch."""
        if isinstance(self._optimizer, TAGOptimizer):
            self._optimizer.begin_epoch()

    def bytes_stored(self) -> dict[str, int]:
        """Bytes of what is kept for the next task."""
        if self._optimizer is None:
            return {}
        tensors = [
            value
            for state in self._optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return {"optimizer": sum(t.nbytes for t in tensors)}

    def charts(self, tasks: int) -> dict[str, Chart]:
        """Of TAG: the mean weight of each earlier task in each task `[T, T]`, NaN elsewhere."""
        rows = self._note()
        if not rows:
            return {}
        table = [row + [math.nan] * (tasks - len(row)) for row in rows]
        table += [[math.nan] * tasks] * (tasks - len(rows))
        return {"weight of earlier tasks": table}

    def get_extra_state(self) -> dict[str, Any]:
        """The state of an optimizer that is kept."""
        if not self.keep:
            return {}
        state = self._loaded if self._optimizer is None else self._optimizer.state_dict()
        return {
            "optimizer": state,
            "names": [list(names) for names in self._names],
            "weights": [list(row) for row in self._note()],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave, in an optimizer that `for_task` makes next."""
        if not self.keep:
            return
        self._optimizer = None
        # Optimizers change in place what they have loaded: the giver's tensors are not theirs.
        self._loaded = copy.deepcopy(state["optimizer"])
        self._names = [list(names) for names in state["names"]]
        self._weights = [list(row) for row in state["weights"]]


def _mean_weights(optimizer: TAGOptimizer) -> list[float]:
    """The mean weight alpha of each finished task so far, over all parameters and steps."""
    mean, _, shapes = optimizer.similarity()
    sizes = torch.tensor([float(shape.numel()) for shape in shapes]).to(mean)
    known = mean.isfinite()
    total = torch.where(known, mean * sizes, 0.0).sum(dim=1)
    weights: list[float] = (total / (known * sizes).sum(dim=1)).tolist()
    return weights

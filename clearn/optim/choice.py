"""The optimizer of a strategy, by name: made for every task, or kept from task to task.

Shapes: T tasks.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clearn.chart import Chart
from clearn.errors import UserError, unknown_name
from clearn.files import write_atomic
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

_TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Make: TypeAlias = Callable[[Sequence[Sequence[nn.Parameter]]], Optimizer]
"""Makes an optimizer for groups of parameters."""


class TaskOptimizer(nn.Module):
    """Gives a strategy its optimizer for each task; one that is kept is part of the state.

    Nothing is in the state otherwise.

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
        kind = OPTIMIZERS[name]
        tag = issubclass(kind, TAGOptimizer)
        keep = options.pop("keep", tag)
        if not isinstance(keep, bool) or (tag and not keep):
            allowed = "true, for it is all about earlier tasks" if tag else "true or false"
            raise UserError(
                f"strategy.optimizer.keep: {keep!r} is not valid for {name}: expected {allowed}"
            )
        own = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        known = list(inspect.signature(kind).parameters)[1:]
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
        knowledge = options.get("knowledge")
        if isinstance(knowledge, str):  # a config can only name the type
            options["knowledge"] = _TYPES.get(knowledge, knowledge)
        self._make: Make = partial(_make, kind, options)
        self._make([[nn.Parameter(torch.zeros(1))]])  # values that are not valid are told at once
        self.kept = Kept(self._make) if keep else None

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
        if self.kept is None:
            return self._make([list(wanted.values())])
        return self.kept.for_task(wanted, index)

    def begin_epoch(self) -> None:
        """Tell an optimizer that counts by epoch."""
        if self.kept is not None and isinstance(self.kept.optimizer, TAGOptimizer):
            self.kept.optimizer.begin_epoch()

    def bytes_stored(self) -> dict[str, int]:
        """Bytes of what is kept for the next task."""
        if self.kept is None or self.kept.optimizer is None:
            return {}
        states = self.kept.optimizer.state.values()
        values = chain.from_iterable(state.values() for state in states)
        return {"optimizer": sum(value.nbytes for value in values if isinstance(value, Tensor))}

    def charts(self, tasks: int) -> dict[str, Chart]:
        """Of TAG: the mean weight of each earlier task in each task `[T, T]`, NaN elsewhere."""
        weights = None if self.kept is None else self.kept.weights()
        if weights is None:
            return {}
        table = torch.full((tasks, tasks), math.nan)
        for task, rows in enumerate(weights.rows):
            table[task, : len(rows)] = weights.mean(rows)
        return {"weight of earlier tasks": table.tolist()}

    def export(self, folder: Path) -> list[Path]:
        """Of TAG: `tag_weights.csv`, the mean weight of each earlier task by task and parameter."""
        weights = None if self.kept is None else self.kept.weights()
        if weights is None:
            return []
        lines = ["task,earlier_task,parameter,weight"]
        for task, rows in enumerate(weights.rows):
            for earlier, row in enumerate(rows.tolist()):
                lines += [
                    f"{task},{earlier},{name},{weight:.6g}"
                    for name, weight in zip(weights.sizes, row, strict=False)
                    if not math.isnan(weight)
                ]
        path = folder / "tag_weights.csv"
        write_atomic(path, "\n".join(lines) + "\n")
        return [path]


class Weights(NamedTuple):
    """The weights of earlier tasks in each task, on average over its steps.

    Attributes:
        rows: A tensor `[t, P]` for each task t, NaN where a parameter had no gradient; P may grow.
        sizes: Numbers in each parameter, by its name.
    """

    rows: list[Tensor]
    sizes: dict[str, int]

    def mean(self, rows: Tensor) -> Tensor:
        """Over all numbers of all parameters: `[t]`."""
        sizes = torch.tensor(list(self.sizes.values())[: rows.shape[1]]).to(rows)
        known = rows.isfinite()
        return torch.where(known, rows * sizes, 0.0).sum(1) / (known * sizes).sum(1)


class Kept(nn.Module):
    """An optimizer that goes on from task to task; its state is the module's.

    Args:
        make: Makes the optimizer, when the first task begins or a state is to be resumed.

    Attributes:
        optimizer: None until then.
    """

    def __init__(self, make: Make) -> None:
        super().__init__()
        self._make = make
        self.optimizer: Optimizer | None = None
        self._names: list[list[str]] = []  # of the parameters of each group
        self._loaded: dict[str, Any] | None = None
        self._weights = Weights([], {})

    def for_task(self, wanted: dict[str, nn.Parameter], index: int) -> Optimizer:
        """The optimizer, with all that is wanted; see `TaskOptimizer.for_task`."""
        if self.optimizer is None:
            self._names = self._names or [list(wanted)]
            self.optimizer = self._make(
                [[wanted[name] for name in names if name in wanted] for names in self._names]
            )
        self._check(self.optimizer, wanted)
        if self._loaded is not None:
            self.optimizer.load_state_dict(self._loaded)
            self._loaded = None
        known = set(chain(*self._names))
        if new := [name for name in wanted if name not in known]:
            self.optimizer.add_param_group({"params": [wanted[name] for name in new]})
            self._names.append(new)
        if isinstance(self.optimizer, TAGOptimizer):
            while self.optimizer.task < index:
                self.weights()
                self.optimizer.end_task()
        return self.optimizer

    def _check(self, optimizer: Optimizer, wanted: dict[str, nn.Parameter]) -> None:
        for names, group in zip(self._names, optimizer.param_groups, strict=True):
            for name, param in zip_longest(names, group["params"]):
                if param is None or wanted.get(name) is not param:
                    raise UserError(
                        f"strategy.optimizer: {name} is gone or replaced, and an optimizer that is "
                        "kept from task to task needs the parameters it began with; set "
                        "optimizer.keep to false"
                    )

    def weights(self) -> Weights | None:
        """Of TAG, up to date; None of others."""
        if isinstance(self.optimizer, TAGOptimizer):
            mean, _, shapes = self.optimizer.similarity()
            self._weights.rows[self.optimizer.task :] = [mean.cpu()]
            self._weights.sizes.update(
                zip(chain(*self._names), (shape.numel() for shape in shapes), strict=True)
            )
        return self._weights if self._weights.rows else None

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, and to which parameters it belongs."""
        return {
            "optimizer": self._loaded if self.optimizer is None else self.optimizer.state_dict(),
            "names": [list(names) for names in self._names],
            "weights": self._weights_state(),
        }

    def _weights_state(self) -> list[Any]:
        weights = self.weights()
        return [] if weights is None else [list(weights.rows), dict(weights.sizes)]

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave, in an optimizer that `for_task` makes next."""
        self.optimizer = None
        # Optimizers change in place what they have loaded: the giver's tensors are not theirs.
        self._loaded = copy.deepcopy(state["optimizer"])
        self._names = [list(names) for names in state["names"]]
        rows, sizes = state["weights"] or ([], {})
        self._weights = Weights(list(rows), dict(sizes))


def _make(
    kind: type[Optimizer], options: dict[str, Any], groups: Sequence[Sequence[nn.Parameter]]
) -> Optimizer:
    try:
        return kind([{"params": list(group)} for group in groups], **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"strategy.optimizer: {error}") from error

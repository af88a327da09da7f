"""What the optimizers of TAG have in common: tasks, state, and the step for all tensors at once.

Shapes: t finished tasks, t_p of them known to a tensor, P tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from clearn.errors import UserError
from clearn.kernels.tag import tag_step_
from clearn.optim._checks import check_group, check_state, name_of, refuse_sparse

# What is kept for a parameter, in the order of the kernel's arguments, and what of it for a task.
_TENSORS = ("moment", "variance", "directions", "variances", "similarity")
_IN_TASK = ("moment", "variance", "similarity")


class Similarity(NamedTuple):
    """How alike the current task and each finished one were so far, for each tensor.

    Attributes:
        mean: `[t, P]`, the mean of alpha over the steps of the current task: below 1 where the
            gradients agree, above 1 where they go against each other; NaN where a tensor got no
            gradient in one of the two tasks.
        names: Of the tensors, as in `named_parameters` when the optimizer was given these, else
            "group.position".
        shapes: Of the tensors.
    """

    mean: Tensor
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]


class Rule(NamedTuple):
    """The numbers of a step; see `clearn.kernels.tag`."""

    beta: float
    decay: float
    weight: float
    lr: float
    eps: float
    by_moment: bool = False
    """N is the first moment rather than the gradient."""


class TAGOptimizer(Optimizer):
    """What TAGRMSprop, TAGAdagrad and TAGAdam have in common; not to be used by itself.

    A task begins with its first step and ends with `end_task`. Nothing is to be done at the first
    task; without `end_task` the optimizer goes on for ever as RMSprop, Adagrad or Adam would.

    After T tasks, the one at hand included, 2 T numbers are kept for each parameter that is trained
    in all of them, of the parameters' type, which is float32 or float64. A tensor whose gradient is
    None is left alone, its moments too, and that step does not count for it.

    Options can be given for each group of parameters. Those of a state that is loaded win.
    """

    def __init__(
        self, params: ParamsT, lr: float, b: float, knowledge: torch.dtype | None, **options: Any
    ) -> None:
        super().__init__(params, {"lr": lr, "b": b, "knowledge": knowledge, **options})

    @property
    def task(self) -> int:
        """Tasks that have ended, t."""
        # Kept in the groups: of an optimizer nothing else is pickled and saved.
        return int(self.param_groups[0]["task"]) if self.param_groups else 0

    def begin_task(self) -> None:
        """Make sure that a new task can begin, which it does with its first step.

        Raises:
            UserError: Steps have been taken since the last `end_task`.
        """
        steps = max((state.get("step", 0) for state in self.state.values()), default=0)
        if steps:
            raise UserError(
                f"begin_task: task {self.task} has taken {steps} steps and has not ended: call "
                "end_task() first"
            )

    @torch.no_grad()
    def end_task(self) -> None:
        """Keep the direction and the second moments of the task at hand, and be done with it.

        A tensor without a step in the task, and so all of them if there was none, keeps nothing;
        the task is counted all the same. Needs memory for one more copy of what is kept for the
        largest tensor.
        """
        for group in self.param_groups:
            for param in group["params"]:
                if "step" in self.state.get(param, ()):
                    _keep(self.state[param], self.task)
        for group in self.param_groups:
            group["task"] += 1

    def begin_epoch(self) -> None:
        """Say that an epoch begins: there TAGAdam's "official" counter starts again."""
        for state in self.state.values():
            if "epoch_step" in state:
                state["epoch_step"] = 0

    def similarity(self) -> Similarity:
        """The weights of the finished tasks, on average over the task at hand; see `Similarity`."""
        params = [param for group in self.param_groups for param in group["params"]]
        mean = torch.full((self.task, len(params)), math.nan, device=params[0].device)
        for column, param in enumerate(params):
            state = self.state.get(param, {})
            if state.get("tasks") and "step" in state:
                mean[state["tasks"], column] = (state["similarity"] / state["step"]).to(mean)
        names = tuple(
            name_of(group, index, position)
            for index, group in enumerate(self.param_groups)
            for position in range(len(group["params"]))
        )
        return Similarity(mean, names, tuple(param.shape for param in params))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step of the task at hand.

        Args:
            closure: Evaluates the loss anew, gradients included, and gives it.

        Returns:
            What `closure` gave.

        Raises:
            UserError: A gradient is sparse; nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        refuse_sparse(self.param_groups)
        for group in self.param_groups:
            for params in self._batches(group):
                self._update(group, params)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, at any time; the task at hand is the first of these parameters.

        Raises:
            UserError: An option is out of range, or a type of parameters is not supported.
        """
        super().add_param_group({**param_group, "task": self.task})
        try:
            check_group(self.param_groups[-1], len(self.param_groups) - 1)
        except UserError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state, of between two tasks or of the middle of one.

        Raises:
            UserError: It is of another kind of optimizer, or of parameters of other shapes.
        """
        check_state(self, state_dict)
        super().load_state_dict(dict(state_dict))
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state.get(param, {})
                if state:  # torch has cast all to the type of the parameters
                    state["directions"] = state["directions"].to(group["knowledge"] or param.dtype)
                for name in _IN_TASK:
                    if name in state:  # these change in place: not those of the giver too
                        state[name] = state[name].clone()

    def _rule(self, group: Mapping[str, Any], step: int, epoch_step: int) -> Rule:
        """What to do in a step, counted from 1 in the task and in the epoch."""
        raise NotImplementedError

    def _update(self, group: Mapping[str, Any], params: list[Tensor]) -> None:
        """Take a step of tensors of one kind that have taken as many steps."""
        states = [self.state[param] for param in params]
        grads = [cast("Tensor", param.grad) for param in params]
        rule = self._rule(group, states[0]["step"], states[0]["epoch_step"])
        kept = ([state[name] for state in states] for name in _TENSORS)
        tag_step_(params, grads, *kept, b=group["b"], **rule._asdict())

    def _batches(self, group: Mapping[str, Any]) -> Iterator[list[Tensor]]:
        """The tensors that have a gradient, by kind and steps taken; this step is counted."""
        batches: dict[tuple[Any, ...], list[Tensor]] = {}
        for param in group["params"]:
            if param.grad is not None:
                state = self.state[param]
                if "step" not in state:
                    _start(state, param, group["knowledge"])
                state["step"] += 1
                state["epoch_step"] += 1
                kind = (param.device, param.dtype, state["step"], state["epoch_step"])
                batches.setdefault(kind, []).append(param)
        yield from batches.values()


def _start(state: dict[str, Any], param: Tensor, knowledge: torch.dtype | None) -> None:
    """Begin a task for a parameter."""
    dense = torch.empty(0, dtype=param.dtype, device=param.device)  # whatever the strides
    if not state:
        state["tasks"] = []
        state["directions"] = dense.new_empty((0, *param.shape), dtype=knowledge or param.dtype)
        state["variances"] = dense.new_empty((0, *param.shape))
    state["moment"] = dense.new_zeros(param.shape)
    state["variance"] = dense.new_zeros(param.shape)
    state["similarity"] = dense.new_zeros(len(state["tasks"]))  # sum of alpha over the steps
    state["step"] = state["epoch_step"] = 0


def _keep(state: dict[str, Any], task: int) -> None:
    """End a task for a parameter."""
    moment = state["moment"]
    norm = torch.linalg.vector_norm(moment)
    direction = moment.div_(norm.masked_fill_(norm == 0, math.inf)).to(state["directions"].dtype)
    # One after the other: of the old rows, only those of one matrix are in memory twice.
    state["directions"] = torch.cat([state["directions"], direction[None]])
    state["variances"] = torch.cat([state["variances"], state["variance"][None]])
    state["tasks"].append(task)
    for name in (*_IN_TASK, "step", "epoch_step"):
        del state[name]

"""What the optimizers ask of their options, of gradients and of states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from clearn.errors import UserError

_LARGEST_B = 50  # exp(50) times a second moment is still far from the largest float32


def name_of(group: Mapping[str, Any], index: int, position: int) -> str:
    """What to call a parameter: its name if the optimizer knows it, else "group.position"."""
    names = group.get("param_names")
    return str(names[position]) if names else f"{index}.{position}"


def check_group(group: Mapping[str, Any], index: int) -> None:
    """Raise a UserError when options or parameters of a group are not valid."""
    _require("lr", group["lr"], group["lr"] >= 0, "a number >= 0")
    _require("b", group["b"], 0 <= group["b"] <= _LARGEST_B, f"a number in [0, {_LARGEST_B}]")
    _require("eps", group["eps"], group["eps"] > 0, "a number > 0, which keeps 0 from dividing")
    names = ("beta1", "beta2") if "betas" in group else ("beta1",)
    betas = group["betas"] if "betas" in group else [group["beta"]]
    pair = isinstance(betas, list | tuple) and len(betas) == len(names)
    _require("betas", betas, pair, "two numbers in [0, 1)")
    for name, beta in zip(names, betas, strict=True):
        _require(name, beta, 0 <= beta < 1, "a number in [0, 1)")
    _require(
        "knowledge",
        group["knowledge"],
        group["knowledge"] in (None, torch.float32, torch.bfloat16),
        "torch.float32, torch.bfloat16, or None for the type of the parameters",
    )
    counter = group.get("counter", "fixed")
    _require("counter", counter, counter in ("fixed", "official"), "'fixed' or 'official'")
    for position, param in enumerate(group["params"]):
        _require(
            f"type of parameter {name_of(group, index, position)}",
            param.dtype,
            param.dtype in (torch.float32, torch.float64),
            "float32 or float64; to compute in half precision use torch.autocast",
        )


def refuse_sparse(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise a UserError when a parameter has a sparse gradient."""
    for index, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            if param.grad is not None and param.grad.layout != torch.strided:
                raise UserError(
                    f"parameter {name_of(group, index, position)}: its gradient is sparse: "
                    "expected a dense one; build the layer with sparse=False"
                )


def check_state(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Raise a UserError when a state is of another kind of optimizer or of other shapes.

    Numbers of groups and of parameters are left to torch, which checks them.
    """
    # torch itself puts "differentiable" among the defaults of an optimizer that has loaded a state.
    wanted = {*optimizer.defaults, "task"} - {"differentiable"}
    groups = zip(optimizer.param_groups, state_dict["param_groups"], strict=False)
    for index, (group, saved) in enumerate(groups):
        if missing := sorted(wanted - saved.keys()):
            raise UserError(
                f"state_dict: {', '.join(missing)} missing in it: expected a state of "
                f"{type(optimizer).__name__}"
            )
        pairs = zip(group["params"], saved["params"], strict=False)
        for position, (param, key) in enumerate(pairs):
            for name, shape in _shapes(state_dict["state"].get(key, {})):
                if shape != param.shape:
                    raise UserError(
                        f"state_dict: {name} of parameter {name_of(group, index, position)} is for "
                        f"shape {list(shape)}: expected {list(param.shape)}, that of the parameter"
                    )


def _shapes(state: Mapping[str, Any]) -> list[tuple[str, torch.Size]]:
    """The shapes of parameters that a parameter's state is for."""
    rows = [(name, state[name].shape[1:]) for name in ("directions", "variances") if name in state]
    return rows + [(name, state[name].shape) for name in ("moment", "variance") if name in state]


def _require(name: str, value: object, valid: bool, expected: str) -> None:
    finite = not isinstance(value, int | float) or math.isfinite(value)
    if isinstance(value, Tensor) or not (valid and finite):
        raise UserError(f"{name}: {value} is not valid: expected {expected}")

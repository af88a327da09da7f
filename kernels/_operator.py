"""Operators of `torch.library`: one schema, an implementation per kind of device, gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def operator(
    schema: str,
    *,
    cpu: Callable[P, R],
    cuda: Callable[P, R],
    fake: Callable[P, R],
    mutates: Sequence[str] = (),
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[P, R]:
    """Register `torch.ops.clearn.<name>`.

    The schema is spelt out: what is inferred from annotations depends on the version of torch.

    Args:
        schema: Name, arguments and results.
        cpu: Computes the result on the CPU.
        cuda: Computes the result on CUDA.
        fake: Gives uninitialised tensors of the result's shape and type.
        mutates: Names of the arguments that are written to.
        save: Keeps in the context what the gradient needs.
        backward: The gradient.

    Returns:
        The operator, to be called as `cpu` is.
    """
    name = schema[: schema.index("(")]
    defined = torch.library.custom_op(
        f"clearn::{name}",
        cpu,
        mutates_args=tuple(mutates),
        device_types="cpu",
        schema=schema.removeprefix(name),
    )
    defined.register_kernel("cuda", cuda)
    defined.register_fake(fake)
    if backward is not None:
        defined.register_autograd(backward, setup_context=save)
    return defined

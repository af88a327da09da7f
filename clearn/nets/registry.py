"""Nets by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from clearn.errors import unknown_name
from clearn.nets.heads import GrowingHead, Head, MultiHead, SingleHead
from clearn.nets.net import Net
from clearn.nets.small import MLP
from clearn.seeding import derive_seed

if TYPE_CHECKING:
    from clearn.stream import Stream

NETS: dict[str, Callable[..., nn.Module]] = {"MLP": MLP}
"""Our backbones: called with the shape of one example and the options of the net."""


def net_builder(name: str) -> Callable[..., nn.Module]:
    if name not in NETS:
        raise unknown_name("net", name, NETS)
    return NETS[name]


def net_names() -> list[str]:
    return sorted(NETS)


def build_net(
    name: str,
    stream: Stream,
    *,
    head: Literal["auto", "single", "multi", "growing"] = "auto",
    seed: int | None = None,
    **options: Any,
) -> Net:
    builder = net_builder(name)
    if seed is None:
        return _build(builder, stream, head, options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "initial weights"))
        return _build(builder, stream, head, options)


def _build(
    builder: Callable[..., nn.Module], stream: Stream, head: str, options: dict[str, Any]
) -> Net:
    backbone = builder(stream.input_shape, **options)
    return Net(backbone, _head(head, int(backbone.num_features), stream))  # type: ignore[arg-type]


def _head(kind: str, features: int, stream: Stream) -> Head:
    classes = [task.classes for task in stream.tasks]
    if kind == "auto":
        kind = "multi" if stream.scenario == "task" else "single"
    if kind == "multi":
        return MultiHead(features, classes, stream.num_classes)
    if kind == "growing":
        return GrowingHead(features, stream.num_classes)
    return SingleHead(features, stream.num_classes, classes)

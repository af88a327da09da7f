"""Nets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import nn

from clearn.errors import UserError, unknown_name
from clearn.nets.biasfree import AlexNetNorm, LeNetWide, TinyNet
from clearn.nets.external import timm_builder, torchvision_builder
from clearn.nets.groupresnet import GroupResNet
from clearn.nets.heads import GrowingHead, Head, MultiHead, SingleHead, WideHead
from clearn.nets.joined import JoinedHead
from clearn.nets.language import FrozenLM, transformers_builder
from clearn.nets.net import Net
from clearn.nets.resnet import ReducedResNet18, ResNet18
from clearn.nets.small import MLP, LeNet, SmallCNN
from clearn.nets.stable import StableResNet18
from clearn.nets.weights import load_weights, read_tensors
from clearn.nets.words import word_head
from clearn.seeding import derive_seed

if TYPE_CHECKING:
    from clearn.stream import Stream

HeadKind = Literal["auto", "single", "multi", "wide", "growing", "joined", "words"]

NETS: dict[str, Callable[..., nn.Module]] = {
    "AlexNetNorm": AlexNetNorm,
    "GroupResNet": GroupResNet,
    "LeNet": LeNet,
    "LeNetWide": LeNetWide,
    "MLP": MLP,
    "ReducedResNet18": ReducedResNet18,
    "ResNet18": ResNet18,
    "SmallCNN": SmallCNN,
    "StableResNet18": StableResNet18,
    "TinyNet": TinyNet,
}
"""Our backbones. Each is called with the shape of one example and, by keyword, the net's options;
it returns a module with `num_features`. Other packages add theirs by an entry point of the group
`clearn.nets`."""

_LIBRARIES = {
    "timm": timm_builder,
    "torchvision": torchvision_builder,
    "transformers": transformers_builder,
}


def net_names() -> list[str]:
    """What `build_net` knows: names, and for other libraries how theirs are made."""
    ours = {*NETS, *entry_points(group="clearn.nets").names}
    return sorted(ours) + [f"{library}/<name>" for library in _LIBRARIES]


def net_builder(name: str) -> Callable[..., nn.Module]:
    """The class or function that makes a backbone.

    Its first argument is the shape of one example; the others, their types and the docstring are
    the net's options.

    Raises:
        UserError: The name is unknown, or its library is not installed.
    """
    if name in NETS:
        return NETS[name]
    for point in entry_points(group="clearn.nets", name=name):
        return cast("Callable[..., nn.Module]", point.load())
    library, _, model = name.partition("/")
    if library in _LIBRARIES and model:
        return _LIBRARIES[library](model)
    raise unknown_name("net.name", name, net_names())


def names_weights(builder: Callable[..., Any]) -> bool:
    """Whether a backbone's own options say which weights it begins with."""
    return "weights" in inspect.signature(builder).parameters


def build_net(
    name: str,
    stream: Stream,
    *,
    head: HeadKind = "auto",
    seed: int | None = None,
    weights: str | None = None,
    **options: Any,
) -> Net:
    """A net for a stream.

    Args:
        name: See `net_names`; a model of another library is `torchvision/<name>`, `timm/<name>` or
            `transformers/<name>`.
        stream: Gives the shape of the inputs, the classes and the scenario.
        head: multi has a layer for each task, single one for all classes, growing adds to that
            one as classes appear; joined has a layer for each task, and without a task id the
            logits of all tasks begun; wide has for each task a layer for all classes, without bias;
            words asks a language model of T5's kind which of the labels' names it would write;
            auto is multi in the task scenario and single otherwise.
        seed: Of the initial weights, which it alone then decides; None draws from torch's global
            generator.
        weights: Of the backbone: a file, .safetensors or .pt, .pth or .pth.tar with plain tensors;
            models of other libraries know theirs by names, too. Missing: drawn at random.
        options: Of the backbone.

    Raises:
        UserError: The name or an option is unknown, or the net does not fit the stream, or the
            weights the net.
    """
    if head not in get_args(HeadKind):
        allowed = ", ".join(get_args(HeadKind))
        raise UserError(f"net.head: {head!r} is not valid: expected {allowed}")
    if head in ("multi", "wide") and stream.scenario != "task":
        raise UserError(
            f"net.head: {head} needs the task id, which the {stream.scenario} scenario does not "
            "give; set net.head to single or growing, or stream.scenario to task"
        )
    builder = net_builder(name)
    _check_options(name, builder, options)
    if weights is not None and names_weights(builder):
        options["weights"], weights = weights, None
    if seed is None:
        return _build(builder, stream, head, weights, options)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the generators of other devices as well.
        torch.default_generator.manual_seed(derive_seed(seed, "initial weights"))
        return _build(builder, stream, head, weights, options)


def _check_options(name: str, builder: Callable[..., Any], options: dict[str, Any]) -> None:
    parameters = list(inspect.signature(builder).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            raise unknown_name(f"net: option of {name}", option, known)


def _build(
    builder: Callable[..., nn.Module],
    stream: Stream,
    head: str,
    weights: str | None,
    options: dict[str, Any],
) -> Net:
    backbone = builder(stream.input_shape, **options)
    if weights is not None:
        load_weights(backbone, read_tensors(Path(weights)), weights)
    if isinstance(backbone, FrozenLM):
        backbone.use_tokens(stream.preprocess)
    return Net(backbone, _make_head(head, backbone, stream))


def _make_head(kind: str, backbone: nn.Module, stream: Stream) -> Head:
    if kind == "words":
        return word_head(backbone, stream)
    features = cast("int", backbone.num_features)
    classes = [task.classes for task in stream.tasks]
    if kind == "multi" or (kind == "auto" and stream.scenario == "task"):
        return MultiHead(features, classes, stream.num_classes)
    if kind == "wide":
        return WideHead(features, stream.num_classes, len(classes))
    if kind == "growing":
        return GrowingHead(features, stream.num_classes)
    if kind == "joined":
        return JoinedHead(features, stream.num_classes, classes)
    return SingleHead(features, stream.num_classes, classes)

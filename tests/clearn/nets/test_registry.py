"""Nets by name: all nets with all heads on all shapes, seeds, options and errors."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearn.errors import UserError
from clearn.nets import (
    MASKED,
    MLP,
    NETS,
    GrowingHead,
    JoinedHead,
    MultiHead,
    Net,
    SingleHead,
    WideHead,
    build_net,
    net_builder,
    net_names,
    registry,
)
from clearn.stream import Stream

FakeStream = Callable[..., Any]
IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)]
FITTING = [("MLP", (5,)), *((name, shape) for name in NETS for shape in IMAGES)]
FITTING.remove(("ResNet18", (3, 64, 64)))  # seconds, and the reduced one shows the same


@pytest.mark.parametrize("head", ["single", "multi", "wide", "growing", "joined"])
@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_every_net_with_every_head(
    name: str, shape: tuple[int, ...], head: Any, fake_stream: FakeStream
) -> None:
    stream = fake_stream(shape, "task")
    net = build_net(name, stream, head=head)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, *shape), torch.tensor([2, 3, 2])
    assert net(x, 1).shape == (3, 6), "a net is evaluated before its first task"
    for task in stream.tasks[:2]:
        net.begin_task(task.index, task.classes, generator)
        logits = net(x, task.index)
        assert logits.shape == (3, 6)
        classes = list(range(6)) if head == "wide" else list(task.classes)
        assert (logits > MASKED).nonzero()[:, 1].unique().tolist() == classes
    mixed = net(x, torch.tensor([1, 1, 1]))
    assert mixed.shape == (3, 6)
    nn.functional.cross_entropy(net(x, 1), y).backward()
    assert all(p.grad is not None for p in net.backbone.parameters())


@pytest.mark.parametrize(
    ("scenario", "head", "kind"),
    [
        ("task", "auto", MultiHead),
        ("class", "auto", SingleHead),
        ("domain", "auto", SingleHead),
        ("task", "single", SingleHead),
        ("task", "wide", WideHead),
        ("class", "growing", GrowingHead),
        ("domain", "growing", GrowingHead),
        ("task", "joined", JoinedHead),
        ("class", "joined", JoinedHead),
    ],
)
def test_head_follows_the_scenario(
    scenario: str, head: Any, kind: type, fake_stream: FakeStream
) -> None:
    net = build_net("MLP", fake_stream(scenario=scenario), head=head)
    assert type(net.head) is kind


def test_single_head_knows_the_tasks_of_its_stream(fake_stream: FakeStream) -> None:
    net = build_net("MLP", fake_stream(scenario="task"), head="single")
    assert (net(torch.randn(2, 1, 8, 8), 2) > MASKED).tolist() == [[False] * 4 + [True] * 2] * 2


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_on_a_real_stream(scenario: str, tiny_stream: Callable[..., Stream]) -> None:
    stream = tiny_stream(scenario=scenario)
    net = build_net("MLP", stream, hidden=(8,))
    task_id = 1 if scenario == "task" else None
    for task in stream:
        net.begin_task(task.index, task.classes, torch.Generator())
    batch = next(stream[1].test.batches(4))
    assert net(batch.x, task_id).shape == (4, stream.num_classes)


def weights(net: Net) -> list[Tensor]:
    return list(net.state_dict().values())


@pytest.mark.parametrize("name", [*NETS, "torchvision/resnet18"])
def test_seed_decides_and_the_global_generator_is_left_alone(
    name: str, fake_stream: FakeStream
) -> None:
    stream = fake_stream((3, 8, 8))
    nets = []
    for seed in (1, 1, 2):
        torch.randn(seed)  # what was drawn before does not matter
        state = torch.get_rng_state()
        nets.append(weights(build_net(name, stream, seed=seed)))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(nets[0], nets[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(nets[0], nets[2], strict=True))


def test_without_a_seed_the_global_generator_decides(fake_stream: FakeStream) -> None:
    nets = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        nets.append(weights(build_net("MLP", fake_stream())))
    assert all(torch.equal(a, b) for a, b in zip(nets[0], nets[1], strict=True))
    assert not torch.equal(nets[0][0], nets[2][0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {}, r"net\.name: 'mlp' is unknown; did you mean MLP\?.*timm/<name>"),
        ("torchvision/", {}, r"net\.name: 'torchvision/' is unknown"),
        ("MLP", {"hiden": (3,)}, r"option of MLP: 'hiden' is unknown; did you mean hidden\?"),
        ("MLP", {"input_shape": (3,)}, r"option of MLP: 'input_shape' is unknown"),
        ("LeNet", {"width": 3}, r"option of LeNet: 'width' is unknown; known: none"),
        (
            "MLP",
            {"head": "both"},
            r"net\.head: 'both' is not valid: expected auto.*, growing, joined",
        ),
        ("MLP", {"head": "multi"}, r"multi needs the task id, which the class scenario does not"),
        ("MLP", {"head": "wide"}, r"wide needs the task id, which the class scenario does not"),
    ],
)
def test_errors_name_the_field(
    name: str, options: dict[str, Any], message: str, fake_stream: FakeStream
) -> None:
    with pytest.raises(UserError, match=message):
        build_net(name, fake_stream(), **options)


class Wavelets(nn.Module):
    """A net of another package."""

    def __init__(self, input_shape: tuple[int, ...], *, levels: int = 2, **rest: Any) -> None:
        super().__init__()
        self.num_features = levels
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.num_features]


def test_nets_of_other_packages(monkeypatch: pytest.MonkeyPatch, fake_stream: FakeStream) -> None:
    monkeypatch.setitem(sys.modules, "other_package", sys.modules[__name__])
    points = EntryPoints([EntryPoint("Wavelets", "other_package:Wavelets", "clearn.nets")])
    monkeypatch.setattr(registry, "entry_points", lambda **which: points.select(**which))
    assert "Wavelets" in net_names()
    net = build_net("Wavelets", fake_stream(), levels=3, basis="haar")
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 6)
    assert net.backbone.rest == {"basis": "haar"}
    assert net_builder("MLP") is MLP


@pytest.mark.parametrize("name", [*NETS, "torchvision/resnet18", "timm/resnet18"])
def test_builders_describe_their_options(name: str) -> None:
    """The command line reads signature and docstring."""
    builder = net_builder(name)
    first, *options = inspect.signature(builder).parameters.values()
    assert first.name == "input_shape"
    assert builder.__doc__
    for option in options:
        assert option.kind is option.KEYWORD_ONLY
        assert option.annotation is not option.empty
        assert option.default is not option.empty
        assert f"\n        {option.name}: " in inspect.cleandoc(builder.__doc__).replace(
            "\n    ", "\n        "
        )


def test_other_libraries_are_loaded_when_asked_for() -> None:
    code = (
        "import json, sys, clearn.nets as nets; nets.net_names(); nets.net_builder('ResNet18')\n"
        "print(json.dumps([m for m in ('torchvision', 'timm', 'lightning') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []

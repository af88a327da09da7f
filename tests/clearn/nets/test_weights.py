"""Weights from files: kinds of checkpoints, all of ours, and what is wrong with a file, by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from clearn.errors import UserError
from clearn.nets import NETS, build_net, net_builder
from clearn.nets.weights import load_weights, read_tensors
from clearn.run.config import build_run, resolve_config

FakeStream = Callable[..., Any]
VIT = "vit_tiny_patch16_224"
IMAGE = (3, 32, 32)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """Another ViT of the same form; all its weights are drawn at random, also those of norms."""
    model: nn.Module = timm.create_model(VIT, img_size=32, num_classes=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.1 * torch.randn_like(weight))
    return model.eval()


def moco(model: nn.Module) -> dict[str, Tensor]:
    """The state that MoCo v3 saves: two encoders with projections as heads, and a predictor."""
    state = {f"module.base_encoder.{name}": value for name, value in model.state_dict().items()}
    state |= {
        f"module.momentum_encoder.{name}": value + 1 for name, value in model.state_dict().items()
    }
    for encoder in ("base_encoder", "momentum_encoder"):
        state[f"module.{encoder}.head.0.weight"] = torch.zeros(8, 192)
        state[f"module.{encoder}.head.1.running_mean"] = torch.zeros(8)
    return state | {"module.predictor.0.weight": torch.zeros(8, 8)}


LAYOUTS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda model: model.state_dict(),
    "with a head": lambda model: {**model.state_dict(), "head.weight": torch.zeros(7, 192)},
    "state_dict": lambda model: {"epoch": 3, "state_dict": model.state_dict()},
    "as converted for DeiT": lambda model: {"model": model.state_dict()},
    "MoCo v3": lambda model: {
        "epoch": 300,
        "arch": "vit_base",
        "state_dict": moco(model),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "scaler": {"scale": 1.0},
    },
    "momentum encoder alone": lambda model: {
        f"module.momentum_encoder.{name}": value for name, value in model.state_dict().items()
    },
}


@pytest.mark.parametrize("kind", ["pth.tar", "pth", "pt"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_a_vit(layout: str, kind: str, vit: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / f"weights.{kind}"
    torch.save(LAYOUTS[layout](vit), file)
    net = net_builder(f"timm/{VIT}")(IMAGE, weights=str(file)).eval()
    x = torch.randn(2, *IMAGE)
    assert torch.equal(net(x), vit(x))


def test_a_fresh_norm_has_learned_nothing(vit: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(vit.state_dict(), file)
    net = net_builder(f"timm/{VIT}")(IMAGE, weights=str(file), fresh_norm=True).eval()
    x, seen = torch.randn(2, *IMAGE), []
    hook = vit.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vit(x)
    hook.remove()
    cls = seen[0][:, 0].double()
    centred = cls - cls.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(net(x).double(), expected, rtol=0, atol=1e-5)
    assert net.training is False
    assert all(p.requires_grad for p in net.model.norm.parameters())


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/vit_relpos_small_patch16_224"])
def test_fresh_norm_needs_a_final_norm(name: str) -> None:
    shape = (3, 224, 224) if "vit" in name else IMAGE
    with pytest.raises(UserError, match=f"net.fresh_norm: {name} has no final layer norm"):
        net_builder(name)(shape, fresh_norm=True)


class Anything:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "named"),
    [(argparse.Namespace(lr=0.1), "argparse.Namespace"), (Anything(), "print")],
)
def test_objects_beside_the_tensors(
    value: Any, named: str, zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.pth"
    content = {"state_dict": {"a": torch.zeros(1)}, "args": value}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as caught:
        read_tensors(file)
    message = str(caught.value)
    assert f"is not a file of plain tensors: it also holds {named}, and" in message
    assert "torch.load(file, weights_only=False)['state_dict']" in message
    assert "\n" not in message
    assert "unpickled" not in capsys.readouterr().out


def test_the_advice_for_objects_helps(tmp_path: Path) -> None:
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=0.1)}, old)
    torch.save(torch.load(old, weights_only=False)["state_dict"], new)
    assert read_tensors(new)["a"] == 1


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {"model": torch.zeros(1), "epoch": 2}, 3],
)
def test_files_without_a_state(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(UserError, match=r"file\.pt does not map names to tensors, nor does"):
        read_tensors(tmp_path / "file.pt")


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def test_names_and_shapes_that_differ_are_all_named() -> None:
    state = layers().state_dict()
    del state["0.weight"], state["2.bias"]
    state |= {f"layer{index}.weight": torch.zeros(1) for index in range(5)}
    state["2.weight"] = torch.zeros(5, 7)
    with pytest.raises(UserError) as caught:
        load_weights(layers(), state, "a.pt", gone=["layer4"])
    assert str(caught.value) == (
        "net.weights: a.pt does not fit the net: 2 missing (0.weight, 2.bias), "
        "4 unexpected (layer0.weight, layer1.weight, layer2.weight, ...), "
        "1 of another shape (2.weight [5, 7] for [1, 3]); give weights of this net, made for the "
        "same options and stream.image_size"
    )


def test_counters_that_old_checkpoints_lack_may_be_missing() -> None:
    state = {k: v for k, v in layers().state_dict().items() if "num_batches" not in k}
    module = layers()
    load_weights(module, state, "a.pt")
    assert torch.equal(module[0].weight, state["0.weight"])  # type: ignore[index]


@pytest.mark.parametrize("name", NETS)
def test_our_nets_take_a_file(name: str, fake_stream: FakeStream, tmp_path: Path) -> None:
    stream = fake_stream(IMAGE)
    trained = build_net(name, stream, seed=1)
    file = tmp_path / "weights.safetensors"
    save_file(trained.backbone.state_dict(), file)
    net, plain = (build_net(name, stream, seed=2, weights=w) for w in (str(file), None))
    for own, given in zip(
        net.backbone.state_dict().values(), trained.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(own, given)
    for own, drawn in zip(
        net.head.state_dict().values(), plain.head.state_dict().values(), strict=True
    ):
        assert torch.equal(own, drawn), "the head is drawn as it is without weights"


def test_half_precision_is_stored_and_single_is_used(
    fake_stream: FakeStream, tmp_path: Path
) -> None:
    stream, file = fake_stream(), tmp_path / "weights.safetensors"
    trained = build_net("SmallCNN", stream, seed=1).backbone
    save_file({name: value.half() for name, value in trained.state_dict().items()}, file)
    net = build_net("SmallCNN", stream, weights=str(file)).backbone
    for name, value in net.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, trained.state_dict()[name], rtol=2**-10, atol=1e-7)


def test_files_are_looked_for_in_the_current_folder(
    fake_stream: FakeStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = fake_stream()
    with pytest.raises(UserError, match=r"net\.weights: cannot read sub/w\.pt \(No such file"):
        build_net("MLP", stream, weights="sub/w.pt")
    (tmp_path / "sub").mkdir()
    torch.save(build_net("MLP", stream).backbone.state_dict(), tmp_path / "sub" / "w.pt")
    monkeypatch.chdir(tmp_path)
    build_net("MLP", stream, weights="sub/w.pt")


def test_a_file_of_another_net(fake_stream: FakeStream, tmp_path: Path) -> None:
    stream, file = fake_stream(), tmp_path / "w.pt"
    torch.save(build_net("MLP", stream, hidden=(5,)).backbone.state_dict(), file)
    with pytest.raises(UserError, match=r"2 of another shape \(layers\.0\.weight \[5, 64\] for"):
        build_net("MLP", stream, hidden=(4,), weights=str(file))
    with pytest.raises(UserError, match=r"6 missing \(layers\.3\.weight"):
        build_net("LeNet", stream, weights=str(file))


def test_weights_in_a_config(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    config: dict[str, Any] = {
        "strategy": "Naive",
        "stream": "SplitDigits",
        "net": {"name": "MLP", "hidden": [7], "weights": str(file)},
    }
    resolved = resolve_config(config)
    assert resolved["net"]["weights"] == str(file)
    assert resolve_config(yaml.safe_load(yaml.safe_dump(resolved))) == resolved
    with pytest.raises(UserError, match=r"net\.weights: cannot read"):
        build_run(config)
    state = net_builder("MLP")((1, 8, 8), hidden=(7,)).state_dict()
    torch.save(state, file)
    loaded = build_run(config).strategy.net.backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_fresh_norm_in_a_config() -> None:
    config = {
        "strategy": "Naive",
        "stream": {"name": "SplitCIFAR100", "image_size": 224},
        "net": {
            "name": "timm/vit_base_patch16_224",
            "weights": "augreg_in21k",
            "fresh_norm": True,
        },
    }
    assert resolve_config(config)["net"] == {**config["net"], "head": "auto"}  # type: ignore[dict-item]

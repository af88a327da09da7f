"""Models of torchvision and timm: shapes, weights from files and caches, errors in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants as hub
from safetensors.torch import save_file
from torch import nn

from clearn.errors import UserError
from clearn.nets import net_builder

SMALL = {"torchvision": "torchvision/shufflenet_v2_x0_5", "timm": "timm/resnet10t"}


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)  # else it tries for most of a minute


def original(library: str, **options: Any) -> nn.Module:
    """The model with its classifier for 1000 classes, weights drawn at random."""
    name = SMALL[library].partition("/")[2]
    model: nn.Module = (
        torchvision.models.get_model(name, weights=None)
        if library == "torchvision"
        else timm.create_model(name, **options)
    )
    return model.eval()


def features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the classifier of `original` sees."""
    seen = []
    classifier = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    return seen[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision/resnet18", (1, 28, 28)),
        ("torchvision/mobilenet_v3_small", (3, 64, 64)),
        ("torchvision/shufflenet_v2_x0_5", (3, 32, 32)),
        ("timm/resnet10t", (1, 28, 28)),
        ("timm/vit_tiny_patch16_224", (1, 32, 32)),
        ("timm/vit_tiny_patch16_224", (3, 64, 64)),
        ("timm/mobilenetv3_small_050", (2, 64, 64)),
    ],
)
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    net = net_builder(name)(shape)
    assert net.training
    out = net(torch.randn(2, *shape))
    assert out.shape == (2, net.num_features)
    out.sum().backward()


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_trial_on_one_example_leaves_no_trace(library: str) -> None:
    net = net_builder(SMALL[library])((3, 32, 32))
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.num_batches_tracked == 0
            assert (part.running_mean == 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["pt", "pth", "safetensors"])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_weights_from_a_file(library: str, kind: str, tmp_path: Path) -> None:
    model, file = original(library), tmp_path / f"weights.{kind}"
    (save_file if kind == "safetensors" else torch.save)(model.state_dict(), file)  # type: ignore[operator]
    net = net_builder(SMALL[library])((3, 40, 40), weights=str(file)).eval()
    x = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(net(x), features(model, x))


def test_torchvision_repeats_a_single_channel(tmp_path: Path) -> None:
    model, file = original("torchvision"), tmp_path / "weights.pt"
    torch.save(model.state_dict(), file)
    net = net_builder(SMALL["torchvision"])((1, 40, 40), weights=str(file)).eval()
    x = torch.randn(2, 1, 40, 40)
    torch.testing.assert_close(net(x), features(model, torch.cat([x, x, x], 1)))


def test_torchvision_weights_by_name_come_from_the_cache(tmp_path: Path) -> None:
    model = original("torchvision")
    weights = torchvision.models.get_model_weights(SMALL["torchvision"].partition("/")[2])
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(model.state_dict(), cache / weights.DEFAULT.url.rpartition("/")[2])
    x = torch.randn(2, 3, 40, 40)
    for name in ("DEFAULT", "IMAGENET1K_V1"):
        net = net_builder(SMALL["torchvision"])((3, 40, 40), weights=name).eval()
        torch.testing.assert_close(net(x), features(model, x))


def test_timm_weights_by_name_come_from_the_cache(tmp_path: Path) -> None:
    model = original("timm")
    repository = tmp_path / "hub" / "models--timm--resnet10t.c3_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    x = torch.randn(2, 3, 40, 40)
    for name, weights in (("resnet10t", "DEFAULT"), ("resnet10t", "c3_in1k")):
        net = net_builder(f"timm/{name}")((3, 40, 40), weights=weights).eval()
        torch.testing.assert_close(net(x), features(model, x))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_weights_that_cannot_be_downloaded(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        net_builder(SMALL[library])((3, 32, 32), weights="DEFAULT")
    message = str(caught.value)
    assert message.startswith(f"net.weights: DEFAULT of {SMALL[library]} cannot be had (")
    assert "give a file of weights" in message
    assert "\n" not in message


class Exploit:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read"),
        (b"", "is not a file of plain tensors"),
        (b"junk" * 99, "is not a file of plain tensors"),
        (Exploit(), "is not a file of plain tensors"),
        ([1, 2], "does not map names to tensors"),
        ({"epoch": 3}, "does not map names to tensors"),
        ({"conv1.weight": torch.zeros(1)}, "does not fit the net"),
    ],
    ids=["missing", "empty", "junk", "pickle", "list", "numbers", "other"],
)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_files_that_hold_something_else(
    content: Any, problem: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"weights.{kind}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif kind == "safetensors" and content is not None:
        torch.save(content, file)
        problem = "is not a file of plain tensors"
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(UserError) as caught:
        net_builder(SMALL["torchvision"])((3, 32, 32), weights=str(file))
    assert str(caught.value).startswith("net.weights: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("torchvision/resnet81", "did you mean torchvision/resnet18"),
        ("torchvision/inception_v3", "'torchvision/inception_v3' is unknown"),
        ("torchvision/fasterrcnn_resnet50_fpn", "is unknown"),
        ("timm/resnet10tt", "did you mean timm/resnet10t"),
        ("timm/resnet10t.c4_in1k", "'c4_in1k' is unknown; did you mean c3_in1k"),
    ],
)
def test_unknown_models(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        net_builder(name)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_unknown_weights(library: str) -> None:
    with pytest.raises(UserError, match=r"net\.weights: 'IMAGENET' is unknown.*DEFAULT"):
        net_builder(SMALL[library])((3, 32, 32), weights="IMAGENET")


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("torchvision/resnet18", (5,), r"takes images \[C, H, W\]"),
        ("timm/resnet10t", (5,), r"takes images \[C, H, W\]"),
        ("torchvision/densenet121", (3, 8, 8), r"does not take images of the shape \[3, 8, 8\]"),
        ("timm/vit_tiny_patch16_224", (1, 8, 8), r"does not take images of the shape \[1, 8, 8\]"),
        ("torchvision/vit_b_16", (3, 32, 32), r"set stream\.image_size"),
        ("torchvision/resnet18", (2, 32, 32), "takes images with 1 or 3 channels"),
    ],
)
def test_images_that_do_not_fit(name: str, shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        net_builder(name)(shape)


def test_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'needs timm, .* pip install "clearn\[vit\]"'):
        net_builder("timm/resnet18")

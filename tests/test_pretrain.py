"""Pre-training, whole: on a small data set of two kinds of images, and stopped half way."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from clearn.errors import UserError
from clearn.nets import net_builder
from clearn.nets.weights import load_weights, read_tensors
from clearn.preprocess import Preprocess

SCRIPTS = Path(__file__).parents[1] / "experiments" / "pretrain"
RECIPES = ["supervised", "selfsupervised"]
CLASSES, TRAIN, TEST = 6, 8, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TinyImageNet as it is packed, with 6 classes of noisy stripes in colours of their own."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "tiny-imagenet-200"
    names = [f"n{number:08d}" for number in range(CLASSES)]
    random = np.random.default_rng(0)

    def draw(path: Path, label: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 60, (64, 64, 3))
        pixels[:: label + 2] += np.array([30 * label, 150 - 25 * label, 90])
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    lines = []
    for label, name in enumerate(names):
        for number in range(TRAIN):
            draw(folder / "train" / name / "images" / f"{name}_{number}.JPEG", label)
        for number in range(TEST):
            file = f"val_{label}_{number}.JPEG"
            draw(folder / "val" / "images" / file, label)
            lines.append(f"{file}\t{name}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(reversed(names)))  # they are sorted when read
    return root


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script as it is when it runs: its folder comes first."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def words(root: Path, folder: Path, epochs: int = 2, **options: object) -> list[str]:
    given = {"epochs": epochs, "batch-size": 8, "root": root, "folder": folder, **options}
    return [str(word) for name, value in given.items() for word in (f"--{name}", value)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_run_leaves(
    recipe: str, root: Path, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    script(recipe).main(words(root, folder, limit=5))
    assert {path.name for path in folder.iterdir()} == {
        f"{recipe}.safetensors",
        f"{recipe}.json",
        "runs",
    }
    report = json.loads((folder / f"{recipe}.json").read_text())
    assert report["classes"] == {"pretraining": [0, 2, 4], "stream": [1, 3, 5]}
    assert report["images"] == 15
    assert len(report["losses"]) == 2
    assert np.isfinite(report["losses"]).all()
    assert set(report["trained"]) == {"nearest mean", "linear"}
    weights = folder / f"{recipe}.safetensors"
    assert report["bytes"] == weights.stat().st_size <= 6e6
    with safe_open(weights, "pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert metadata == {name: report[name] for name in metadata}
    assert {"recipe", "commit", "epochs", "seed", "classes", "net", "image_size"} <= set(metadata)
    load_weights(net_builder(metadata["net"])((3, 32, 32)), read_tensors(weights), "")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    recipe: str,
    root: Path,
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = script(recipe)
    module.main(words(root, tmp_path / "whole"))
    learner = {"supervised": "Classifier", "selfsupervised": "SimCLR"}[recipe]
    loss, calls = getattr(module, learner).loss, []

    def stopping(self: Any, *args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:  # of 6: 24 images in batches of 8, twice
            raise KeyboardInterrupt
        result: torch.Tensor = loss(self, *args)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(getattr(module, learner), "loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            module.main(words(root, tmp_path / "stopped"))
    torch.rand(3)  # what others have drawn does not matter
    assert not (tmp_path / "stopped" / f"{recipe}.safetensors").exists()
    module.main(words(root, tmp_path / "stopped"))
    states = [
        read_tensors(tmp_path / name / f"{recipe}.safetensors") for name in ("whole", "stopped")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    files = [tmp_path / name / f"{recipe}.json" for name in ("whole", "stopped")]
    reports = [json.loads(file.read_text()) for file in files]
    for report in reports:
        for varying in ("seconds", "commit", "environment"):
            del report[varying]
    assert reports[0] == reports[1]


def test_other_options_do_not_go_on_in_the_same_folder(
    root: Path, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    supervised = script("supervised")
    supervised.main(words(root, tmp_path, epochs=1, limit=3))
    with pytest.raises(UserError, match=r"supervised\.pt is of a run with .*name another folder"):
        supervised.main(words(root, tmp_path, epochs=2, limit=3))


def test_the_seed_decides(root: Path, script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    for seed in (0, 1):
        script("supervised").main(words(root, tmp_path / str(seed), epochs=1, limit=3, seed=seed))
    first, second = (read_tensors(tmp_path / str(s) / "supervised.safetensors") for s in (0, 1))
    assert not torch.equal(first["conv.weight"], second["conv.weight"])


def test_supervised_training_learns_the_classes(
    root: Path, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    script("supervised").main(words(root, tmp_path, epochs=4))
    losses = json.loads((tmp_path / "supervised.json").read_text())["losses"]
    assert losses[-1] < 0.75 * losses[0]


def test_simclr_finds_the_other_view(script: Callable[[str], ModuleType]) -> None:
    draws = torch.Generator().manual_seed(0)
    patterns = torch.rand(8, 3, 3, 3, generator=draws) * 255
    raw = torch.nn.functional.interpolate(patterns, (32, 32), mode="bilinear").byte()
    torch.manual_seed(0)
    backbone = net_builder("GroupResNet")((3, 32, 32), widths=(16, 32))
    learner = script("selfsupervised").SimCLR(backbone, 0, Preprocess((0.5,), (0.25,), flip=True))
    optimizer = torch.optim.AdamW(learner.parameters(), 5e-3)
    losses = []
    for _ in range(80):
        loss = learner.loss(raw, torch.zeros(8), draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.9 * np.log(15), "guessing among 15 others costs log 15"


def test_nt_xent_against_a_slow_loop(script: Callable[[str], ModuleType]) -> None:
    selfsupervised = script("selfsupervised")
    z = torch.randn(10, 7, dtype=torch.float64)
    rows = z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True)
    expected = []
    for i in range(10):
        pair = (i + 5) % 10
        others = [np.exp(rows[i] @ rows[k] / 0.2) for k in range(10) if k != i]
        expected.append(-np.log(np.exp(rows[i] @ rows[pair] / 0.2) / sum(others)))
    assert abs(float(selfsupervised.nt_xent(z, 0.2)) - np.mean(expected)) < 1e-12


def test_recolouring(script: Callable[[str], ModuleType]) -> None:
    recolour = script("selfsupervised").recolour
    x = torch.randn(400, 3, 4, 5)
    draws = torch.Generator().manual_seed(0)
    out = recolour(x, draws)
    assert out.shape == x.shape
    # Without tint, a grey image has equal channels: their differences do not vary over positions.
    between = (out - out.mean(1, keepdim=True)).std((2, 3)).amax(1)
    assert 0.12 < (between < 1e-5).float().mean() < 0.28
    shift = out.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert shift.abs().max() <= 0.5 + 1e-5
    # Every image has draws of its own, and the generator decides them.
    assert torch.equal(out, recolour(x, torch.Generator().manual_seed(0)))
    same = recolour(x[:1].expand(6, -1, -1, -1), draws)
    assert all(not torch.allclose(same[0], other) for other in same[1:])


def test_schedule(script: Callable[[str], ModuleType]) -> None:
    schedule = script("pretraining").schedule
    assert schedule(0.0) == 0
    assert schedule(0.025) == 0.5
    assert schedule(0.05) == 1
    assert abs(schedule(0.525) - 0.5) < 1e-12
    assert abs(schedule(1.0)) < 1e-12


def test_weights_too_large_to_keep_are_refused(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    wide = net_builder("MLP")((3, 32, 32), hidden=(1000,))
    with pytest.raises(UserError, match=r"would take 6\d{6} bytes, expected at most 6000000"):
        script("pretraining").write_weights(tmp_path / "w.safetensors", wide, {})
    assert not list(tmp_path.iterdir())

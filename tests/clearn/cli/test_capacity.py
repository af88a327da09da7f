"""`clearn masks capacity`, and what a run with masks leaves for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clearn.capacity import archived, growth
from clearn.compare.text import percent, size
from clearn.kernels.archive import MaskArchive
from clearn.kernels.bitmask import pack_bits
from clearn.record import Record
from tests.clearn.cli.conftest import Clearn


def written(changes: list[float], n: int = 4000, block: int = 3) -> MaskArchive:
    """An archive of masks, each with such a share of its elements drawn anew."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(n, generator=generator) < 0.1
    tasks: list[dict[str, Tensor]] = []
    for change in changes:
        drawn = torch.rand(n, generator=generator) < change
        mask = torch.where(drawn, torch.rand(n, generator=generator) < 0.1, mask)
        tasks.append({"w": pack_bits(mask)})
    return MaskArchive.write("masks", tasks, {"w": (n,)}, block=block)


def test_a_row_for_each_task(clearn: Clearn) -> None:
    after = growth(archived(written([0.2] * 5)), block=3)
    code, out, err = clearn("masks", "capacity", "masks")
    assert (code, err) == (0, "")
    table, _, words = out.partition("\n\n")
    head, *rows = table.splitlines()
    columns = "task used % CAP paper % CAP entropy % CAP real % CAP raw % masks"
    assert " ".join(head.split()) == columns
    for each, row in zip(after, rows, strict=True):
        caps = [
            percent(each.metrics[f"cap_{name}"]) for name in ("paper", "entropy", "real", "raw")
        ]
        shown = [str(each.tasks), percent(each.share), *caps, *size(each.coded).split()]
        assert row.split() == shown
    assert words.startswith(
        f"Used weights: {percent(after[0].share)} % after the first task, "
        f"{percent(after[-1].share)} % after 5 tasks.\n"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([0.2] * 5, "shows from the second full block on, that is after 6 tasks; these are 5."),
        ([0.8] * 3 + [0.1] * 3, "Mask bytes grow sub-linearly: blocks of 3 tasks take "),
        ([0.1] * 3 + [0.8] * 4, "Mask bytes grow faster than linearly: "),
        ([0.2] + [0.0] * 6, "Mask bytes grow linearly: "),
    ],
)
def test_growth_in_words(changes: list[float], words: str, clearn: Clearn) -> None:
    archive = written(changes)
    _, out, _ = clearn("masks", "capacity", "masks")
    assert words in out.splitlines()[-1]
    first, *others = (block.coded for block in archive.sizes()["w"].blocks if block.tasks == 3)
    if others:
        assert f"{size(first)}, {size(others[0])}; those after the first " in out
        assert f" {percent(others[0] / first)} % of it on average.\n" in out


@pytest.mark.parametrize(("name", "magic"), [("a/g.svg", b"<?xml"), ("g.png", b"\x89PNG")])
def test_the_figure_is_drawn(name: str, magic: bytes, clearn: Clearn) -> None:
    written([0.2] * 4)
    code, out, err = clearn("masks", "capacity", "masks", "--figure", name)
    assert (code, err) == (0, "")
    assert out.endswith(f"figure: {name}\n")
    assert Path(name).read_bytes().startswith(magic)


def test_mistakes(clearn: Clearn) -> None:
    written([])
    Path("bad").write_bytes(b"nonsense")
    for arguments, message in (
        (("capacity", "masks"), "file: masks holds no masks: 0 tasks"),
        (("capacity", "bad"), "file: bad: is not a mask archive"),
        (("capacity", "masks", "--figure", "g.gif"), "figure: g.gif is not valid: expected a name"),
        (("info", "masks", "--figure", "g.png"), "figure: g.png is not drawn by info"),
    ):
        code, out, err = clearn("masks", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"clearn: error: {message}")
        assert err.count("\n") == 1


def test_a_run_leaves_its_masks(clearn: Clearn) -> None:
    parts = ("--strategy", "WSN", "--strategy.c", "0.2", "--stream.scenario", "task")
    small = ("--stream.keep_tasks", "2", "--net.hidden", "[16]", "--folder", "out")
    code, _, err = clearn("run", *parts, *small)
    assert code == 0, err
    metrics = Record(Path("out")).load_metrics()
    after = growth(archived(MaskArchive.open("out/masks.clmask")))[-1]
    assert {name: metrics[name] for name in after.metrics} == pytest.approx(after.metrics)
    assert metrics["bytes_per_task"] == 4 * (2 * (16 + 1) + 16)  # a head of 2 classes, 16 biases
    assert clearn("masks", "capacity", "out/masks.clmask").code == 0

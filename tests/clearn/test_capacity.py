"""Capacity against published figures, a slow count bit by bit, and real archives."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from clearn.capacity import ALPHA, Capacity, archived, cap, capacity, growth, stacks
from clearn.kernels.archive import MaskArchive
from clearn.kernels.bitmask import pack_bits, unpack_bits

SHAPES = {"a": (7, 9), "b": (), "c": (1000, 13), "empty": (0, 3), "d": (64,)}
Masks = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def masks() -> Masks:
    """Packed masks of 16 tasks, each much like the one before."""
    generator = torch.Generator().manual_seed(3)
    scores = {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}
    found = []
    for _ in range(16):
        found.append({name: pack_bits(score > 0.8) for name, score in scores.items()})
        for score in scores.values():
            score.mul_(0.9).add_(0.1 * torch.rand(score.shape, generator=generator))
    return found


@pytest.mark.parametrize(
    ("c", "tasks", "published"),
    [
        (0.1, 10, 96.38),
        (0.2, 5, 82.86),
        (0.02, 100, 399.24),
        (0.05, 20, 126.65),
        (0.025, 40, 188.68),
    ],
)
def test_packnet_published_figures(c: float, tasks: int, published: float) -> None:
    assert 100 * cap(1 - (1 - c) ** tasks, tasks) == pytest.approx(published, abs=0.0051)


def test_wsn_published_figure() -> None:
    used = 1 - 0.87
    assert 100 * cap(used, (1 - ALPHA) * 10) == pytest.approx(19.87, abs=0.0051)
    measured = Capacity(tasks=10, elements=100, used=13, entropy_bits=0.0, coded=0)
    assert measured.metrics["cap_paper"] == pytest.approx(0.1987, abs=5.1e-5)
    assert measured.metrics["sparsity"] == pytest.approx(0.87)


def slow(masks: Masks, tasks: int, block: int) -> dict[str, float]:
    """The numbers that do not depend on the archive, by counting symbols one by one."""
    used, bits = 0, 0.0
    n = sum(map(math.prod, SHAPES.values()))
    for name, shape in SHAPES.items():
        rows = [unpack_bits(task[name], shape).flatten().tolist() for task in masks[:tasks]]
        used += sum(any(column) for column in zip(*rows, strict=True))
        for start in range(0, tasks, block):
            symbols = Counter(zip(*rows[start : start + block], strict=True))
            total = math.prod(shape)
            bits -= sum(count * math.log2(count / total) for count in symbols.values())
    return {
        "sparsity": 1 - used / n,
        "cap_paper": used / n + 0.22 * tasks / 32,
        "cap_entropy": used / n + bits / n / 32,
        "cap_raw": used / n + tasks / 32,
    }


@pytest.mark.parametrize(
    ("block", "codec"), [(1, "huffman"), (7, "huffman"), (16, "huffman"), (7, "ans")]
)
def test_growth_is_what_an_archive_takes_after_each_task(
    masks: Masks, block: int, codec: str, tmp_path: Path
) -> None:
    if codec == "ans":
        pytest.importorskip("constriction")
    found = growth(stacks(masks, SHAPES), block=block, codec=codec)
    archive = MaskArchive.create(tmp_path / "masks", SHAPES, block=block, codec=codec)
    n = sum(map(math.prod, SHAPES.values()))
    for tasks, after in enumerate(found, 1):
        archive.append(masks[tasks - 1])
        coded = sum(sizes.coded for sizes in archive.sizes().values())
        expected = slow(masks, tasks, block)
        real = 1 - expected["sparsity"] + 8 * coded / n / 32
        assert after.metrics == pytest.approx(expected | {"cap_real": real})
        assert (after.tasks, after.elements, after.coded) == (tasks, n, coded)
    assert growth(archived(archive), block=block, codec=codec) == found
    assert capacity(stacks(masks, SHAPES), block=block, codec=codec) == found[-1]


def test_before_the_first_task_nothing_is_taken() -> None:
    assert growth(stacks([], SHAPES)) == []
    found = capacity(stacks([], SHAPES))
    caps = {f"cap_{name}": 0.0 for name in ("paper", "entropy", "real", "raw")}
    assert found.metrics == caps | {"sparsity": 1.0}


def test_without_weights_there_are_no_shares() -> None:
    found = capacity([*stacks([{"a": torch.empty(0, dtype=torch.uint8)}], {"a": (0,)})])
    assert all(math.isnan(value) for value in found.metrics.values())

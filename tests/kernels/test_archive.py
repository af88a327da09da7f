"""The mask archive: round trips, sizes, appending, and what cannot be archived."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clearn.kernels import _layout, huffman
from clearn.kernels.archive import ArchiveError, MaskArchive
from tests.kernels import reference
from tests.kernels.coding import correlated_masks, huffman_bits
from tests.kernels.reference import draw
from tests.kernels.test_archive_damage import overwrite

Tasks = Sequence[Mapping[str, Tensor]]
SHAPES = {"first.weight": (20, 3, 5, 5), "gap": (3, 0), "one": (), "last.weight": (9, 7)}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def packed(masks: Tensor) -> Tensor:
    return torch.stack([reference.pack(mask) for mask in masks])


def drawn(number: int, shapes: Mapping[str, Sequence[int]] = SHAPES) -> list[dict[str, Tensor]]:
    """Masks of every task, of a share of 0.1 of the weights each."""
    return [
        {
            name: reference.pack(draw(math.prod(shape), p=0.1, seed=10 * task + place))
            for place, (name, shape) in enumerate(shapes.items())
        }
        for task in range(number)
    ]


def holds(archive: MaskArchive, tasks: Tasks) -> bool:
    assert archive.num_tasks == len(tasks)
    for name in archive.shapes:
        masks = archive.masks(name)
        assert (masks.dtype, len(masks)) == (torch.uint8, len(tasks))
        if not all(
            torch.equal(masks[t], task[name]) and torch.equal(archive.mask(t, name), task[name])
            for t, task in enumerate(tasks)
        ):
            return False
    return True


@pytest.mark.parametrize("codec", ["huffman", "ans"])
@pytest.mark.parametrize("block", [1, 2, 7, 8, 9, 16])
@pytest.mark.parametrize("number", [0, 1, 7, 8, 17])
def test_masks_come_back(number: int, block: int, codec: str, tmp_path: Path) -> None:
    tasks = drawn(number)
    at_once = MaskArchive.write(tmp_path / "whole", tasks, SHAPES, block=block, codec=codec)
    assert holds(at_once, tasks)
    assert at_once.dead == 0
    grown = MaskArchive.create(tmp_path / "grown", SHAPES, block=block, codec=codec)
    for index, task in enumerate(tasks):
        assert grown.num_tasks == index
        grown.append(task)
    assert holds(grown, tasks)
    assert holds(MaskArchive.open(tmp_path / "grown"), tasks)
    assert MaskArchive.open(tmp_path / "grown").shapes == SHAPES
    assert grown.size == (tmp_path / "grown").stat().st_size
    dead = grown.dead
    assert (dead > 0) == (number > 1 and block > 1)
    assert grown.compact() == dead
    assert grown.dead == 0
    assert holds(grown, tasks)
    assert (tmp_path / "grown").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("n", [*reference.SIZES, 2 * huffman.CHUNK])
def test_any_number_of_weights(n: int, tmp_path: Path) -> None:
    for codec in ("huffman", "ans"):
        for share in (0.0, 0.1, 1.0):
            tasks = [{"w": reference.pack(draw(n, p=share, seed=seed))} for seed in (1, 2, 2)]
            archive = MaskArchive.write(tmp_path / "a", tasks, {"w": (n,)}, codec=codec)
            assert holds(archive, tasks)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_masks(tmp_path: Path, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 40))
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    masks = data.draw(st.lists(flags, max_size=6))
    tasks = [{"w": reference.pack(torch.tensor(m, dtype=torch.bool))} for m in masks]
    block, codec = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(["huffman", "ans"]))
    written = MaskArchive.write(tmp_path / "a", tasks[:3], {"w": (n,)}, block=block, codec=codec)
    for task in tasks[3:]:
        written.append(task)
    assert holds(MaskArchive.open(tmp_path / "a"), tasks)


@pytest.mark.parametrize("codec", ["huffman", "ans"])
@pytest.mark.parametrize("c", [0.1, 0.5])
def test_sizes_are_those_of_an_optimal_code(c: float, codec: str, tmp_path: Path) -> None:
    n, shapes = 50_001, {"w": (50_001,)}
    masks = correlated_masks(9, n, c)
    tasks = [{"w": mask} for mask in packed(masks)]
    archive = MaskArchive.write(tmp_path / "a", tasks, shapes, codec=codec)
    (full, rest) = archive.sizes()["w"].blocks
    for block, members in ((full, masks[:7]), (rest, masks[7:])):
        symbols = sum(mask.long() << bit for bit, mask in enumerate(members))
        counts = torch.bincount(symbols, minlength=1 << len(members)).numpy()
        share = counts[counts > 0] / n
        entropy = -n * float(share @ np.log2(share))
        assert block.entropy_bits == pytest.approx(entropy, rel=1e-9)
        assert block.raw == len(members) * 6251
        assert 8 * block.coded == 8 * block.codebook + block.code_bits + block.padding_bits
        if codec == "huffman":
            assert (block.codebook, block.code_bits) == (
                math.ceil(5 * len(counts) / 8),
                huffman_bits(counts.tolist()),
            )
            assert 0 <= block.padding_bits < 8
        else:
            assert block.codebook <= 3 * len(counts)
            assert entropy <= block.code_bits < 1.001 * entropy + 64
    total = archive.sizes()["w"]
    assert total.coded == full.coded + rest.coded < total.raw == 9 * 6251
    assert total.entropy == (full.entropy_bits + rest.entropy_bits) / 8


def test_what_does_not_get_smaller_is_stored_raw(tmp_path: Path) -> None:
    shapes = {"alike": (1000,), "random": (1000,), "none": (10**6,), "empty": (0,)}
    tasks = [
        {
            "alike": reference.pack(draw(1000, p=0.5, seed=0)),
            "random": reference.pack(draw(1000, p=0.5, seed=seed)),
            "none": torch.zeros(125_000, dtype=torch.uint8),
            "empty": torch.zeros(0, dtype=torch.uint8),
        }
        for seed in range(7)
    ]
    archive = MaskArchive.write(tmp_path / "a", tasks, shapes)
    sizes = archive.sizes()
    kinds = {name: found.blocks[0].kind for name, found in sizes.items()}
    assert kinds == {"alike": "huffman", "random": "raw", "none": "constant", "empty": "raw"}
    assert sizes["random"].coded == sizes["random"].raw == 875
    assert sizes["alike"].coded == 80 + 125  # one of two symbols, a bit each
    assert (sizes["none"].coded, sizes["none"].entropy) == (123, 0)  # a byte per 2^13 weights
    assert (sizes["empty"].coded, sizes["empty"].raw) == (0, 0)


def test_one_mask_alone_gains_by_ans_only(tmp_path: Path) -> None:
    task = {"w": reference.pack(draw(100_000, p=0.1))}
    for codec, kind in (("huffman", "raw"), ("ans", "ans")):
        archive = MaskArchive.write(tmp_path / codec, [task], {"w": (100_000,)}, codec=codec)
        (block,) = archive.sizes()["w"].blocks
        assert block.kind == kind
    assert block.coded < 1.01 * block.entropy_bits / 8 < 0.48 * block.raw


def test_without_the_package_an_ans_archive_has_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"w": reference.pack(draw(100_000, p=0.1))}
    MaskArchive.write(tmp_path / "a", [task], {"w": (100_000,)}, codec="ans")
    monkeypatch.setitem(sys.modules, "constriction", None)
    archive = MaskArchive.open(tmp_path / "a")
    assert archive.sizes()["w"].blocks[0].kind == "ans"
    for needs in (lambda: archive.mask(0, "w"), lambda: archive.append(task)):
        with pytest.raises(ArchiveError, match=r"a: .*pip install 'clearn\[ans\]'"):
            needs()


def test_a_mask_is_read_without_the_rest(tmp_path: Path) -> None:
    tasks = drawn(9)
    archive = MaskArchive.write(tmp_path / "a", tasks, SHAPES, block=3)
    whole = (tmp_path / "a").read_bytes()
    block, place = archive._blocks[1], 3
    start = block.offset(place)
    end = start + block.payloads[place].coded
    alone = bytearray(len(whole))
    alone[start:end] = whole[start:end]
    (tmp_path / "a").write_bytes(alone)
    for task in (3, 4, 5):
        assert torch.equal(archive.mask(task, "last.weight"), tasks[task]["last.weight"])
    for task, name in ((0, "last.weight"), (3, "first.weight")):
        with pytest.raises(ArchiveError, match="tensor " + name):
            archive.mask(task, name)


def test_appending_leaves_full_blocks_where_they_are(tmp_path: Path) -> None:
    tasks, path = drawn(9), tmp_path / "a"
    archive = MaskArchive.write(path, tasks[:4], SHAPES, block=2)
    before = path.read_bytes()[_layout.HEADER_OFFSET :]
    for task in tasks[4:]:
        archive.append(task)
        after = path.read_bytes()[_layout.HEADER_OFFSET :]
        assert after.startswith(before)
        assert len(after) > len(before)
        before = after


def test_stopped_at_any_moment_an_append_leaves_the_old_archive_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, path = {"a": (400,), "b": (9,)}, tmp_path / "a"
    tasks = drawn(3, shapes)
    archive = MaskArchive.write(path, tasks[:1], shapes, block=2)
    states = [path.read_bytes()]

    def keep(_: int) -> None:
        states.append(path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", keep)
        archive.append(tasks[1])
    assert len(states) == 4  # the data, then one superblock after the other
    number, old = 0, 0
    for earlier, later in pairwise(states):
        padded = earlier.ljust(len(later), b"\0")
        changed = [i for i in range(len(later)) if later[i] != padded[i]]
        for state in _between(padded, later, changed, len(earlier)):
            overwrite(path, state)
            found = MaskArchive.open(path)
            assert holds(found, tasks[: found.num_tasks])
            assert found.num_tasks in (1, 2)
            old += found.num_tasks == 1
            number += 1
            if number % 10 == 0:  # and it goes on from there
                for task in tasks[found.num_tasks :]:
                    found.append(task)
                assert holds(MaskArchive.open(path), tasks)
    assert 100 < old < number


def _between(earlier: bytes, later: bytes, changed: Sequence[int], least: int) -> list[bytes]:
    """What a disk may hold of a write: its first bytes, or any of them."""
    states, draws = [], np.random.default_rng(0)
    for count in range(len(changed) + 1):
        for chosen in (changed[:count], draws.permutation(changed)[:count]):
            state = bytearray(earlier)
            for place in chosen:
                state[place] = later[place]
            states.append(bytes(state[: max([least, *(place + 1 for place in chosen)])]))
    return states


@pytest.mark.parametrize("change", ["write", "compact"])
def test_a_file_is_replaced_in_one_step(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, path = drawn(3), tmp_path / "a"
    archive = MaskArchive.write(path, tasks[:1], SHAPES)
    archive.append(tasks[1])
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            MaskArchive.write(path, tasks, SHAPES) if change == "write" else archive.compact()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]
    archive.append(tasks[2])
    assert holds(archive, tasks)


def test_a_failed_append_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = drawn(2)
    archive = MaskArchive.write(tmp_path / "a", tasks[:1], SHAPES)

    def fail(_: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            archive.append(tasks[1])
    assert holds(archive, tasks[:1])
    archive.append(tasks[1])
    assert holds(MaskArchive.open(tmp_path / "a"), tasks)


def test_an_append_does_not_undo_that_of_another(tmp_path: Path) -> None:
    tasks = drawn(3)
    mine = MaskArchive.create(tmp_path / "a", SHAPES)
    MaskArchive.open(tmp_path / "a").append(tasks[0])
    with pytest.raises(ArchiveError, match="changed by another process; open it again"):
        mine.append(tasks[1])
    with pytest.raises(ArchiveError, match="changed by another process; open it again"):
        mine.compact()
    assert holds(MaskArchive.open(tmp_path / "a"), tasks[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "block: 0 is not valid: expected 1 to 16"),
        ({"block": 17}, "block: 17"),
        ({"block": True}, "block: True"),
        ({"codec": "zip"}, "codec: 'zip' is not valid: expected huffman or ans"),
        ({"shapes": {"w": (-1,)}}, r"w: shape \[-1\] is not valid"),
        ({"shapes": {"w": (1 << 18, 1 << 18)}}, "more than 17179869184 elements"),
        ({"shapes": {"a\x1b[2J": (1,)}}, "is not valid: expected printable text"),
        ({"shapes": {"a" * 70_000: (1,)}}, "is not valid: expected printable text"),
    ],
)
def test_what_cannot_be_made(options: dict[str, object], message: str, tmp_path: Path) -> None:
    arguments = {"shapes": {"w": (3,)}, **options}
    with pytest.raises(ArchiveError, match=message):
        MaskArchive.create(tmp_path / "a", **arguments)
    assert os.listdir(tmp_path) == []


def test_creating_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    with pytest.raises(ArchiveError, match="a exists; open it, remove it, or name another file"):
        MaskArchive.create(tmp_path / "a", SHAPES)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, r"missing: \['w'\], unknown: none"),
        ({"w": torch.zeros(2, dtype=torch.uint8), "v": torch.zeros(1)}, r"unknown: \['v'\]"),
        ({"w": torch.zeros(2, dtype=torch.bool)}, r"type torch.bool .* a packed mask of 9 elem"),
        ({"w": torch.zeros(9, dtype=torch.uint8)}, r"w: shape \[9\] .* expected \[2\] of torch"),
        ({"w": torch.tensor([0, 2], dtype=torch.uint8)}, "w: bits beyond element 8 are set"),
    ],
)
def test_masks_that_do_not_fit(masks: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    archive = MaskArchive.create(tmp_path / "a", {"w": (3, 3)})
    with pytest.raises(ArchiveError, match=message):
        archive.append(masks)
    with pytest.raises(ArchiveError, match=message):
        MaskArchive.write(tmp_path / "b", [masks], {"w": (3, 3)})
    assert archive.num_tasks == 0
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda archive: archive.mask(2, "one"), "task: 2 is not valid: .* holds 2 tasks, from 0"),
        (lambda archive: archive.mask(-1, "one"), "task: -1"),
        (lambda archive: archive.mask(0, "two"), "tensor: 'two' is not in .* it holds: first.wei"),
        (lambda archive: archive.masks("two"), "tensor: 'two' is not in"),
    ],
)
def test_masks_that_are_not_there(
    ask: Callable[[MaskArchive], object], message: str, tmp_path: Path
) -> None:
    archive = MaskArchive.write(tmp_path / "a", drawn(2), SHAPES)
    with pytest.raises(ArchiveError, match=message):
        ask(archive)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MaskArchive.open(tmp_path / "a")

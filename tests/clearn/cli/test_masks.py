"""`clearn masks info`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from clearn.cli import show
from clearn.kernels.archive import MaskArchive
from tests.clearn.cli.conftest import Clearn
from tests.kernels import reference
from tests.kernels.coding import correlated_masks
from tests.kernels.reference import draw

LONG = "encoder.layer.11.attention.output.dense.weight"
SHAPES = {LONG: (100, 200), "random": (1000,), "empty": (0, 3)}


def tasks(number: int) -> list[dict[str, Tensor]]:
    alike = correlated_masks(number, 20_000, 0.1)
    return [
        {
            LONG: reference.pack(alike[task]),
            "random": reference.pack(draw(1000, p=0.5, seed=task)),
            "empty": torch.zeros(0, dtype=torch.uint8),
        }
        for task in range(number)
    ]


def rows(out: str) -> dict[str, Sequence[str]]:
    return {line.split()[0]: line.split()[1:] for line in out.partition("\n\n")[0].splitlines()}


def written(masks: Sequence[Mapping[str, Tensor]], **options: str) -> MaskArchive:
    return MaskArchive.write("masks", masks, SHAPES, **options)


def test_info(clearn: Clearn) -> None:
    archive = written(tasks(9))
    code, out, err = clearn("masks", "info", "masks")
    assert (code, err) == (0, "")
    found = rows(out)
    assert list(found) == ["tensor", LONG, "random", "empty", "total"]
    assert found["tensor"] == ["weights", "raw", "coded", "entropy", "of", "raw", "stored", "as"]
    assert found[LONG][:3] == ["20,000", "22.5", "kB"]
    assert found[LONG][-1] == "huffman"
    assert found["random"] == ["1,000", *["1.12", "kB"] * 2, "1.11", "kB", "100.0", "%", "raw"]
    assert found["empty"] == ["0", *["0", "B"] * 3, "-", "%", "raw"]
    coded = sum(sizes.coded for sizes in archive.sizes().values())
    assert found["total"][:3] == ["21,000", "23.6", "kB"]
    assert found["total"][-2:] == [f"{100 * coded / 23_625:.1f}", "%"]
    remarks = out.partition("\n\n")[2].splitlines()
    assert remarks[0].startswith("9 tasks in blocks of 7, codec huffman. File ")
    assert remarks[0].endswith("dead 0 B.")
    assert remarks[1].startswith("Huffman does not pay for ")
    assert "codec ans comes close" in remarks[2]
    assert len(remarks) == 3


def test_dead_bytes_and_how_to_drop_them(clearn: Clearn) -> None:
    archive = written(tasks(1), codec="ans")
    archive.append(tasks(2)[1])
    _, out, _ = clearn("masks", "info", "masks")
    assert f"dead {archive.dead / 1000:.3g} kB." in out
    assert "MaskArchive.compact() drops these bytes" in out
    assert "ANS does not pay for 1 of 3 tensors" in out
    assert "ans comes close" not in out
    archive.compact()
    _, out, _ = clearn("masks", "info", "masks")
    assert "compact" not in out


def test_one_task_does_not_pay_and_unlike_masks_never_do(clearn: Clearn) -> None:
    MaskArchive.write("one", [{"w": reference.pack(draw(9000, p=0.1))}], {"w": (9000,)})
    _, out, _ = clearn("masks", "info", "one")
    assert "\n1 task in blocks" in out
    assert "Huffman does not pay: no code is smaller than the packed masks" in out
    assert "% lower; codec ans comes close to it." in out
    unlike = [{"w": reference.pack(draw(9000, p=0.5, seed=seed))} for seed in range(7)]
    MaskArchive.write("unlike", unlike, {"w": (9000,)})
    _, out, _ = clearn("masks", "info", "unlike")
    assert "Huffman does not pay: " in out
    assert "share too little for any code" in out
    assert "ans" not in out.partition("\n\n")[2]


def test_an_archive_without_tasks(clearn: Clearn) -> None:
    written([])
    code, out, err = clearn("masks", "info", "masks")
    assert (code, err) == (0, "")
    assert rows(out)[LONG] == ["20,000", *["0", "B"] * 3, "-", "%"]
    assert out.splitlines()[-1].startswith("0 tasks")


def test_a_terminal_of_80_columns_shows_all(
    clearn: Clearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(**options: bool) -> Console:
        return Console(**options, width=80, force_terminal=True, color_system=None)

    monkeypatch.setattr(show, "Console", narrow)
    written(tasks(9))
    _, out, _ = clearn("masks", "info", "masks")
    table = out.partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert "…" not in out
    parts = [line.split()[0] for line in table if line.split()[0] in LONG]
    assert "".join(parts) == LONG
    assert any("22.5 kB" in line for line in table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", "file: masks: is not a mask archive"),
        (b"\x89clmask\n", "file: masks: is cut off or damaged"),
        (None, "masks: No such file or directory"),
    ],
)
def test_bad_files(content: bytes | None, message: str, clearn: Clearn) -> None:
    if content is not None:
        Path("masks").write_bytes(content)
    code, out, err = clearn("masks", "info", "masks")
    assert (code, out) == (2, "")
    assert err.startswith(f"clearn: error: {message}")
    assert err.count("\n") == 1


def test_other_actions_are_refused(clearn: Clearn) -> None:
    code, _, err = clearn("masks", "show", "masks")
    assert code == 2
    assert err.startswith("clearn: error: action: 'show' is not valid: expected info")

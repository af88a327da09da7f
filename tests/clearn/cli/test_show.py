"""Tables of names and results."""

from __future__ import annotations

import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

from clearn.cli import show
from clearn.nets import NETS
from clearn.run import Result
from clearn.streams import STREAMS
from tests.clearn.cli.conftest import Clearn


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("strategies", ["ER", "Joint", "Naive"]),
        ("streams", sorted(STREAMS)),
        ("nets", [*sorted(NETS), "timm/<name>", "torchvision/<name>"]),
    ],
)
def test_list(kind: str, names: list[str], clearn: Clearn) -> None:
    code, out, err = clearn("list", kind)
    assert (code, err) == (0, "")
    rows = out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == names
    assert all(len(row.split("  ")[0]) < len(row) for row in rows)


def test_list_shows_other_packages_and_survives_their_faults(
    clearn: Clearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ImportError("no such thing")

    def entry_points(*, group: str) -> list[SimpleNamespace]:
        dist = SimpleNamespace(name="their-package")
        mine = SimpleNamespace(name="Theirs", dist=dist, load=lambda: metadata.EntryPoint)
        return [mine, SimpleNamespace(name="Broken", dist=dist, load=broken)]

    monkeypatch.setattr(show, "entry_points", entry_points)
    code, out, err = clearn("list", "strategies")
    assert code == 0
    (row,) = out.splitlines()[1:]
    assert row.split()[0] == "Theirs"
    assert row.split()[-1] == "their-package"
    assert err == "clearn: their-package: Broken cannot be imported: no such thing\n"


def test_result_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result.empty(3, None)
    result.matrix = np.array([[1, 0.5, np.nan], [np.nan] * 3, [0.25, 0.125, 1]])
    result.bytes = [{"parameters": 1_000}, {"parameters": 1_000, "buffer": 234}]
    result.train_seconds = [1.0, 2.0, 0.25]
    show.print_result(result)
    header, first, last, summary = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "accuracy after"
    assert first.split() == ["task", "0", "100.0", "%", "50.0", "%", "-"]
    assert last.split() == ["task", "2", "25.0", "%", "12.5", "%", "100.0", "%"]
    assert summary.startswith("acc 45.8 %   forgetting ")
    assert "bytes 1,234   training 3.2 s   evaluation 0.0 s" in summary


def test_tables_are_not_cut_off_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = show.plain_table("a", "b")
    table.add_row("x" * 150, "[not markup]")
    show.print_table(table)
    assert "x" * 150 + "  [not markup]\n" in capsys.readouterr().out
    assert not sys.stdout.isatty()

"""Tables of names and results."""

from __future__ import annotations

import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

from clearn import strategies
from clearn.cli import show
from clearn.nets import NETS
from clearn.run import Result
from clearn.streams import STREAMS
from tests.clearn.cli.conftest import Clearn


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("strategies", sorted(strategies.__all__)),
        ("streams", sorted(STREAMS)),
        ("nets", sorted(NETS)),
    ],
)
def test_list(kind: str, names: list[str], clearn: Clearn) -> None:
    code, out, err = clearn("list", kind)
    assert (code, err) == (0, "")
    table, _, notes = out.partition("\n\n")
    rows = table.splitlines()[1:]
    assert [row.split()[0] for row in rows] == names
    assert all(len(row.split("  ")[0]) < len(row) for row in rows)
    assert f"entry points of the group clearn.{kind}" in notes
    if kind == "nets":
        assert "torchvision/<name>" in notes
        assert "timm/<name>" in notes


@pytest.mark.parametrize("kind", ["strategies", "streams", "nets"])
def test_list_shows_other_packages_and_survives_their_faults(
    kind: str, clearn: Clearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ImportError("no such thing")

    def entry_points(*, group: str) -> list[SimpleNamespace]:
        assert group == f"clearn.{kind}"
        dist = SimpleNamespace(name="their-package")
        names = ["Theirs", *{"streams": ["SplitMNIST"], "nets": ["MLP"]}.get(kind, [])]
        good = [SimpleNamespace(name=n, dist=dist, load=lambda: metadata.EntryPoint) for n in names]
        return [*good, SimpleNamespace(name="Broken", dist=dist, load=broken)]

    monkeypatch.setattr(show, "entry_points", entry_points)
    code, out, err = clearn("list", kind)
    assert code == 0
    rows = out.partition("\n\n")[0].splitlines()[1:]
    origin = {row.split()[0]: row.split()[-1] for row in rows}
    assert origin.pop("Theirs") == "their-package"
    assert set(origin.values()) <= {"clearn"}  # ours are not theirs to replace
    assert err == "clearn: their-package: Broken cannot be imported: no such thing\n"


def test_result_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result.empty([8, 8, 8], None)
    result.matrix = np.array([[1, 0.5, np.nan], [np.nan] * 3, [0.25, 0.125, 1]])
    result.bytes = [{"parameters": 1_000}, {"parameters": 1_000, "buffer": 234}]
    result.train_seconds = [1.0, 2.0, 0.25]
    show.print_result(result)
    header, first, last, summary = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "accuracy in %"
    assert first.split() == ["after", "task", "0", "100.0", "50.0", "-"]
    assert last.split() == ["after", "task", "2", "25.0", "12.5", "100.0"]
    assert summary == (
        "ACC 45.8 %   forgetting -   stored 1.23 kB   training 3.25 s   evaluation 0.00 s"
    )
    result.extra = {"cap_real": 0.25, "bytes_per_task": 4040.0}
    show.print_result(result)
    assert capsys.readouterr().out.splitlines()[-1] == "CAP real 25.0 %   bytes per task 4.04 kB"


def test_tables_are_not_cut_off_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = show.plain_table("a", "b")
    table.add_row("x" * 150, "[not markup]")
    show.print_table(table)
    assert "x" * 150 + "  [not markup]\n" in capsys.readouterr().out
    assert not sys.stdout.isatty()

"""The report on this machine."""

from __future__ import annotations

import os
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from clearn.cli import doctor
from tests.clearn.cli.conftest import Clearn


def rows(out: str) -> dict[str, str]:
    """Lines of the report by what they are about, mark first."""
    lines = out.splitlines()[1:]
    return {line.split(maxsplit=1)[1].split("  ")[0]: line for line in lines}


def test_report(clearn: Clearn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").touch()
    monkeypatch.setenv("CLEARN_DATA", str(tmp_path / "data"))
    code, out, err = clearn("doctor")
    assert (code, err) == (0, "")
    found = rows(out)
    for name in ("python", "clearn", "torch", "lightning", "avalanche-lib", "wandb", "MNIST"):
        assert found[name].startswith("ok"), name
    assert found["CIFAR-10"].startswith("--")
    assert "--stream.download true" in found["CIFAR-10"]
    assert "wandb login" in found["W&B"]
    assert "GiB free" in found["cache"]
    assert "download" not in found["ImageNet"]
    assert "[ray]" in out


def test_something_required_is_broken(clearn: Clearn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "avalanche", None)  # importing it raises
    code, out, _ = clearn("doctor")
    assert code == 1
    assert rows(out)["avalanche-lib"].startswith("FAIL")
    assert "pip install --force-reinstall avalanche-lib" in rows(out)["avalanche-lib"]
    assert "$CLEARN_DATA" not in out


def test_data_root_that_is_not_there(clearn: Clearn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARN_DATA", "absent")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    out = clearn("doctor").out
    assert "absent is not a folder" in rows(out)["$CLEARN_DATA"]
    assert rows(out)["W&B"].startswith("ok")


def test_little_space_and_no_right_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(9, 8, 2**20))
    assert {finding.mark for finding in doctor._space()} == {"--"}
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert all("cannot be written to" in finding.found for finding in doctor._space())

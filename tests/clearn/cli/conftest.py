"""The command line, called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clearn.cli import commands, main


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Clearn = Callable[..., Outcome]
Asked = list[tuple[Mapping[str, Any], Path]]


@pytest.fixture
def clearn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Clearn:
    """Call `clearn` with the arguments given, in an empty folder and a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Configs and folders of the runs that would have been made."""
    calls: Asked = []

    def fit(config: Mapping[str, Any], folder: Path) -> int:
        calls.append((config, folder))
        return 0

    monkeypatch.setattr(commands, "_fit", fit)
    return calls

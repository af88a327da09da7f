"""What the documentation promises, done: its commands, its Python, its examples, its pages."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clearn.cli import main
from tests.test_house import MODULES, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, in order."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The command lines of a page, without comments; a trailing backslash continues a line."""
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    return [
        line for line in (shlex.join(shlex.split(row, True)) for row in text.splitlines()) if line
    ]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the README in a process of its own, that of other pages in this one."""
    code = blocks(page, "python")
    if not code:
        assert "```py\n" not in page.read_text(encoding="utf-8"), "fence Python as ```python"
        return
    monkeypatch.chdir(tmp_path)
    script = tmp_path / f"{page.stem}_page.py"  # a file, so that classes have a source
    script.write_text("\n".join(code), encoding="utf-8")
    if page.name == "README.md":
        _run([sys.executable, str(script)], dict(os.environ))
    else:
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In order, in one folder with the experiments; what needs a network is only looked up.

    Those of the README are processes of their own, as a reader would start them. Those of other
    pages run in this one, which spares each the seconds in which libraries are imported, and their
    demo is one pass over one seed.
    """
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")  # results go beside it
    if page.name != "README.md":
        _shorten(tmp_path / "experiments/demo.yaml")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), command
        elif words[0] == "wandb":
            _run([*words[:2], "--help"], environment)
        elif words[0] == "clearn" and page.name == "README.md":
            _run(words, environment)
        elif words[0] == "clearn":
            assert main(words[1:]) == 0, f"{command}\n{capfd.readouterr()}"
        else:
            assert words[:2] in (["git", "clone"], ["pip", "install"]) or words[0] == "cd", command


def _shorten(experiment: Path) -> None:
    content = yaml.safe_load(experiment.read_text(encoding="utf-8"))
    content["seeds"] = [0]
    content["training"]["epochs"] = 1
    experiment.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _run(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


def test_pages_build_without_a_warning(tmp_path: Path) -> None:
    subprocess.run(["make", "typing"], cwd=ROOT, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("index.html"):
        assert not re.findall(r'(?:src|@import)\s*=?\s*"https?://', page.read_text("utf-8")), page

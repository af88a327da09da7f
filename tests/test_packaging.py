"""The wheel, built without a network and used from outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_house import MODULES, ROOT, tracked


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a clean copy of the sources: a stale build folder must not leak into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked():
        copy = source / path.relative_to(ROOT)
        if copy.relative_to(source).parts[0] not in ("tests", "results", "docs"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    run(["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)], out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the wheel alone is installed to."""
    folder = tmp_path_factory.mktemp("site")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    run([*pip, "--target", str(folder), str(wheel)], folder)
    return folder


def run(arguments: list[str], cwd: Path, **environment: str) -> str:
    """Standard output of this Python with `arguments`, which must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in names
        if name.endswith(".py")
    }
    assert modules == set(MODULES)
    assert {name.split("/")[0] for name in names} == {"clearn", "clearn-0.1.0.dist-info"}


def test_wheel_holds_its_data_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    templates = {f"clearn/compare/templates/{p.name}" for p in templates_folder().iterdir()}
    sources = {f"clearn/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.cu*")}
    assert {"clearn/py.typed", "clearn-0.1.0.dist-info/licenses/LICENSE"} <= names
    assert templates | sources <= names


def templates_folder() -> Path:
    return ROOT / "clearn/compare/templates"


def test_wheel_works_from_outside_the_repository(site: Path, tmp_path: Path) -> None:
    code = (
        "import json, clearn, clearn.strategies, clearn.kernels\n"
        "from clearn.strategies import ER, Joint, Naive\n"
        "print(json.dumps([m.__file__ for m in (clearn, clearn.strategies, clearn.kernels)]"
        " + [ER.__module__, clearn.__version__]))"
    )
    *files, module, version = json.loads(run(["-c", code], tmp_path, PYTHONPATH=str(site)))
    # The environment also holds the editable install: these must come from the wheel.
    expected = ["clearn", "clearn/strategies", "clearn/kernels"]
    assert files == [str(site / folder / "__init__.py") for folder in expected]
    assert (module, version) == ("clearn.strategies.replay", "0.1.0")
    assert not (site / "strategies").exists()
    assert not (site / "kernels").exists()


def test_wheel_installs_the_command(site: Path, tmp_path: Path) -> None:
    by_module = run(["-m", "clearn", "--help"], tmp_path, PYTHONPATH=str(site))
    by_script = run([str(site / "bin/clearn"), "--help"], tmp_path, PYTHONPATH=str(site))
    assert by_module == by_script
    for command in ("run", "compare", "resume", "report", "list", "doctor"):
        assert command in by_module


def test_editable_install_works_from_outside_the_repository(tmp_path: Path) -> None:
    code = "import clearn.strategies.naive as n, clearn.kernels as k; print(n.__file__, k.__file__)"
    files = run(["-c", code], tmp_path).split()
    assert files == [str(ROOT / "strategies/naive.py"), str(ROOT / "kernels/__init__.py")]

"""The rules of the house: floors, lazy imports, public names, one version, clean files."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = {"clearn": "clearn", "strategies": "clearn.strategies", "kernels": "clearn.kernels"}

# Lowest first: a module may import its own floor and those below. The longest prefix counts.
FLOORS = [
    {"clearn.kernels"},
    {
        "clearn._avalanche",
        "clearn.alignment",
        "clearn.batch",
        "clearn.buffers",
        "clearn.cache",
        "clearn.capacity",
        "clearn.chart",
        "clearn.datasets",
        "clearn.environment",
        "clearn.errors",
        "clearn.examples",
        "clearn.fewshot",
        "clearn.fields",
        "clearn.files",
        "clearn.gaussians",
        "clearn.given",
        "clearn.images",
        "clearn.masks",
        "clearn.metrics",
        "clearn.nets",
        "clearn.optim",
        "clearn.preprocess",
        "clearn.prompts",
        "clearn.prototypes",
        "clearn.seeding",
        "clearn.semi",
        "clearn.sources",
        "clearn.split",
        "clearn.store",
        "clearn.stream",
        "clearn.streams",
        "clearn.taskwise",
        "clearn.tokens",
        "clearn.views",
    },
    {"clearn.strategy", "clearn.strategies"},
    {
        "clearn.compare",
        "clearn.figures",
        "clearn.laboratory",
        "clearn.progress",
        "clearn.record",
        "clearn.run",
        "clearn.testing",
        "clearn.tracking",
        "clearn.wandb_mirror",
    },
    {"clearn.cli", "clearn.__main__"},
]
HEAVY = {"torch", "torchvision", "lightning", "avalanche", "wandb", "matplotlib", "pandas"}

# The one module that may import a third-party library which must stay behind one door.
DOORS = {"avalanche": "clearn._avalanche", "wandb": "clearn.wandb_mirror"}


def modules() -> Iterator[tuple[str, Path]]:
    """Import name and file of every module that is installed."""
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(modules())


def floor(name: str) -> int | None:
    """Index of the floor that `name` stands on, None when the plan does not know it."""
    while name:
        for index, names in enumerate(FLOORS):
            if name in names:
                return index
        name = name.rpartition(".")[0]
    return None


def imported(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """Absolute name and line of everything a module imports, wherever in it the import stands."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    public = importlib.import_module("clearn")._MODULES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            for alias in node.names:
                target = f"{base}.{alias.name}"
                if base == "clearn" and alias.name in public:
                    target = f"clearn.{public[alias.name]}"
                yield (target, node.lineno)


def tracked() -> list[Path]:
    """Files of the repository: those git knows or would add, else all that are not built."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        return [path for name in listing.stdout.split("\0") if (path := ROOT / name).is_file()]
    folders = [*PACKAGES, "docs", "experiments", "results", "tests"]
    return [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]


def test_every_module_has_a_floor() -> None:
    homeless = [name for name in MODULES if name != "clearn" and floor(name) is None]
    assert not homeless, f"add to FLOORS: {homeless}"


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}, which stands above it"
        for name, path in MODULES.items()
        if (own := floor(name)) is not None
        for target, line in imported(name, path)
        if (other := floor(target)) is not None and other > own
    ]
    assert not wrong, "\n".join(wrong)


def test_floors_test_sees_an_upward_import(tmp_path: Path) -> None:
    path = tmp_path / "er.py"
    path.write_text("def f():\n    from ..run import Run\n    from clearn import Result\n")
    seen = dict(imported("clearn.strategies.replay", path))
    assert seen == {"clearn.run.Run": 2, "clearn.run": 3}
    assert floor("clearn.run.Run") > floor("clearn.strategies.replay") > floor("clearn.kernels")


def test_each_module_has_one_import_name_and_each_door_one_keeper() -> None:
    wrong = []
    for name, path in MODULES.items():
        for target, line in imported(name, path):
            top = target.partition(".")[0]
            bare = top in ("strategies", "kernels")
            locked = top in DOORS and DOORS[top] != name
            if bare or locked:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "import clearn",
        "import clearn; dir(clearn); clearn.__version__; clearn.UserError",
        "import clearn.strategies, clearn.kernels",
        "import sys; sys.argv = ['clearn', '--help']\n"
        "from clearn.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code",
    ],
    ids=["import", "names", "subpackages", "help"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    probe = f"{code}\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", probe], capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert not HEAVY & set(loaded)


def test_every_public_name_resolves() -> None:
    import clearn
    import clearn.strategies

    for package in (clearn, clearn.strategies):
        assert len(package.__all__) == len(set(package.__all__))
        for name in package.__all__:
            assert getattr(package, name) is not None
            assert name in dir(package)
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            package.nonsense  # noqa: B018


def test_public_names_are_declared_once_for_people_and_once_for_type_checkers() -> None:
    import clearn

    tree = ast.parse((ROOT / "clearn/__init__.py").read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: (node.module or "").removeprefix("clearn.")
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == clearn._MODULES
    assert {*typed, "__version__"} == set(clearn.__all__)


def test_our_strategies_are_found_by_the_entry_points_of_third_parties() -> None:
    import clearn.strategies

    found = {point.name: point for point in metadata.entry_points(group="clearn.strategies")}
    assert set(found) >= set(clearn.strategies.__all__)
    for name in clearn.strategies.__all__:
        assert found[name].load() is getattr(clearn.strategies, name)


def test_one_version_everywhere() -> None:
    import clearn

    version = clearn.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == version
    assert re.search(rf"^## {re.escape(version)}( |$)", changelog, re.MULTILINE)
    assert metadata.metadata("clearn")["License-Expression"] == citation["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_no_large_file_is_kept() -> None:
    most = {".safetensors": 6_000_000}  # weights that experiments start from
    large = [str(path) for path in tracked() if path.stat().st_size > most.get(path.suffix, 2**20)]
    assert not large, f"over 1 MiB, or 6 MB of weights: {large}"


def test_no_path_of_a_machine_is_kept() -> None:
    # Home folders of the usual systems, and wherever this checkout happens to lie.
    pattern = re.compile(rf"(?<![\w.~])/(?:home|Users|root)/\w|{re.escape(str(ROOT))}{os.sep}")
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    assert not found, found

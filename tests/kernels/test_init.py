"""The public names of clearn.kernels."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from clearn import kernels


def test_every_name_resolves() -> None:
    for name in kernels.__all__:
        assert callable(getattr(kernels, name))
        assert name in dir(kernels)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        kernels.nonsense  # noqa: B018


def test_names_are_the_same_for_people_and_for_type_checkers() -> None:
    tree = ast.parse(Path(kernels.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: (node.module or "").removeprefix("clearn.kernels.")
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == kernels._MODULES
    assert sorted(typed) == sorted(kernels.__all__)

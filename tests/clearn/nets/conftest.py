"""Streams as far as a net looks at them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def fake_stream() -> Callable[..., Any]:
    """Build something with the attributes of a stream that nets read: 3 tasks of 2 classes."""

    def build(
        input_shape: tuple[int, ...] = (1, 8, 8),
        scenario: str = "class",
        classes: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3), (4, 5)),
    ) -> Any:
        tasks = tuple(SimpleNamespace(index=i, classes=k) for i, k in enumerate(classes))
        num_classes = 1 + max(max(labels) for labels in classes)
        return SimpleNamespace(
            input_shape=input_shape, scenario=scenario, tasks=tasks, num_classes=num_classes
        )

    return build

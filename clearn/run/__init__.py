"""The run loop: one strategy learns one stream under one seed, and can be stopped at any moment.

Each name is imported when it is first used: what waits for a run to be stopped needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clearn.run.loop import Run
    from clearn.run.result import Result
    from clearn.run.signals import Interrupted
    from clearn.run.training import Training

__all__ = ["Interrupted", "Result", "Run", "Training"]

_MODULES = {
    "Interrupted": "signals",
    "Result": "result",
    "Run": "loop",
    "Training": "training",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

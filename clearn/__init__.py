"""Continual learning on PyTorch Lightning and Avalanche.

A *strategy* learns a *stream* of *tasks*; a *run* is one strategy on one stream with one seed, and
an *experiment* compares several. Importing `clearn` loads nothing heavy: each public name is
imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clearn.batch import Batch
    from clearn.buffers import ReservoirBuffer
    from clearn.errors import UserError
    from clearn.examples import Examples
    from clearn.nets import Net, build_net
    from clearn.run import Result, Run, Training
    from clearn.seeding import Generators
    from clearn.strategy import Strategy
    from clearn.stream import Stream, Task

    __version__: str

__all__ = [
    "Batch",
    "Examples",
    "Generators",
    "Net",
    "ReservoirBuffer",
    "Result",
    "Run",
    "Strategy",
    "Stream",
    "Task",
    "Training",
    "UserError",
    "__version__",
    "build_net",
]

_MODULES = {
    "Batch": "batch",
    "Examples": "examples",
    "Generators": "seeding",
    "Net": "nets",
    "ReservoirBuffer": "buffers",
    "Result": "run",
    "Run": "run",
    "Strategy": "strategy",
    "Stream": "stream",
    "Task": "stream",
    "Training": "run",
    "UserError": "errors",
    "build_net": "nets",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return metadata.version(__name__)
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

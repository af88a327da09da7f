"""Comparison of strategies: a grid of runs, and the report on their records."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clearn.compare.experiment import Experiment, read_experiment
    from clearn.compare.grid import run_experiment
    from clearn.compare.report import write_report

__all__ = ["Experiment", "read_experiment", "run_experiment", "write_report"]

_MODULES = {
    "Experiment": "experiment",
    "read_experiment": "experiment",
    "run_experiment": "grid",
    "write_report": "report",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The report on an experiment, made from its records alone."""

from __future__ import annotations

from pathlib import Path

from clearn.files import write_atomic


def write_report(folder: Path) -> Path:
    """Write the report (first form)."""
    write_atomic(folder / "report.html", "<!doctype html><title>clearn</title>")
    return folder / "report.html"

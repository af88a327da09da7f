"""The run loop: one strategy learns one stream under one seed, and can be stopped at any moment."""

from __future__ import annotations

from clearn.run.loop import Run
from clearn.run.result import Result
from clearn.run.signals import Interrupted
from clearn.run.training import Training

__all__ = ["Interrupted", "Result", "Run", "Training"]

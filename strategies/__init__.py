"""The strategies: one readable module per method, resolved lazily."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clearn.strategies.agem import AGEM
    from clearn.strategies.ewc import EWC
    from clearn.strategies.joint import Joint
    from clearn.strategies.naive import Naive
    from clearn.strategies.nearest_mean import NearestMean
    from clearn.strategies.prompts import PerTaskPrompt, ProgressivePrompts, SharedPrompt
    from clearn.strategies.qtuning import QTuning
    from clearn.strategies.replay import DER, ER, ERACE, DERpp
    from clearn.strategies.rer import RER
    from clearn.strategies.slca import SLCA
    from clearn.strategies.softnet import HardNet, SoftNet
    from clearn.strategies.softnet_til import SoftNetTIL
    from clearn.strategies.stable_sgd import StableSGD
    from clearn.strategies.tacle import TACLE
    from clearn.strategies.tag import TAG
    from clearn.strategies.wsn import WSN

__all__ = [
    "AGEM",
    "DER",
    "ER",
    "ERACE",
    "EWC",
    "RER",
    "SLCA",
    "TACLE",
    "TAG",
    "WSN",
    "DERpp",
    "HardNet",
    "Joint",
    "Naive",
    "NearestMean",
    "PerTaskPrompt",
    "ProgressivePrompts",
    "QTuning",
    "SharedPrompt",
    "SoftNet",
    "SoftNetTIL",
    "StableSGD",
]

_MODULES = {
    "AGEM": "agem",
    "DER": "replay",
    "DERpp": "replay",
    "ER": "replay",
    "ERACE": "replay",
    "EWC": "ewc",
    "HardNet": "softnet",
    "Joint": "joint",
    "Naive": "naive",
    "NearestMean": "nearest_mean",
    "PerTaskPrompt": "prompts",
    "ProgressivePrompts": "prompts",
    "QTuning": "qtuning",
    "RER": "rer",
    "SLCA": "slca",
    "SharedPrompt": "prompts",
    "SoftNet": "softnet",
    "SoftNetTIL": "softnet_til",
    "StableSGD": "stable_sgd",
    "TACLE": "tacle",
    "TAG": "tag",
    "WSN": "wsn",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

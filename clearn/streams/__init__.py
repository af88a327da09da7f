"""Streams by name; each builder's signature and docstring are its options and their help.

All take the options of `Labels`, and those of `Options` that their signature shows, keywords only.
"""

from clearn.streams.classes import (
    CIFAR100Superclass,
    SplitCIFAR10,
    SplitCIFAR100,
    SplitCUB200,
    SplitDigits,
    SplitFMNIST,
    SplitImageNet,
    SplitMiniImageNet,
    SplitMNIST,
    SplitTinyImageNet,
)
from clearn.streams.domains import PermutedMNIST, RotatedMNIST
from clearn.streams.fewshot import FewShotStream
from clearn.streams.five import FiveDatasets
from clearn.streams.omniglot import OmniglotRotation, SplitOmniglot
from clearn.streams.options import Builder, Options, builder
from clearn.streams.registry import STREAMS, build_stream, stream_builder, stream_names
from clearn.streams.text import TEXT_ORDERS, TextStream

__all__ = [
    "STREAMS",
    "TEXT_ORDERS",
    "Builder",
    "CIFAR100Superclass",
    "FewShotStream",
    "FiveDatasets",
    "OmniglotRotation",
    "Options",
    "PermutedMNIST",
    "RotatedMNIST",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "SplitCUB200",
    "SplitDigits",
    "SplitFMNIST",
    "SplitImageNet",
    "SplitMNIST",
    "SplitMiniImageNet",
    "SplitOmniglot",
    "SplitTinyImageNet",
    "TextStream",
    "build_stream",
    "builder",
    "stream_builder",
    "stream_names",
]

"""What works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal

from rich.text import Text

from clearn.cli.show import plain_table, print_table

_REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "lightning": "lightning",
    "avalanche-lib": "avalanche",
    "wandb": "wandb",
}
_OPTIONAL = {
    "timm": "vit",
    "transformers": "text",
    "constriction": "ans",
    "cuda-core": "cuda",
    "ray": "ray",
}
_DATA = {
    "MNIST": ("MNIST/raw/train-images-idx3-ubyte*", "SplitMNIST, PermutedMNIST, RotatedMNIST"),
    "FashionMNIST": ("FashionMNIST/raw/train-images-idx3-ubyte*", "SplitFMNIST"),
    "CIFAR-10": ("cifar-10-batches-py", "SplitCIFAR10"),
    "CIFAR-100": ("cifar-100-python", "SplitCIFAR100"),
    "Tiny-ImageNet": ("tiny-imagenet-200", "SplitTinyImageNet"),
    "miniImageNet": ("miniimagenet/images", "SplitMiniImageNet, FewShotStream"),
    "CUB-200": ("CUB_200_2011/images", "SplitCUB200, FewShotStream"),
    "ImageNet": ("imagenet/train", "SplitImageNet"),
}
_LITTLE_SPACE = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        mark: ok; "--" for what is optional and missing; FAIL for what is required and broken.
        what: What was looked at.
        found: What it is like.
        advice: What to do, empty when nothing is to be done.
    """

    mark: Literal["ok", "--", "FAIL"]
    what: str
    found: str
    advice: str = ""


def examine() -> int:
    """Print all findings; 1 when something required is broken, else 0."""
    findings = list(_packages())
    broken = any(finding.mark == "FAIL" for finding in findings)
    if not broken:  # the rest stands on them
        findings += [*_devices(), *_data(), *_tracker(), *_space()]
    table = plain_table("", "what", "found", "what to do")
    styles = {"ok": "green", "--": "yellow", "FAIL": "bold red"}
    for finding in findings:
        mark = Text(finding.mark, styles[finding.mark])
        table.add_row(mark, finding.what, finding.found, finding.advice)
    print_table(table)
    return int(broken)


def _packages() -> Iterator[Finding]:
    good = sys.version_info >= (3, 10)
    advice = "" if good else "install Python 3.10 or newer"
    yield Finding("ok" if good else "FAIL", "python", platform.python_version(), advice)
    yield Finding("ok", "clearn", metadata.version("clearn"))
    yield from map(_required, _REQUIRED)
    yield from map(_optional, _OPTIONAL)


def _required(package: str) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whether it can be imported is all that matters
            import_module(_REQUIRED[package])
    except Exception as error:  # a broken package may raise anything
        found = f"cannot be imported: {type(error).__name__}: {error}"
        return Finding("FAIL", package, found, f"pip install --force-reinstall {package}")
    return Finding("ok", package, metadata.version(package))


def _optional(package: str) -> Finding:
    try:
        return Finding("ok", package, metadata.version(package))
    except metadata.PackageNotFoundError:
        advice = f"pip install 'clearn[{_OPTIONAL[package]}]', if you want it"
        return Finding("--", package, "not installed", advice)


def _devices() -> Iterator[Finding]:
    import torch

    from clearn.environment import processor

    yield Finding("ok", "processor", f"{processor()}, {os.cpu_count()} cores")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield Finding("ok", f"cuda:{index}", found)
    if not torch.cuda.is_available():
        advice = "" if torch.version.cuda is None else "for a GPU, install its driver"
        yield Finding("--", "cuda", "no device; runs use the processor", advice)


def _data() -> Iterator[Finding]:
    from clearn.datasets import data_root

    root = os.environ.get("CLEARN_DATA")
    if root and not Path(root).is_dir():
        yield Finding("--", "$CLEARN_DATA", f"{root} is not a folder", "set it to your data folder")
    elif not root:
        advice = "set it to the folder that holds your data sets"
        yield Finding("--", "$CLEARN_DATA", "not set", advice)
    else:
        yield Finding("ok", "$CLEARN_DATA", root)
    yield Finding("ok", "SplitDigits", "comes with scikit-learn")
    folder = data_root(None)
    for name, (pattern, streams) in _DATA.items():
        found = next(folder.glob(pattern), None)
        if found is not None:
            yield Finding("ok", name, f"{found}, for {streams}")
        else:
            advice = "--stream.root FOLDER that has it"
            if name != "ImageNet":
                advice += ", or --stream.download true"
            yield Finding("--", name, f"not found, for {streams}", advice)


def _tracker() -> Iterator[Finding]:
    wandb = sys.modules["wandb"]  # imported above, with the packages
    from clearn.wandb_mirror import default_mode

    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        yield Finding("ok", "W&B", f"{chosen}, as $WANDB_MODE says")
    elif default_mode(wandb.setup().settings) is None:
        yield Finding("ok", "W&B", "logged in; runs with `loggers: [wandb]` are online")
    else:
        advice = "wandb login, or send offline runs later: wandb sync RECORD/wandb/offline-run-*"
        yield Finding(
            "--", "W&B", "not logged in; runs with `loggers: [wandb]` are offline", advice
        )


def _space() -> Iterator[Finding]:
    from clearn.cache import cache_folder

    for what, folder in (("this folder", Path.cwd()), ("cache", cache_folder())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        found = f"{folder}: {free / 2**30:.1f} GiB free"
        if not os.access(there, os.W_OK):
            yield Finding("--", what, f"{folder}: cannot be written to", "work in another folder")
        elif free < _LITTLE_SPACE:
            yield Finding("--", what, found, "make room: records and decoded data need it")
        else:
            yield Finding("ok", what, found)

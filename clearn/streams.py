"""Streams by name; each builder's signature and docstring are its options and their help.

All take the options of `Options` that their signature shows, keywords only.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from importlib import metadata
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clearn import datasets
from clearn.errors import unknown_name
from clearn.sources import Source
from clearn.split import Split, draws, invalid
from clearn.store import BUDGET_GIB
from clearn.stream import Stream

_ENTRY_POINTS = "clearn.streams"


@dataclass(frozen=True, kw_only=True)
class Options(Split):
    """All options that more than one stream has.

    Args:
        root: Folder of the data sets; `$CLEARN_DATA` when missing, else `data` in the cache folder.
        download: Download what is missing.
        image_size: Height and width to bring the images to, in pixels; as they are when missing.
        augment: Train on random crops and mirror images.
        budget_gib: Largest size of the decoded images that is held in memory, GiB.
        workers: Processes that decode larger data, threads that decode smaller; None: one per core.
    """

    root: str | None = None
    download: bool = False
    image_size: int | None = None
    augment: bool = True
    budget_gib: float = BUDGET_GIB
    workers: int | None = None


SPLIT = tuple(field.name for field in fields(Split))
TASKS = ("num_tasks", "scenario", "order_seed", "keep_tasks", "validation")
FILES = ("root", "download", "image_size")
PHOTOS = ("root", "image_size", "augment", "budget_gib", "workers")

Permutations = Literal["clearn", "wsn"]

Builder = Callable[..., Stream]


def builder(*names: str, **defaults: Any) -> Callable[[Builder], Builder]:
    """Give a function of an `Options` object those options as keyword arguments.

    The signature and the docstring of the result list each option, with its type, default and
    meaning, besides the keyword arguments that the function has of its own.

    Args:
        *names: The options that apply.
        **defaults: Defaults other than those of `Options`.
    """

    def decorate(function: Builder) -> Builder:
        hints = get_type_hints(Options)
        default = {field.name: field.default for field in fields(Options)} | defaults
        parameters = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default[name], annotation=hints[name]
            )
            for name in names
        ]
        own_hints = get_type_hints(function)
        parameters += [
            parameter.replace(annotation=own_hints[parameter.name])
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        known = [parameter.name for parameter in parameters]

        @wraps(function)
        def build(**given: Any) -> Stream:
            for name in given:
                if name not in known:
                    raise unknown_name(f"{function.__name__} has no such option", name, known)
            own = {name: given.pop(name) for name in list(given) if name not in names}
            return function(Options(**(defaults | given)), **own)

        described = _described(Split) | _described(Options) | _described(function)
        summary = re.split(r"\n+Args:", inspect.getdoc(function) or "")[0]
        lines = [f"    {name}: {described[name]}" for name in known]
        build.__doc__ = "\n".join([summary, "", "Args:", *lines])
        build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            parameters, return_annotation=Stream
        )
        build.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": Stream}
        return build

    return decorate


def _described(documented: object) -> dict[str, str]:
    """What the `Args` of a docstring say about each argument, in one line."""
    section = (inspect.getdoc(documented) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


@builder(*SPLIT, "image_size", num_tasks=5)
def SplitDigits(options: Options) -> Stream:
    """scikit-learn's handwritten digits: 1797 grey images of 8x8 pixels, 10 classes, no download.

    The 17 grey levels are spread over 0 to 255. A fifth of every class is for testing.
    """
    return Stream.from_source(datasets.digits(options.image_size), options)


@builder(*SPLIT, *FILES, num_tasks=5)
def SplitMNIST(options: Options) -> Stream:
    """MNIST: 70 000 grey images of 28x28 pixels, 10 handwritten digits, split by class."""
    return Stream.from_source(_mnist(options), options)


@builder(*SPLIT, *FILES, num_tasks=5)
def SplitFMNIST(options: Options) -> Stream:
    """Fashion-MNIST: 70 000 grey images of 28x28 pixels, 10 kinds of clothes, split by class."""
    return Stream.from_source(_mnist(options, fashion=True), options)


@builder(*TASKS, *FILES, num_tasks=10, scenario="domain")
def PermutedMNIST(options: Options, *, permutations: Permutations = "clearn") -> Stream:
    """MNIST with the pixels in another order in every task.

    Args:
        options: The shared ones.
        permutations: Where the orders come from. clearn: our own draws; task 0 shows the pixels as
            they are. wsn: the code of WSN and GPM, which permutes task 0 too and derives each order
            from its number and its place; `order_seed` shuffles the places.
    """
    if permutations not in get_args(Permutations):
        raise invalid("permutations", repr(permutations), " or ".join(get_args(Permutations)))
    source = replace(_mnist(options), name="PermutedMNIST")
    make = _own_permutations if permutations == "clearn" else _wsn_permutations
    orders = make(source.train.shape[-1] ** 2, _count(options), options.order_seed)
    domains = [
        None if order is None else PixelPermutation(torch.from_numpy(order)) for order in orders
    ]
    return Stream.from_source(source, options, domains)


@builder(*TASKS, *FILES, num_tasks=10, scenario="domain")
def RotatedMNIST(options: Options, *, angles: Sequence[float] | None = None) -> Stream:
    """MNIST turned by another angle in every task.

    Args:
        options: The shared ones.
        angles: Degrees counter-clockwise, one per task (`num_tasks` is then not used); when
            missing, task k of T is turned by 180 k / T.
    """
    source = replace(_mnist(options), name="RotatedMNIST")
    count = _count(options) if angles is None else len(angles)
    if not count:
        raise invalid("angles", "[]", "at least one number of degrees")
    turns = [180 * k / count for k in range(count)] if angles is None else list(angles)
    if options.order_seed is not None:
        turns = [turns[k] for k in draws(options.order_seed, "rotations").permutation(count)]
    domains = [Rotation(float(turn)) if turn % 360 else None for turn in turns]
    return Stream.from_source(source, options, domains)


@builder(*SPLIT, *FILES, "augment", num_tasks=5)
def SplitCIFAR10(options: Options) -> Stream:
    """CIFAR-10: 60 000 photographs of 32x32 pixels, 10 classes, split by class."""
    return Stream.from_source(_cifar(10, options), options)


@builder(*SPLIT, *FILES, "augment", num_tasks=10)
def SplitCIFAR100(options: Options) -> Stream:
    """CIFAR-100: 60 000 photographs of 32x32 pixels, 100 classes (fine labels), split by class."""
    return Stream.from_source(_cifar(100, options), options)


@builder(*SPLIT, "download", *PHOTOS, num_tasks=10)
def SplitTinyImageNet(options: Options) -> Stream:
    """Tiny-ImageNet: 110 000 photographs of 64x64 pixels, 200 classes, split by class.

    Classes are numbered by their sorted WordNet ids, and tested on the `val` images. The data are
    in `tiny-imagenet-200` below the root.
    """
    source = datasets.tiny_imagenet(
        options.root,
        options.download,
        options.image_size,
        options.augment,
        options.budget_gib,
        options.workers,
    )
    return Stream.from_source(source, options)


@builder(*SPLIT, *PHOTOS, num_tasks=10, image_size=224)
def SplitImageNet(options: Options, *, num_classes: int | None = None) -> Stream:
    """ImageNet, or any folder of class folders, split by class and tested on `val`.

    The images are `train/<class>/*` and `val/<class>/*` below the root or its folder `imagenet`;
    classes are numbered by the sorted names of their folders.

    Args:
        options: The shared ones.
        num_classes: Use the first so many classes only, for example 100; all when missing.
    """
    source = datasets.imagenet(
        options.root,
        num_classes,
        options.image_size,
        options.augment,
        options.budget_gib,
        options.workers,
    )
    return Stream.from_source(source, options)


STREAMS: dict[str, Builder] = {
    function.__name__: function
    for function in (
        SplitDigits,
        SplitMNIST,
        PermutedMNIST,
        RotatedMNIST,
        SplitFMNIST,
        SplitCIFAR10,
        SplitCIFAR100,
        SplitTinyImageNet,
        SplitImageNet,
    )
}
"""Our builders; those of other packages are found by the entry-point group `clearn.streams`."""


def stream_names() -> list[str]:
    """All streams, ours first, then those of other packages."""
    others = {point.name for point in metadata.entry_points(group=_ENTRY_POINTS)}
    return [*STREAMS, *sorted(others - set(STREAMS))]


def stream_builder(name: str) -> Builder:
    """The function that builds the stream called `name`.

    Raises:
        UserError: There is none, with the nearest names.
    """
    if name in STREAMS:
        return STREAMS[name]
    for point in metadata.entry_points(group=_ENTRY_POINTS, name=name):
        return point.load()  # type: ignore[no-any-return]
    raise unknown_name("stream", name, stream_names())


def build_stream(name: str, **options: Any) -> Stream:
    """Build the stream called `name` with the options of its builder.

    Raises:
        UserError: The name or an option is unknown, or the data is not there.
    """
    return stream_builder(name)(**options)


class PixelPermutation:
    """Puts the pixels of every channel of images `[B, C, H, W]` in one fixed order.

    Args:
        order: int64 `[H * W]`, a permutation: pixel i of the result is pixel `order[i]`.
    """

    def __init__(self, order: Tensor) -> None:
        self.order = order
        self._on = {order.device: order}

    def __call__(self, raw: Tensor) -> Tensor:
        """The images `raw` with their pixels reordered."""
        if raw.device not in self._on:
            self._on[raw.device] = self.order.to(raw.device)
        return raw.flatten(2).index_select(2, self._on[raw.device]).view_as(raw)


class Rotation:
    """Turns images `[B, C, H, W]` about their centre, counter-clockwise; what comes in is 0.

    Args:
        angle: In degrees.
    """

    def __init__(self, angle: float) -> None:
        self.angle = angle

    def __call__(self, raw: Tensor) -> Tensor:
        """The images `raw`, turned."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import rotate

        return rotate(raw, self.angle, InterpolationMode.BILINEAR)  # type: ignore[no-any-return]


def _count(options: Options) -> int:
    if options.num_tasks is None:
        raise invalid("num_tasks", "null", "a number >= 1")
    return options.num_tasks


def _own_permutations(pixels: int, count: int, seed: int | None) -> list[NDArray[np.int64] | None]:
    """Orders of the pixels of `count` tasks; the first is the natural one."""
    random = (draws(seed or 0, "permutation", index) for index in range(1, count))
    return [None, *(generator.permutation(pixels) for generator in random)]


def _wsn_permutations(pixels: int, count: int, seed: int | None) -> list[NDArray[np.int64] | None]:
    """The orders in the code of WSN (Kang et al. 2022), which took them from GPM.

    Permutation r at place i is scikit-learn's `shuffle` with `random_state` 100 r + i, which is
    NumPy's; the places of the permutations are shuffled in the same way when there is a seed.
    """
    numbers = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    return [
        np.random.RandomState(100 * number + place).permutation(pixels)
        for place, number in enumerate(numbers)
    ]


def _mnist(options: Options, *, fashion: bool = False) -> Source:
    return datasets.mnist(options.root, options.download, options.image_size, fashion=fashion)


def _cifar(classes: int, options: Options) -> Source:
    return datasets.cifar(
        classes, options.root, options.download, options.image_size, options.augment
    )

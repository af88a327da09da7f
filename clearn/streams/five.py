"""Five data sets in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clearn import datasets
from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.sources import Source
from clearn.split import draws
from clearn.store import MappedStore, Store
from clearn.stream import Stream
from clearn.streams.options import Options, builder

_SHAPE = (3, 32, 32)

# Mean and standard deviation as in the code of WSN (Kang et al. 2022), for values in [0, 1].
_STATISTICS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "CIFAR-10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "MNIST": ((0.1,), (0.2752,)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
    "Fashion-MNIST": ((0.2190,), (0.3318,)),
    "notMNIST": ((0.4254,), (0.4501,)),
}


@builder("scenario", "order_seed", "keep_tasks", "validation", "root", "download", scenario="task")
def FiveDatasets(options: Options) -> Stream:
    """5-Datasets: CIFAR-10, MNIST, SVHN, Fashion-MNIST and notMNIST, 10 classes each, a task each.

    All are shown as 32x32 pixels in three channels, with a border of black around those of 28x28,
    and normalised with numbers of their own (Ebrahimi et al. 2020). They are kept as they are, and
    reach buffers normalised, as float32. Nothing is augmented.

    Args:
        options: The shared ones.
        order_seed: Draws the order of the data sets; as above when missing.
        download: Download what is missing; all but notMNIST, which is in `notMNIST` or
            `notMNIST_small` as folders of letters.
    """
    files = (options.root, options.download)
    openers: dict[str, Callable[[], Source]] = {
        "CIFAR-10": lambda: datasets.cifar(10, *files, None, augment=False),
        "MNIST": lambda: datasets.mnist(*files),
        "SVHN": lambda: datasets.svhn(*files),
        "Fashion-MNIST": lambda: datasets.mnist(*files, fashion=True),
        "notMNIST": lambda: datasets.not_mnist(options.root),
    }
    names = list(openers)
    if options.order_seed is not None:
        names = [names[k] for k in draws(options.order_seed, "class order").permutation(len(names))]
    plain = Preprocess((), ())  # one for all tasks: what the stores give is normalised
    sources = [_normalised(name, openers[name](), plain) for name in names[: options.keep_tasks]]
    return Stream.from_sources(sources, options, "FiveDatasets")


def _normalised(name: str, source: Source, preprocess: Preprocess) -> Source:
    """A data set as the stream shows it."""
    if source.train.shape[1:] not in ((28, 28), (32, 32)):
        raise UserError(
            f"stream.root: the images of {name} are {source.train.shape} (channels, height, "
            "width); expected 28 or 32 pixels"
        )
    show = _Show(Preprocess(*_STATISTICS[name]))

    def mapped(store: Store) -> MappedStore:
        return MappedStore(store, show, shape=_SHAPE, dtype=torch.float32)

    return replace(
        source,
        name=name,
        train=mapped(source.train),
        test=mapped(source.test),
        preprocess=preprocess,
        class_names=tuple(f"{name} {source.class_name(label)}" for label in source.classes),
    )


class _Show:
    """Makes normalised 32x32 images in three channels of uint8 `[B, 1 or 3, S, S]`."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess

    def __call__(self, raw: Tensor) -> Tensor:
        border = (_SHAPE[1] - raw.shape[-1]) // 2
        x = self._preprocess.eval(F.pad(raw, (border, border, border, border)))
        return x.expand(-1, _SHAPE[0], -1, -1).contiguous()

"""Streams of Omniglot's characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from clearn import datasets
from clearn.datasets import Omniglot
from clearn.sources import Source, from_tensors
from clearn.split import draws, invalid, stratified
from clearn.stream import Stream
from clearn.streams.options import FILES, SPLIT, Options, builder

SplitDrawings = Literal["drawing", "image"]

_TEST_SHARE = 0.25
_ROTATED_CHARACTERS = 1200


@builder(*SPLIT, *FILES, image_size=32)
def SplitOmniglot(options: Options) -> Stream:
    """Omniglot: 1623 characters, each drawn by 20 people, an alphabet a task or split by class.

    Dark ink on white paper, in grey. 5 of the drawings of every character, drawn once and for all,
    are for testing.

    Args:
        options: The shared ones.
        num_tasks: Number of tasks, >= 1, not used when `classes` is given. None: the 50 alphabets,
            whose order `order_seed` then draws; they have 14 to 55 characters each.
    """
    data = datasets.omniglot(options.root, options.download, options.image_size)
    source = _source("SplitOmniglot", data.images.unsqueeze(2), "drawing", data.names)
    if options.num_tasks is None and options.classes is None and options.class_order is None:
        if options.scenario == "domain":
            raise invalid(
                "num_tasks", "null", "a number in the domain scenario: alphabets differ in size"
            )
        options = replace(options, classes=_alphabets(data, options.order_seed), order_seed=None)
    return Stream.from_source(source, options)


@builder(*SPLIT, *FILES, num_tasks=100, scenario="task", image_size=32)
def OmniglotRotation(options: Options, *, split_by: SplitDrawings = "drawing") -> Stream:
    """Omniglot-Rotation: 1200 characters, each drawing turned by 0, 90, 180 and 270 degrees.

    The first 1200 of Omniglot's characters, 12 a task by default; 60 images of each are for
    training and 20 for testing. Dark ink on white paper, in grey.

    Args:
        options: The shared ones.
        split_by: What is drawn for testing, once and for all. drawing: 5 of the 20 drawings of
            each character, with their four rotations. image: 20 of its 80 images, as published
            (Yoon et al. 2020; Kang et al. 2022): rotations of one drawing are then in both parts,
            and the accuracy is higher for it.
    """
    if split_by not in get_args(SplitDrawings):
        raise invalid("split_by", repr(split_by), " or ".join(get_args(SplitDrawings)))
    data = datasets.omniglot(options.root, options.download, options.image_size)
    drawings = data.images[:_ROTATED_CHARACTERS]
    turned = torch.stack([drawings.rot90(turn, (-2, -1)) for turn in range(4)], dim=2)
    return Stream.from_source(_source("OmniglotRotation", turned, split_by, data.names), options)


def _source(name: str, images: Tensor, split_by: SplitDrawings, names: Sequence[str]) -> Source:
    """Characters as classes, a quarter of each for testing.

    Args:
        name: Of the stream.
        images: uint8 `[characters, drawings, rotations, S, S]`.
        split_by: Whether the rotations of a drawing stay together.
        names: Of the characters.
    """
    characters, drawings, rotations = images.shape[:3]
    y = torch.arange(characters).repeat_interleave(drawings * rotations)
    random = draws(0, "omniglot", split_by)
    if split_by == "drawing":
        test = stratified(y[::rotations], _TEST_SHARE, random).repeat_interleave(rotations)
    else:
        test = stratified(y, _TEST_SHARE, random)
    x = images.flatten(0, 2)
    pieces = x[~test], y[~test], x[test], y[test]
    return from_tensors(*pieces, name=name, class_names=names[:characters])


def _alphabets(data: Omniglot, seed: int | None) -> list[list[int]]:
    """The characters of each alphabet, alphabets in Omniglot's order or a drawn one."""
    groups: dict[str, list[int]] = {}
    for character, alphabet in enumerate(data.alphabets):
        groups.setdefault(alphabet, []).append(character)
    alphabets = list(groups.values())
    if seed is None:
        return alphabets
    order = draws(seed, "class order").permutation(len(alphabets))
    return [alphabets[index] for index in order]

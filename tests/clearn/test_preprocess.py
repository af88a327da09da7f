"""Augmentation and normalisation against torchvision, which works on one image at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from clearn.errors import UserError
from clearn.preprocess import Preprocess, crop, mirror

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)


def pictures(count: int, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def one_by_one(raw: Tensor, padding: int, top_left: Tensor, flips: Tensor) -> Tensor:
    """What torchvision makes of each image with the parameters given."""
    out = []
    for image, top, left, flip in zip(raw, *top_left.tolist(), flips.tolist(), strict=True):
        image = functional.crop(functional.pad(image, [padding]), top, left, *raw.shape[2:])
        out.append(functional.horizontal_flip(image) if flip else image)
    return torch.stack(out)


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4),
    padding=st.integers(1, 7),
    floats=st.booleans(),
    seed=st.integers(0, 100),
)
def test_crop_and_flip_are_torchvisions(
    shape: tuple[int, ...], padding: int, floats: bool, seed: int
) -> None:
    raw = pictures(shape[0], shape[1:], seed)
    raw = raw / 7 if floats else raw
    preprocess = Preprocess((), (), padding=padding, flip=True)
    generator = torch.Generator().manual_seed(seed)
    before = raw.clone()
    x = preprocess.train(raw, generator)
    generator.manual_seed(seed)
    top_left = preprocess.draw_crops(len(raw), generator, raw.device)
    flips = preprocess.draw_flips(len(raw), generator, raw.device)
    expected = one_by_one(raw, padding, top_left, flips)
    assert torch.equal(x, expected if floats else functional.to_dtype(expected, scale=True))
    assert torch.equal(raw, before)


def test_every_offset_with_and_without_flip() -> None:
    combinations = torch.tensor(list(itertools.product(range(5), range(5), (0, 1)))).T
    raw = pictures(50, (3, 4, 6))
    ours = mirror(crop(raw, 2, combinations[:2]), combinations[2].bool())
    assert torch.equal(ours, one_by_one(raw, 2, combinations[:2], combinations[2]))


@pytest.mark.parametrize("channels_last", [False, True])
def test_crop_reads_any_memory_format(channels_last: bool) -> None:
    raw = pictures(6).transpose(2, 3)[::2]
    raw = raw.to(memory_format=torch.channels_last) if channels_last else raw
    top_left = torch.tensor([[0, 1, 2], [2, 0, 1]])
    assert torch.equal(crop(raw, 1, top_left), crop(raw.contiguous(), 1, top_left))


def test_offsets_and_flips_are_uniform_and_independent() -> None:
    preprocess = Preprocess((), (), padding=4, flip=True)
    generator = torch.Generator().manual_seed(0)
    tops, lefts, flips = [], [], []
    for _ in range(400):
        top, left = preprocess.draw_crops(64, generator, torch.device("cpu"))
        tops.append(top)
        lefts.append(left)
        flips.append(preprocess.draw_flips(64, generator, torch.device("cpu")))
    top, left, flip = (torch.stack(v).long().numpy() for v in (tops, lefts, flips))
    cells = np.bincount((18 * top + 2 * left + flip).ravel(), minlength=162)
    assert len(cells) == 162
    assert stats.chisquare(cells).pvalue > 0.001
    # Neighbours inside a batch and the same place of successive batches know nothing of each other.
    for a, b in ((left[:, :-1], left[:, 1:]), (left[:-1], left[1:])):
        table = np.zeros((9, 9))
        np.add.at(table, (a, b), 1)
        assert stats.chi2_contingency(table).pvalue > 0.001


def test_augmented_images_are_distributed_as_torchvisions() -> None:
    """Both draw from the same set of images, equally often."""
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 3, 3)
    theirs = v2.Compose([v2.RandomCrop(3, padding=1), v2.RandomHorizontalFlip()])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.stack([theirs(image) for _ in range(3000)])
    preprocess = Preprocess((), (), padding=1, flip=True)
    ours = preprocess.train(image.expand(6000, 1, 3, 3), torch.Generator().manual_seed(1))
    ours = (255 * ours).round().to(torch.uint8)
    kinds, kind = torch.cat([expected, ours]).view(9000, 9).unique(dim=0, return_inverse=True)
    assert len(kinds) == 18
    counts = [np.bincount(part, minlength=18) for part in (kind[:3000], kind[3000:])]
    assert stats.chi2_contingency(counts).pvalue > 0.001


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.3,), (0.7,))])
def test_normalise_is_torchvisions(
    floats: bool, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    raw = functional.to_dtype(pictures(5), torch.float32, scale=True) if floats else pictures(5)
    before = raw.clone()
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    x = Preprocess(mean, std).eval(raw)
    torch.testing.assert_close(x, theirs(raw), rtol=1e-5, atol=1e-6)
    assert x.dtype == torch.float32
    assert torch.equal(raw, before)


def test_floats_without_numbers_are_handed_on_and_bytes_become_shares() -> None:
    floats = torch.rand(4, 7)
    assert Preprocess((), ()).eval(floats) is floats
    torch.testing.assert_close(Preprocess((), ()).eval(pictures(2)), pictures(2) / 255)


def test_vectors_are_normalised_by_column_or_by_one_number() -> None:
    raw = torch.rand(4, 3)
    expected = (raw - torch.tensor([1.0, 2, 3])) / torch.tensor([1.0, 2, 4])
    torch.testing.assert_close(Preprocess((1, 2, 3), (1, 2, 4)).eval(raw), expected)
    torch.testing.assert_close(Preprocess((1,), (2,)).eval(raw), (raw - 1) / 2)


def test_same_state_same_images_and_evaluation_draws_nothing() -> None:
    preprocess = Preprocess(MEAN, STD, padding=2, flip=True)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = preprocess.train(pictures(9), generator)
    assert not torch.equal(preprocess.train(pictures(9), generator), first)
    generator.set_state(state)
    preprocess.eval(pictures(9))
    assert torch.equal(preprocess.train(pictures(9), generator), first)


def test_no_augmentation_asked_for_none_done() -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    preprocess = Preprocess(MEAN, STD)
    assert torch.equal(preprocess.train(pictures(3), generator), preprocess.eval(pictures(3)))
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_empty_batch(padding: int, flip: bool) -> None:
    preprocess = Preprocess(MEAN, STD, padding=padding, flip=flip)
    assert preprocess.train(pictures(0)).shape == (0, 3, 8, 8)


@pytest.mark.gpu
def test_no_synchronisation_on_the_device() -> None:
    preprocess = Preprocess(MEAN, STD, padding=2, flip=True)
    raw = pictures(16).cuda()
    generators = [torch.Generator().manual_seed(0), torch.Generator("cuda").manual_seed(0)]
    expected = preprocess.train(raw.cpu(), torch.Generator().manual_seed(0))
    preprocess.train(raw, generators[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        preprocess.train(raw, generators[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(preprocess.train(raw, generators[0]).cpu(), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,), "std": ()}, "std: 0 numbers do not go with 1 numbers in mean"),
        ({"mean": (0.5,), "std": (0.0,)}, r"std: \(0\.0,\) is not valid"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "not finite"),
        ({"mean": (), "std": (), "padding": -1}, "padding: -1 is not valid"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocess(**options)  # type: ignore[arg-type]


def test_numbers_must_fit_the_channels() -> None:
    with pytest.raises(UserError, match="mean, std: 3 numbers do not go with 1 channels"):
        Preprocess(MEAN, STD).eval(pictures(2, (1, 4, 4)))


@pytest.mark.parametrize("options", [{"padding": 1}, {"flip": True}])
def test_only_images_are_augmented(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"padding, flip: .* the examples have shape \(2, 5\)"):
        Preprocess((), (), **options).train(torch.rand(2, 5))  # type: ignore[arg-type]

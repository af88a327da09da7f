"""Weak and strong views against torchvision's transforms with the same draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import functional

from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.views import Policy, Views
from clearn.views.crops import draw_boxes
from clearn.views.policies import draw_autoaugment, draw_randaugment
from tests.clearn.views import one_by_one
from tests.clearn.views.one_by_one import pictures

PLAIN = Preprocess((), (), flip=True)
DRAW = {"autoaugment": draw_autoaugment, "randaugment": draw_randaugment}
POLICIES: tuple[Policy, ...] = ("autoaugment", "randaugment")
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 33, 47), (3, 8, 8)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_bytes(views: Tensor) -> Tensor:
    return (255 * views).round().to(torch.uint8)


def weak_one_by_one(raw: Tensor, draws: torch.Generator) -> Tensor:
    boxes = draw_boxes(len(raw), *raw.shape[2:], (0.08, 1.0), draws)
    flips = torch.randint(2, (len(raw),), generator=draws, dtype=torch.bool)
    random = torch.rand(len(raw), dtype=torch.float64, generator=draws)
    factors = 1 + 63 / 255 * (2 * random - 1)
    cropped = one_by_one.resized_crop(raw, boxes, flips)
    views = [
        functional.adjust_brightness(image, factor)
        for image, factor in zip(cropped, factors.tolist(), strict=True)
    ]
    return torch.stack(views)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weak_views_are_torchvisions(shape: tuple[int, int, int]) -> None:
    raw = pictures(100, shape)
    weak = in_bytes(Views(PLAIN).weak(raw, generator(1)))
    expected = weak_one_by_one(raw, generator(1))
    assert (weak.int() - expected).abs().max() <= 2  # one, made brighter
    # Values half-way between two round as it happens, unless sizes are powers of two.
    assert (weak != expected).float().mean() < (0.0005 if shape[1] in (8, 32) else 0.01)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strong_views_are_weak_ones_and_then_torchvisions(
    shape: tuple[int, int, int], policy: Policy
) -> None:
    raw = pictures(100, shape)
    views = Views(PLAIN, strong=policy)
    strong = in_bytes(views.strong(raw, generator(1)))
    draws = generator(1)
    expected = in_bytes(views.weak(raw, draws))
    for codes, magnitudes in zip(*DRAW[policy](100, *shape[1:], draws), strict=True):
        expected = one_by_one.apply(expected, codes, magnitudes)
    assert (strong != expected).float().mean() < 0.0005


def test_weak_and_strong_views_are_independent() -> None:
    """What a weak view is made of says nothing of the strong view of the same image."""
    raw = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1000, 1, 16, 16)
    views, draws = Views(PLAIN), generator()
    weak, strong = (view(raw, draws).mean((1, 2, 3)) for view in (views.weak, views.strong))
    limit = 4 / np.sqrt(1000)
    assert abs(np.corrcoef(weak, strong)[0, 1]) < limit
    same = views.weak(raw, generator(1)).mean((1, 2, 3))  # as one draw for both would be
    assert np.corrcoef(same, views.strong(raw, generator(1)).mean((1, 2, 3)))[0, 1] > limit


def test_views_are_normalised_as_test_images_are() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
    raw = pictures(9)
    for name in ("weak", "strong"):
        plain = getattr(Views(PLAIN), name)(raw, generator())
        x = getattr(Views(Preprocess(mean, std, flip=True)), name)(raw, generator())
        torch.testing.assert_close(x, functional.normalize(plain, mean, std))
        assert x.dtype == torch.float32


@given(
    shape=st.tuples(
        st.integers(0, 5), st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12)
    ),
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 99),
)
def test_any_size_and_the_images_stay_as_they_are(
    shape: tuple[int, ...], policy: Policy, seed: int
) -> None:
    raw = pictures(shape[0], shape[1:], seed)
    before = raw.clone()
    views = Views(PLAIN, strong=policy)
    for view in (views.weak, views.strong):
        x = view(raw, generator(seed))
        assert (x.shape, x.dtype) == (raw.shape, torch.float32)
        assert torch.equal(view(raw, generator(seed)), x)
        # Not a single one of the batch says what becomes of the others.
        assert torch.equal(view(raw.flip(0).flip(0), generator(seed)), x)
    assert torch.equal(raw, before)


@pytest.mark.parametrize("policy", POLICIES)
def test_images_left_as_they_are_are_copies(policy: Policy) -> None:
    """The whole image, no flip, no other brightness; some get no operation either."""
    raw = pictures(200, (3, 8, 8))
    before = raw.clone()
    views = Views(Preprocess((), ()), strong=policy, scale=(1.0, 1.0), brightness=0.0)
    assert torch.equal(in_bytes(views.weak(raw, generator())), raw)
    strong = in_bytes(views.strong(raw, generator()))
    unchanged = (strong == raw).flatten(1).all(1).double().mean()
    assert 0 < unchanged < 0.9
    assert torch.equal(raw, before)


def test_same_state_same_views_and_every_call_draws_anew() -> None:
    raw, views = pictures(20), Views(PLAIN)
    for view in (views.weak, views.strong):
        draws = generator(3)
        state = draws.get_state()
        first = view(raw, draws)
        assert not torch.equal(view(raw, draws), first)
        draws.set_state(state)
        assert torch.equal(view(raw, draws), first)


def test_without_a_generator_the_global_one_draws() -> None:
    raw, views = pictures(6), Views(PLAIN)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = views.weak(raw), views.strong(raw)
        torch.manual_seed(5)
        again = views.weak(raw), views.strong(raw)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_where_training_images_are(flip: bool) -> None:
    raw = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(4000, 1, 8, 8)
    views = Views(Preprocess((), (), flip=flip), scale=(1.0, 1.0), brightness=0.0)
    out = in_bytes(views.weak(raw, generator()))
    same, mirrored = ((out == x).flatten(1).all(1) for x in (raw, raw.flip(-1)))
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 2000 * flip) <= 4 * np.sqrt(1000) * flip


def test_brightness_is_uniform_about_one() -> None:
    raw = torch.full((5000, 1, 2, 2), 200, dtype=torch.uint8)
    views = Views(PLAIN, brightness=0.2)
    values = in_bytes(views.weak(raw, generator()))[:, 0, 0, 0].double()
    assert (values.min(), values.max()) == (160, 239)  # 240 itself is never drawn
    # Uniform on [160, 240), cut to whole numbers.
    assert abs(values.mean() - 199.5) < 4 * np.sqrt((80**2 - 1) / 12 / 5000)


def test_autocast_changes_nothing() -> None:
    raw, views = pictures(40), Views(PLAIN)
    expected = views.strong(raw, generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(views.strong(raw, generator()), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES)
def test_no_synchronisation_on_the_device(policy: Policy) -> None:
    views = Views(PLAIN, strong=policy)
    raw = pictures(64, (3, 32, 32))
    expected = in_bytes(views.strong(raw, generator()))
    on_device = raw.cuda()
    views.strong(on_device, generator(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        views.weak(on_device, generator())
        x = views.strong(on_device, generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Ties of rounding, which stretching may make larger.
    assert (in_bytes(x).cpu() != expected).float().mean() < 0.002


@pytest.mark.gpu
def test_generator_of_the_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"views: the generator is on cuda.* give a CPU generator"):
        Views(PLAIN).weak(pictures(2).cuda(), torch.Generator("cuda"))


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (torch.rand(2, 3, 8, 8), r"float32 of shape \(2, 3, 8, 8\)"),
        (pictures(2)[0], r"uint8 of shape \(3, 16, 16\)"),
        (pictures(2, (2, 8, 8)), r"uint8 of shape \(2, 2, 8, 8\)"),
        (torch.zeros(2, 5, dtype=torch.uint8), r"uint8 of shape \(2, 5\)"),
    ],
)
def test_only_images_have_views(raw: Tensor, what: str) -> None:
    for name in ("weak", "strong"):
        with pytest.raises(UserError, match=rf"views: need uint8 images \[B, C, H, W\].*{what}"):
            getattr(Views(PLAIN), name)(raw, generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strong": "cutout"}, "views.strong: 'cutout' .* expected autoaugment or randaugment"),
        ({"scale": (0.0, 1.0)}, r"views.scale: \(0.0, 1.0\) is not valid"),
        ({"scale": (0.5, 0.2)}, r"views.scale: \(0.5, 0.2\) is not valid"),
        ({"scale": (0.5, 1.2)}, r"views.scale: \(0.5, 1.2\) is not valid"),
        ({"scale": (float("nan"), 1.0)}, "views.scale: .* is not valid"),
        ({"brightness": 1.5}, r"views.brightness: 1.5 is not valid: .* \[0, 1\]"),
        ({"brightness": -0.1}, "views.brightness: -0.1 is not valid"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Views(PLAIN, **options)  # type: ignore[arg-type]

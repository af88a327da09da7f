"""Random resized crops against torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from clearn.views.crops import BLOCK, RATIO, draw_boxes, resized_crop
from tests.clearn.views import one_by_one
from tests.clearn.views.one_by_one import pictures

FOUR_SIGMA = 6.3e-5  # chance of a deviation this large to either side


def boxes(
    count: int, height: int, width: int, scale: tuple[float, float], seed: int = 0
) -> torch.Tensor:
    return draw_boxes(count, height, width, scale, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 28, 28), (3, 33, 47), (3, 8, 8), (1, 1, 5), (3, 64, 64)], ids=str
)
def test_crop_is_torchvisions(shape: tuple[int, int, int]) -> None:
    count = 1 + BLOCK // (32 * 32 * 3) if shape == (3, 32, 32) else 30  # more than one piece
    raw = pictures(count, shape)
    before = raw.clone()
    drawn = boxes(count, *shape[1:], (0.08, 1.0))
    flips = torch.arange(count) % 2 == 0
    out = resized_crop(raw, drawn, flips)
    exact = one_by_one.resized_crop(raw.double(), drawn, flips)  # not rounded
    assert torch.equal(raw, before)
    assert (out - exact).abs().max() < 0.5 + 1e-3  # to the nearest value
    expected = one_by_one.resized_crop(raw, drawn, flips)
    assert (out != expected).float().mean() < 0.004  # half-way between two values


def test_whole_image_is_left_as_it_is() -> None:
    raw = pictures(5, (3, 33, 47))
    whole = torch.tensor([[0], [0], [33], [47]]).expand(4, 5)
    assert torch.equal(resized_crop(raw, whole, torch.zeros(5, dtype=torch.bool)), raw)
    assert torch.equal(resized_crop(raw, whole, torch.ones(5, dtype=torch.bool)), raw.flip(-1))


def test_pixels_outside_the_box_do_not_enter() -> None:
    raw = torch.full((1, 3, 20, 20), 255, dtype=torch.uint8)
    raw[..., 4:11, 6:15] = 10
    box = torch.tensor([[4], [6], [7], [9]])
    assert (resized_crop(raw, box, torch.tensor([True])) == 10).all()


def test_area_ratio_and_place_are_uniform() -> None:
    """An image so large that rounding to pixels does not show, and no box is drawn twice."""
    size = 100_000
    top, left, height, width = boxes(5000, size, size, (0.1, 0.5)).double().numpy()
    uniform = {
        "area": (height * width / size**2 - 0.1) / 0.4,
        "ratio": (np.log(width / height) - np.log(RATIO[0])) / np.log(RATIO[1] / RATIO[0]),
        "top": top / (size - height),
        "left": left / (size - width),
    }
    for name, values in uniform.items():
        assert stats.kstest(values, "uniform").pvalue > FOUR_SIGMA, name
    names = list(uniform)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            together = np.corrcoef(uniform[first], uniform[second])[0, 1]
            assert abs(together) < 4 / np.sqrt(5000), (first, second)
    for name, values in uniform.items():  # and a box says nothing of the next
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(5000), name


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (6, 60)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    """With boxes that do not fit, and with images for which hardly any does."""
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [RandomResizedCrop.get_params(image, scale, RATIO) for _ in range(2000)]
    ours = boxes(4000, height, width, scale)
    for name, a, b in zip(
        ("top", "left", "height", "width"), ours.tolist(), zip(*theirs, strict=True), strict=True
    ):
        values = sorted({*a, *b})
        counts = np.array([[row.count(v) for v in values] for row in (a, list(b))])
        counts = counts[:, counts.sum(0) >= 20]
        if counts.shape[1] > 1:
            assert stats.chi2_contingency(counts).pvalue > FOUR_SIGMA, name


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.08, 0.08), (1.0, 1.0)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (33, 47), (1, 1), (2, 90)])
def test_boxes_lie_in_the_image(height: int, width: int, scale: tuple[float, float]) -> None:
    top, left, box_height, box_width = boxes(500, height, width, scale)
    assert min(int(top.min()), int(left.min())) >= 0
    assert min(int(box_height.min()), int(box_width.min())) >= 1
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


@pytest.mark.parametrize(("height", "width"), [(4, 100), (100, 4), (32, 32), (5, 6), (3, 4)])
def test_what_never_fits_is_the_middle(height: int, width: int) -> None:
    drawn = boxes(50, height, width, (1.0, 1.0))
    image = torch.zeros(1, height, width)
    # An area the image does not have: torchvision tries ten times, and takes the middle.
    middle = torch.tensor(RandomResizedCrop.get_params(image, [9.0, 9.0], list(RATIO)))
    share = (drawn == middle.unsqueeze(1)).all(0).double().mean()
    assert share == 1 if height * 2 < width or width * 2 < height else share > 0.2
    assert torch.equal(boxes(5, height, width, (9.0, 9.0)), middle.unsqueeze(1).expand(4, 5))

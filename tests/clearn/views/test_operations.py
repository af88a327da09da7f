"""Every operation against torchvision's, which works on one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clearn.views import operations as ops
from clearn.views.operations import OPERATIONS, Operation, apply_
from clearn.views.policies import SIGNED, strengths
from tests.clearn.views import one_by_one
from tests.clearn.views.one_by_one import NAMES, pictures

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 33, 47), (1, 8, 8), (3, 5, 2), (3, 1, 1)]
GEOMETRY = (ops.shear_x, ops.shear_y, ops.translate_x, ops.translate_y, ops.rotate)
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: op.__name__)


def sources(operation: Operation, magnitudes: Tensor, height: int, width: int) -> list[Tensor]:
    """Columns and rows that pixels come from, float64 `[n, H, W]`."""
    m = magnitudes.view(-1, 1, 1)
    y, x = torch.meshgrid(
        torch.arange(height).double(), torch.arange(width).double(), indexing="ij"
    )
    if operation is ops.rotate:
        x, y = x - (width - 1) / 2, y - (height - 1) / 2
        angle = m / 180 * math.pi
        return [
            angle.cos() * x - angle.sin() * y + (width - 1) / 2,
            angle.sin() * x + angle.cos() * y + (height - 1) / 2,
        ]
    moved = {
        ops.shear_x: [x + m * (y + 0.5), y],
        ops.shear_y: [x, y + m * (x + 0.5)],
        ops.translate_x: [x - m.trunc(), y],
        ops.translate_y: [x, y - m.trunc()],
    }
    return moved[operation]


def between_pixels(operation: Operation, magnitudes: Tensor, height: int, width: int) -> Tensor:
    """Where two pixels are equally near, and rounding decides: bool `[n, 1, H, W]`."""
    ties = torch.zeros(len(magnitudes), height, width, dtype=torch.bool)
    for source in sources(operation, magnitudes, height, width):
        ties |= ((source - source.floor()) - 0.5).abs() < 1e-4
    return ties.unsqueeze(1)


@pytest.mark.parametrize("levels", [10, 31])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_operation
def test_operation_is_torchvisions_at_every_level(
    operation: Operation, shape: tuple[int, int, int], levels: int
) -> None:
    magnitudes = strengths(levels, *shape[1:])[OPERATIONS.index(operation)]
    if operation in SIGNED:
        magnitudes = torch.cat([magnitudes, -magnitudes])
    images = pictures(len(magnitudes), shape)
    before = images.clone()
    out = operation(images, magnitudes.view(-1, 1, 1, 1))
    expected = one_by_one.operate(images, operation, magnitudes)
    assert out.dtype == torch.uint8
    assert torch.equal(images, before)
    if operation in GEOMETRY:
        ties = between_pixels(operation, magnitudes, *shape[1:])
        assert ties.float().mean() < 0.05 or shape == (3, 5, 2)
        out, expected = (x.where(~ties, 0) for x in (out, expected))
    assert torch.equal(out, expected)


def test_policys_shears_have_no_ties() -> None:
    """So that there the views are torchvision's to the pixel."""
    for size in (32, 64, 224):
        magnitudes = strengths(10, size, size)[OPERATIONS.index(ops.shear_y), [7, 8]]
        assert not between_pixels(ops.shear_y, magnitudes, size, size).any()
        assert between_pixels(ops.shear_y, magnitudes * 6 / 7, size, size).any()


@given(
    operation=st.sampled_from([ops.brightness, ops.colour, ops.contrast, ops.sharpness]),
    magnitudes=st.lists(st.floats(-1, 2), min_size=1, max_size=5),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_blends_are_torchvisions_with_any_factor(
    operation: Operation, magnitudes: list[float], shape: tuple[int, ...], seed: int
) -> None:
    values = torch.tensor(magnitudes, dtype=torch.float64)
    images = pictures(len(values), shape, seed)
    out = operation(images, values.view(-1, 1, 1, 1)).int()
    expected = one_by_one.operate(images, operation, values).int()
    assert (out - expected).abs().max() <= 1  # a last bit decides which way a number is cut
    assert (out != expected).float().mean() < 0.1 or out.numel() < 20


@each_operation
def test_one_value_and_two_values(operation: Operation) -> None:
    """What stretching and equalizing make of images that have hardly anything to stretch."""
    images = torch.zeros(6, 3, 20, 20, dtype=torch.uint8)
    images[1], images[2], images[3, 1], images[4, :, :10], images[5] = 255, 77, 9, 200, 1
    images[5, :, 0, 0] = 0
    magnitudes = torch.full((6,), 4.0 if operation is ops.posterize else 0.3).double()
    out = operation(images, magnitudes.view(-1, 1, 1, 1))
    assert torch.equal(out, one_by_one.operate(images, operation, magnitudes))


@each_operation
def test_any_memory_format(operation: Operation) -> None:
    images = pictures(8, (3, 9, 12)).transpose(2, 3)[::2]
    magnitudes = torch.full((4, 1, 1, 1), 5.0 if operation is ops.posterize else -0.2).double()
    magnitudes = magnitudes.abs() if operation is ops.solarize else magnitudes
    expected = operation(images.contiguous(), magnitudes)
    last = images.to(memory_format=torch.channels_last)
    assert torch.equal(operation(images, magnitudes), expected)
    assert torch.equal(operation(last, magnitudes), expected)


@pytest.mark.parametrize("count", [1, 7, 60])
def test_each_image_gets_its_own_operation(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    codes = torch.randint(len(OPERATIONS), (count,), generator=generator)
    levels = torch.randint(10, (count,), generator=generator)
    magnitudes = strengths(10, 12, 12)[codes, levels]
    images = pictures(count, (3, 12, 12))
    expected = one_by_one.apply(images, codes, magnitudes)
    out = apply_(images, codes, magnitudes)
    assert out is images
    # Nearly all: a shear has ties.
    assert (out != expected).float().mean() < 0.002


def test_operations_are_named_once() -> None:
    assert set(NAMES) == set(OPERATIONS)
    assert len(set(OPERATIONS)) == len(OPERATIONS) == 15

"""The policies' tables against torchvision's, and how often each line is drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment

from clearn.views.operations import OPERATIONS, identity, invert
from clearn.views.policies import CIFAR10, SIGNED, draw_autoaugment, draw_randaugment, strengths
from tests.clearn.views.one_by_one import NAMES

Key = tuple[str, float, str, float]


def test_table_is_torchvisions() -> None:
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10)._get_policies(AutoAugmentPolicy.CIFAR10)
    ours = [tuple((NAMES[op], chance, level) for op, chance, level in pair) for pair in CIFAR10]
    assert ours == [tuple((*step[:2], step[2] or 0) for step in pair) for pair in theirs]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (331, 8)])
@pytest.mark.parametrize("levels", [10, 31])
def test_magnitudes_are_torchvisions(levels: int, height: int, width: int) -> None:
    for transform in (AutoAugment(), RandAugment()):
        space = transform._augmentation_space(levels, (height, width))
        for operation, row in zip(OPERATIONS, strengths(levels, height, width), strict=True):
            if NAMES[operation] in space:
                magnitudes, signed = space[NAMES[operation]]
                assert torch.equal(row, magnitudes.double().expand(levels)), operation
                assert signed == (operation in SIGNED)


def test_operations_randaugment_draws_from() -> None:
    names = {NAMES[operation] for operation in OPERATIONS if operation is not invert}
    assert names == set(RandAugment()._augmentation_space(31, (32, 32)))
    assert OPERATIONS[-1] is invert


def key(codes: list[int], magnitudes: list[float]) -> Key:
    """What happens to an image; nothing is known of an operation that is not applied."""
    pairs = [
        (OPERATIONS[code], round(magnitude, 4) if OPERATIONS[code] is not identity else 0.0)
        for code, magnitude in zip(codes, magnitudes, strict=True)
    ]
    return pairs[0][0].__name__, pairs[0][1], pairs[1][0].__name__, pairs[1][1]


def expected_shares() -> dict[Key, float]:
    """Probability of everything that AutoAugment can do to an image of 32 x 32."""
    table = strengths(10, 32, 32)
    shares: dict[Key, float] = {}
    for pair in CIFAR10:
        options = []
        for operation, chance, level in pair:
            magnitude = float(table[OPERATIONS.index(operation), level])
            signs = (1, -1) if operation in SIGNED else (1,)
            code = OPERATIONS.index(operation)
            outcomes = [(code, sign * magnitude, chance / len(signs)) for sign in signs]
            options.append([(OPERATIONS.index(identity), 0.0, 1 - chance), *outcomes])
        for one in options[0]:
            for two in options[1]:
                name = key([one[0], two[0]], [one[1], two[1]])
                shares[name] = shares.get(name, 0) + one[2] * two[2] / len(CIFAR10)
    return shares


def test_autoaugment_does_everything_as_often_as_its_table_says() -> None:
    count = 40_000
    codes, magnitudes = draw_autoaugment(count, 32, 32, torch.Generator().manual_seed(0))
    assert (codes.shape, magnitudes.shape) == ((2, count), (2, count))
    assert (codes.dtype, magnitudes.dtype) == (torch.int64, torch.float64)
    drawn = Counter(
        key(code, magnitude)
        for code, magnitude in zip(codes.T.tolist(), magnitudes.T.tolist(), strict=True)
    )
    shares = expected_shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert set(drawn) <= {name for name, share in shares.items() if share > 0}
    for name, share in shares.items():
        limit = 4 * np.sqrt(count * share * (1 - share)) + 1
        assert abs(drawn[name] - count * share) < limit, name


def test_randaugment_draws_uniformly_at_level_9_of_30() -> None:
    count, kinds = 20_000, len(OPERATIONS) - 1
    codes, magnitudes = draw_randaugment(count, 32, 48, torch.Generator().manual_seed(0))
    cells = np.bincount(kinds * codes[0].numpy() + codes[1].numpy(), minlength=kinds**2)
    assert len(cells) == kinds**2
    assert stats.chisquare(cells).pvalue > 6.3e-5
    assert torch.equal(magnitudes.abs(), strengths(31, 32, 48)[codes, 9])
    for code, operation in enumerate(OPERATIONS[:-1]):
        drawn = magnitudes[codes == code]
        if operation in SIGNED:
            negative = int((drawn < 0).sum())
            assert abs(negative - len(drawn) / 2) < 4 * np.sqrt(len(drawn) / 4), operation
        else:
            assert (drawn >= 0).all()


@pytest.mark.parametrize("draw", [draw_autoaugment, draw_randaugment])
def test_neighbours_in_a_batch_know_nothing_of_each_other(draw: object) -> None:
    codes, _ = draw(40_000, 32, 32, torch.Generator().manual_seed(1))  # type: ignore[operator]
    table = np.zeros((len(OPERATIONS), len(OPERATIONS)))
    np.add.at(table, (codes[0, :-1].numpy(), codes[0, 1:].numpy()), 1)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    assert stats.chi2_contingency(table).pvalue > 6.3e-5

"""Resident and streamed stores hand out the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clearn.errors import UserError
from clearn.examples import Examples
from clearn.images import Images
from clearn.preprocess import Preprocess
from clearn.store import (
    MappedStore,
    RaggedStore,
    ResidentStore,
    Store,
    StreamedStore,
    open_images,
)
from tests.clearn.pictures import ArraySource, write_pictures

CPU = torch.device("cpu")

# Python 3.12 and newer warn about what a DataLoader does by default on Linux.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARN_CACHE", str(tmp_path / "cache"))


def stores(data: Tensor) -> list[Store]:
    return [ResidentStore(data), StreamedStore(Images(ArraySource(data)), workers=0)]


@pytest.mark.parametrize("number", [0, 1])
def test_reads_rows_in_any_order(number: int) -> None:
    data = ArraySource.random(9).data
    store = stores(data)[number]
    assert (len(store), store.shape, store.dtype) == (9, (3, 8, 8), torch.uint8)
    for rows in ([8, 0, 0, 3], [], [1]):
        index = torch.tensor(rows, dtype=torch.int64)
        if len(index):
            assert torch.equal(next(store.batches(index, len(index), CPU)), data[index])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [(3, [3, 3, 1]), (7, [7]), (100, [7]), (1, [1] * 7), ([2, 4, 1], [2, 4, 1])],
)
def test_batches_have_the_sizes_asked_for(
    number: int, sizes: int | list[int], expected: list[int]
) -> None:
    data = ArraySource.random(9).data
    rows = torch.tensor([8, 1, 1, 0, 5, 7, 2])
    batches = list(stores(data)[number].batches(rows, sizes, CPU))
    assert [len(batch) for batch in batches] == expected
    assert torch.equal(torch.cat(batches), data[rows])


@pytest.mark.parametrize("number", [0, 1])
def test_no_sizes_no_batches(number: int) -> None:
    store = stores(ArraySource.random(2).data)[number]
    assert list(store.batches(torch.empty(0, dtype=torch.int64), [], CPU)) == []


def test_resident_floats_of_any_shape() -> None:
    for shape in ((6,), (6, 5), (6, 2, 3, 4, 1)):
        data = torch.rand(shape)
        store = ResidentStore(data)
        assert store.shape == shape[1:]
        assert torch.equal(next(store.batches(torch.tensor([4, 2]), 2, CPU)), data[[4, 2]])


def test_a_mapped_store_reads_through_its_function() -> None:
    data = torch.arange(24, dtype=torch.uint8).view(6, 4)
    store = MappedStore(
        ResidentStore(data), lambda raw: raw[:, :2].float() / 2, shape=(2,), dtype=torch.float32
    )
    assert (len(store), store.shape, store.dtype) == (6, (2,), torch.float32)
    rows = torch.tensor([5, 0, 3])
    parts = list(store.batches(rows, [2, 1], CPU))
    assert [len(part) for part in parts] == [2, 1]
    assert torch.equal(torch.cat(parts), data[rows, :2].float() / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=f"data: {dtype} is not valid: expected torch.uint8"):
        ResidentStore(torch.zeros(3, 2, dtype=dtype))


def test_a_single_number_is_refused() -> None:
    with pytest.raises(UserError, match="data: a single number is not valid"):
        ResidentStore(torch.tensor(1.0))


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_both_paths_give_identical_batches(tmp_path: Path, workers: int) -> None:
    source = write_pictures(tmp_path, 23, size=(14, 11), name="{}.jpg")
    resident = open_images(source, image_size=8, workers=1)
    streamed = open_images(source, image_size=8, budget_gib=0, workers=workers)
    assert isinstance(resident, ResidentStore)
    assert isinstance(streamed, StreamedStore)
    preprocess = Preprocess((0.5, 0.4, 0.3), (0.2, 0.2, 0.3), padding=2, flip=True)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    outcomes = []
    for store in (resident, streamed):
        examples = Examples(store, torch.arange(23), torch.arange(23) % 5, 0, preprocess)
        generator = torch.Generator().manual_seed(1)
        batches = list(examples.batches(5, order=order, train=True, generator=generator))
        outcomes.append((batches, generator.get_state()))
    (one, state_one), (two, state_two) = outcomes
    assert torch.equal(state_one, state_two)
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.raw, b.raw)
        assert torch.equal(a.y, b.y)
        assert a.task_id == b.task_id == 0


@forks
def test_streaming_leaves_the_global_generator_alone() -> None:
    store = StreamedStore(Images(ArraySource.random(4)), workers=1)
    state = torch.get_rng_state()
    list(store.batches(torch.arange(4), 2, CPU))
    assert torch.equal(torch.get_rng_state(), state)


@forks
@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_worker_is_one_line(tmp_path: Path, workers: int) -> None:
    source = write_pictures(tmp_path, 3)
    store = open_images(source, budget_gib=0, workers=workers)
    (tmp_path / "2.png").write_bytes(b"no picture")
    batches = store.batches(torch.arange(3), 1, CPU)
    next(batches)
    with pytest.raises(UserError) as caught:
        list(batches)
    assert str(caught.value).startswith(f"image: {tmp_path / '2.png'} cannot be read: ")
    assert "\n" not in str(caught.value)


@forks
def test_an_iteration_given_up_does_not_disturb_the_next() -> None:
    source = ArraySource.random(12)
    store = StreamedStore(Images(source), workers=2)
    first = store.batches(torch.arange(12), 2, CPU)
    next(first)
    second = store.batches(torch.arange(12).flip(0), 4, CPU)
    assert torch.equal(torch.cat(list(second)), source.data.flip(0))
    assert torch.equal(next(first), source.data[2:4])
    del first


def test_budget_boundary() -> None:
    source = ArraySource.random(16, size=8)
    gib = 16 * 3 * 8 * 8 / 2**30
    assert isinstance(open_images(source, budget_gib=gib, workers=1), ResidentStore)
    below = open_images(source, budget_gib=gib - 2**-30, workers=1)
    assert isinstance(below, StreamedStore)
    assert source.decoded == 1 + 16 + 1
    assert isinstance(open_images(source, image_size=4, budget_gib=gib / 4), ResidentStore)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_gib": -1.0}, "budget_gib: -1.0 is not valid: expected GiB >= 0"),
        ({"budget_gib": float("nan")}, "budget_gib: nan is not valid"),
        ({"workers": -1}, "workers: -1 is not valid"),
        ({"image_size": 0}, "image_size: 0 is not valid"),
    ],
)
def test_options_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_images(ArraySource.random(1), **options)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_one_copy_on_the_device_and_no_synchronisation() -> None:
    data = ArraySource.random(9).data
    device = torch.empty(0, device="cuda").device
    store = ResidentStore(data)
    rows = torch.tensor([3, 1, 8])
    next(store.batches(rows, len(rows), device))
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(store.batches(rows, 2, device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(torch.cat(batches).cpu(), data[rows])
    del batches
    assert torch.cuda.memory_allocated() <= before + 1024


# Rows that differ in length


def ragged(lengths: list[int], *, max_length: int, pad: int = -1) -> tuple[RaggedStore, list]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(100, (length,), generator=generator).int() for length in lengths]
    values = torch.cat([*rows, torch.empty(0).int()])
    return RaggedStore(values, torch.tensor(lengths), max_length=max_length, pad=pad), rows


@given(
    lengths=st.lists(st.integers(0, 21), min_size=1, max_size=12),
    spare=st.integers(0, 9),
    batch_size=st.integers(1, 13),
    data=st.data(),
)
def test_ragged_rows_are_padded_to_the_longest_of_their_batch(
    lengths: list[int], spare: int, batch_size: int, data: st.DataObject
) -> None:
    max_length = max(lengths) + spare
    store, rows = ragged(lengths, max_length=max_length)
    assert (len(store), store.shape, store.dtype) == (len(lengths), (max_length,), torch.int32)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=20))
    found = list(store.batches(torch.tensor(chosen, dtype=torch.int64), batch_size, CPU))
    pieces = [chosen[at : at + batch_size] for at in range(0, len(chosen), batch_size)]
    assert len(found) == max(1, len(pieces))  # no rows are one batch without rows
    for batch, piece in zip(found, pieces, strict=bool(pieces)):
        longest = max(lengths[row] for row in piece)
        width = next(w for w in range(0, 100, 8) if w >= longest)
        assert batch.dtype == torch.int32
        assert batch.shape == (len(piece), min(width, max_length))
        for out, row in zip(batch.tolist(), piece, strict=True):
            assert out == rows[row].tolist() + [-1] * (len(out) - lengths[row])


def test_ragged_batches_of_given_sizes() -> None:
    store, rows = ragged([3, 9, 1, 17], max_length=20)
    one, two = store.batches(torch.tensor([2, 0, 3]), [2, 1], CPU)
    assert one.tolist() == [
        rows[2].tolist() + [-1] * 7,
        rows[0].tolist() + [-1] * 5,
    ]
    assert two.tolist() == [rows[3].tolist() + [-1] * 3]  # not 24 wide
    assert list(store.batches(torch.empty(0, dtype=torch.int64), [], CPU)) == []


def test_ragged_rows_that_do_not_go_together() -> None:
    values = torch.zeros(5).int()
    with pytest.raises(UserError, match=r"values, lengths: torch.int64, torch.int64 are not valid"):
        RaggedStore(values.long(), torch.tensor([5]), max_length=5, pad=0)
    for lengths in ([4], [6, -1]):
        with pytest.raises(UserError, match="lengths: their sum is not 5"):
            RaggedStore(values, torch.tensor(lengths), max_length=9, pad=0)
    with pytest.raises(UserError, match="lengths: a row of 5 is not valid: expected at most 4"):
        RaggedStore(values, torch.tensor([5]), max_length=4, pad=0)


@pytest.mark.gpu
def test_ragged_rows_on_a_device_are_those_of_the_host() -> None:
    store, _ = ragged([3, 0, 17, 8, 5], max_length=20)
    rows = torch.tensor([4, 2, 0, 1, 3])
    for host, device in zip(
        store.batches(rows, 2, CPU), store.batches(rows, 2, torch.device("cuda", 0)), strict=True
    ):
        assert torch.equal(host, device.cpu())

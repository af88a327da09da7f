"""Examples against a slow loop over single examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.examples import Examples
from clearn.preprocess import Preprocess
from clearn.store import RaggedStore, ResidentStore

PLAIN = Preprocess((), ())


def make(
    count: int = 10,
    task_id: int = 0,
    store: ResidentStore | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    preprocess: Preprocess = PLAIN,
) -> Examples:
    store = store or ResidentStore(torch.rand(30, 4, generator=torch.Generator().manual_seed(0)))
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(task_id))[:count]
    return Examples(store, rows, rows % 7, task_id, preprocess, transform)


def table(examples: Examples, batches: Iterator[Batch] | None = None) -> list[Tensor]:
    """x, y, task id and raw of all batches, one under the other."""
    batches = examples.batches(4) if batches is None else batches
    rows = [(b.x, b.y, torch.as_tensor(b.task_id).expand(len(b)), b.raw) for b in batches]
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def reverse(raw: Tensor) -> Tensor:
    return raw.flip(-1)


def negate(raw: Tensor) -> Tensor:
    return -raw


@given(
    # Which of two stores, which transform, how many examples.
    parts=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 6)), min_size=1),
    batch_size=st.integers(1, 20),
    data=st.data(),
)
def test_batches_are_those_of_a_slow_loop(
    parts: list[tuple[int, int, int]], batch_size: int, data: st.DataObject
) -> None:
    tensors = torch.rand(8, 3), torch.rand(9, 3)
    stores = [ResidentStore(tensor) for tensor in tensors]
    transforms = (None, reverse, negate)
    made, slow = [], []
    for task_id, (store, transform, count) in enumerate(parts):
        rows = torch.arange(count)
        function = transforms[transform]
        made.append(Examples(stores[store], rows, rows + 10, task_id, PLAIN, function))
        for row in rows.tolist():
            raw = tensors[store][row]
            slow.append((raw if function is None else function(raw), row + 10, task_id))
    examples = Examples.concat(made)
    assert len(examples) == len(slow)
    if not slow:
        assert list(examples.batches(batch_size)) == []
        return
    order = data.draw(st.lists(st.integers(0, len(slow) - 1), min_size=1))
    batches = list(examples.batches(batch_size, order=torch.tensor(order)))
    full, rest = divmod(len(order), batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * full + [rest] * (rest > 0)
    x, y, task_id, raw = table(examples, iter(batches))
    assert torch.equal(raw, torch.stack([slow[i][0] for i in order]))
    assert torch.equal(x, raw)
    assert y.tolist() == [slow[i][1] for i in order]
    assert task_id.tolist() == [slow[i][2] for i in order]
    assert [i for batch in batches for i in batch.position.tolist()] == order
    in_order = [i for batch in examples.batches(batch_size) for i in batch.position.tolist()]
    assert in_order == list(range(len(slow)))
    chosen = examples.select(torch.tensor(order))
    assert_same(table(chosen), table(examples, iter(batches)))


def test_concat_of_concats() -> None:
    a, b, c = make(5, 0), make(4, 1, transform=negate), make(3, 2, transform=reverse)
    nested = Examples.concat([a, Examples.concat([b, c]), a])
    assert_same(table(nested), table(Examples.concat([a, b, c, a])))


def test_a_permutation_by_index_is_applied_before_preprocessing() -> None:
    permutation = torch.tensor([3, 0, 2, 1])
    preprocess = Preprocess((1, 2, 3, 4), (1, 1, 2, 2))
    plain = make(preprocess=preprocess)
    permuted = make(preprocess=preprocess, transform=lambda raw: raw[:, permutation])
    _, _, _, raw = table(plain)
    x, _, _, seen = table(permuted)
    assert torch.equal(seen, raw[:, permutation])
    assert torch.equal(x, preprocess.eval(raw[:, permutation]))


class Counting(ResidentStore):
    """Counts reads of batches."""

    calls = 0

    def batches(self, *args: Any) -> Iterator[Tensor]:
        for raw in super().batches(*args):
            self.calls += 1
            yield raw


def test_parts_of_one_store_are_one_read_per_batch() -> None:
    store = Counting(torch.rand(30, 2))
    examples = Examples.concat([make(10, task, store) for task in range(3)])
    order = torch.randperm(30)
    batches = list(examples.batches(10, order=order))
    assert store.calls == 3
    assert all(isinstance(batch.task_id, Tensor) for batch in batches)


def test_parts_with_transforms_are_one_read_per_part_and_batch() -> None:
    store = Counting(torch.rand(30, 2))
    parts = [make(20, 0, store), make(20, 1, store, negate), make(20, 2, store, negate)]
    order = torch.arange(60).view(3, 20).T.flatten()  # all parts in every batch
    list(Examples.concat(parts).batches(15, order=order))
    assert store.calls == 4 * 2


@given(lengths=st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=3))
def test_texts_by_length(lengths: list[list[int]]) -> None:
    parts = []
    for task, own in enumerate(lengths):
        values = torch.ones(sum(own), dtype=torch.int32)
        store = RaggedStore(values, torch.tensor(own, dtype=torch.int64), max_length=9, pad=0)
        rows = torch.arange(len(own)).flip(0)
        parts.append(Examples(store, rows, rows, task, PLAIN))
    order = Examples.concat(parts).by_length()
    assert order is not None
    found = [length for own in lengths for length in reversed(own)]
    assert order.tolist() == sorted(range(len(found)), key=found.__getitem__)


def test_examples_of_one_size_have_no_order_by_length() -> None:
    assert make().by_length() is None


def test_one_task_has_a_plain_number() -> None:
    batch = next(Examples.concat([make(3, 4), make(2, 4)]).batches(5))
    assert batch.task_id == 4
    assert isinstance(batch.task_id, int)


def test_the_epoch_of_a_resumed_run_ends_the_same() -> None:
    store = ResidentStore(torch.randint(0, 256, (23, 3, 6, 6), dtype=torch.uint8))
    preprocess = Preprocess((0.5,), (0.3,), padding=2, flip=True)
    examples = Examples(store, torch.arange(23), torch.arange(23), 0, preprocess)
    order = torch.randperm(23)
    generator = torch.Generator().manual_seed(5)
    batches = examples.batches(4, order=order, train=True, generator=generator)
    head = [next(batches) for _ in range(2)]
    state = generator.get_state()
    tail = list(batches)
    assert len(head + tail) == 6
    generator.set_state(state)
    again = examples.batches(4, order=order[8:], train=True, generator=generator)
    assert_same(table(examples, iter(tail)), table(examples, again))


def test_training_augments_and_evaluation_does_not() -> None:
    store = ResidentStore(torch.randint(0, 256, (40, 3, 6, 6), dtype=torch.uint8))
    preprocess = Preprocess((0.5,), (0.3,), padding=2, flip=True)
    examples = Examples(store, torch.arange(40), torch.arange(40), 0, preprocess)
    generator = torch.Generator().manual_seed(0)
    x, _, _, raw = table(examples, examples.batches(7, train=True, generator=generator))
    assert torch.equal(raw, next(store.batches(torch.arange(40), 40, torch.device("cpu"))))
    assert not torch.equal(x, preprocess.eval(raw))
    x, _, _, raw = table(examples)
    assert torch.equal(x, preprocess.eval(raw))


@pytest.mark.parametrize("count", [0, 1])
def test_very_few(count: int) -> None:
    examples = make(count)
    batches = list(examples.batches(8))
    assert [len(batch) for batch in batches] == [1] * count
    assert list(examples.batches(8, order=torch.empty(0, dtype=torch.int64))) == []
    assert len(examples.select(torch.arange(count))) == count


def test_shape_and_dtype() -> None:
    examples = Examples.concat([make(2, 0), make(1, 1)])
    assert examples.shape == (4,)
    assert examples.dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (torch.arange(3), torch.arange(2), "labels: 2 of them do not go with 3 rows"),
        (torch.arange(3.0), torch.arange(3), r"rows: torch\.float32 of shape \(3,\) is not valid"),
        (torch.arange(3), torch.zeros(3, 1).long(), r"labels: torch\.int64 of shape \(3, 1\)"),
        (torch.tensor([0, 4]), torch.arange(2), "rows: 0 to 4 are not valid: expected 0 to 3"),
        (torch.tensor([-1, 0]), torch.arange(2), "rows: -1 to 0 are not valid"),
    ],
)
def test_rows_and_labels_are_checked(rows: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Examples(ResidentStore(torch.rand(4, 2)), rows, labels, 0, PLAIN)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_is_checked(batch_size: int) -> None:
    with pytest.raises(UserError, match=f"batch_size: {batch_size} is not valid"):
        next(make().batches(batch_size))


def test_parts_must_be_alike() -> None:
    other = ResidentStore(torch.zeros(30, 4, dtype=torch.uint8))
    with pytest.raises(UserError, match="parts: their shapes, types or preprocessing differ"):
        Examples.concat([make(), make(store=other)])
    with pytest.raises(UserError, match="parts: there are none"):
        Examples.concat([])


@pytest.mark.gpu
@pytest.mark.parametrize("mixed", [False, True])
def test_device_gives_the_same_and_does_not_wait(mixed: bool) -> None:
    parts = [make(9, 0), make(7, 1, transform=negate if mixed else None)]
    examples = Examples.concat(parts)
    expected = table(examples)
    list(examples.batches(4, device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(examples.batches(4, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same([column.cpu() for column in table(examples, iter(batches))], expected)

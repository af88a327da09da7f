"""Buffers by name: what they are made for, and how many examples a budget buys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clearn.buffers import BalancedBuffer, ReservoirBuffer, RingBuffer, make_buffer
from clearn.errors import UserError
from clearn.stream import Stream
from tests.clearn.words import write_tokenizer

KINDS = {"reservoir": ReservoirBuffer, "balanced": BalancedBuffer, "ring": RingBuffer}


def pictures(classes: int = 10, tasks: int = 5, **options: Any) -> Stream:
    x = torch.zeros(2 * classes, 3, 8, 8, dtype=torch.uint8)
    y = torch.arange(2 * classes) % classes
    return Stream.from_arrays(x, y, x, y, num_tasks=tasks, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("logits", [False, True])
def test_fits_the_stream(kind: Any, logits: bool, tiny_stream: Any) -> None:
    for stream in (tiny_stream(), pictures()):
        buffer = make_buffer(kind, stream, size=23, logits=logits)
        assert type(buffer) is KINDS[kind]
        raw, examples = buffer.slots.get_buffer("raw"), stream[0].train
        assert (raw.shape, raw.dtype) == ((23, *examples.shape), examples.dtype)
        assert hasattr(buffer.slots, "logits") == logits
        if logits:
            assert buffer.slots.get_buffer("logits").shape == (23, stream.num_classes)
        assert len(buffer.slots.seen) == (len(stream) if kind == "ring" else 1)


@pytest.mark.parametrize(("kind", "key"), [("reservoir", 0), ("ring", 0), ("balanced", 8)])
@pytest.mark.parametrize("logits", [False, True])
def test_a_budget_is_spent_and_not_exceeded(kind: Any, key: int, logits: bool) -> None:
    one = 3 * 8 * 8 + 8 + 8 + key + 4 * 10 * logits
    stream = pictures()
    for budget, size in (
        (10 * one, 10),
        (11 * one - 1, 10),
        (11 * one, 11),
        (10_000, 10_000 // one),
    ):
        buffer = make_buffer(kind, stream, budget=budget, logits=logits)
        assert buffer.slots.capacity == size
        kept = torch.ones(999, 10) if logits else None
        for task in range(5):
            raw = torch.zeros(999, 3, 8, 8, dtype=torch.uint8)
            y = torch.arange(999) % 2 + 2 * task
            buffer.add(raw, y, task, torch.Generator(), kept)
        assert len(buffer) == size
        assert budget - one < buffer.bytes_stored() == size * one <= budget


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_must_hold_one_example_of_each_class(kind: Any) -> None:
    one = 208 + 8 * (kind == "balanced")
    message = (
        rf"strategy\.buffer_bytes: {10 * one - 1} is too small: at {one} bytes an example it holds "
        rf"9; expected at least {10 * one}, for one example of each of the 10 classes of the stream"
    )
    with pytest.raises(UserError, match=message):
        make_buffer(kind, pictures(), budget=10 * one - 1)
    assert make_buffer(kind, pictures(), budget=10 * one).slots.capacity == 10
    with pytest.raises(UserError, match=r": 1 is too small: at .* it holds 0;"):
        make_buffer(kind, pictures(), budget=1, logits=True)


def test_a_budget_must_hold_one_example_of_each_task_of_a_ring() -> None:
    """Domains share their classes, so that there may be more tasks than these."""
    stream = pictures(classes=2, tasks=2, scenario="domain")
    stream.tasks = stream.tasks * 3
    with pytest.raises(UserError, match=r"holds 5; expected at least 1248, .* the 6 tasks"):
        make_buffer("ring", stream, budget=6 * 208 - 1)
    assert make_buffer("ring", stream, budget=6 * 208).slots.shares.tolist() == [1] * 6
    assert make_buffer("reservoir", stream, budget=2 * 208).slots.capacity == 2


def test_the_default_count_may_stand_beside_a_budget() -> None:
    """As it does in the config of a run, whose defaults are filled in."""
    assert make_buffer("reservoir", pictures(), size=200, budget=12 * 208).slots.capacity == 12


@pytest.mark.parametrize("kind", KINDS)
def test_a_count_may_be_as_small_as_one(kind: Any) -> None:
    assert make_buffer(kind, pictures(), size=1).slots.capacity == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"strategy\.buffer_size, strategy\.buffer_bytes: neither is given; expected one of"),
        ({"size": 9, "budget": 9999}, r"strategy\.buffer_bytes: both are given; expected one of"),
        ({"size": 0}, r"strategy\.buffer_size: 0 is not valid: expected an integer >= 1"),
        ({"size": 2.5}, r"strategy\.buffer_size: 2\.5 is not valid"),
        ({"budget": 0}, r"strategy\.buffer_bytes: 0 is not valid: expected an integer >= 1"),
        ({"budget": 1e6}, r"strategy\.buffer_bytes: 1000000\.0 is not valid"),
        ({"kind": "rings", "size": 9}, r"strategy\.buffer: 'rings' is unknown; did you mean ring"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_buffer(**{"kind": "reservoir", "stream": pictures()} | options)


def test_texts_are_refused(tmp_path: Path) -> None:
    rows = [("w1", 0), ("w2 w3", 1)] * 3
    stream = Stream.from_texts(rows, rows, tokenizer=write_tokenizer(tmp_path), num_tasks=2)
    with pytest.raises(UserError, match=r"^stream: texts is one of texts, whose batches differ"):
        make_buffer("reservoir", stream, size=3)

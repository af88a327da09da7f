"""The processes of a comparison: what they are told to use, and what they check."""

from __future__ import annotations

import gc
import os
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from clearn.compare import workers
from clearn.compare.workers import Ended, PipeProgress, Worker, own_device, work
from clearn.errors import UserError
from clearn.run.config import resolve_config
from clearn.strategy import Strategy

CONFIG = {"strategy": "ER", "stream": "SplitDigits"}


def test_workers_take_devices_round_robin() -> None:
    assert [own_device(place, ["0", "1", "2"]) for place in range(5)] == ["0", "1", "2", "0", "1"]
    assert [own_device(place, ["3"]) for place in range(2)] == [None, None]
    assert own_device(0, []) is None


@pytest.mark.parametrize(
    ("visible", "place", "devices", "chosen"),
    [
        (None, 5, 4, "1"),
        ("2,GPU-5f", 1, 2, "GPU-5f"),
        ("2", 1, 1, "2"),
        ("", 1, 0, ""),
        (None, 1, 1, None),
        (None, 1, 0, None),
        (None, None, 4, None),
    ],
)
def test_a_worker_sees_its_device_alone(
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    place: int | None,
    devices: int,
    chosen: str | None,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)  # of this very process
    ours, theirs = Pipe()
    ours.close()
    work(theirs, torch.get_num_threads(), place)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == chosen


def test_configs_are_resolved_each_for_itself() -> None:
    worker = Worker.__new__(Worker)
    worker.connection, theirs = Pipe()
    thread = Thread(target=_serve, args=(theirs,))
    thread.start()
    good, bad, again = worker.resolve([CONFIG, CONFIG | {"seed": "x"}, CONFIG])
    worker.connection.close()
    thread.join()
    assert isinstance(good, dict)
    assert (good["strategy"]["buffer_size"], again) == (200, good)
    assert isinstance(bad, UserError)
    assert str(bad) == "seed: 'x' is not valid: expected an integer"


def _serve(connection: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.signal, "signal", lambda *_: None)
        work(connection, torch.get_num_threads(), None)


def test_a_worker_that_dies_over_the_configs_is_one_line() -> None:
    worker = Worker(1, None)
    worker.process.kill()
    with pytest.raises(UserError, match=r"no run was started: its process died with exit code -9"):
        worker.resolve([CONFIG])


def test_a_run_that_ended_takes_no_memory(tmp_path: Path) -> None:
    config = resolve_config(CONFIG | {"stream": {"name": "SplitDigits", "keep_tasks": 1}})
    ours, theirs = Pipe()
    gc.collect()
    gc.disable()  # what is left shall not go by chance
    try:
        known = [x for x in gc.get_objects() if issubclass(type(x), Strategy)]
        ended = workers._learn(config, tmp_path / "run", PipeProgress(theirs))
        left = [x for x in gc.get_objects() if issubclass(type(x), Strategy)]
    finally:
        gc.enable()
    ours.close()
    assert ended == Ended("done")
    assert len(left) == len(known)

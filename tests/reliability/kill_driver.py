"""Runs one small experiment in forked children, kills them, resumes, and compares.

    python kill_driver.py FOLDER KILLS SEED

Prints one line per kill and leaves with 0 when every resumed run ended bit-identical to the
uninterrupted one. A script of its own, because a process with threads must not fork.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clearn.compare.report import write_report
from clearn.run.config import build_run, resolve_config

torch.set_num_threads(1)

CONFIG = {
    "strategy": {"name": "ER", "buffer_size": 50, "momentum": 0.9},
    "stream": {"name": "SplitDigits", "num_tasks": 3, "keep_tasks": 3},
    "net": {"name": "MLP", "hidden": [32]},
    "training": {"epochs": 3, "batch_size": 32, "chunk_size": 1, "checkpoint_minutes": 0.0},
    "loggers": [],
    "seed": 1,
}


def run(folder: Path) -> None:
    record = folder / "runs" / "ER" / "SplitDigits" / "order0-seed1"
    build_run(resolve_config(CONFIG), record, None).fit()
    write_report(folder)


def child(work: Callable[[], None], sabotage: Callable[[], None] = lambda: None) -> int:
    """Do the work in a forked child; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            sabotage()
            work()
        except BaseException as error:
            print(f"child failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def kill_after(seconds: float) -> Callable[[], None]:
    def arm() -> None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, seconds)

    return arm


def kill_at_call(name: str, count: int, *, before: bool) -> Callable[[], None]:
    """Die just before or after the given call of `os.<name>`: the edges of atomic writing."""

    def arm() -> None:
        original, left = getattr(os, name), [count]

        def counted(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(os, name, counted)

    return arm


def outcome(folder: Path) -> tuple[str, dict[str, Any]]:
    record = next((folder / "runs").glob("*/*/*"))
    assert (record / "metrics.json").is_file(), "the run did not finish"
    assert (folder / "report.html").is_file(), "the report was not written"
    newest = max((record / "checkpoints").glob("*.ckpt"))
    state = torch.load(newest, weights_only=True)
    kept = {name: state[name] for name in ("phase", "position", "strategy", "fit", "generators")}
    return (record / "matrix.csv").read_text(), kept


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(a == b)


def main(root: Path, kills: int, seed: int) -> int:
    started = time.monotonic()
    assert child(lambda: run(root / "whole")) == 0, "the uninterrupted run failed"
    seconds = time.monotonic() - started
    expected = outcome(root / "whole")
    draw = random.Random(seed)
    wrong = 0
    for index in range(kills):
        folder = root / f"killed{index}"
        if index % 2:
            moment = draw.uniform(0, 0.9 * seconds)
            how, sabotage = f"after {moment:.2f} s", kill_after(moment)
        else:
            name, count = draw.choice(["replace", "fsync"]), draw.randint(1, 60)
            before = draw.random() < 0.5
            how = f"{'before' if before else 'after'} call {count} of os.{name}"
            sabotage = kill_at_call(name, count, before=before)
        status = child(lambda: run(folder), sabotage)  # noqa: B023  (used at once)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        ended = child(lambda: run(folder))  # noqa: B023
        equal = ended == 0 and same(outcome(folder), expected)
        wrong += not equal
        print(f"{how}: {'killed' if killed else 'survived'}, {'same' if equal else 'DIFFERENT'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))

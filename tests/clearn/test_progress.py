"""What is shown of a run: live on a terminal, lines elsewhere, and the terminal given back."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from clearn.progress import (
    Clock,
    LiveProgress,
    NullProgress,
    PlainProgress,
    ProgressEvent,
    RunsProgress,
    describe,
    make_progress,
)

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def event(task: int = 0, done: float = 0.0, acc: float | None = None, **more: Any) -> ProgressEvent:
    given = {"tasks": 5, "epoch": 1, "epochs": 3, "examples_per_s": 12345.6} | more
    return ProgressEvent(task=task, done=done, acc=acc, **given)


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=100), out


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by the test."""
    time = [1000.0]
    monkeypatch.setattr("clearn.progress.time.monotonic", lambda: time[0])
    return time


def test_a_run_in_one_line() -> None:
    assert describe(event(task=1, acc=0.931)) == (
        "task 2/5, epoch 2/3, 12,346 examples/s, accuracy 93.1 %"
    )
    assert describe(event(epoch=3)) == "task 1/5, epoch 3/3, 12,346 examples/s"


@pytest.mark.parametrize(
    ("first", "later", "seconds", "left"),
    [
        (0.0, 0.5, 30, "0:30"),
        (0.8, 0.9, 60, "1:00"),  # resumed: what was done before cost nothing now
        (0.0, 0.01, 3600, "99:00:00"),
        (0.0, 1.0, 5, "0:00"),
        (0.3, 0.3, 5, "-:--"),
    ],
)
def test_time_left(first: float, later: float, seconds: float, left: str, now: list[float]) -> None:
    clock = Clock()
    clock.see(first)
    assert clock.left() == "-:--"
    now[0] += seconds
    clock.see(later)
    assert clock.left() == left


def test_plain_lines_come_after_evaluations_and_every_ten_seconds(now: list[float]) -> None:
    where, out = console(terminal=False)
    progress = PlainProgress(where)
    for second in range(40):  # two events a second, as the run loop sends them
        for _ in range(2):
            acc = None if second < 15 else 0.5
            progress.update(event(done=second / 100, acc=acc))
        now[0] += 1
    progress.close()
    lines = out.getvalue().splitlines()
    assert [line.split(", ")[-1] for line in lines] == [
        "-:-- left",  # at once
        "1:30 left",  # after 10 s, 10 % done
        "1:25 left",  # after 15 s, evaluated
        "1:15 left",
        "1:05 left",
    ]
    assert all(line.startswith("task 1/5, epoch 2/3, 12,346 examples/s") for line in lines)
    assert "\x1b" not in out.getvalue()


def test_plain_lines_are_not_wrapped_or_styled() -> None:
    where, out = console(terminal=False)
    PlainProgress(where).message("resumed [bold]" + "x" * 200)
    assert out.getvalue() == "resumed [bold]" + "x" * 200 + "\n"


def test_live_line_is_shown_and_the_terminal_given_back() -> None:
    where, out = console(terminal=True)
    progress = LiveProgress(where)
    assert out.getvalue() == ""
    try:
        progress.update(event(task=1, done=0.25, acc=0.5))
        progress.message("resumed at task 1 [dim]")
    finally:  # as the run loop does, whatever happens
        progress.close()
        progress.close()
    text = out.getvalue()
    assert text.count(HIDE) == text.count(SHOW) == 1
    assert text.index(HIDE) < text.index(SHOW)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "task 2/5, epoch 2/3, 12,346 examples/s, accuracy 50.0 %" in plain
    assert "25%" in plain
    assert "resumed at task 1 [dim]" in plain


def test_several_runs_on_a_terminal() -> None:
    where, out = console(terminal=True)
    progress = RunsProgress(3, done=1, console=where)
    progress.update("ER/[x]/seed0", event(done=0.5, acc=0.25))
    progress.update("Naive/s/seed0", event(task=4, done=0.9))
    progress.message("hello")
    progress.finish("Naive/s/seed0")
    progress.close()
    text = out.getvalue()
    assert text.count(HIDE) == text.count(SHOW) == 1
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "2/3  Naive/s/seed0: finished" in plain
    assert "1 of 3 runs done" in plain
    assert re.search(r"ER/\[x\]/seed0 .* 1/5 +2/3 +25\.0 % +12,346 ", plain)


def test_several_runs_in_lines(now: list[float]) -> None:
    where, out = console(terminal=False)
    progress = RunsProgress(3, console=where)
    for second in range(25):
        for label in ("a", "b"):
            progress.update(label, event(done=second / 50, acc=0.5))
        now[0] += 1
    progress.finish("a")
    progress.finish("b", "failed: loss is nan")
    progress.finish("c", "finished by another process")
    progress.close()
    lines = out.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["a", "b"] * 2
    assert lines[4:] == [
        "1/3  a: finished, accuracy 50.0 %",
        "2/3  b: failed: loss is nan, accuracy 50.0 %",
        "3/3  c: finished by another process",
    ]


def test_the_kind_that_suits_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("TERM", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(make_progress(), PlainProgress)
    monkeypatch.setattr("sys.stderr", Terminal())
    assert isinstance(make_progress(), LiveProgress)


def test_nothing_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress = NullProgress()
    progress.update(event())
    progress.message("x")
    progress.close()
    assert capfd.readouterr() == ("", "")

"""SIGTERM and SIGINT become a wish to stop, which the run loop grants at the next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop; its record can be resumed.

    Attributes:
        signum: The signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; the record can be resumed")
        self.signum = signum


class StopRequest:
    """Set by a signal, asked for by the run loop."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Take a signal down; a second Ctrl-C is granted at once."""
        if self.signum == signal.SIGINT == signum:
            raise KeyboardInterrupt
        self.signum = signum

    def listen(self) -> dict[int, Any]:
        """Become the handler of SIGTERM and SIGINT; returns the handlers there were.

        Python lets only the main thread set handlers; in any other the request is never set.
        """
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {signum: signal.signal(signum, self) for signum in (signal.SIGTERM, signal.SIGINT)}

    def raise_if_set(self) -> None:
        """Leave the run.

        Raises:
            Interrupted: A signal has come.
        """
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a `StopRequest` inside the block."""
    request = StopRequest()
    previous = request.listen()
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

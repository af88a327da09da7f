"""The processes of a comparison: each learns the runs it is sent, one after the other."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from clearn.compare.experiment import Cell
from clearn.progress import ProgressEvent

Outcome = Literal["done", "failed", "in use", "stopped", "died"]


class Ended(NamedTuple):
    """How a run ended, and in one line why."""

    outcome: Outcome
    reason: str = ""


Said = ProgressEvent | str | Ended


class Worker:
    """A process that learns one run at a time.

    Args:
        threads: Threads of torch in the process.
    """

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, threads))
        with _interrupts_ignored():
            self.process.start()
        theirs.close()
        self.cell: Cell | None = None

    def start(self, cell: Cell, config: Mapping[str, Any]) -> None:
        """Have a run learnt; its config is resolved."""
        self.cell = cell
        with suppress(OSError):  # a dead process is found when it is listened to
            self.connection.send((dict(config), cell.folder))

    def receive(self) -> Said:
        """What the process says next; if it has died, that its run failed."""
        try:
            said: Said = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Ended("died", f"its process died with exit code {self.process.exitcode}")
        return said


class Workers:
    """So many workers, replaced when they die, ended with the block.

    Args:
        count: Processes at a time.
        threads: Threads of torch in each process.
    """

    def __init__(self, count: int, threads: int) -> None:
        self._threads = threads
        self._workers = [Worker(threads) for _ in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, error: object, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.connection.close()
            if kind is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join()

    @property
    def idle(self) -> list[Worker]:
        """Workers without a run."""
        return [worker for worker in self._workers if worker.cell is None]

    @property
    def busy(self) -> list[Worker]:
        """Workers with a run."""
        return [worker for worker in self._workers if worker.cell is not None]

    def listen(self, seconds: float) -> list[tuple[Worker, Said]]:
        """What busy workers say within that time, at most one thing each."""
        busy = self.busy
        ready = wait([worker.connection for worker in busy], seconds)
        return [(worker, worker.receive()) for worker in busy if worker.connection in ready]

    def replace(self, worker: Worker) -> None:
        """Put a new process in the place of a dead one."""
        self._workers[self._workers.index(worker)] = Worker(self._threads)

    def terminate(self) -> None:
        """Ask every run to write its checkpoint and end."""
        for worker in self._workers:
            worker.process.terminate()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C inside the block, and in processes started there, from their first moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class PipeProgress:
    """Tells the parent process how the run goes.

    A parent that is gone is like a wish to stop: the run writes its checkpoint and ends, instead
    of going on where nobody sees it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def update(self, event: ProgressEvent) -> None:
        """Send where the run stands."""
        self._send(event)

    def message(self, text: str) -> None:
        """Send one line."""
        self._send(text)

    def close(self) -> None:
        """Nothing to give back."""

    def _send(self, value: object) -> None:
        try:
            self._connection.send(value)
        except OSError:
            os.kill(os.getpid(), signal.SIGTERM)


def work(connection: Connection, threads: int) -> None:
    """Learn the `(config, folder)` pairs that come, until the parent closes the connection.

    Sends `ProgressEvent`s, lines of text, and one `Ended` for each pair. What a run prints, and
    the traceback of an error that is not the user's, goes to `<record>.log`.

    Args:
        connection: To the parent process.
        threads: Threads of torch.
    """
    # Ctrl-C reaches every process of the terminal; the parent passes it on as SIGTERM. A run sets
    # handlers of its own while it trains.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    import clearn.run.config  # noqa: F401  (while the parent checks the experiment)

    torch.set_num_threads(threads)
    while True:
        try:
            config, folder = connection.recv()
        except EOFError:
            return
        _print_to(folder.with_name(f"{folder.name}.log"))
        ended = _learn(config, folder, PipeProgress(connection))
        try:
            connection.send(ended)
        except OSError:
            return


def _learn(config: Mapping[str, Any], folder: Path, progress: PipeProgress) -> Ended:
    from clearn.errors import UserError
    from clearn.record import RecordInUse
    from clearn.run import Interrupted
    from clearn.run.config import build_run

    try:
        build_run(config, folder, progress).fit()
    except RecordInUse:
        return Ended("in use")
    except (Interrupted, KeyboardInterrupt):
        return Ended("stopped")
    except UserError as error:
        return Ended("failed", str(error))
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        return Ended("failed", f"{type(error).__name__}: {first} (see {folder}.log)")
    return Ended("done")


def _print_to(path: Path) -> None:
    """Append all that this process and its children print to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable(2)

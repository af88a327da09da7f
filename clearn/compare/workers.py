"""The processes of a comparison: each learns the runs it is sent, one after the other."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from clearn.compare.experiment import Cell
from clearn.errors import UserError
from clearn.progress import ProgressEvent
from clearn.record import RecordInUse
from clearn.run.signals import Interrupted

Outcome = Literal["done", "failed", "in use", "stopped", "died"]


class Ended(NamedTuple):
    """How a run ended, and in one line why."""

    outcome: Outcome
    reason: str = ""


Said = ProgressEvent | str | Ended
Resolved = dict[str, Any] | UserError


class Worker:
    """A process that learns one run at a time.

    Args:
        threads: Threads of torch in the process.
        place: Of the process among all; None leaves the choice of a CUDA device to the runs.
    """

    def __init__(self, threads: int, place: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, threads, place))
        with _interrupts_ignored():
            self.process.start()
        theirs.close()
        self.place = place
        self.cell: Cell | None = None

    def resolve(self, configs: Sequence[Mapping[str, Any]]) -> list[Resolved]:
        """What `resolve` says in the process, which has imported what that needs.

        Raises:
            UserError: The process died over it.
        """
        with suppress(OSError):
            self.connection.send(list(configs))
        said = self.receive()
        if isinstance(said, Ended):
            raise UserError(f"no run was started: {said.reason}")
        assert isinstance(said, list), "an idle worker speaks of nothing else"
        return said

    def start(self, cell: Cell, config: Mapping[str, Any]) -> None:
        """Have a run learnt; its config is resolved."""
        self.cell = cell
        with suppress(OSError):  # a dead process is found when it is listened to
            self.connection.send((dict(config), cell.folder))

    def receive(self) -> Any:
        """What the process says next; if it has died, that its run failed."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Ended("died", f"its process died with exit code {self.process.exitcode}")


class Workers:
    """So many workers, replaced when they die, ended with the block.

    Args:
        count: Processes at a time.
        threads: Threads of torch in each process.
        spread: Over the CUDA devices, where there are several; else the runs choose theirs.
    """

    def __init__(self, count: int, threads: int, *, spread: bool) -> None:
        self._threads = threads
        self._workers = [Worker(threads, k if spread else None) for k in range(count)]

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
        self._workers[self._workers.index(worker)] = Worker(self._threads, worker.place)

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


def own_device(place: int, devices: Sequence[str]) -> str | None:
    """Which of several devices the worker at a place uses, round robin; None when all use one."""
    return devices[place % len(devices)] if len(devices) > 1 else None


def work(connection: Connection, threads: int, place: int | None) -> None:
    """Learn the `(config, folder)` pairs that come, until the parent closes the connection.

    Sends `ProgressEvent`s, lines of text, and one `Ended` for each pair. What a run prints, and
    the traceback of an error that is not the user's, goes to `<record>.log`. For a list of configs
    that comes, sends a list of each resolved or the `UserError` that names what is wrong.

    Args:
        connection: To the parent process.
        threads: Threads of torch.
        place: Of this process among the workers, to choose a CUDA device by, or None.
    """
    # Ctrl-C reaches every process of the terminal; the parent passes it on as SIGTERM. A run sets
    # handlers of its own while it trains.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    import clearn.run.config  # noqa: F401  (before there is anything to do)

    torch.set_num_threads(threads)
    if place is not None:
        _use_own_device(place)
    with suppress(EOFError, ConnectionError):  # when the parent is gone
        while True:
            asked = connection.recv()
            if isinstance(asked, list):
                connection.send(resolve(asked))
            else:
                config, folder = asked
                _print_to(folder.with_name(f"{folder.name}.log"))
                connection.send(_learn(config, folder, PipeProgress(connection)))


def _use_own_device(place: int) -> None:
    """Hide all CUDA devices but one from this process, which has not used any yet."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = map(str, range(torch.cuda.device_count()))
    device = own_device(place, list(every) if given is None else given.split(","))
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def resolve(configs: Sequence[Mapping[str, Any]]) -> list[Resolved]:
    """Each config resolved, or what is wrong with it."""
    from clearn.run.config import resolve_config

    def answer(config: Mapping[str, Any]) -> Resolved:
        try:
            return resolve_config(config)
        except UserError as error:
            return error

    return list(map(answer, configs))


def _learn(config: Mapping[str, Any], folder: Path, progress: PipeProgress) -> Ended:
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
    finally:
        # Net, stream and trainer refer to each other, and the few objects of a run are too few for
        # Python to look for such circles by itself: it would keep the memory of every run.
        gc.collect()
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

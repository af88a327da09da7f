"""The record: the folder a run writes. Its plain files are the truth; trackers mirror them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import yaml

from clearn.environment import environment
from clearn.errors import UserError
from clearn.files import cannot_write, write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clearn.progress import ProgressEvent
    from clearn.tracking import Position

_COLUMNS = ("task", "epoch", "step", "examples_seen", "name", "value")


class RecordInUse(UserError):
    """Another process writes the record at this moment."""


class StepLog:
    """What was logged while training, one value a line, in a file that only grows.

    A checkpoint keeps the size the file had (`flush`); a resumed run cuts the file back to it
    (`truncate`) and continues, so that it ends up equal to that of an uninterrupted run.

    Args:
        path: The file; made by the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, position: Position, metrics: Mapping[str, float]) -> None:
        """Append one line per metric.

        Raises:
            UserError: The file cannot be written.
        """
        here = (position.task, position.epoch, position.step, position.examples_seen)
        text = io.StringIO()
        rows = ((*here, name, repr(float(value))) for name, value in metrics.items())
        csv.writer(text, lineterminator="\n").writerows(rows)
        with self._open() as file:
            _write(file, text.getvalue())

    def flush(self) -> int:
        """Bring all lines to the disk; returns the size of the file in bytes.

        Raises:
            UserError: The disk is full.
        """
        with self._open() as file:
            os.fsync(file.fileno())
            return file.tell()

    def truncate(self, offset: int) -> None:
        """Cut the file back to `offset` bytes, or to its header with 0."""
        if offset == 0:
            self.path.unlink(missing_ok=True)
        with self._open() as file:
            if file.tell() < offset:
                warnings.warn(
                    f"{self.path} is shorter than when the checkpoint was written; lines are lost",
                    stacklevel=2,
                )
            elif offset > 0:
                file.truncate(offset)

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        """The file, at its end."""
        try:
            with self.path.open("ab", buffering=0) as file:
                if file.seek(0, os.SEEK_END) == 0:
                    _write(file, ",".join(_COLUMNS) + "\n")
                yield file
        except OSError as error:
            raise cannot_write(self.path.parent, error) from error


def _write(file: IO[bytes], text: str) -> None:
    """Write all of it; a disk about to be full takes a part before it refuses."""
    data = memoryview(text.encode())
    while data:
        data = data[file.write(data) :]


class Record:
    """The folder of one run.

    | file | content |
    |---|---|
    | config.yaml | the configuration, fully resolved |
    | environment.json | versions, device, commit |
    | steps.csv | what was logged while training |
    | matrix.csv | the accuracy matrix, a row per task learned, empty where not evaluated |
    | bytes.json | bytes stored by kind, after each task |
    | status.json | where the run stands, for other processes |
    | checkpoints/ | what a resumed run continues from |
    | metrics.json | the summary and all that was measured; written last, so it means finished |

    Args:
        folder: The folder; made by `lock`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps = StepLog(folder / "steps.csv")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from running into the same folder inside the block.

        Raises:
            RecordInUse: Another process holds it.
            UserError: The folder cannot be written to.
        """
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire(blocking=False)
        except Timeout:
            raise RecordInUse(
                f"folder: {self.folder} is in use by another process; wait for it to end, or name "
                "another folder"
            ) from None
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self._finished() is not None

    @property
    def config(self) -> dict[str, Any]:
        """The configuration the record was created with.

        Raises:
            UserError: There is no record in the folder.
        """
        path = self.folder / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("not a mapping")
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(
                f"folder: {self.folder} holds no record: config.yaml is missing or unreadable; "
                "name a folder that `clearn run` wrote"
            ) from error
        return config

    @property
    def threads(self) -> int | None:
        """Threads of torch that the run was begun with; None when the record does not say."""
        try:
            threads = json.loads((self.folder / "environment.json").read_text())["threads"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return threads if isinstance(threads, int) and threads >= 1 else None

    def create(self, config: Mapping[str, Any]) -> None:
        """Begin the record, or go on with one that was begun with an equal configuration.

        Raises:
            UserError: The folder holds something else, or cannot be written to.
        """
        config = _plain(config)
        _refuse_secrets(config.get("loggers"), "loggers")
        if (self.folder / "config.yaml").exists():
            self._refuse_other(config)
        else:
            self._refuse_foreign()
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            write_atomic(self.folder / "config.yaml", text)
        if not (self.folder / "environment.json").exists():
            precision = str((config.get("trainer") or {}).get("precision") or "32-true")
            content = environment() | {"precision": precision}
            write_atomic(self.folder / "environment.json", to_json(content))

    def _refuse_other(self, config: Mapping[str, Any]) -> None:
        difference = _first_difference(self.config, config)
        if difference is not None:
            difference = _first_difference(_completed(self.config), config)
        if difference is not None:
            name, kept, asked = difference
            raise UserError(
                f"{name}: {asked} differs from {kept} in the record {self.folder}; give the "
                "same value to continue that run, or name another folder"
            )

    def _refuse_foreign(self) -> None:
        """What lies in a folder without a configuration is someone else's."""
        foreign = [path.name for path in self.folder.glob("*") if not path.name.startswith(".")]
        if foreign:
            raise UserError(
                f"folder: {self.folder} is not empty and holds no record (it has {foreign[0]}); "
                "name another folder"
            )

    def write_matrix(self, matrix: NDArray[np.float64]) -> None:
        """Keep the accuracy matrix `[T, T]`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["after_task", *(f"task_{j}" for j in range(matrix.shape[1]))])
        for index, row in enumerate(matrix.tolist()):
            writer.writerow([index, *("" if math.isnan(value) else repr(value) for value in row)])
        write_atomic(self.folder / "matrix.csv", text.getvalue())

    def write_bytes(self, bytes_stored: Sequence[Mapping[str, int]]) -> None:
        """Keep the bytes stored by kind, after each task so far."""
        write_atomic(self.folder / "bytes.json", to_json(list(bytes_stored)))

    def write_status(self, event: ProgressEvent) -> None:
        """Tell other processes where the run stands; what cannot be written is left out."""
        temporary = self.folder / ".status.json.tmp"
        try:
            temporary.write_text(to_json(asdict(event)))
            os.replace(temporary, self.folder / "status.json")
        except OSError:
            return

    def finish(self, metrics: Mapping[str, float], result: Mapping[str, Any]) -> None:
        """Mark the record as finished.

        Args:
            metrics: The summary.
            result: The state of `clearn.run.Result`.
        """
        write_atomic(
            self.folder / "metrics.json",
            to_json({"metrics": dict(metrics), "result": dict(result)}),
        )

    def load_metrics(self) -> dict[str, float]:
        """The summary of a finished record; NaN where undefined."""
        return cast("dict[str, float]", self._load()["metrics"])

    def load_result(self) -> dict[str, Any]:
        """The state of `clearn.run.Result` of a finished record."""
        return cast("dict[str, Any]", self._load()["result"])

    def _load(self) -> dict[str, Any]:
        content = self._finished()
        if content is None:
            raise UserError(
                f"folder: {self.folder} holds no finished record; finish it: clearn resume "
                f"{self.folder}"
            )
        return cast("dict[str, Any]", _with_nan(content))

    def _finished(self) -> dict[str, Any] | None:
        content = _load_json(self.folder / "metrics.json")
        return content if content is not None and {"metrics", "result"} <= content.keys() else None


def to_json(value: Any) -> str:
    """Strict JSON, with null for NaN and infinities, which JSON cannot say."""
    return json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n"


def _load_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    """The same in types that YAML reads back equal."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


# Names of options that hold a secret or say where a service is.
_SECRET = re.compile(r"key|token|password|secret|host|url|uri", re.IGNORECASE)


def _refuse_secrets(value: Any, field: str) -> None:
    """A logger's keys and addresses come from its service's environment variables."""
    if isinstance(value, dict):
        for name, item in value.items():
            text = item if isinstance(item, str) and not item.startswith("file:") else ""
            if "://" in text or (text and _SECRET.search(name)):
                raise UserError(
                    f"{field}.{name}: a record keeps no key, token or address of a service; set "
                    "it through the service's environment variables and leave it out here"
                )
            _refuse_secrets(item, f"{field}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_secrets(item, f"{field}.{index}")


_MISSING = object()


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the defaults of options that came after its record was made."""
    from clearn.run.config import resolve_config  # which imports this module

    try:
        return resolve_config(config)
    except UserError:  # of another version, or of a caller's own making
        return config


def _first_difference(kept: Any, asked: Any, field: str = "") -> tuple[str, str, str] | None:
    """Dotted name and both values, in words, of the first field that differs."""
    if isinstance(kept, dict) and isinstance(asked, dict):
        for key in [*kept, *(key for key in asked if key not in kept)]:
            name = f"{field}.{key}" if field else key
            found = _first_difference(kept.get(key, _MISSING), asked.get(key, _MISSING), name)
            if found is not None:
                return found
        return None
    if kept == asked:
        return None
    shown = ["nothing" if value is _MISSING else repr(value) for value in (kept, asked)]
    return field, shown[0], shown[1]

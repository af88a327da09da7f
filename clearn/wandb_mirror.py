"""The W&B mirror of a run, through Lightning's logger."""

from __future__ import annotations

import io
import json
import netrc
import os
import secrets
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger

from clearn.figures import draw_matrix
from clearn.files import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clearn.chart import Chart

# Against what W&B draws each group of metrics.
_AXES = {
    "train/*": "examples_seen",
    "valid/*": "examples_seen",
    "test/*": "task",
    "matrix/*": "task",
    "charts/*": "task",
}
_AXIS_NAMES = {"task", "epoch", "examples_seen"}

_SERVICE_SECONDS = 120.0  # that W&B's service may take to start on a busy machine

# Quiet, quick to start, and silent about the machine and its user.
_SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "host": "",
    "init_timeout": 30.0,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_viewer": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1.0,  # seconds of rows that a killed run may lose
}


class WandbMirror(WandbLogger):
    """One W&B run for one run.

    Offline unless the user is logged in to W&B or WANDB_MODE says otherwise. The run's id is kept
    in the record (wandb.json), so that a resumed run continues it.

    Args:
        folder: The record, or None without one; W&B's files go to its folder `wandb`, else to
            that of the working directory.
        name: The run's name.
        group: The experiment it belongs to.
        config: The run's configuration.
        project: W&B's project; $WANDB_PROJECT or "clearn" when None.
        entity: The user or team it belongs to; W&B's default when None.
        tags: Labels; by default the names of the stream and its scenario.
        mode: "online" or "offline", instead of the rule above.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        name: str,
        group: str | None,
        config: Mapping[str, Any],
        project: str | None = None,
        entity: str | None = None,
        tags: list[str] | None = None,
        mode: str | None = None,
    ) -> None:
        project = project or os.environ.get("WANDB_PROJECT") or "clearn"
        super().__init__(name=name, save_dir=folder or ".", project=project)
        strategy, stream = config.get("strategy") or {}, config.get("stream") or {}
        if tags is None:
            tags = [stream[key] for key in ("name", "scenario") if stream.get(key)]
        self._folder = folder
        self._mode = mode
        self._step: int | None = None
        self._defined: set[str] = set()
        self._init: dict[str, Any] = {
            "name": name,
            "group": group,
            "project": project,
            "entity": entity,
            "tags": tags,
            "job_type": strategy.get("name"),
            "config": dict(config),
            "dir": str(folder or "."),
        }

    def begin(self) -> None:
        """Begin W&B's run, or go on with the one this record has begun.

        When the service does not answer, the run is kept offline, with a warning.
        """
        import wandb

        patient = wandb.Settings(x_service_wait=_SERVICE_SECONDS, silent=True)
        mode = self._mode or default_mode(wandb.setup(patient).settings)
        try:
            run = self._start(mode)
        except wandb.errors.CommError as error:
            if mode == "offline":
                raise
            warnings.warn(
                f"W&B does not answer, so this run is kept offline; send it later: wandb sync "
                f"{self._init['dir']}/wandb/offline-run-* ({first_line(error)})",
                stacklevel=2,
            )
            wandb.teardown()  # its service holds the run's id until it ends
            run = self._start("offline")
        for axis in sorted(_AXIS_NAMES):
            run.define_metric(axis, hidden=True)
        for pattern, axis in _AXES.items():
            run.define_metric(pattern, step_metric=axis)
        self._experiment = run

    def _start(self, mode: Any) -> Any:
        import wandb

        known = wandb.Settings.model_fields  # older versions know fewer
        settings = {key: value for key, value in _SETTINGS.items() if key in known}
        return wandb.init(
            **self._init,
            id=self._run_id(),
            resume="allow",
            mode=mode,
            reinit="create_new",  # the user may have a run of their own
            settings=wandb.Settings(**settings),
        )

    @property
    def experiment(self) -> Any:
        """W&B's run, begun by the first use."""
        if self._experiment is None:
            self.begin()
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values at the run's step.

        W&B merges what has the same step into one row, which keeps the axes it began with: what
        follows the last evaluation of a task must not move its accuracy to the next task.
        """
        run = self.experiment
        if step is not None and step == self._step:
            metrics = {name: value for name, value in metrics.items() if name not in _AXIS_NAMES}
        self._step = step
        for name in metrics:
            group = f"{name.partition('/')[0]}/*"
            if not (name in self._defined or group in _AXES or name in _AXIS_NAMES):
                run.define_metric(name, step_metric="examples_seen")
            self._defined.add(name)
        run.log(dict(metrics), step=step)

    def log_matrix(self, matrix: NDArray[np.float64], step: int, axes: Mapping[str, int]) -> None:
        """Log the accuracy matrix as a table and as an image."""
        import wandb
        from PIL import Image

        png = io.BytesIO()
        draw_matrix(matrix, str(self._init["name"])).savefig(png, format="png", dpi=150)
        shown = {
            "matrix/table": _table(["after task", *_tasks(len(matrix))], matrix.tolist()),
            "matrix/image": wandb.Image(Image.open(png)),
        }
        self.log_metrics(shown | dict(axes), step)

    def log_charts(self, charts: Mapping[str, Chart], step: int) -> None:
        """Log each of the strategy's own charts as a table with a row per task."""
        tables = {}
        for name, chart in charts.items():
            if isinstance(chart, Mapping):
                table = _table(["task", *chart], list(zip(*chart.values(), strict=True)))
            else:
                table = _table(["task", *_tasks(len(chart))], chart)
            tables[f"charts/{name}"] = table
        self.log_metrics(tables, step)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Put the summary of a finished run where W&B's tables of runs show it."""
        self.experiment.summary.update(dict(metrics))

    def log_checkpoint(self, path: Path) -> None:
        """Keep a checkpoint as an artifact; W&B reads the file in place when it uploads."""
        import wandb

        artifact = wandb.Artifact(f"checkpoint-{self.experiment.id}", type="model")
        artifact.add_file(str(path), name="final.ckpt", policy="immutable", skip_cache=True)
        self.experiment.log_artifact(artifact)

    def log_file(self, path: Path) -> None:
        """Keep a file that the strategy wrote (an archive of masks, say) as an artifact."""
        import wandb

        artifact = wandb.Artifact(f"{path.stem}-{self.experiment.id}", type="export")
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.experiment.log_artifact(artifact)

    def close(self, status: str) -> None:
        """End W&B's run, if it has begun.

        Its debug logs leave the record: they name the service's host and folders of this machine.
        """
        try:
            if self._experiment is not None:
                self._experiment.finish(exit_code=0 if status == "success" else 1)
        finally:
            if self._folder is not None:
                for path in (self._folder / "wandb").glob("*/logs"):
                    shutil.rmtree(path, ignore_errors=True)
                for path in (self._folder / "wandb").glob("debug*.log"):
                    path.unlink(missing_ok=True)

    def _run_id(self) -> str:
        run_id = secrets.token_hex(4)
        if self._folder is None:
            return run_id
        path = self._folder / "wandb.json"
        if path.exists():
            return str(json.loads(path.read_text())["id"])
        write_atomic(path, json.dumps({"id": run_id}) + "\n")
        return run_id


def _tasks(count: int) -> list[str]:
    return [f"task {j}" for j in range(count)]


def _table(columns: Sequence[str], rows: Sequence[Sequence[float]]) -> Any:
    """A W&B table with a row per task, which its first column counts; empty cells for NaN."""
    import wandb

    data: list[Any] = [[i, *(x if x == x else None for x in row)] for i, row in enumerate(rows)]
    return wandb.Table(columns=list(columns), data=data)


def first_line(error: Exception) -> str:
    """What went wrong, without the lines after it that give the service's address."""
    return (str(error).splitlines() or [""])[0]


def default_mode(settings: Any) -> str | None:
    """None, which leaves it to W&B, when the user chose a mode or is logged in; else offline.

    Args:
        settings: `wandb.setup().settings`.
    """
    chosen = "WANDB_MODE" in os.environ or settings.mode != "online"
    return None if chosen or _logged_in(settings) else "offline"


def _logged_in(settings: Any) -> bool:
    if settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(settings.base_url).hostname or ""
    paths = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    return any(_knows(Path(path).expanduser(), host) for path in paths)


def _knows(path: Path, host: str) -> bool:
    """Whether a netrc file has an entry for `host`."""
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False

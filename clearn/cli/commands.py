"""The commands. Their signatures and docstrings are their arguments and help."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from clearn.compare import Experiment

DEFAULTS = {"strategy": "ER", "stream": "SplitDigits", "net": "MLP"}
"""What `clearn run` runs when neither a flag nor a file says anything else."""


def run(config: Path | None = None, folder: Path | None = None, **fields: Any) -> int:
    """Learn one stream with one strategy, and keep a record.

    Without arguments ER learns SplitDigits. A flag has the name of its field in a YAML file:
    --strategy.lr 0.5 is `strategy: {lr: 0.5}`, and --strategy ER is `strategy: {name: ER}`.
    The options below are those of the parts chosen: add --strategy, --stream or --net to see
    those of others. What was interrupted continues when the same command is given again.

    Args:
        config: YAML file with the fields; flags override it. A record's config.yaml is one. Naming
            another strategy, stream or net than the file leaves the file's options of the old one
            behind. Of an experiment's file one run is made: the first, or the first with the labels
            and the seed that --strategy, --stream and --seed name; `clearn compare` finds it done.
        folder: The record. Default: runs/<strategy>-<stream>-seed<k> in the current folder, with a
            number behind when that holds a run of other settings.
        **fields: The groups below.
    """
    from clearn.compare.experiment import is_experiment
    from clearn.fields import read_yaml
    from clearn.run.config import resolve_config

    given = read_yaml(config) if config else DEFAULTS
    if config and is_experiment(given):
        return _run_cell(config, folder, fields)
    resolved = resolve_config(_merge(given, fields))
    return _fit(resolved, folder or _own_folder(resolved))


def compare(experiment: Path, jobs: int | None = None, folder: Path | None = None) -> int:
    """Run a grid of strategies, streams and seeds, and report on it.

    Finished runs are skipped and broken ones resumed.

    Args:
        experiment: YAML file that names the runs.
        jobs: Runs at a time. Default: as many as the cores allow.
        folder: Where the results go. Default: results/a/b for experiments/a/b.yaml, elsewhere
            results/<name of the file> in the current folder.
    """
    from clearn.cli.show import print_comparison
    from clearn.compare import run_experiment

    def work() -> int:
        print_comparison(run_experiment(experiment, jobs=jobs, folder=folder))
        return 0

    return _stoppable(work, "the same command")


def resume(folder: Path) -> int:
    """Continue what was interrupted: one run, or all runs under a folder.

    Args:
        folder: A record, the results folder of an experiment, or any folder of records.
    """
    from clearn.errors import UserError
    from clearn.record import Record

    if (folder / "experiment.yaml").exists():
        return compare(folder / "experiment.yaml", folder=folder)
    if (folder / "config.yaml").exists():
        return _fit(Record(folder).config, folder)
    found = {path.parent for path in folder.rglob("config.yaml")}
    # Trackers keep files of that name inside a record.
    records = [Record(path) for path in sorted(found) if found.isdisjoint(path.parents)]
    if not records:
        raise UserError(
            f"folder: {folder} holds no record (no config.yaml in it or below); name a folder that "
            "`clearn run` or `clearn compare` wrote"
        )
    unfinished = [record for record in records if not record.finished]
    print(f"{len(records)} records, {len(unfinished)} of them to finish")
    failed = {}
    for record in unfinished:
        try:
            if code := _fit(record.config, record.folder):
                return code
        except UserError as error:  # noqa: PERF203 - of one run; the others go on
            failed[record.folder] = error
    if failed:
        reasons = "; ".join(f"{path}: {error}" for path, error in failed.items())
        raise UserError(f"{len(failed)} of {len(unfinished)} runs failed: {reasons}")
    return 0


def report(folder: Path) -> int:
    """Write tables, figures and report.html on the records under a folder.

    Args:
        folder: The results folder of an experiment.
    """
    from clearn.cli.show import print_comparison
    from clearn.compare.report import write_report

    write_report(folder)
    print_comparison(folder)
    return 0


def list_names(kind: Literal["strategies", "streams", "nets"]) -> int:
    """List the strategies, streams or nets that can be named.

    Args:
        kind: strategies, streams or nets.
    """
    from clearn.cli.show import print_names

    print_names(kind)
    return 0


def masks(action: Literal["info", "capacity"], file: Path, figure: Path | None = None) -> int:
    """Show what a mask archive holds, the bytes it takes, and how they grew with the tasks.

    info: bytes of each tensor raw (one bit per weight and task), as coded in the file, and as the
    entropy of the symbols asks for. capacity: after each task the weights that are used, and the
    CAP of the net in the four ways to count masks.

    Args:
        action: info or capacity.
        file: The archive.
        figure: Where to draw the capacity: a file that ends in .svg or .png.
    """
    from clearn.cli.masks import print_archive, print_capacity
    from clearn.errors import UserError

    if action == "capacity":
        print_capacity(file, figure)
    elif figure is None:
        print_archive(file)
    else:
        raise UserError(f"figure: {figure} is not drawn by info; leave it out, or ask for capacity")
    return 0


def doctor() -> int:
    """Check versions, devices, data, tracker and disk, and say what to do."""
    from clearn.cli.doctor import examine

    return examine()


COMMANDS: dict[str, Callable[..., int]] = {
    "run": run,
    "compare": compare,
    "resume": resume,
    "report": report,
    "list": list_names,
    "masks": masks,
    "doctor": doctor,
}


def _merge(given: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file with flags over them."""
    merged = dict(given)
    for field, value in flags.items():
        old = merged.get(field) or {}
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {"name": old}
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            same = value.get("name") in (None, old.get("name"))
            value = {**old, **value} if same else value
        merged[field] = value
    return merged


def _run_cell(path: Path, folder: Path | None, flags: Mapping[str, Any]) -> int:
    """One run of an experiment; with flags that change it, a run of its own like it."""
    import torch

    from clearn.compare import read_experiment
    from clearn.run.config import resolve_config

    experiment = read_experiment(path)
    options = {part: dict(flags.get(part, {})) for part in ("strategy", "stream")}
    labels = {part: given.pop("name", None) for part, given in options.items()}
    cell = experiment.cell(**labels, seed=flags.get("seed"))
    changes = {field: flags[field] for field in flags if field not in (*labels, "seed")}
    changes |= {part: given for part, given in options.items() if given}
    config = cell.config if not changes else _merge(cell.config | {"experiment": None}, changes)
    resolved = resolve_config(config)
    print(f"{cell}{', changed' if changes else ''}: {_others(experiment)}", file=sys.stderr)
    torch.set_num_threads(experiment.threads)  # as `clearn compare`, for the same numbers
    return _fit(resolved, folder or (_own_folder(resolved) if changes else cell.folder))


def _others(experiment: Experiment) -> str:
    """Which run this is one of, and how to choose another."""
    axes = {
        "--strategy": experiment.strategies,
        "--stream": experiment.streams,
        "--seed": experiment.seeds,
    }
    named = [f"{flag} ({', '.join(map(str, of))})" for flag, of in axes.items() if len(of) > 1]
    runs = len(experiment.cells)
    chosen_by = f"; choose by {', '.join(named)}" if named else ""
    return f"one of {runs} run{'s' * (runs > 1)} of {experiment.path}{chosen_by}"


def _own_folder(config: Mapping[str, Any]) -> Path:
    """The first default folder that is free or holds this very run."""
    from clearn.record import Record
    from clearn.run.config import run_name

    for number in count(1):
        folder = Path("runs") / (run_name(config) + (f"-{number}" if number > 1 else ""))
        if not (folder / "config.yaml").exists() or Record(folder).config == config:
            return folder
    raise AssertionError


def _fit(config: Mapping[str, Any], folder: Path) -> int:
    import torch

    from clearn.cli.show import print_result
    from clearn.progress import make_progress
    from clearn.record import Record
    from clearn.run.config import build_run

    if (threads := Record(folder).threads) is not None:
        torch.set_num_threads(threads)  # as the run was begun, for the same numbers

    def work() -> int:
        run = build_run(config, folder, make_progress())
        if run.record is not None and run.record.finished:
            print("the record is finished; nothing is left to run", file=sys.stderr)
        print_result(run.fit())
        return 0

    return _stoppable(work, f"clearn resume {folder}")


def _stoppable(work: Callable[[], int], again: str) -> int:
    from clearn.run.signals import Interrupted

    try:
        return work()
    except Interrupted as stop:
        print(f"clearn: {stop}, with: {again}", file=sys.stderr)
        return 128 + stop.signum

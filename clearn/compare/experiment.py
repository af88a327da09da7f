"""An experiment: a YAML file that names runs, read, checked and laid out as a grid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias, cast

from clearn.errors import UserError, unknown_name
from clearn.fields import in_short, parse_yaml, read_text
from clearn.record import Record

Baseline: TypeAlias = str | dict[str, str]
"""Label of the strategy to compare all others with, or by label whom to compare a strategy with."""

_REQUIRED = ("baseline", "seeds", "streams", "strategies")
_SHARED = ("net", "training", "trainer")
_OPTIONAL = ("title", "metric", "orders", "loggers", "threads", *_SHARED)
METRICS_COMPARED = ("acc", "avg_incremental_acc")
"""What strategies can be compared by: accuracy after the last task, or its mean over all tasks."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of an experiment.

    Attributes:
        strategy: Label of the strategy.
        stream: Label of the stream.
        order: Position of the class order in the experiment's `orders`.
        seed: The run's seed.
        config: The run's configuration, as `clearn.run.config.resolve_config` takes it.
        folder: The run's record.
    """

    strategy: str
    stream: str
    order: int
    seed: int
    config: dict[str, Any]
    folder: Path

    def __str__(self) -> str:
        return f"{self.strategy}/{self.stream}/{self.folder.name}"


@dataclass(frozen=True)
class Experiment:
    """What an experiment file says.

    Attributes:
        path: The file.
        text: The file's content.
        name: Path below `experiments/` without its suffix, or the file's name alone elsewhere.
        title: A heading for the report.
        baseline: Label of the strategy that the paired tests compare with; or labels by label,
            where each strategy has a baseline of its own or none.
        metric: What they compare, one of `METRICS_COMPARED`.
        strategies: Labels, in the file's order.
        streams: Labels, in the file's order.
        threads: Threads of torch in each run's process; results on the CPU depend on it, and so
            it is not derived from the number of jobs.
        folder: Where the results go.
        cells: The runs: all strategies with one order and seed before the next.
    """

    path: Path
    text: str
    name: str
    title: str
    baseline: Baseline
    metric: str
    strategies: tuple[str, ...]
    streams: tuple[str, ...]
    threads: int
    folder: Path
    cells: tuple[Cell, ...]

    def cell(
        self, strategy: str | None = None, stream: str | None = None, seed: int | None = None
    ) -> Cell:
        """The first run with these labels and this seed, where they are given.

        Raises:
            UserError: There is none.
        """
        for kind, label, known in (
            ("strategy", strategy, self.strategies),
            ("stream", stream, self.streams),
        ):
            if label is not None and label not in known:
                raise unknown_name(f"{kind} of {self.path}", label, known)
        for cell in self.cells:
            if (
                strategy in (None, cell.strategy)
                and stream in (None, cell.stream)
                and seed in (None, cell.seed)
            ):
                return cell
        seeds = ", ".join(map(str, self.seeds))
        raise UserError(f"seed: {seed} is not among those of {self.path}: {seeds}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, in the file's order."""
        return tuple(dict.fromkeys(cell.seed for cell in self.cells))


def is_experiment(fields: Mapping[str, Any]) -> bool:
    """Whether the fields of a YAML file are those of an experiment, and not those of one run."""
    return "strategies" in fields or "streams" in fields


def read_experiment(path: Path, folder: Path | None = None) -> Experiment:
    """Read and check an experiment file, without building any stream or net.

    Args:
        path: The YAML file.
        folder: Where the results go. By default `experiments/a/b.yaml` goes to `results/a/b`
            beside `experiments`, a file elsewhere to `results/<stem>` in the current folder, and
            the copy of a file that is kept with its results (`experiment.yaml` in the folder given
            or beside records) goes on there.

    Raises:
        UserError: The file cannot be read, or a field is missing, unknown or not valid.
    """
    text = read_text(path)
    fields = parse_yaml(text, path)
    try:
        name, folder = _place(path, folder)
        return _Fields(fields).experiment(path, text, name, folder)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__


def _place(path: Path, folder: Path | None) -> tuple[str, Path]:
    """Name of the experiment, and the folder of its results."""
    kept = next(path.parent.glob("runs/*/*/order*-seed*/config.yaml"), None)
    here = folder is not None and folder.resolve() == path.resolve().parent
    if path.name == "experiment.yaml" and (kept is not None or here):
        # The copy kept with the results, whose records know the name of the original.
        name = None if kept is None else Record(kept.parent).config.get("experiment")
        _, below = _split(path.resolve().parent, "results")
        return name or "/".join(below) or path.resolve().parent.name, folder or path.parent
    above, below = _split(path.resolve().with_suffix(""), "experiments")
    if below:
        return "/".join(below), folder or Path(*above, "results", *below)
    return path.stem, folder or Path.cwd() / "results" / path.stem


def _split(path: Path, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The parts of a path above and below the last folder of that name; else none below."""
    parts = path.parts
    if name not in parts[:-1]:
        return parts, ()
    split = len(parts) - 2 - parts[-2::-1].index(name)
    return parts[:split], parts[split + 1 :]


class _Fields:
    """The fields of an experiment file, taken out one by one with a check."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        for name in fields:
            if name not in (*_REQUIRED, *_OPTIONAL):
                raise unknown_name("field", str(name), (*_REQUIRED, *_OPTIONAL))
        for name in _REQUIRED:
            if fields.get(name) is None:
                raise UserError(f"{name}: missing; expected {_EXPECTED[name]}")

    def experiment(self, path: Path, text: str, name: str, folder: Path) -> Experiment:
        strategies, streams = self.entries("strategies"), self.entries("streams")
        return Experiment(
            path=path,
            text=text,
            name=name,
            title=self.text("title", name),
            baseline=self.baseline(strategies),
            metric=self.metric(),
            strategies=tuple(strategies),
            streams=tuple(streams),
            threads=self.positive("threads"),
            folder=folder,
            cells=tuple(self.cells(strategies, streams, name, folder)),
        )

    def cells(
        self,
        strategies: Mapping[str, dict[str, Any]],
        streams: Mapping[str, dict[str, Any]],
        name: str,
        folder: Path,
    ) -> Iterator[Cell]:
        """All combinations, the strategy changing fastest."""
        orders, seeds = self.orders(streams), self.integers("seeds")
        shared = {key: self.mapping(key) for key in _SHARED if key in self.fields}
        axes = product(enumerate(orders), seeds, streams.items(), strategies.items())
        for (order, order_seed), seed, (stream, stream_options), (strategy, options) in axes:
            config: dict[str, Any] = {}
            for key in _SHARED:
                givers = {f"streams.{stream}": stream_options, f"strategies.{strategy}": options}
                levels = [shared[key]] if key in shared else []
                levels += [
                    _named(given[key], f"{field}.{key}")
                    for field, given in givers.items()
                    if key in given
                ]
                if levels:
                    config[key] = reduce(_merged, levels)
            config["strategy"] = {"name": strategy} | _own(options)
            drawn = {} if order_seed is None else {"order_seed": order_seed}
            config["stream"] = {"name": stream} | _own(stream_options) | drawn
            config["loggers"] = self.loggers()
            config |= {"seed": seed, "experiment": name}
            record = folder / "runs" / strategy / stream / f"order{order}-seed{seed}"
            yield Cell(strategy, stream, order, seed, config, record)

    def baseline(self, strategies: Mapping[str, Any]) -> Baseline:
        value = self.fields["baseline"]
        named = [*value, *value.values()] if isinstance(value, dict) else [value]
        for label in named:
            if not isinstance(label, str) or label not in strategies:
                raise unknown_name("baseline", str(label), strategies)
        if isinstance(value, dict):
            for label, other in value.items():
                if label == other:
                    raise UserError(f"baseline.{label}: a strategy is not compared with itself")
        return cast("Baseline", value)

    def metric(self) -> str:
        value = self.text("metric", METRICS_COMPARED[0])
        if value not in METRICS_COMPARED:
            raise unknown_name("metric", value, METRICS_COMPARED)
        return value

    def entries(self, field: str) -> dict[str, dict[str, Any]]:
        """Options by label."""
        value = self.fields[field]
        if not isinstance(value, dict) or not value:
            raise UserError(f"{field}: {in_short(value)} is not valid: expected {_EXPECTED[field]}")
        for label, options in value.items():
            _check_label(field, label)
            if options is not None and not isinstance(options, dict):
                raise UserError(
                    f"{field}.{label}: {in_short(options)} is not valid: expected options, "
                    "name: value"
                )
        same = Counter(label.lower() for label in value)
        twice = [label for label in value if same[label.lower()] > 1]
        if twice:
            raise UserError(f"{field}: {' and '.join(twice)} would share a folder; rename one")
        return {label: dict(options or {}) for label, options in value.items()}

    def mapping(self, field: str) -> dict[str, Any]:
        return _named(self.fields[field], field)

    def integers(self, field: str) -> list[int]:
        """Different integers >= 0."""
        value = self.fields[field]
        if not isinstance(value, list) or not value:
            raise UserError(f"{field}: {in_short(value)} is not valid: expected {_EXPECTED[field]}")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or item < 0:
                raise UserError(
                    f"{field}: {in_short(item)} is not valid: expected {_EXPECTED[field]}"
                )
        _check_different(field, value)
        return value

    def orders(self, streams: Mapping[str, dict[str, Any]]) -> list[int | None]:
        value = self.fields.get("orders", [None])
        expected = "a list of different seeds for the order of the classes, null for the data's own"
        if not isinstance(value, list) or not value:
            raise UserError(f"orders: {in_short(value)} is not valid: expected {expected}")
        for item in value:
            if item is not None and (isinstance(item, bool) or not isinstance(item, int)):
                raise UserError(f"orders: {in_short(item)} is not valid: expected {expected}")
        _check_different("orders", value)
        for label, options in streams.items():
            if "orders" in self.fields and "order_seed" in options:
                raise UserError(f"streams.{label}.order_seed: orders is given too; leave one out")
        return value

    def loggers(self) -> list[Any]:
        value = self.fields.get("loggers") or []
        if not isinstance(value, list):
            raise UserError(f"loggers: {in_short(value)} is not valid: expected a list, as [wandb]")
        return value

    def text(self, field: str, default: str) -> str:
        value = self.fields.get(field, default)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{field}: {in_short(value)} is not valid: expected text")
        return value

    def positive(self, field: str) -> int:
        value = self.fields.get(field, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{field}: {in_short(value)} is not valid: expected an integer >= 1")
        return value


_EXPECTED = {
    "baseline": "the label of the strategy that the others are compared with, or such labels by "
    "label",
    "seeds": "a list of different integers >= 0, as [0, 1, 2]",
    "streams": "streams by label, as SplitDigits: {scenario: class}",
    "strategies": "strategies by label, as ER: {buffer_size: 200}",
}


def _named(value: Any, field: str) -> dict[str, Any]:
    """Options, a bare name being short for {name: it}."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict):
        return value
    raise UserError(f"{field}: {in_short(value)} is not valid: expected options, name: value")


def _own(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a stream or strategy without what it says of the whole run."""
    return {key: value for key, value in options.items() if key not in _SHARED}


def _merged(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `shared`; what is shared belongs to another net when the names differ."""
    if "name" in own and own["name"] != shared.get("name"):
        return own
    return shared | own


def _check_label(field: str, label: Any) -> None:
    if not isinstance(label, str):
        raise UserError(f"{field}: the label {label!r} is not text; quote it")
    unsafe = _UNSAFE.search(label) or label != label.strip(" .") or not 0 < len(label) <= 100
    if unsafe:
        raise UserError(
            f"{field}: the label {in_short(label)} names a folder: expected 1 to 100 characters, "
            'none of < > : " / \\ | ? *, no dot or space at either end; '
            "a strategy or stream called otherwise goes under `name:`"
        )


def _check_different(field: str, values: list[Any]) -> None:
    twice = [item for item, count in Counter(values).items() if count > 1]
    if twice:
        raise UserError(f"{field}: {in_short(twice[0])} is given twice; expected different values")

"""A run as a plain mapping: what a YAML file, the command line and a record's config.yaml hold.

    strategy: {name: ER, buffer_size: 500}
    stream: {name: SplitDigits, num_tasks: 5}
    net: {name: MLP, hidden: [64]}
    training: {epochs: 2}
    trainer: {precision: bf16-mixed}
    loggers: [wandb]
    seed: 1
    experiment: digits

Only `strategy` and `stream` must be there; a bare string is short for `{name: ...}`. The options
of a strategy, stream or net are the parameters of its class or function, with their types and
defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from jsonargparse import ArgumentParser

from clearn.errors import UserError, unknown_name
from clearn.fields import check
from clearn.nets import build_net, net_builder
from clearn.nets.registry import HeadKind, names_weights
from clearn.record import Record
from clearn.run.description import MADE_IN
from clearn.run.lightning import quiet_lightning
from clearn.run.loop import Run
from clearn.run.training import Training
from clearn.semi import follow_seed
from clearn.strategy import Strategy
from clearn.streams import build_stream, stream_builder
from clearn.tracking import build_loggers

if TYPE_CHECKING:
    from clearn.progress import Progress

PARTS = ("strategy", "stream", "net")
"""The parts of a config that name a class or function and hold its options."""

_ENTRY_POINTS = "clearn.strategies"

_NAMED = {
    "strategy": "A name of `clearn list strategies`, or a class path: package.module:Class.",
    "stream": "A name of `clearn list streams`.",
    "net": "A name of `clearn list nets`.",
}
_HEAD = (
    "single: one output per class; multi: outputs per task, needs the task's id; wide: all classes "
    "per task, without bias, needs the task's id; growing: outputs are added with each task; "
    "joined: outputs per task that compete without its id; words: those of the label words of a "
    "T5; auto: multi in the task scenario, otherwise single."
)
_WEIGHTS = (
    "Of the backbone: a file, .safetensors or .pt, .pth or .pth.tar with plain tensors. Missing: "
    "drawn at random."
)
_TRAINER = (
    "Any arguments of Lightning's Trainer: --trainer.precision bf16-mixed, "
    "--trainer.accelerator cpu."
)
_LOGGERS = (
    "Where to mirror the record: wandb, csv, tensorboard, or any Lightning loggers as "
    "[{class_path: package.module.Class, init_args: {}}]."
)
_SEED = "Drives all that the run draws, >= 0."
_EXPERIMENT = "What the run belongs to; W&B groups by it."


def resolve_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a run's config and fill in all defaults; what comes out goes in again unchanged.

    Args:
        config: See the module's first lines.

    Returns:
        Plain types only, as they are kept in the record.

    Raises:
        UserError: A field is missing or unknown, or its value has the wrong type.
    """
    return _Parsed(config).plain


def build_run(
    config: Mapping[str, Any], folder: Path | None = None, progress: Progress | None = None
) -> Run:
    """Make the run that a config describes; equal configs give equal numbers.

    The net's first weights come from the config's seed, and so do the examples that are labelled
    where few are; all else that the stream draws comes from its own options.

    Args:
        config: See the module's first lines; need not be resolved.
        folder: The record, new or of the same run, or None to keep nothing.
        progress: Where to show progress.

    Raises:
        UserError: The config is not valid, its data is not there, or the folder holds another run.
    """
    parsed = _Parsed(config)
    plain = parsed.plain
    if folder is not None and (folder / "config.yaml").exists():
        Record(folder).create(plain)  # refuses a record of another config
    options = follow_seed(parsed.options("stream"), plain["seed"])
    stream = build_stream(plain["stream"]["name"], **options)
    net = build_net(
        plain["net"]["name"],
        stream,
        seed=plain["seed"],
        **parsed.options("net"),
    )
    strategy = find_strategy(plain["strategy"]["name"])(net, **parsed.options("strategy"))
    loggers = build_loggers(
        plain["loggers"],
        folder=folder,
        name=_display_name(plain, folder),
        group=plain["experiment"],
        config=plain,
    )
    run = Run(
        strategy,
        stream,
        training=Training(**parsed.options("training")),
        seed=plain["seed"],
        folder=folder,
        config=plain,
        trainer=parsed.options("trainer"),
        loggers=loggers,
        progress=progress,
    )
    _try_trainer(parsed.options("trainer"))
    return run


def _try_trainer(options: dict[str, Any]) -> None:
    """Let Lightning object before anything is written."""
    if not options:
        return
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer

    try:
        with quiet_lightning():
            Trainer(**options | {"logger": False, "enable_checkpointing": False})
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {options} is not valid: {error}") from error


def run_name(config: Mapping[str, Any]) -> str:
    """A short name for a resolved config: `<strategy>-<stream>-seed<k>`."""
    strategy = re.split(r"[.:]", config["strategy"]["name"])[-1]
    return f"{strategy}-{config['stream']['name']}-seed{config['seed']}"


def _display_name(config: Mapping[str, Any], folder: Path | None) -> str:
    """What trackers call a run: in an experiment by its labels, which its folder is made of."""
    if config["experiment"] and folder and re.fullmatch(r"order\d+-seed\d+", folder.name):
        return "-".join(folder.resolve().parts[-3:])
    return run_name(config)


# Names


def strategy_points() -> dict[str, metadata.EntryPoint]:
    """The installed strategies, ours and those of other packages, by name."""
    return {point.name: point for point in metadata.entry_points(group=_ENTRY_POINTS)}


def find_strategy(name: str) -> type[Strategy]:
    """The class of a strategy, by its name or by class path (`package.module:Class`).

    Raises:
        UserError: There is no such strategy.
    """
    points = strategy_points()
    if name in points:
        return cast("type[Strategy]", points[name].load())
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if not module:
        raise unknown_name("strategy", name, points)
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"strategy: {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UserError(f"strategy: {name!r} is {found!r}: expected a subclass of clearn.Strategy")
    return found


def normalise(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config in which every part is a mapping of its own, with its name.

    Raises:
        UserError: A part is not a mapping, or has no name.
    """
    if MADE_IN in config:
        raise UserError(
            f"{MADE_IN}: this describes a run made in Python; its script alone can repeat or "
            "continue it, so run that"
        )
    known = (*PARTS, "training", "trainer", "loggers", "seed", "experiment")
    for field in config:
        if field not in known:
            raise unknown_name("field", str(field), known)
    parts: dict[str, Any] = {"net": {}, **config}
    for part in PARTS:
        if part not in parts:
            raise UserError(f"{part}: missing; name one, see `clearn list`")
        if isinstance(parts[part], str):
            parts[part] = {"name": parts[part]}
    for part in (*PARTS, "training", "trainer"):
        value = parts.get(part) or {}
        if not isinstance(value, Mapping):
            raise UserError(f"{part}: {value!r} is not valid: expected a mapping of options")
        parts[part] = dict(value)
    parts["net"].setdefault("name", "MLP")
    if isinstance(parts.get("loggers"), str):
        parts["loggers"] = [parts["loggers"]]
    for part in PARTS:
        name = parts[part].get("name")
        if not isinstance(name, str):
            raise UserError(f"{part}.name: {name!r} is not valid: expected a name")
    return parts


# Types and defaults


def add_config_arguments(
    parser: ArgumentParser, names: Mapping[str, str], *, trainer: bool = False
) -> None:
    """Add the options of a run of the named parts, described by their signatures and docstrings.

    Args:
        parser: Gets one group for each part.
        names: Of the strategy, the stream and the net.
        trainer: Describe each argument of Lightning's Trainer, which are many.

    Raises:
        UserError: A name is unknown.
    """
    find: dict[str, Callable[[str], Any]] = {
        "strategy": find_strategy,
        "stream": stream_builder,
        "net": net_builder,
    }
    for part in PARTS:
        source = find[part](names[part])
        about = (source.__doc__ or "").strip().partition("\n")[0]
        group = parser.add_argument_group(f"{part} {names[part]}: {about.rstrip('.')}")
        group.add_argument(
            f"--{part}.name", default=names[part], metavar="NAME", type=str, help=_NAMED[part]
        )
        if part == "net":
            group.add_argument("--net.head", default="auto", type=HeadKind, help=_HEAD)
            if not names_weights(source):
                group.add_argument("--net.weights", type=str | None, default=None, help=_WEIGHTS)
        given = {"strategy": {1}, "stream": set(), "net": {1}}  # the net, an example's shape
        options: Any = {"as_group": False, "fail_untyped": False, "skip": given[part]}
        if isinstance(source, type):
            group.add_class_arguments(source, part, **options)
        else:
            group.add_function_arguments(source, part, **options)
    group = parser.add_argument_group("training")
    group.add_class_arguments(Training, "training", as_group=False)
    group = parser.add_argument_group("the rest")
    if trainer:
        from lightning.pytorch import Trainer

        group.add_class_arguments(Trainer, "trainer", as_group=False)
    else:
        group.add_argument("--trainer", type=dict[str, Any], default={}, help=_TRAINER)
    loggers = list[str | dict[str, Any]] | str
    group.add_argument("--loggers", type=loggers, default=[], help=_LOGGERS)
    group.add_argument("--seed", type=int, default=0, help=_SEED)
    group.add_argument("--experiment", type=str | None, default=None, help=_EXPERIMENT)


class _Parsed:
    """A config after the check.

    Attributes:
        plain: The resolved config.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        given = normalise(config)
        self._trainer = tuple(given["trainer"])
        self._parser = ArgumentParser(exit_on_error=False)
        names = {part: given[part]["name"] for part in PARTS}
        add_config_arguments(self._parser, names, trainer=bool(self._trainer))
        self._namespace = check(self._parser, given)
        plain = yaml.safe_load(self._parser.dump(self._namespace, skip_unset=False))
        plain["trainer"] = {name: plain["trainer"][name] for name in self._trainer}
        if plain["seed"] < 0:
            raise UserError(f"seed: {plain['seed']} is not valid: expected an integer >= 0")
        self.plain: dict[str, Any] = plain

    def options(self, part: str) -> dict[str, Any]:
        """Keyword arguments of a part, in the types its signature asks for."""
        values = self._parser.instantiate(self._namespace)[part]
        options = dict(values) if isinstance(values, dict) else values.as_dict()
        options.pop("name", None)
        if part == "trainer":
            return {name: options[name] for name in self._trainer}
        return options

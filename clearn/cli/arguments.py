"""Arguments of the commands, from their signatures and docstrings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from clearn.cli.commands import DEFAULTS
from clearn.errors import UserError, unknown_name
from clearn.fields import explain, read_yaml


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Types and defaults behind each help, and the description as it is written."""


class _Parser(ArgumentParser):
    """Shows `--strategy.name NAME` as `--strategy NAME`, which means the same."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The help as text."""
        text: str = super().format_help(formatter)
        return text.replace(".name NAME", " NAME")


def parse_arguments(
    name: str, command: Callable[..., int], arguments: Sequence[str]
) -> dict[str, Any]:
    """Keyword arguments for a command; those not given are left to its defaults.

    Args:
        name: Of the command.
        command: The function; its parameters without a default are positional arguments.
        arguments: What the user typed after the command's name.

    Raises:
        UserError: An argument is unknown, missing, or of the wrong type.
    """
    description = re.split(r"\n\s*(?:Args|Returns|Raises):", cleandoc(command.__doc__ or ""))[0]
    parser = _Parser(
        prog=f"clearn {name}",
        description=description,
        formatter_class=_Formatter,
        exit_on_error=False,
        print_config=None,
    )
    parser.add_function_arguments(command, as_positional=True, as_group=False)
    if name == "run":
        parser.usage = "clearn run [--config CONFIG] [--folder FOLDER] [--FIELD VALUE ...]"
        return _parse_run(parser, arguments)
    return _parse(parser, arguments)


def _parse_run(parser: ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """The options of a run depend on the strategy, the stream and the net: find those first."""
    from clearn.compare.experiment import is_experiment, read_experiment
    from clearn.run.config import PARTS, add_config_arguments

    if arguments and not arguments[0].startswith("-"):
        raise UserError(f"{arguments[0]} stands alone; give a file of fields as --config FILE")
    part = re.compile(rf"--({'|'.join(PARTS)})(=|$)")
    arguments = [part.sub(r"--\1.name\2", argument) for argument in arguments]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config")
    for name in PARTS:
        first.add_argument(f"--{name}.name", dest=name)
    found = vars(first.parse_known_args(arguments)[0])
    config = read_yaml(Path(found["config"])) if found["config"] else {}
    if is_experiment(config):
        config = (
            read_experiment(Path(found["config"])).cell(found["strategy"], found["stream"]).config
        )
        found |= {"strategy": None, "stream": None}  # which were labels
    names = {name: found[name] or _name_in(config, name) for name in PARTS}
    add_config_arguments(parser, names)
    for action in parser._actions:
        action.required = False  # it may stand in the file; the whole is checked later
    return _parse(parser, arguments)


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """The values that were given, defaults left out."""
    known = [option for action in parser._actions for option in action.option_strings]
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in known and not option.startswith("--trainer."):
            part = option.partition(".")[0] + "."
            raise unknown_name("option", option, [o for o in known if o.startswith(part)] or known)
    try:
        return dict(parser.parse_args(arguments, defaults=False).as_dict())
    except argparse.ArgumentError as error:
        raise explain(error, parser) from error


def _name_in(config: dict[str, Any], part: str) -> str:
    value = config.get(part)
    name = value.get("name") if isinstance(value, dict) else value
    return name if isinstance(name, str) else DEFAULTS[part]

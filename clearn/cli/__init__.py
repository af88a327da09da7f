"""The command line: `clearn COMMAND`."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from clearn.cli.commands import COMMANDS
from clearn.errors import UserError, unknown_name

_HELP = """usage: clearn COMMAND [--help] [--debug] ...

Continual learning on PyTorch Lightning and Avalanche.

commands:
{commands}

options:
  -h, --help   show this help, or with a command that of the command
  --version    show the version
  --debug      show where in the code an error comes from
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments after the program's name; by default those of this process.

    Returns:
        The exit code: 0, 2 when what the user gave cannot be used, 128 + its number after a
        signal that stopped a run, 1 when `doctor` found something broken.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for strategies given by class path in one's own folder
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _command([argument for argument in arguments if argument != "--debug"])
    except SystemExit as end:  # argparse has shown a help
        return end.code if isinstance(end.code, int) else 0
    except (UserError, ArgumentError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"clearn: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("clearn: stopped", file=sys.stderr)
        return 130


def _command(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {n:{width}}  {_first_line(f)}" for n, f in COMMANDS.items()]
        print(_HELP.format(commands="\n".join(lines)), end="")
        return 0
    if name == "--version":
        import clearn

        print(f"clearn {clearn.__version__}")
        return 0
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    from clearn.cli.arguments import parse_arguments

    return COMMANDS[name](**parse_arguments(name, COMMANDS[name], arguments[1:]))


def _first_line(function: object) -> str:
    return (function.__doc__ or "").partition("\n")[0].rstrip(".")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours as one line for people; those of libraries say where they come from."""
    ours = Path(filename).is_relative_to(Path(__file__).parents[1])
    source = "clearn: warning" if ours else f"{filename}: {category.__name__}"
    print(f"{source}: {message}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())

"""Fields: read from YAML, checked against signatures; what is wrong with one, in one line."""

from __future__ import annotations

import re
from argparse import Action, ArgumentError
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace

from clearn.errors import UserError, unknown_name

_WORDS = {
    int: "an integer",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    Any: "anything",
}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML has it, with 1e-3 a number and a repeated key an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(str(key.value) for key, _ in node.value)
        for key, count in keys.items():
            if count > 1 and key != "<<":
                raise UserError(f"{key}: given {count} times in one place; keep one of them")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    "-+0123456789",
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields in a YAML file.

    Raises:
        UserError: There is no such file, or it holds no valid YAML or no mapping.
    """
    return parse_yaml(read_text(path), path)


def read_text(path: Path) -> str:
    """What a file says.

    Raises:
        UserError: It cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """The fields in the text of the YAML file `path`.

    Raises:
        UserError: The text is no valid YAML, or holds no mapping.
    """
    try:
        content = yaml.load(text, _Loader)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{path}: not valid YAML{where}: {problem}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {in_short(content)}")
    return content


def in_short(value: object) -> str:
    """A value on one line, short, as a writer of YAML would say it."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check(parser: ArgumentParser, values: Mapping[str, Any]) -> Namespace:
    """Check nested values against the arguments of a parser, and fill in defaults.

    Raises:
        UserError: A field is missing or unknown, or its value has the wrong type.
    """
    actions = _actions(parser)
    for part, inner in values.items():
        known = [name for name in actions if name.startswith(f"{part}.")]
        if not known:
            continue
        for name, value in inner.items():
            field = f"{part}.{name}"
            if field not in actions:
                title = f"{part} {inner['name']}" if "name" in inner else part
                raise unknown_name(f"option of {title}", field, known)
            if value is None and not _takes_null(actions[field]):
                raise _wrong_type(field, "null", actions[field])
    try:
        return cast("Namespace", parser.parse_object(dict(values)))
    except ArgumentError as error:
        raise explain(error, parser, values) from error


def explain(
    error: ArgumentError, parser: ArgumentParser, values: Mapping[str, Any] | None = None
) -> UserError:
    """One line for what a parser says in several.

    Args:
        error: What the parser raised.
        parser: The parser.
        values: What it was given, when that was not a command line.
    """
    message = str(error)
    missing = re.match(r"the following arguments are required: ([\w.]+)", message)
    if missing is not None:
        field = missing[1]
        return UserError(f"{field}: missing; expected {_type_name(_actions(parser)[field])}")
    named = re.search(r"Parser key \"([\w.]+)\"", message)
    if named is None or named[1] not in _actions(parser):
        return UserError(" ".join(message.split()))
    field, value = named[1], values
    for key in field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    shown = re.search(r"(?:Got|Given) value: (.*)", message)
    text = repr(value) if value is not None else repr(shown[1] if shown else value)
    return _wrong_type(field, text, _actions(parser)[field])


def _actions(parser: ArgumentParser) -> dict[str, Action]:
    """The arguments by name; `x.help` is made by the parser for class types."""
    return {a.dest: a for a in parser._actions if not a.dest.endswith(".help")}


def _wrong_type(field: str, value: str, action: Action) -> UserError:
    return UserError(f"{field}: {value} is not valid: expected {_type_name(action)}")


def _takes_null(action: Action) -> bool:
    return "null" in _type_name(action) or (action.default is None and not action.required)


def _type_name(action: Action) -> str:
    return _in_words(getattr(action, "_typehint", action.type))


def _in_words(hint: Any) -> str:
    """A type as a writer of YAML would say it.

    >>> _in_words(list[int] | None)
    'a list (each an integer) or null'
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_in_words, inner)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return f"a list (each {_in_words(inner[0])})" if inner else "a list"
    if hint is type(None):
        return "null"
    return str(_WORDS.get(hint) or getattr(hint, "__name__", hint))

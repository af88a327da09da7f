"""What is wrong with a field, in one line."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
from jsonargparse import ArgumentParser

from clearn.errors import UserError
from clearn.fields import _in_words, check, explain


def function(
    count: int,
    rate: float = 0.5,
    sizes: Sequence[int] = (1,),
    kind: Literal["a", "b"] = "a",
    limit: int | None = None,
    name: str = "",
) -> None:
    pass


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, "part", as_group=False)
    return parser


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an integer"),
        (float | None, "a number or null"),
        (Optional[bool], "true or false or null"),  # noqa: UP045  (both spellings are in use)
        (Union[str, int], "text or an integer"),  # noqa: UP007
        (Literal["a", 2], "a or 2"),
        (list[str], "a list (each text)"),
        (Sequence[Sequence[int]], "a list (each a list (each an integer))"),
        (tuple[int, ...], "a list (each an integer)"),
        (dict[str, Any], "a mapping"),
        (Mapping[str, int], "a mapping"),
        (Path, "a path"),
        (Any, "anything"),
        (ArgumentParser, "ArgumentParser"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert _in_words(hint) == words


def test_defaults_are_filled_in(parser: ArgumentParser) -> None:
    found = check(parser, {"part": {"count": 2, "limit": None}}).part
    assert (found.count, found.rate, found.limit, found.kind) == (2, 0.5, None, "a")


def test_a_number_may_be_written_without_a_point(parser: ArgumentParser) -> None:
    # PyYAML reads 1e-3 as text.
    assert check(parser, {"part": {"count": 2, "rate": "1e-3"}}).part.rate == 0.001


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "part.count: missing; expected an integer"),
        ({"count": 1.5}, "part.count: 1.5 is not valid: expected an integer"),
        ({"count": True}, "part.count: True is not valid: expected an integer"),
        ({"count": None}, "part.count: null is not valid: expected an integer"),
        ({"count": 1, "rate": "x"}, "part.rate: 'x' is not valid: expected a number"),
        ({"count": 1, "kind": "c"}, "part.kind: 'c' is not valid: expected a or b"),
        ({"count": 1, "limit": [1]}, r"part.limit: \[1\] is not valid: expected an integer or nu"),
        ({"count": 1, "sizes": ["x"]}, r"part.sizes: \['x'\] is not valid: expected a list"),
        ({"count": 1, "rat": 1}, "option of part: 'part.rat' is unknown; did you mean part.rate"),
        (
            {"name": "N", "cont": 1},
            "option of part N: 'part.cont' is unknown; did you mean part.co",
        ),
    ],
)
def test_errors_name_field_value_and_what_is_allowed(
    values: dict[str, Any], message: str, parser: ArgumentParser
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(parser, {"part": values})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part.count", "x"], "part.count: 'x' is not valid: expected an integer"),
        (["--part.sizes", "[y]"], r"part.sizes: .*y.* is not valid: expected a list"),
        (["--part.count"], "argument --part.count: expected one argument"),
        ([], "part.count: missing; expected an integer"),
    ],
)
def test_errors_of_a_command_line(
    arguments: list[str], message: str, parser: ArgumentParser
) -> None:
    with pytest.raises(ArgumentError) as caught:
        parser.parse_args(arguments)
    with pytest.raises(UserError, match=message) as told:
        raise explain(caught.value, parser)
    assert "\n" not in str(told.value)

"""Fields from YAML, and what is wrong with one, in one line."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
from jsonargparse import ArgumentParser

from clearn.errors import UserError
from clearn.fields import _in_words, check, explain, in_short, read_yaml


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1.5e+2", -150.0),
        ("1_0E2", 1000.0),
        ("0.25", 0.25),
        ("e3", "e3"),
        ("1e3x", "1e3x"),
        ("'1e-3'", "1e-3"),
    ],
)
def test_numbers_in_yaml(text: str, value: object, write: Callable[[str], Path]) -> None:
    (read,) = read_yaml(write(f"a: {text}\n")).values()
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML in line 1, column 6: expected ',' or ']'"),
        ("- 1", r"expected a mapping of fields, found \[1\]"),
        ("", "expected a mapping of fields, found null"),
        ("a: 1\nb: 2\na: 3\n", "a: given 2 times"),
        ("a:\n  b: {c: 1, c: 1}\n", "c: given 2 times"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML in line 1"),
    ],
)
def test_yaml_that_holds_no_fields(text: str, message: str, write: Callable[[str], Path]) -> None:
    path = write(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary.yaml: cannot be read: .*utf-8"):
        read_yaml(tmp_path / "binary.yaml")


def test_a_key_may_be_given_over_a_merged_one(write: Callable[[str], Path]) -> None:
    text = "base: &base {lr: 1}\nER:\n  <<: *base\n  lr: 2\n"
    assert read_yaml(write(text))["ER"] == {"lr": 2}


def test_long_values_are_shown_in_short() -> None:
    assert [in_short(value) for value in (None, "a", [1])] == ["null", "'a'", "[1]"]
    assert len(in_short("x" * 100)) == 60


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
    # PyYAML reads 1e-3 as text, and so do records.
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

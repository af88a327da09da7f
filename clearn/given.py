"""What an object was made with, in plain values that a record can keep and compare."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def given_arguments(made: object, *, leave_out: str) -> dict[str, Any]:
    """The arguments that an object's `__init__` was called with, in plain values.

    Those of the constructors of its bases come first; where a name occurs again, what the object's
    own was given counts. To be called from `__init__`.

    Args:
        made: The object that calls this.
        leave_out: Name of an argument that is not wanted.
    """
    given: dict[str, Any] = {}
    call = inspect.currentframe()
    frame = None if call is None else call.f_back
    while frame is not None and frame.f_code.co_name == "__init__":
        names, _, options, values = inspect.getargvalues(frame)
        if not names or values[names[0]] is not made:  # of another object, which makes this one
            break
        here = {name: values[name] for name in names[1:]} | (values[options] if options else {})
        given |= {name: plain(value) for name, value in here.items() if name != leave_out}
        frame = frame.f_back
    return given


def plain(value: Any) -> Any:
    """Numbers, texts, and lists and mappings of these as they are; the name of what else it is.

    >>> plain({"size": (8, 8), "act": len, "of": object()})
    {'size': [8, 8], 'act': 'builtins.len', 'of': 'builtins.object'}
    """
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    return full_name(value if hasattr(value, "__qualname__") else type(value))


def full_name(thing: Any) -> str:
    """Module and name of a class or function.

    >>> full_name(PurePath)
    'pathlib.PurePath'
    """
    return f"{thing.__module__}.{thing.__qualname__}"

"""The options of streams, and the functions that take them as keyword arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, get_type_hints

from clearn.errors import unknown_name
from clearn.semi import Labels, read_labels
from clearn.split import Split, invalid
from clearn.store import BUDGET_GIB
from clearn.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Options(Split):
    """All options that more than one stream has.

    Args:
        root: Folder of the data sets; `$CLEARN_DATA` when missing, else `data` in the cache folder.
        download: Download what is missing.
        image_size: Height and width to bring the images to, in pixels; as they are when missing.
        augment: Train on random crops and mirror images.
        budget_gib: Largest size of the decoded images that is held in memory, GiB.
        workers: Processes that decode larger data, threads that decode smaller; None: one per core.
    """

    root: str | None = None
    download: bool = False
    image_size: int | None = None
    augment: bool = True
    budget_gib: float = BUDGET_GIB
    workers: int | None = None


SPLIT = tuple(field.name for field in fields(Split))
TASKS = ("num_tasks", "scenario", "order_seed", "keep_tasks", "train_share", "validation")
LABELS = tuple(field.name for field in fields(Labels))
FILES = ("root", "download", "image_size")
PHOTOS = ("root", "image_size", "augment", "budget_gib", "workers")


Builder = Callable[..., Stream]


def builder(*names: str, **defaults: Any) -> Callable[[Builder], Builder]:
    """Give a function of an `Options` object those options as keyword arguments.

    It gets those of `Labels` too, after `validation`: what it builds can be semi-supervised.

    The signature and the docstring of the result list each option, with its type, default and
    meaning, besides the keyword arguments that the function has of its own.

    Args:
        *names: The options that apply.
        **defaults: Defaults other than those of `Options`.
    """
    place = names.index("validation") + 1 if "validation" in names else len(names)
    shared = (*names[:place], *LABELS, *names[place:])

    def decorate(function: Builder) -> Builder:
        hints = get_type_hints(Options) | get_type_hints(Labels)
        default = {field.name: field.default for field in (*fields(Options), *fields(Labels))}
        default |= defaults
        parameters = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default[name], annotation=hints[name]
            )
            for name in shared
        ]
        own_hints = get_type_hints(function)
        parameters += [
            parameter.replace(annotation=own_hints[parameter.name])
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        known = [parameter.name for parameter in parameters]

        @wraps(function)
        def build(**given: Any) -> Stream:
            for name in given:
                if name not in known:
                    raise unknown_name(f"{function.__name__} has no such option", name, known)
            given = defaults | given
            labels = read_labels({name: given.pop(name) for name in LABELS if name in given})
            own = {name: given.pop(name) for name in list(given) if name not in names}
            stream = function(Options(**given), **own)
            return stream if labels is None else stream.semi_supervised(labels)

        described: dict[str, str] = {}
        for documented in (Split, Options, Labels, function):
            described |= _described(documented)
        summary = re.split(r"\n+Args:", inspect.getdoc(function) or "")[0]
        lines = [f"    {name}: {described[name]}" for name in known]
        build.__doc__ = "\n".join([summary, "", "Args:", *lines])
        build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            parameters, return_annotation=Stream
        )
        build.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": Stream}
        return build

    return decorate


def _described(documented: object) -> dict[str, str]:
    """What the `Args` of a docstring say about each argument, in one line."""
    section = (inspect.getdoc(documented) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def count_tasks(options: Options) -> int:
    """The number of tasks, where it must be given."""
    if options.num_tasks is None:
        raise invalid("num_tasks", "null", "a number >= 1")
    return options.num_tasks

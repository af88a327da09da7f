"""Errors meant for people: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the field, its value and what is allowed. The command
    line prints it to stderr and exits with 2; from Python it is an ordinary `ValueError`.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry, with the nearest names.

    >>> str(unknown_name("strategy", "naive", ["Naive", "ER", "Joint"]))
    "strategy: 'naive' is unknown; did you mean Naive? Known: ER, Joint, Naive"
    """
    names = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    near = [lowered[match] for match in get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}? Known" if near else "known"
    return UserError(f"{kind}: {name!r} is unknown; {hint}: {', '.join(names) or 'none'}")

"""What ends a command without a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


class InputError(Exception):
    """Bad input: an option, a file, a dataset or a diverging run.

    The message is a single line that names the culprit and what would be accepted. Entry points
    print it without a traceback and exit with a non-zero status.
    """


class DivergedError(InputError):
    """A loss or weight that is not finite any more."""


class OutOfTimeError(Exception):
    """The time that a command was given is over; what is finished so far is on disk."""


def one_line(error: Exception) -> str:
    """Returns what an error of some library says, as part of a message."""
    return " ".join(str(error).split())[:200]


def require_built(option: str, value: object, kind: Any, example: str) -> None:
    """Raises InputError unless an option holds an object of its kind, and not the class of one.

    Args:
        option: its name in gin.
        value: of the option.
        kind: what `isinstance` takes: a class, several, or a protocol checkable at run time.
        example: what gin accepts.
    """
    require(
        isinstance(value, kind) and not isinstance(value, type),
        f"{option} = {getattr(value, '__name__', value)!r} is not what is wanted here; in gin a "
        f"reference needs parentheses, such as {example}",
    )


def require_name(option: str, name: str) -> None:
    """Raises InputError unless the name of a stage or row can be that of its folder."""
    require(
        re.fullmatch(r"[\w.-]*\w", name) is not None,
        f"{option}={name!r} names a folder: letters, digits, '_', '-' and '.' only",
    )


def require_whole(option: str, value: object, least: int = 1) -> None:
    """Raises InputError unless an option's value, or each of several, is an integer ≥ `least`."""
    for each in value if isinstance(value, list | tuple) else (value,):
        require(
            isinstance(each, int) and each >= least,
            f"{option}={each} must be a whole number of at least {least}",
        )


def require_positive(owner: object, *names: str) -> None:
    """Raises InputError unless options are above zero, or all values of those with several."""
    for name in names:
        _require_each(owner, name, lambda x: x > 0, "above zero")


def require_not_negative(owner: object, *names: str) -> None:
    """Raises InputError unless options are zero or more, or all values of those with several."""
    for name in names:
        _require_each(owner, name, lambda x: x >= 0, "zero or more")


def _require_each(owner: object, name: str, holds: Callable[[Any], bool], wanted: str) -> None:
    value = getattr(owner, name)
    for each in value if isinstance(value, list | tuple) else (value,):
        require(holds(each), f"{type(owner).__name__}.{name}={each} must be {wanted}")


def require(condition: bool, message: str) -> None:
    """Raises InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)

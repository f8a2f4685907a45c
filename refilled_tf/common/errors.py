"""Errors that end a command in one line instead of a traceback."""

from __future__ import annotations

import math
import re
import shlex
import typing
from collections.abc import Callable, Sequence
from typing import Any

SHOWN = 10  # of many files, classes or names, how many a line names


class InputError(Exception):
    """Bad input: an option, a file, a dataset or a diverging run.

    The message is a single line that names the culprit and what would be accepted. Entry points
    print it without a traceback and exit with a non-zero status.

    Attributes:
        details: all that the message had to shorten, a line each; () where it names everything.
    """

    def __init__(self, message: str, details: Sequence[str] = ()):
        super().__init__(message)
        self.details = tuple(details)


class DivergedError(InputError):
    """A loss or weight that is not finite any more."""


class OutOfTimeError(Exception):
    """The time that a command was given is over; what is finished so far is on disk."""


def one_line(error: Exception) -> str:
    """Returns what an error of some library says, as part of a message."""
    return " ".join(str(error).split())[:200]


def listed(items: Sequence[str], separator: str = ", ", shown: int | None = SHOWN) -> str:
    """Joins the first of many items, all if `shown` is None, and says how many more there are."""
    first = list(items[:shown])
    if len(items) > len(first):
        first.append(f"… and {len(items) - len(first):,} more")
    return separator.join(first)


def details(items: Sequence[str], shown: int = SHOWN) -> Sequence[str]:
    """Returns items that `listed` shortens, as the details of an InputError; () of fewer."""
    return items if len(items) > shown else ()


def joined(errors: Sequence[InputError], opening: str = "") -> InputError:
    """Makes one error of several; what they all say is said once."""
    messages = dict.fromkeys(map(str, errors))
    lines = dict.fromkeys(line for error in errors for line in error.details)
    return InputError(opening + "; ".join(messages), tuple(lines))


def gin_param(option: str, value: str) -> str:
    """Returns what sets a gin option to a string, as a shell takes it."""
    setting = f'{option} = "{value}"'
    return f"--gin_param={shlex.quote(setting)}"


def choices(kind: type, name: str) -> tuple[str, ...]:
    """Returns what an option may be whose type is a `Literal`; () of any other."""
    hint = typing.get_type_hints(kind).get(name)
    literals = (
        part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is typing.Literal
    )
    return tuple(value for literal in literals for value in typing.get_args(literal))


def alternatives(accepted: Sequence[str]) -> str:
    """Returns such as "'error' or 'skip'" of two, "one of a, b, c" of more."""
    if len(accepted) == 2:
        return " or ".join(map(repr, accepted))
    return f"one of {', '.join(accepted)}"


def require_choice(owner: object, *names: str) -> None:
    """Raises InputError unless options are among what their types, each a `Literal`, name."""
    for name in names:
        value, accepted = getattr(owner, name), choices(type(owner), name)
        require(
            value in accepted,
            f"{type(owner).__name__}.{name}={value!r} must be {alternatives(accepted)}",
        )


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
        finite = not isinstance(each, float) or math.isfinite(each)
        require(
            finite and holds(each),
            f"{type(owner).__name__}.{name}={each} must be "
            + (wanted if finite else "a finite number"),
        )


def require(condition: bool, message: str, details: Sequence[str] = ()) -> None:
    """Raises InputError with `message` and `details` unless `condition` holds."""
    if not condition:
        raise InputError(message, details)

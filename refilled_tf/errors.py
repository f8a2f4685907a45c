"""What ends a command without a traceback."""

from __future__ import annotations


class InputError(Exception):
    """Bad input: an option, a file, a dataset or a diverging run.

    The message is a single line that names the culprit and what would be accepted. Entry points
    print it without a traceback and exit with a non-zero status.
    """


class OutOfTimeError(Exception):
    """The time that a command was given is over; what is finished so far is on disk."""


def require(condition: bool, message: str) -> None:
    """Raises InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)

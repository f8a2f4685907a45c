"""The one exception for whatever a person can put right."""

from __future__ import annotations


class InputError(Exception):
    """Bad input: an option, a file, a dataset or a diverging run.

    The message is a single line that names the culprit and what would be accepted. Entry points
    print it without a traceback and exit with a non-zero status.
    """


def require(condition: bool, message: str) -> None:
    """Raises InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)

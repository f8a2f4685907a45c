"""Checks of arguments shared by the losses."""

from __future__ import annotations


def check_positive(**arguments: float) -> None:
    """Raises a ValueError that names the first argument which is not above zero."""
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"{name} must be above zero, got {value!r}.")

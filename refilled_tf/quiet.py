"""Muting libraries that warn about what is reported properly elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def absl_verbosity(level: int) -> Iterator[None]:
    """Sets absl's verbosity, such as `absl.logging.ERROR`, for the length of a block."""
    before = logging.get_verbosity()
    logging.set_verbosity(level)
    try:
        yield
    finally:
        logging.set_verbosity(before)

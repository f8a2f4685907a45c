"""Muting libraries that log what is reported properly elsewhere."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def muted(level: int) -> Iterator[None]:
    """Drops all log messages up to a level, such as `logging.WARNING`, within a block."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)

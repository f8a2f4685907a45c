"""Keeps a log readable whatever callers do."""

from __future__ import annotations

import logging

SECONDS = 60.0


class OncePerMinute(logging.Filter):
    """Lets one line of a kind through a minute; the next one says how many were left out.

    Lines are of one kind if they come from the same place and are of the same exception. Debug
    lines, which only come when asked for, all pass.
    """

    def __init__(self, seconds: float = SECONDS):
        super().__init__()
        self._seconds = seconds
        self._last: dict[tuple, float] = {}
        self._left_out: dict[tuple, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO:
            return True
        exception = record.exc_info[0] if record.exc_info else None
        kind = (record.pathname, record.lineno, exception)
        if record.created < self._last.get(kind, -self._seconds) + self._seconds:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._last[kind] = record.created
        if left_out := self._left_out.pop(kind, 0):
            record.msg = f"{record.getMessage()} ({left_out} more of the kind before this one)"
            record.args = ()
        return True

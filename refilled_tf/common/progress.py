"""Progress bars that suit whatever they are written to."""

from __future__ import annotations

import sys


def bar_interval() -> float:
    """Returns the seconds between two updates: a terminal has a bar move, a log gets few lines."""
    return 0.2 if sys.stderr.isatty() else 30.0

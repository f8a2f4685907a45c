"""A line of a kind once a minute."""

import logging

from export.serving.logs import OncePerMinute


def _record(created, line=1, level=logging.WARNING, error=None):
    record = logging.LogRecord("name", level, "file.py", line, "%s is full", ("disk",), error)
    record.created = created
    return record


def test_further_lines_of_a_kind_are_counted():
    once = OncePerMinute()
    assert once.filter(_record(1000.0))
    assert not any(once.filter(_record(1000.0 + second)) for second in range(1, 60))
    later = _record(1060.0)
    assert once.filter(later)
    assert later.getMessage() == "disk is full (59 more of the kind before this one)"
    assert once.filter(quiet := _record(1120.0))
    assert quiet.getMessage() == "disk is full"


def test_other_places_and_exceptions_are_of_other_kinds():
    once = OncePerMinute()
    kinds = [{}, {"line": 2}, {"error": (OSError, OSError(), None)}]
    assert all(once.filter(_record(1000.0, **kind)) for kind in kinds)
    assert not any(once.filter(_record(1001.0, **kind)) for kind in kinds)


def test_what_was_asked_for_passes():
    once = OncePerMinute()
    assert all(once.filter(_record(1000.0, level=logging.DEBUG)) for _ in range(3))

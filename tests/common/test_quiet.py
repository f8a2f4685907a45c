"""Muting ends with its block."""

from __future__ import annotations

import logging

import pytest

from refilled_tf.common.quiet import muted


def test_messages_up_to_the_level_are_dropped(caplog):
    with muted(logging.WARNING):
        logging.getLogger("any").warning("dropped")
        logging.getLogger("any").error("kept")
    logging.getLogger("any").warning("heard again")
    assert [record.getMessage() for record in caplog.records] == ["kept", "heard again"]


def test_muting_ends_with_an_error(caplog):
    with pytest.raises(ValueError, match="inside"), muted(logging.ERROR):
        raise ValueError("inside")
    logging.getLogger("any").error("heard")
    assert [record.getMessage() for record in caplog.records] == ["heard"]


def test_blocks_nest(caplog):
    with muted(logging.ERROR):
        with muted(logging.WARNING):
            pass
        logging.getLogger("any").error("dropped")
    assert not caplog.records

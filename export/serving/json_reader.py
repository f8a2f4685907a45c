"""The JSON of a request's body, read piece by piece and within limits.

json.loads lets no other thread run from the first byte of a document to the last, and makes an
object of a hundred bytes of "[],", which Python's garbage collector then looks at over and over.
Here it gets strings, single values and lists of numbers. What holds these is read in Python, where
other threads have their turn, and is counted; tables of numbers become arrays.
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Any, NamedTuple

import numpy as np

from export.serving.errors import Code, RequestError, require_valid

LONGEST = 2**16  # numbers that json.loads reads at once
_SPACE = re.compile(r"[ \t\n\r]*")
# By its brackets, a list of numbers, and a list of such lists: not of more than some thousands,
# since Python remembers each of them until the end.
_NUMBERS = re.compile(r'\[[^][{}"]*\]')
_ROWS = re.compile(r'\[\s*(?:\[[^][{}"]*\][\s,]*){1,4096}\]')


class Most(NamedTuple):
    """What a body may hold.

    Attributes:
        lists: lists.
        others: objects, and strings and numbers outside lists of numbers.
    """

    lists: int
    others: int


def parsed(body: bytes, most: Most) -> dict[str, Any]:
    """Parses JSON in UTF-8. Of a key that occurs twice the first value counts.

    Args:
        body: an object.
        most: what it may hold.

    Returns:
        The object. Of the lists in it, those that hold lists of numbers, all equally long, and
        those that hold such tables, all of one shape, are arrays of Python's numbers.

    Raises:
        RequestError: it is none, or holds more.
    """
    require_valid(bool(body), "JSON Parse error: The document is empty")
    try:
        document = _Reader(body.decode("utf-8-sig"), most).document()
    except RecursionError as error:
        raise RequestError(Code.INVALID_ARGUMENT, "JSON Parse error: nested too deeply") from error
    except ValueError as error:
        raise RequestError(Code.INVALID_ARGUMENT, f"JSON Parse error: {error}") from error
    require_valid(isinstance(document, dict), "the body must be a JSON object")
    return document


def from_base64(text: str) -> bytes:
    """Decodes base64 as TensorFlow Serving does: with line breaks, and without padding.

    Raises:
        ValueError: it is none.
    """
    text = "".join(text.split())
    if "=" not in text:
        text += "=" * (-len(text) % 4)
    return base64.b64decode(text, validate=True)


def _finite(text: str) -> float:
    """Reads a number; infinity has names of its own in JSON."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text:.20} is too big a number")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite)


class _Reader:
    """Reads a text from left to right. Its methods return what is at a place, and the next place.

    They raise JSONDecodeError as json.loads does.
    """

    def __init__(self, text: str, most: Most):
        self._text = text
        self._most = most
        self._lists, self._others = most

    def document(self) -> Any:
        value, at = self._value(0)
        at = self._behind_space(at)
        if at < len(self._text):
            raise json.JSONDecodeError("Extra data", self._text, at)
        return value

    def _value(self, at: int) -> tuple[Any, int]:
        at = self._behind_space(at)
        return self._numbers(at) or self._other(at)

    def _other(self, at: int) -> tuple[Any, int]:
        """Reads what is no list of numbers."""
        if self._text.startswith("[", at):
            return self._list(at)
        if self._text.startswith("{", at):
            return self._object(at)
        self._count(others=1)
        return _DECODER.raw_decode(self._text, at)

    def _numbers(self, at: int) -> tuple[list | np.ndarray, int] | None:
        """Reads a list of numbers, or a list of such lists; None if there is another value."""
        rows = _ROWS.match(self._text, at)
        if rows and self._text.count(",", at, rows.end()) >= LONGEST:
            rows = None  # one after the other
        found = rows or _NUMBERS.match(self._text, at)
        if found is None:
            return None
        self._count(lists=self._text.count("[", at, found.end()))
        if self._text.count(",", at, found.end()) >= LONGEST:
            raise RequestError(Code.INVALID_ARGUMENT, f"a list has more than {LONGEST} numbers")
        numbers, end = _DECODER.raw_decode(self._text, at)
        return (_table(numbers) if rows else numbers), end

    def _list(self, at: int) -> tuple[list | np.ndarray, int]:
        """Reads a list that holds more than numbers, and is therefore not empty."""
        self._count(lists=1)
        items, only_numbers, goes_on = [], True, True
        while goes_on:
            at = self._behind_space(at + 1)
            numbers = self._numbers(at)
            item, at = numbers or self._other(at)
            only_numbers &= numbers is not None or isinstance(item, np.ndarray)
            items.append(item)
            goes_on, at = self._goes_on(at, "]")
        return (_table(items) if only_numbers else items), at + 1

    def _object(self, at: int) -> tuple[dict[str, Any], int]:
        self._count(others=1)
        items: dict[str, Any] = {}
        start = self._behind_space(at + 1)
        if self._text.startswith("}", start):
            return items, start + 1
        goes_on = True
        while goes_on:
            at = self._behind_space(at + 1)
            if not self._text.startswith('"', at):
                message = "Expecting property name enclosed in double quotes"
                raise json.JSONDecodeError(message, self._text, at)
            key, at = _DECODER.raw_decode(self._text, at)
            at = self._behind_space(at)
            if not self._text.startswith(":", at):
                raise json.JSONDecodeError("Expecting ':' delimiter", self._text, at)
            value, at = self._value(at + 1)
            items.setdefault(key, value)
            goes_on, at = self._goes_on(at, "}")
        return items, at + 1

    def _goes_on(self, at: int, end: str) -> tuple[bool, int]:
        """Tells whether a comma follows; if not the end of the list or object does."""
        at = self._behind_space(at)
        if not self._text.startswith((",", end), at):
            raise json.JSONDecodeError("Expecting ',' delimiter", self._text, at)
        return self._text[at] == ",", at

    def _behind_space(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return found.end() if found else at

    def _count(self, lists: int = 0, others: int = 0) -> None:
        self._lists -= lists
        self._others -= others
        if self._lists < 0 or self._others < 0:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"the body has more than {self._most.lists} lists, or than {self._most.others} "
                "objects and strings: more than a batch of --max_batch_size needs",
            )


def _table(items: list) -> list | np.ndarray:
    """Returns lists of numbers, or tables, as one table if they are of one shape.

    An array is a fraction of the lists, and nothing that the garbage collector looks into.
    """
    shapes = {getattr(item, "shape", (len(item),)) for item in items}
    return np.array(items, object) if len(shapes) == 1 else items

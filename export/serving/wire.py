"""Protocol buffers as they come over the wire, looked at before they are parsed.

Of an empty message, two bytes, the parser makes an object of a hundred, and lets no other thread
run meanwhile: some megabytes could hold up all callers for seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from export.serving.errors import Code, RequestError

VARINT, WITH_LENGTH = 0, 2  # wire types
BYTES = {1: 8, 5: 4}  # of those without a length


def require_few_fields(content: bytes, kind: Descriptor, most: int) -> None:
    """Rejects a message of too many fields, before it has cost more than they.

    Each value of a repeated field counts, but for numbers that are packed, as all of Google's
    libraries pack them; so does each field of the messages in a message. What is no message of this
    kind passes up to the place where it breaks: the parser says so.

    Args:
        content: the message.
        kind: what it is to be.
        most: how many fields it may have.

    Raises:
        RequestError: it has more.
    """
    count, parts = 0, [(0, len(content), kind)]
    while parts:
        start, end, kind = parts.pop()
        for number, begin, stop in _fields(content, start, end):
            count += 1
            if count > most:
                message = f"the message has more than {most} fields"
                raise RequestError(Code.INVALID_ARGUMENT, message)
            field = kind.fields_by_number.get(number)
            if begin < stop and field is not None and field.message_type is not None:
                parts.append((begin, min(stop, end), field.message_type))


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the fields of a message, up to where it breaks.

    Yields:
        A field's number, and where its value begins and ends if that has a length; nowhere if not.
    """
    try:
        while at < end:
            tag, at = _varint(content, at)
            wire_type, length = tag & 7, 0
            if wire_type == WITH_LENGTH:
                length, at = _varint(content, at)
            elif wire_type == VARINT:
                _, at = _varint(content, at)
            else:
                at += BYTES.get(wire_type, 0)
            yield tag >> 3, at, at + length
            at += length
    except IndexError:
        return


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Returns a number, which has seven bits in a byte, the lowest first, and the next place."""
    number, shift = 0, 0
    while True:
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:
            return number, at
        shift += 7

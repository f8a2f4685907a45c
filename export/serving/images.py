"""Encoded images on their way into the graph: the one place where a server looks at them.

They are read from their headers first, which tell how many pixels there are; only then, within the
limits, are those decoded of which the graph would see other pixels than a viewer shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import tensorflow as tf
from google.protobuf.message import DecodeError

from export.serving import json_reader, wire
from export.serving.errors import Code, RequestError
from refilled_tf.common.errors import InputError, require
from refilled_tf.data import pixels

FEATURE = "image/encoded"  # of a tf.Example
EXAMPLE_FIELDS = 2**13  # of a tf.Example, five for each of its features
DATA_URL = re.compile(r"\s*data:[^,]{0,100},")  # as browsers put it before base64
# The inputs that hold images, whatever their signature.
PLAIN = ("image_bytes", "support_bytes", "query_bytes")
EXAMPLES = ("examples", "inputs")
# What callers are told who have mistaken a signature for another.
TAKES_IMAGES = "the signature 'serving_bytes' takes images as they are"
TAKES_PIXELS = "the signature 'serving_tensor' takes pixels"

Result = TypeVar("Result")


class Images(NamedTuple):
    """The images of an input.

    Attributes:
        encoded: each image's file.
        pixels: how many they have together.
    """

    encoded: Sequence[bytes]
    pixels: int


def read(name: str, strings: Iterable[bytes]) -> Images:
    """Reads the headers of an input's images.

    Args:
        name: of the input, one of PLAIN or EXAMPLES.
        strings: what it holds.

    Raises:
        RequestError: one of them is not what it should be.
    """

    def opened(string: bytes) -> tuple[bytes, int]:
        encoded = _of_example(string) if name in EXAMPLES else string
        width, height = pixels.opened(encoded).size
        return encoded, width * height

    found = _each(name, strings, opened)
    return Images([encoded for encoded, _ in found], sum(count for _, count in found))


def for_graph(name: str, images: Images) -> list[bytes]:
    """Makes images into strings of which the graph sees the right pixels.

    Args:
        name: of the input.
        images: what `read` found in it.

    Returns:
        Files, or serialized tf.Examples without any other feature, as the input takes them.

    Raises:
        RequestError: one of them is damaged.
    """
    seen = _each(name, images.encoded, pixels.for_graph)
    return [_example(each) for each in seen] if name in EXAMPLES else seen


def _each(name: str, strings: Iterable[bytes], function: Callable[[bytes], Result]) -> list[Result]:
    """Returns what a function makes of each string; its errors begin with the place of the string.

    No context manager does that: its frames and the error that it replaces would hold each other.
    """
    results = []
    for row, string in enumerate(strings):
        try:
            results.append(function(string))
        except InputError as error:
            message = f"{name}[{row}]: {error}{_hint(string)}"
            raise RequestError(Code.INVALID_ARGUMENT, message) from error
    return results


def _of_example(string: bytes) -> bytes:
    """Returns the image in a serialized tf.Example."""
    try:
        features = _features(string)
        found: Sequence[bytes] = features[FEATURE].bytes_list.value if FEATURE in features else ()
        require(
            len(found) == 1,
            f"it is a tf.Example without the bytes of one image as its feature {FEATURE!r}",
        )
    except (DecodeError, InputError) as error:
        require(
            not _is_image(string),
            f"it is an image, where a serialized tf.Example with its feature {FEATURE!r} is "
            f"wanted; {TAKES_IMAGES}",
        )
        unread = isinstance(error, DecodeError)
        raise InputError("it is no serialized tf.Example") if unread else error from None
    return found[0]


def _features(string: bytes) -> Mapping[str, tf.train.Feature]:
    """Parses a serialized tf.Example."""
    wire.require_few_fields(string, tf.train.Example.DESCRIPTOR, EXAMPLE_FIELDS)
    return tf.train.Example.FromString(string).features.feature


def _example(encoded: bytes) -> bytes:
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    alone = tf.train.Features(feature={FEATURE: feature})
    return tf.train.Example(features=alone).SerializeToString()


def _hint(string: bytes) -> str:
    """Returns the rest of an error's line, if the string is base64 of what it should be."""
    try:
        content = json_reader.from_base64(DATA_URL.sub("", string.decode("ascii"), count=1))
    except ValueError:
        return ""
    if not _is_image(content) and not _is_example(content):
        return ""
    return "; it is base64, which JSON marks as {'b64': '…'}, without 'data:' before it"


def _is_example(content: bytes) -> bool:
    try:
        return FEATURE in _features(content)
    except (DecodeError, RequestError):
        return False


def _is_image(string: bytes) -> bool:
    try:
        return pixels.opened(string) is not None
    except InputError:
        return False

"""Encoded images on their way into the graph: the one place where a server looks at them.

What the graph cannot do with the bytes of an image, or not cheaply, belongs into `normalised`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from export.serving.errors import Code, RequestError, require_valid

FEATURE = "image/encoded"  # of a tf.Example
# By what a file begins with. Of the two classes only the header is asked for, no pixels.
READERS = {b"\xff\xd8\xff": JpegImageFile, b"\x89PNG\r\n\x1a\n": PngImageFile}


def normalised(encoded: bytes) -> tuple[bytes, int]:
    """Returns an image as the graph is to see it, and how many pixels it has.

    Raises:
        RequestError: it is neither JPEG nor PNG, or its header cannot be read.
    """
    reader = _reader(encoded)
    require_valid(reader is not None, "neither JPEG nor PNG")
    try:
        width, height = reader(io.BytesIO(encoded)).size
    except Exception as error:  # as many kinds as a header can be broken in
        message = f"the header cannot be read: {error}"
        raise RequestError(Code.INVALID_ARGUMENT, message) from error
    return encoded, width * height


def normalised_example(example: bytes) -> tuple[bytes, int]:
    """Does the same to the image in a serialized tf.Example; its other features are left out.

    Raises:
        RequestError: it is no such Example, or `normalised` refuses its image.
    """
    require_valid(
        _reader(example) is None,
        f"an image, where a serialized tf.Example with its feature {FEATURE!r} is wanted; the "
        "signature 'serving_bytes' takes images as they are",
    )
    try:
        features = tf.train.Example.FromString(example).features.feature
    except DecodeError as error:
        message = "no serialized tf.Example"
        raise RequestError(Code.INVALID_ARGUMENT, message) from error
    found = features[FEATURE].bytes_list.value if FEATURE in features else ()
    require_valid(
        len(found) == 1, f"a tf.Example without the bytes of one image as its feature {FEATURE!r}"
    )
    encoded, pixels = normalised(found[0])
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    alone = tf.train.Example(features=tf.train.Features(feature={FEATURE: feature}))
    return alone.SerializeToString(), pixels


# By the name of an input, whatever its signature.
NORMALISERS: dict[str, Callable[[bytes], tuple[bytes, int]]] = {
    "image_bytes": normalised,
    "support_bytes": normalised,
    "query_bytes": normalised,
    "examples": normalised_example,
    "inputs": normalised_example,
}


def normalise(name: str, strings: Sequence[bytes]) -> tuple[Sequence[bytes], int]:
    """Normalises all images of an input, and counts their pixels.

    Args:
        name: of the input; one that holds no images passes as it is.
        strings: what it holds.

    Raises:
        RequestError: one of them is not what it should be.
    """
    if name not in NORMALISERS:
        return strings, 0
    images, total = [], 0
    for row, string in enumerate(strings):
        try:
            image, pixels = NORMALISERS[name](string)
        except RequestError as error:
            raise RequestError(error.code, f"{name}[{row}]: {error.message}") from error
        images.append(image)
        total += pixels
    return images, total


def _reader(encoded: bytes) -> type | None:
    return next((READERS[head] for head in READERS if encoded.startswith(head)), None)

"""The pixels of an image file: one definition for training, scoring, serving and the client.

It is what a viewer shows, as Pillow decodes it: turned as EXIF says, the first frame, 16 bits cut
to 8, what is transparent on white. `sources.decode_image`, which goes into exports, does the same
for whole JPEG and PNG that are not turned; `for_graph` makes every other file into one of those.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps

from refilled_tf.common.errors import InputError, require

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
ORIENTATION = 0x0112  # EXIF's tag
PNG_HEAD = 8  # bytes before the first chunk
PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # all chunks that a decoder must know
# One of them stands in a PNG that says how it is turned, perhaps behind its pixels.
PNG_TURNS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def opened(encoded: bytes | BinaryIO) -> PIL.Image.Image:
    """Reads an image's header.

    Args:
        encoded: the file's content, or the file.

    Raises:
        InputError: it is no image, or has more pixels than Pillow dares to read.
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    require(file.read(1) != b"", "it is empty")
    file.seek(0)
    try:
        return PIL.Image.open(file, formats=FORMATS)
    except PIL.Image.DecompressionBombError as error:
        most, found = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0), re.search(r"\d+", str(error))
        size = f"{int(found[0]) // 10**6} megapixels, " if found else ""
        raise InputError(
            f"it has {size}more than the {most // 10**6} megapixels that are read; make it smaller"
        ) from error
    except Exception as error:  # Pillow raises whatever a format's reader raised.
        raise InputError("it is no JPEG, PNG, BMP, GIF or WebP") from error


def decode(encoded: bytes) -> np.ndarray:
    """Decodes an image as a viewer shows it.

    Args:
        encoded: the file's content.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        InputError: it is no image, or a damaged one.
    """
    image = opened(encoded)
    try:
        image.load()
        image = PIL.ImageOps.exif_transpose(image)
    except Exception as error:
        raise InputError(f"it is damaged: {error}") from error
    if image.mode.startswith("I"):
        image = PIL.Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def for_graph(encoded: bytes) -> bytes:
    """Makes a file into one of which an export's graph sees the pixels that `decode` returns.

    Args:
        encoded: the file's content.

    Returns:
        The same bytes, where the graph sees them right; else an opaque PNG of its pixels.

    Raises:
        InputError: as `decode`.
    """
    image = opened(encoded)
    # Pillow decodes the whole of a PNG to look for its orientation.
    upright = image.format == "PNG" and not any(mark in encoded for mark in PNG_TURNS)
    try:
        turned = not upright and image.getexif().get(ORIENTATION, 1) != 1
    except Exception as error:
        raise InputError(f"it is damaged: {error}") from error
    if not turned and (_is_plain_jpeg(image) or _is_plain_png(image, encoded)):
        return encoded
    out = io.BytesIO()
    PIL.Image.fromarray(decode(encoded)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _is_plain_jpeg(image: PIL.Image.Image) -> bool:
    """Tells whether a file is a JPEG whose colours TensorFlow sees as Pillow does.

    Inks without a whole Adobe marker, which says that they are stored inverted, are so to Pillow
    and not to TensorFlow.
    """
    # MPO is how Pillow names a JPEG that more of them follow in the same file, as cameras make it.
    is_jpeg = image.format in ("JPEG", "MPO")
    return is_jpeg and (image.mode != "CMYK" or "adobe_transform" in image.info)


def _is_plain_png(image: PIL.Image.Image, encoded: bytes) -> bool:
    """Tells whether a file is a PNG of which TensorFlow sees the colours, and does not refuse it.

    Pillow is content when it has all pixels; TensorFlow reads on to the end, and checks all sums.
    """
    if image.format != "PNG" or "transparency" in image.info:
        return False
    at, name = PNG_HEAD, b""
    while name != b"IEND":
        if at + 12 > len(encoded):
            return False
        length, name = struct.unpack_from(">I4s", encoded, at)
        end = at + 8 + length
        is_sound = encoded[end : end + 4] == struct.pack(
            ">I", zlib.crc32(memoryview(encoded)[at + 4 : end])
        )
        if not is_sound or (name[:1].isupper() and name not in PNG_CRITICAL):
            return False
        at = end + 4
    return True

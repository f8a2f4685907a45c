"""Image files that a server has to cope with."""

import io
import struct
import zlib

import numpy as np
import tensorflow as tf

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
JPEG = tf.io.encode_jpeg(PIXELS).numpy()
NOISE_PNG = tf.io.encode_png(PIXELS).numpy()


def encoded(image, kind, **options):
    """Writes a Pillow image as a file of a kind, such as "WEBP"."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def black_png(width, height, before_header=b""):
    """Writes a grey PNG of one colour, which is a thousandth of its pixels in bytes."""
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + width) * height))
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + before_header + chunks


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def giant_jpeg():
    """Makes a JPEG whose header speaks of 65,000 × 65,000 pixels."""
    sizes = JPEG.index(b"\xff\xc0") + 5  # behind the frame's marker, length and precision
    return JPEG[:sizes] + struct.pack(">2H", 65_000, 65_000) + JPEG[sizes + 4 :]


# What is no image to be served: name to content and message. 65,000² is 4,225,000,000.
BAD = {
    "nothing": (b"", "assertion failed: [an image is neither JPEG nor PNG]"),
    "text": (b"no image", "assertion failed: [an image is neither JPEG nor PNG]"),
    "gif": (b"GIF89a" + bytes(40), "assertion failed: [an image is neither JPEG nor PNG]"),
    "50 megapixels": (
        black_png(10_000, 5_000),
        "assertion failed: [an image has 50000000 pixels, the limit is 33554432]",
    ),
    "50 megapixels behind a chunk that says less": (
        black_png(10_000, 5_000, before_header=_chunk(b"abCd", struct.pack(">2I", 4, 4))),
        "assertion failed: [an image is neither JPEG nor PNG]",
    ),
    "giant jpeg": (
        giant_jpeg(),
        "assertion failed: [an image has 4225000000 pixels, the limit is 33554432]",
    ),
    "half a jpeg": (
        JPEG[: len(JPEG) // 2],
        "jpeg::Uncompress failed. Invalid JPEG data or crop window.",
    ),
    "beginning of a jpeg": (JPEG[:30], "Invalid JPEG data, size 30"),
    "beginning of a png": (NOISE_PNG[:20], "Invalid PNG. Failed to initialize decoder."),
    "half a png": (NOISE_PNG[:2000], "Invalid PNG data, size 2000"),
}

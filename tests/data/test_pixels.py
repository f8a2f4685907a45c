"""The pixels of some 60 kinds of files, by Pillow and by the graph that exports have.

What is expected is what Pillow was told to save, laid on white by NumPy; or, where Pillow cannot
write such a file, its own decoding.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
import types
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import records
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.data import pixels, sources
from refilled_tf.data.resizing import to_square
from refilled_tf.data.sources import decode_image

RANDOM = np.random.default_rng(0)
HEIGHT, WIDTH = 24, 16


def _noise(*channels, top=256):
    return RANDOM.integers(0, top, (HEIGHT, WIDTH, *channels)).astype(np.uint8)


def _smooth():
    """A colourful gradient, which JPEG keeps nearly as it is."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([8 * rows, 12 * columns, 4 * (rows + columns)], axis=-1).astype(np.uint8)


def _file(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _on_white(rgba):
    alpha = rgba[..., 3:].astype(float) / 255
    return np.round(rgba[..., :3] * alpha + 255 * (1 - alpha))


def _palette(bits, alphas=None):
    """A palette image of so many bits, and its colours, on white where it has alphas."""
    numbers = _noise(top=2**bits)
    colours = RANDOM.integers(0, 256, (2**bits, 3)).astype(np.uint8)
    image = PIL.Image.fromarray(numbers, "P")
    image.putpalette(colours.ravel().tolist())
    options = {} if alphas is None else {"transparency": bytes(alphas)}
    opacity = np.full(2**bits, 255) if alphas is None else np.array(alphas)
    rgba = np.concatenate([colours, opacity[:, np.newaxis]], axis=1)[numbers]
    return _file(image, bits=bits, **options), _on_white(rgba)


def _chunk(name, content):
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def _raw_png(depth, kind, chunks=()):
    """A PNG that Pillow cannot write: `kind` is 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    length = -(-WIDTH * channels * depth // 8)
    rows = [RANDOM.integers(0, 256, length).astype(np.uint8).tobytes() for _ in range(HEIGHT)]

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _plain():
    """(name, file, expected, tolerance) of files that the graph takes as they are."""
    grey, rgb = _noise(), _noise(3)
    three = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    yield "grey PNG", _file(PIL.Image.fromarray(grey)), three, 0
    yield "RGB PNG", _file(PIL.Image.fromarray(rgb)), rgb, 0
    rgba = _noise(4)
    yield "RGBA PNG", _file(PIL.Image.fromarray(rgba)), _on_white(rgba), 1
    two = _noise(2)
    both = np.concatenate([np.repeat(two[..., :1], 3, axis=-1), two[..., 1:]], axis=-1)
    yield "grey and alpha PNG", _file(PIL.Image.fromarray(two, "LA")), _on_white(both), 1
    for bits in (1, 2, 4, 8):
        yield f"{bits}-bit palette PNG", *_palette(bits), 0
    ink = PIL.Image.fromarray(np.where(grey < 128, 0, 255).astype(np.uint8)).convert("1")
    yield "1-bit PNG", _file(ink), np.where(three < 128, 0, 255), 0
    for depth in (1, 2, 4):
        file = _raw_png(depth, 0)
        yield f"{depth}-bit grey PNG", file, pixels.decode(file), 0
    for name, kind in (("grey", 0), ("RGB", 2), ("grey and alpha", 4), ("RGBA", 6)):
        file = _raw_png(16, kind)
        yield f"16-bit {name} PNG", file, pixels.decode(file), 1
    smooth = _smooth()
    yield "JPEG", _file(PIL.Image.fromarray(smooth), "JPEG", quality=95), smooth, 16
    options = {"quality": 95, "progressive": True}
    yield "progressive JPEG", _file(PIL.Image.fromarray(smooth), "JPEG", **options), smooth, 16
    one = smooth[..., :1].repeat(3, axis=-1)
    more = [PIL.Image.fromarray(smooth[::-1].copy())]
    options = {"quality": 95, "save_all": True, "append_images": more}
    yield "JPEG of several", _file(PIL.Image.fromarray(smooth), "MPO", **options), smooth, 16
    file = _file(PIL.Image.fromarray(smooth).convert("CMYK"), "JPEG", quality=95)
    yield "CMYK JPEG", file, smooth, 16
    yield "grey JPEG", _file(PIL.Image.fromarray(one[..., 0]), "JPEG", quality=95), one, 8


def _prepared():
    """(name, file, expected, tolerance) of files that need `for_graph`."""
    grey, rgb = _noise(), _noise(3)
    image = PIL.Image.fromarray(rgb)
    for bits in (1, 2, 4, 8):
        alphas = RANDOM.integers(0, 256, 2**bits).tolist()
        yield f"{bits}-bit palette PNG with transparency", *_palette(bits, alphas), 1
    seen = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    clear = np.where(seen == grey[0, 0], 255, seen)
    file = _file(PIL.Image.fromarray(grey), transparency=int(grey[0, 0]))
    yield "grey PNG with a transparent grey", file, clear, 0
    missing = (rgb == rgb[0, 0]).all(axis=-1, keepdims=True)
    file = _file(image, transparency=tuple(int(x) for x in rgb[0, 0]))
    yield "RGB PNG with a transparent colour", file, np.where(missing, 255, rgb), 0
    for depth, kind, chunk in ((2, 0, "H"), (4, 0, "H"), (16, 0, "H"), (16, 2, "HHH")):
        clear = struct.pack(f">{chunk}", *([1] * len(chunk)))
        file = _raw_png(depth, kind, [(b"tRNS", clear)])
        yield f"{depth}-bit PNG with tRNS, kind {kind}", file, pixels.decode(file), 1
    for orientation in range(2, 9):
        exif = PIL.Image.Exif()
        exif[pixels.ORIENTATION] = orientation
        turned = np.asarray(_turned(PIL.Image.fromarray(_smooth()), orientation))
        file = _file(PIL.Image.fromarray(_smooth()), "JPEG", quality=95, exif=exif)
        yield f"JPEG, orientation {orientation}", file, turned, 16
        file = _file(image, exif=exif)
        yield f"PNG, orientation {orientation}", file, np.asarray(_turned(image, orientation)), 0
    yield "BMP", _file(image, "BMP"), rgb, 0
    yield "grey BMP", _file(PIL.Image.fromarray(grey), "BMP"), seen, 0
    palette = PIL.Image.fromarray(grey, "P")
    palette.putpalette(RANDOM.integers(0, 256, 768).tolist())
    shown = np.asarray(palette.convert("RGB"))
    yield "palette BMP", _file(palette, "BMP"), shown, 0
    yield "GIF", _file(palette, "GIF"), shown, 0
    others = [PIL.Image.fromarray(_noise(3)) for _ in range(2)]
    file = _file(image, "WEBP", lossless=True, save_all=True, append_images=others)
    yield "animated WebP", file, rgb, 0
    yield "WebP", _file(image, "WEBP", lossless=True), rgb, 0
    rgba = _noise(4)
    file = _file(PIL.Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
    yield "WebP with alpha", file, _on_white(rgba), 1
    smooth = _smooth()
    inks = _file(PIL.Image.fromarray(smooth).convert("CMYK"), "JPEG", quality=95)
    start = inks.index(b"\xff\xee")
    for name, length in (("no", 0), ("half an", 11)):  # of the 12 bytes behind the marker's length
        marker = b"\xff\xee" + struct.pack(">H", 2 + length) + inks[start + 4 : start + 4 + length]
        file = inks[:start] + (marker if length else b"") + inks[start + 16 :]
        yield f"CMYK JPEG with {name} Adobe marker", file, smooth, 16
    # All pixels are there. Length, name and sum make 12 bytes of the last chunk.
    file = _file(image)
    for length in (1, 4, 12):
        yield f"PNG without its last {length} bytes", file[:-length], rgb, 0
    yield "PNG with a wrong last sum", file[:-1] + bytes([file[-1] ^ 1]), rgb, 0
    yield (
        "PNG with a wrong sum of its pixels",
        file[:-13] + bytes([file[-13] ^ 1]) + file[-12:],
        rgb,
        0,
    )
    yield (
        "PNG with a chunk that nobody knows",
        file[:-12] + _chunk(b"ABCD", b"") + file[-12:],
        rgb,
        0,
    )


def _turned(image, orientation):
    """What a viewer shows of an image that is stored with this orientation, as EXIF 2.3 has it."""
    transpose = PIL.Image.Transpose
    ways = [
        transpose.FLIP_LEFT_RIGHT,
        transpose.ROTATE_180,
        transpose.FLIP_TOP_BOTTOM,
        transpose.TRANSPOSE,
        transpose.ROTATE_270,
        transpose.TRANSVERSE,
        transpose.ROTATE_90,
    ]
    return image.transpose(ways[orientation - 2])


PLAIN, PREPARED = list(_plain()), list(_prepared())
ALL = PLAIN + PREPARED


def _difference(found, expected):
    assert found.shape == expected.shape
    return np.abs(found.astype(float) - expected).max()


def _in_graph(encoded, shape):
    """What an export sees, before it is resized."""
    found = sources._decoded(tf.constant(encoded)).numpy()
    assert found.shape == shape
    return found


@pytest.mark.parametrize(
    ("file", "expected", "most"), [x[1:] for x in ALL], ids=[x[0] for x in ALL]
)
def test_pillow_shows_what_was_saved(file, expected, most):
    assert _difference(pixels.decode(file), expected) <= most


@pytest.mark.parametrize("file", [x[1] for x in ALL], ids=[x[0] for x in ALL])
def test_graph_sees_the_same_of_what_it_is_handed(file):
    """To the rounding of JPEG and of alpha."""
    shown = pixels.decode(file)
    handed = pixels.for_graph(file)
    most = 6 if handed.startswith(b"\xff\xd8") else 2
    assert _difference(_in_graph(handed, shown.shape), shown) <= most


def _records(folder):
    """The same files as examples of TFX's, in the order of `ALL`."""
    for split, files in (("train", ALL), ("test", ALL[:1])):
        written = [records.example(encoded=x[1], label=place) for place, x in enumerate(files)]
        records.write(folder / split, written)
    source = sources.ExampleFiles([f"{folder}/train"], [f"{folder}/test"])
    return source, [f"train/{hashlib.sha256(x[1]).hexdigest()[:16]}/1" for x in ALL]


def _dataset(monkeypatch):
    """The same files as a dataset of TFDS's."""
    keys = [f"{place:02}" for place in range(len(ALL))]
    columns = {"id": keys, "image": [x[1] for x in ALL]}
    made = types.SimpleNamespace(
        name="made",
        info=types.SimpleNamespace(splits=("train",), features=dict.fromkeys(columns)),
        as_dataset=lambda **_: tf.data.Dataset.from_tensor_slices(columns),
    )
    monkeypatch.setattr(sources.TfdsSource, "builder", lambda self, data_dir: made)
    return sources.TfdsSource("made", ("train",), "id"), keys


@pytest.mark.parametrize("kind", ["records", "dataset"])
def test_sources_of_files_show_what_pillow_shows(kind, tmp_path, monkeypatch):
    """To the rounding of JPEG and of alpha; sides are resized to a square in either case.

    But for PNGs whose end, sums or chunks are wrong: those count as damaged.
    """
    source, keys = _records(tmp_path) if kind == "records" else _dataset(monkeypatch)
    images, readable = source.images(keys, WIDTH, None)
    sound = [not x[0].startswith(("PNG with a ", "PNG without its ")) for x in ALL]
    assert sum(sound) == len(ALL) - 6
    assert readable.tolist() == sound
    for (name, file, *_), image in itertools.compress(zip(ALL, images, strict=True), sound):
        wanted = to_square(tf.constant(pixels.decode(file)), WIDTH).numpy()
        assert _difference(image, wanted) <= (6 if "JPEG" in name else 2), name


def test_ordinary_files_are_decoded_as_by_the_graph_alone(tmp_path):
    """So that trainings on CIFAR, whose PNGs are such, stay what they are to the bit."""
    source, keys = _records(tmp_path)
    images, _ = source.images(keys[: len(PLAIN)], WIDTH, None)
    for (name, file, *_), image in zip(PLAIN, images, strict=True):
        np.testing.assert_array_equal(image, decode_image(file, None, WIDTH), name)


@pytest.mark.parametrize("file", [x[1] for x in PLAIN], ids=[x[0] for x in PLAIN])
def test_what_the_graph_sees_right_is_handed_over_as_it_is(file):
    assert pixels.for_graph(file) is file


def test_resized_image_is_that_of_its_pixels():
    """Palette PNGs of 4 bits, which once came out nearly white."""
    file, expected = _palette(4)
    found = decode_image(tf.constant(file), None, 8).numpy().astype(float)
    wanted = tf.image.resize(expected, (8, 8), antialias=True).numpy()
    assert _difference(found, wanted) <= 1


def test_nearly_clear_pixels_are_no_opaque_ones():
    rgba = np.full((4, 4, 4), 200, np.uint8)
    rgba[..., 3] = 1
    found = _in_graph(_file(PIL.Image.fromarray(rgba)), (4, 4, 3))
    assert found.min() >= 254


@pytest.mark.parametrize("file", [b"", b"no image"])
def test_what_is_no_image_is_refused(file):
    with pytest.raises(InputError, match="it is"):
        pixels.for_graph(file)


def _damaged():
    """(name, file): what is cut into its pixels, or wrong in them."""
    image = PIL.Image.fromarray(np.tile(_smooth(), (20, 20, 1)))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        file = _file(image, kind)
        yield f"half a {kind}", file[: len(file) // 2]
    file = _file(image, "JPEG")
    yield "JPEG without its end", file[:-2]
    yield "JPEG with another header inside", file[:5000] + b"\xff\xc0" + file[5000:]
    file = _file(image)
    start = file.index(b"IDAT") + 40
    yield "PNG with a wrong pixel", file[:start] + bytes([file[start] ^ 1]) + file[start + 1 :]


DAMAGED = dict(_damaged())


@pytest.mark.parametrize("file", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_damage_to_training_and_to_the_graph(file):
    with pytest.raises(InputError, match="it is"):
        pixels.decode(file)
    with pytest.raises((InputError, tf.errors.InvalidArgumentError)):
        sources._decoded(tf.constant(pixels.for_graph(file)))


@pytest.mark.parametrize("length", [9, 24, 25])
def test_beginning_of_a_png_is_a_tensorflow_error(length):
    with pytest.raises(tf.errors.InvalidArgumentError, match="PNG"):
        sources._decoded(tf.constant(_file(PIL.Image.fromarray(_noise(3)))[:length]))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_broken_exif_is_damage_as_in_training(kind):
    file = _file(PIL.Image.fromarray(_smooth()), kind, exif=b"Exif\0\0neither endianness")
    for read in (pixels.decode, pixels.for_graph):
        with pytest.raises(InputError, match="it is damaged"):
            read(file)


def test_more_pixels_than_pillow_reads_are_said():
    """16,384² = 268 million, of the 2 · 89 million after which Pillow refuses."""
    file = _raw_png(8, 0)
    giant = struct.pack(">IIBBBBB", 2**14, 2**14, 8, 0, 0, 0, 0)
    checked = giant + struct.pack(">I", zlib.crc32(b"IHDR" + giant))
    with pytest.raises(InputError, match="it has 268 megapixels, more than the 178 megapixels"):
        pixels.opened(file[:16] + checked + file[16 + len(checked) :])

"""What the server sees of images before the graph does; sizes are those they were made with."""

import images as files
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from export.serving import images
from export.serving.errors import Code, RequestError

NO_IMAGE = "it is no JPEG, PNG, BMP, GIF or WebP"
NOT_ONE = "it is a tf.Example without the bytes of one image"
WIDTH, HEIGHT = 30, 40  # of files.PIXELS


def _example(*encoded, **others):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))
    text = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()])) for
            name, value in others.items()}  # fmt: skip
    features = tf.train.Features(feature={"image/encoded": feature, **text})
    return tf.train.Example(features=features).SerializeToString()


@pytest.mark.parametrize("name", images.PLAIN)
def test_pixels_of_all_images_are_counted(name):
    large = files.black_png(1000, 7)
    strings = [files.NOISE_PNG, files.JPEG, large]
    assert images.read(name, strings) == (strings, 2 * WIDTH * HEIGHT + 7000)


@pytest.mark.parametrize("name", images.EXAMPLES)
def test_examples_keep_their_image_alone(name):
    found = images.read(name, [_example(files.JPEG, text="a"), _example(files.NOISE_PNG)])
    assert found == ([files.JPEG, files.NOISE_PNG], 2 * WIDTH * HEIGHT)
    assert images.for_graph(name, found) == [_example(files.JPEG), _example(files.NOISE_PNG)]


@pytest.mark.parametrize("name", ["query_bytes", "examples"])
def test_graph_gets_what_a_viewer_shows(name):
    """A turned JPEG, and formats that the graph cannot read; PNGs keep the pixels exactly."""
    image = PIL.Image.fromarray(files.PIXELS)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, clockwise
    given = [files.encoded(image, kind, exif=exif) for kind in ("PNG", "WEBP")]
    given += [files.encoded(image, "BMP")]
    wrap = _example if name == "examples" else bytes
    strings = images.for_graph(name, images.read(name, [wrap(file) for file in given]))
    seen = [images.read(name, [string]).encoded[0] for string in strings]
    turned, lossy, plain = (tf.io.decode_png(file).numpy() for file in seen)
    np.testing.assert_array_equal(turned, np.rot90(files.PIXELS, -1))
    assert lossy.shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(plain, files.PIXELS)


def test_damaged_image_is_named():
    gif = files.encoded(PIL.Image.fromarray(files.PIXELS), "GIF")
    found = images.read("image_bytes", [files.JPEG, gif[: len(gif) // 2]])
    with pytest.raises(RequestError, match=r"image_bytes\[1\]: it is damaged"):
        images.for_graph("image_bytes", found)


@pytest.mark.parametrize(
    ("name", "string", "message"),
    [
        ("image_bytes", b"", "image_bytes[1]: it is empty"),
        ("query_bytes", b"BM" + bytes(60), f"query_bytes[1]: {NO_IMAGE}"),
        ("image_bytes", files.JPEG[:30], f"image_bytes[1]: {NO_IMAGE}"),
        ("image_bytes", files.NOISE_PNG[:20], f"image_bytes[1]: {NO_IMAGE}"),
        ("examples", b"\xff", "examples[1]: it is no serialized tf.Example"),
        ("examples", files.JPEG, "examples[1]: it is an image, where"),
        ("examples", b"", f"examples[1]: {NOT_ONE}"),
        ("inputs", _example(), f"inputs[1]: {NOT_ONE}"),
        ("inputs", _example(b"", b""), f"inputs[1]: {NOT_ONE}"),
        ("inputs", _example(b"a"), f"inputs[1]: {NO_IMAGE}"),
    ],
)
def test_what_is_refused(name, string, message):
    good = files.JPEG if name.endswith("_bytes") else _example(files.JPEG)
    with pytest.raises(RequestError) as caught:
        images.read(name, [good, string])
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert caught.value.message.startswith(message)

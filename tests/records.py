"""TFRecord files of tf.Examples, as TFX's ExampleGen hands them over."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf


def png(pixels) -> bytes:
    """Encodes [H, W, 3] or [H, W, 1]."""
    return tf.io.encode_png(np.asarray(pixels, np.uint8)).numpy()


def example(**values) -> bytes:
    """Returns a serialized tf.Example; `label=3` becomes its feature "image/class/label"."""
    names = {"encoded": "image/encoded", "label": "image/class/label", "text": "image/class/text"}
    features = {names[key]: _feature(value) for key, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _feature(value) -> tf.train.Feature:
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    if isinstance(value, float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    value = value.encode() if isinstance(value, str) else value
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def write(path: Path, records: Iterable[bytes]) -> None:
    """Writes a file of records; as in the pipelines, .gz says that it is compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), "GZIP" if path.suffix == ".gz" else "") as writer:
        for record in records:
            writer.write(record)
